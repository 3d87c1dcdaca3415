"""The trainer of ipt-jax: record shards -> tokens -> packed rows -> train step -> checkpoint.

It never imports torch or ``data_gen``. Modules are imported by name; nothing happens on import.
"""

__version__ = "0.1.0"
