"""Pass record shards through the quality gates.

python launch/filter.py --config configs/quality/raw_corpus.yaml
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    import json
    import sys
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from data_gen.quality.decontaminate import RULES, SetCounts, contamination_table
    from data_gen.quality.stage import Filter, FilterConfig
    from data_gen.stages.stage import run_stage
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files


def main() -> None:
    """Read the config, run, print the counts."""
    config = parse_config(
        FilterConfig,
        sys.argv[1:],
        prog="launch/filter.py",
        description="Quality gates: record shards -> record shards and rejected/.",
    )
    with Progress(console=Console(stderr=True)) as bars:
        tasks = {}

        def tell(gates: str, done: int, total: int) -> None:
            if gates not in tasks:
                tasks[gates] = bars.add_task(gates, total=total)
            bars.update(tasks[gates], completed=done)

        stage = Filter(config, tell=tell)
        summary = run_stage(stage, on_start=lambda folder: write_run_files(folder, config))
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    for step in summary["gates"]:
        if step["gate"] in RULES:
            counts = {name: SetCounts(**found) for name, found in step["evaluations"].items()}
            print(f"\n{step['gate']}\n\n{contamination_table(counts)}\n")
    print(f"{summary['in']} in = {summary['out']} out + {summary['rejected']} rejected")
    folder = Path(config.output).expanduser().resolve()
    print(f"written to {folder}")
    failed = stage.failed_requests(summary)
    failed.tell(config.judge.engine.max_failed_share, folder / "rejected")


if __name__ == "__main__":
    run_main(main)
