"""Token F1 as SQuAD's."""

from __future__ import annotations

import pytest

from data_gen.instruction_pretrain.analysis.f1 import mean, token_f1, words_of


def test_case_punctuation_and_articles_do_not_count() -> None:
    assert words_of("The U.S. Army's a-team, an 'ant'!") == ["us", "armys", "ateam", "ant"]
    assert token_f1("the Normans.", "Normans") == 1.0
    assert words_of("theatre an anthem") == ["theatre", "anthem"]


@pytest.mark.parametrize(
    ("predicted", "gold", "f1"),
    [
        ("The cat sat on the mat.", "a cat on mat", 6 / 7),  # P 3/4, R 3/3
        ("red red red", "red blue", 2 / 5),  # a word counts as often as both sides have it
        ("red red", "red red blue", 4 / 5),
        ("something else", "cat", 0.0),
        ("the", "a", 1.0),  # neither holds a word
        ("the", "cat", 0.0),
        ("", "cat", 0.0),
    ],
)
def test_values(predicted: str, gold: str, f1: float) -> None:
    assert token_f1(predicted, gold) == pytest.approx(f1)
    assert token_f1(gold, predicted) == pytest.approx(f1)


def test_a_mean_of_nothing_is_no_zero() -> None:
    assert mean([]) is None
    assert mean([0.0, 1.0]) == 0.5
