"""A run that the test kills: `python killed_run.py CORPUS OUTPUT VOCABULARY`."""

from __future__ import annotations

import sys

from data_gen.methods import synthesize
from tests.data_gen.baselines.test_stage import config_for

if __name__ == "__main__":
    corpus, output, vocabulary = sys.argv[1:]
    synthesize(config_for(corpus, output, domain_vocabulary=vocabulary))
