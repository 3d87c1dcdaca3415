"""Data sets to a tuned synthesizer: python launch/tune.py --config configs/tune/smollm2_135m.yaml.

With `students` in place of data sets, a teacher's records to a model that does the same:
python launch/tune.py --config configs/tune/fi_genericizer_smollm2.yaml.

Run again, it goes on where it stopped and skips what is done; --fresh starts over.
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.chains.tune import TuneConfig, run_tune
    from ipt_jax.core.configuration import parse_config, run_main


def main() -> None:
    """Read the config, run the chain, say where the result is."""
    config = parse_config(TuneConfig, None, prog="launch/tune.py", description=__doc__ or "")
    print(f"tuned: {run_tune(config).resolve()}")


if __name__ == "__main__":
    run_main(main)
