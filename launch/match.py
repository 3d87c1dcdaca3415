"""A bank of templates, an encoder tuned to match documents with it, the threshold that it needs.

python launch/match.py bank --config configs/match/fi_bank.yaml
python launch/match.py tune --config configs/match/fi_encoder_round_1.yaml
python launch/match.py calibrate --config configs/match/fi_threshold.yaml
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    import argparse
    import json
    from functools import partial
    from pathlib import Path

    from data_gen.fine_instructions.bank import BankConfig, build_bank
    from data_gen.fine_instructions.tune_matching import (
        CalibrateConfig,
        TuneEncoderConfig,
        run_calibration,
        run_tuning,
    )
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files

KINDS = {
    "bank": (BankConfig, build_bank, "templates -> vectors and an index of them"),
    "tune": (TuneEncoderConfig, run_tuning, "judged pairs -> a tuned encoder"),
    "calibrate": (CalibrateConfig, run_calibration, "judged pairs -> a threshold"),
}


def main() -> None:
    """Read the config, do it, print what came out."""
    parser = argparse.ArgumentParser(
        prog="launch/match.py",
        description="FineInstructions, section 3.2: what matching is made of. "
        + "; ".join(f"{kind}: {about}" for kind, (_, _, about) in KINDS.items()),
        epilog="`launch/match.py KIND --help` lists the keys of each kind.",
    )
    parser.add_argument("kind", choices=list(KINDS), help="what is made")
    parser.add_argument("keys", nargs=argparse.REMAINDER, help="--config FILE.yaml, --key value")
    given = parser.parse_args()
    cls, make, about = KINDS[given.kind]
    config = parse_config(cls, given.keys, prog=f"{parser.prog} {given.kind}", description=about)
    tell = partial(print, flush=True)
    made = make(config, tell, on_start=lambda folder: write_run_files(folder, config))
    print(json.dumps(made, indent=1))
    print(f"written to {Path(config.output).expanduser().resolve()}")


if __name__ == "__main__":
    run_main(main)
