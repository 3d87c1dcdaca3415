"""Make a baseline's record shards, without a model: see USAGE."""

from __future__ import annotations

from ipt_jax.core.interrupts import importing

with importing():
    import json
    import sys
    from pathlib import Path
    from typing import Any

    from data_gen.baselines.config import ReadingComprehensionConfig
    from data_gen.baselines.random_pairs import RandomPairsConfig, run_random_pairs
    from data_gen.baselines.stage import run_reading_comprehension
    from data_gen.progress import terminal_progress
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files
    from ipt_jax.core.errors import UserError, nearest

USAGE = """usage: launch/baseline.py {reading_comprehension,random_pairs} [--help] [--key value ...]

reading_comprehension  rules in place of the synthesizer (Cheng et al., 2023):
  launch/baseline.py reading_comprehension --domain finance --input '[corpus/*.jsonl.gz]'
random_pairs           an augmented corpus whose pairs belong to other texts:
  launch/baseline.py random_pairs --synthesis runs/synthesis --output runs/random_pairs
"""


def reading_comprehension(config: ReadingComprehensionConfig) -> dict[str, Any]:
    with terminal_progress("reading comprehension") as progress:
        return run_reading_comprehension(
            config, progress, on_start=lambda folder: write_run_files(folder, config)
        )


def random_pairs(config: RandomPairsConfig) -> dict[str, Any]:
    return run_random_pairs(config, on_start=lambda folder: write_run_files(folder, config))


KINDS = {
    "reading_comprehension": (ReadingComprehensionConfig, reading_comprehension),
    "random_pairs": (RandomPairsConfig, random_pairs),
}


def main() -> None:
    """Read the config, run, print the counts."""
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind in ("-h", "--help"):
        print(USAGE)
        return
    if kind not in KINDS:
        raise UserError(
            f"launch/baseline.py: say first which baseline, not {kind!r}. {nearest(kind, KINDS)}"
        )
    cls, make = KINDS[kind]
    config = parse_config(
        cls,
        sys.argv[2:],
        prog=f"launch/baseline.py {kind}",
        description="A baseline's record shards, without a model.",
    )
    print(json.dumps(make(config), indent=1, ensure_ascii=False))
    print(f"written to {Path(config.output).expanduser().resolve()}")


if __name__ == "__main__":
    run_main(main)
