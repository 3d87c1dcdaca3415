"""A run that the test kills: `python killed_run.py CORPUS OUTPUT VOCABULARY`."""

from __future__ import annotations

import sys

from data_gen.baselines.stage import run_reading_comprehension
from tests.data_gen.baselines.test_stage import config_for

if __name__ == "__main__":
    corpus, output, vocabulary = sys.argv[1:]
    run_reading_comprehension(config_for(corpus, output, domain_vocabulary=vocabulary))
