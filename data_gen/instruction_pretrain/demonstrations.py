"""Worked examples, written for this project, for models that were not tuned as synthesizers."""

from data_gen.instruction_pretrain.formats import Pair, Shot

DEMONSTRATIONS = (
    Shot(
        "The town library opened in 1904 beside the old mill. A flood in 1931 ruined two thousand "
        "books, so the shelves were moved to the upper floor. Today volunteers repair damaged "
        "volumes there every Saturday.",
        (
            Pair(
                "Why were the shelves moved to the upper floor?",
                "A flood in 1931 ruined two thousand books.",
            ),
            Pair("When did the town library open?", "It opened in 1904."),
            Pair("What do volunteers do every Saturday?", "They repair damaged volumes."),
        ),
    ),
)
