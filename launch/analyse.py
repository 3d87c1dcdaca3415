"""Measure a synthesizer on held-out examples, what a synthesised corpus holds, or instructions.

python launch/analyse.py synthesizer --config configs/analyse/ipt_synthesizer.yaml
python launch/analyse.py corpus --config configs/analyse/ipt_corpus.yaml
python launch/analyse.py instructions --config configs/analyse/fi_instructions.yaml
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    import argparse

    from data_gen.fine_instructions.analysis import InstructionAnalysis, analyse_instructions
    from data_gen.instruction_pretrain.analysis.config import CorpusAnalysis, SynthesizerAnalysis
    from data_gen.instruction_pretrain.analysis.corpus import analyse_corpus
    from data_gen.instruction_pretrain.analysis.synthesizer import analyse_synthesizer
    from data_gen.stages.measurement import PAGE_NAME, TABLES_NAME, hold_analysis
    from data_gen.stages.progress import terminal_progress
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files

KINDS = {
    "synthesizer": (SynthesizerAnalysis, analyse_synthesizer),
    "corpus": (CorpusAnalysis, analyse_corpus),
    "instructions": (InstructionAnalysis, analyse_instructions),
}


def main() -> None:
    """Read the config, measure, print the tables."""
    parser = argparse.ArgumentParser(
        prog="launch/analyse.py",
        description="Section 5 of Instruction Pre-Training (synthesizer, corpus) and 6.1 of "
        "FineInstructions (instructions): tables beside the papers'.",
        epilog="`launch/analyse.py KIND --help` lists the keys of each kind.",
    )
    parser.add_argument("kind", choices=list(KINDS), help="what is measured")
    parser.add_argument("keys", nargs=argparse.REMAINDER, help="--config FILE.yaml, --key value")
    given = parser.parse_args()
    cls, analyse = KINDS[given.kind]
    config = parse_config(
        cls, given.keys, prog=f"{parser.prog} {given.kind}", description=parser.description or ""
    )
    with hold_analysis(config.output, f"{given.kind}_analysis") as run:
        report = analyse(
            config, bars=terminal_progress, on_start=lambda folder: write_run_files(folder, config)
        )
        run.finish()
        print(report.markdown())
        folder = run.path.resolve()
        print(f"written to {folder}, with {TABLES_NAME} and {PAGE_NAME}")


if __name__ == "__main__":
    run_main(main)
