"""Compiled steps, kept on disk for the next start."""

from __future__ import annotations

from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def enable_compilation_cache(folder: Path | None) -> None:
    """Keep compiled programs in `folder` and look for them there; call before the first is made.

    Every program is kept, however small: a start makes a few large ones and many small ones, and
    waits for all. An entry serves the same program, jaxlib, devices and XLA flags only. Entries
    are code that will be run: the folder is made readable to its owner alone, and should be on
    nobody else's disk. An entry that was cut short is warned of, not used, and not replaced: delete
    the folder then. With None nothing changes (JAX_COMPILATION_CACHE_DIR still has its effect).
    """
    if folder is None:
        return
    folder = folder.expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # one that was opened for another folder would go on serving
