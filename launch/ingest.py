"""Make record shards of any corpus, or of data sets of instructions and responses.

python launch/ingest.py --config configs/ingest/general_instructions.yaml
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    import json
    import sys
    from pathlib import Path

    from data_gen.ingest import IngestConfig, ingest
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files


def main() -> None:
    """Read the config, run, print the counts."""
    config = parse_config(
        IngestConfig,
        sys.argv[1:],
        prog="launch/ingest.py",
        description="A corpus, or pairs of instruction and response -> record shards.",
    )
    summary = ingest(config, on_start=lambda folder: write_run_files(folder, config))
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    total = sum(summary["rejected"].values())
    print(f"{summary['records_in']:,} in = {summary['records_out']:,} out + {total:,} rejected")
    print(f"written to {Path(config.output).expanduser().resolve() / 'shards'}")


if __name__ == "__main__":
    run_main(main)
