"""Make instruction-augmented record shards out of a raw corpus.

python launch/synthesize.py --config configs/synthesize/quickstart.yaml
"""

from __future__ import annotations

from ipt_jax.core.interrupts import importing

with importing():
    import json
    import sys
    from pathlib import Path

    from data_gen.estimate import print_estimate
    from data_gen.failed_requests import FailedRequests
    from data_gen.instruction_pretrain.config import SynthesisConfig
    from data_gen.instruction_pretrain.pipeline import estimate_synthesis, run_synthesis
    from data_gen.progress import terminal_progress
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files
    from ipt_jax.evaluation.synthesis_page import synthesis_report


def main() -> None:
    """Read the config, run, print the summary."""
    config = parse_config(
        SynthesisConfig,
        sys.argv[1:],
        prog="launch/synthesize.py",
        description="Instruction Pre-Training synthesis: raw corpus -> record shards.",
    )
    if config.dry_run:
        with terminal_progress("sample") as progress:
            found = estimate_synthesis(config, progress)
        print_estimate(found)
        return
    with terminal_progress("synthesis", config.gpus, config.price_per_gpu_hour) as progress:
        summary = run_synthesis(
            config, progress, on_start=lambda folder: write_run_files(folder, config)
        )
    print(json.dumps(summary, indent=1))
    folder = Path(config.output).expanduser().resolve()
    print(f"written to {folder}, with card.md and {synthesis_report(folder).name}")
    failed = FailedRequests.of_summary(summary)
    failed.tell(config.engine.max_failed_share, folder / "rejected")


if __name__ == "__main__":
    run_main(main)
