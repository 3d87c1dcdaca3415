"""Make record shards by one of the methods: python launch/synthesize.py --config FILE.yaml

The config's key `method` names it, or `--method`: instruction_pretrain (where nothing is named),
reading_comprehension, random_pairs, rewrite, FineInstructions' steps (fi_queries,
fi_templates, fi_descriptions, fi_pairs_mined, fi_match, fi_instantiate, fi_budget, fi_students,
fi_categories), or
fine_instructions, the chain of these. With `--method NAME --help` its keys are listed.
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    import json
    from pathlib import Path

    from data_gen.methods import CHAINS, METHODS, stage_of
    from data_gen.stages.config import AskingConfig
    from data_gen.stages.estimate import print_estimate
    from data_gen.stages.failed_requests import FailedRequests
    from data_gen.stages.page import synthesis_report
    from data_gen.stages.progress import terminal_progress
    from data_gen.stages.stage import estimate_stage, run_stage
    from ipt_jax.core.configuration import choice_of, parse_config, run_main, write_run_files


def main() -> None:
    """Read the config, run, print the summary."""
    method = choice_of("method", [*METHODS, *CHAINS], default="instruction_pretrain")
    cls = CHAINS[method][0] if method in CHAINS else METHODS[method].Config
    config = parse_config(cls, None, prog="launch/synthesize.py", description=__doc__ or "")
    if method in CHAINS:
        *_, (step, summary) = CHAINS[method][1](config).items()
        print(json.dumps(summary, indent=1))
        print(f"written to {Path(config.output) / step}, with report.html beside it")
        return
    stage, asking = stage_of(config), config if isinstance(config, AskingConfig) else AskingConfig()
    if asking.dry_run:
        with terminal_progress("sample") as progress:
            found = estimate_stage(stage, progress)
        print_estimate(found)
        return
    with terminal_progress(method, asking.gpus, asking.price_per_gpu_hour) as progress:
        summary = run_stage(
            stage, progress, on_start=lambda folder: write_run_files(folder, config)
        )
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    folder = Path(config.output).expanduser().resolve()
    print(f"written to {folder}, with card.md and {synthesis_report(folder).name}")
    failed = FailedRequests.of_summary(summary)
    failed.tell(asking.engine.max_failed_share, folder / "rejected")


if __name__ == "__main__":
    run_main(main)
