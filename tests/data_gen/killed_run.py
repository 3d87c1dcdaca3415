"""A run that the test kills: `python killed_run.py CORPUS OUTPUT LOG`."""

from __future__ import annotations

import sys
from pathlib import Path

from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.methods import synthesize
from tests.data_gen.fakes import FakeEngine

if __name__ == "__main__":
    corpus, output, log = sys.argv[1:]
    synthesize(
        SynthesisConfig(
            input=[corpus], output=output, fraction=0.8, rounds=3, records_per_shard=36
        ),
        engine=FakeEngine(Path(log), delay_seconds=0.004),
    )
