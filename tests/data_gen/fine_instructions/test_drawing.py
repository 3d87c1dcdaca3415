"""Draws of templates and of pairs: their rates, and what they never do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.fine_instructions.drawing import complexity_weights, draw_templates, within_budget


def test_drawn_templates_are_as_complex_as_real_ones():
    bank = np.repeat([1, 2, 5, 12], [7000, 2000, 900, 100])
    real = np.repeat([1, 2, 5, 30], [40, 30, 20, 10])
    weights = complexity_weights(bank, real)
    assert weights[[0, 1, 4, 9]] == pytest.approx([0.4 / 0.7, 1.5, 0.2 / 0.09, 10.0])
    each = weights[np.clip(bank, 1, 10) - 1]
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        rows = generator.choice(len(bank), (1, 100), replace=False)
        drawn += draw_templates(rows, np.ones((1, 100)), each, 0.5, generator)
    shares = [np.mean([bank[match.template] == tags for match in drawn]) for tags in (1, 2, 5, 12)]
    # Of 100 candidates a document has 1 of ten tags or more, or none: a little fewer are drawn.
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)


def test_templates_of_a_document_differ_and_pass_the_threshold():
    rows = np.tile(np.arange(8), (6, 1))
    scores = np.tile(np.linspace(0.5, 0.99, 8), (6, 1))
    for seed in range(50):
        found = draw_templates(rows, scores, np.ones(8), 0.7, np.random.default_rng(seed))
        assert len({match.template for match in found}) == len(found) == 5  # of 5 that pass
        assert [match.chunk for match in found] == [0, 1, 2, 3, 4]
        assert all(match.score >= 0.7 for match in found)
    assert draw_templates(rows, scores, np.ones(8), 0.995, np.random.default_rng(0)) == []
    assert draw_templates(np.full((2, 3), -1), np.ones((2, 3)), np.ones(8), 0, generator()) == []


def test_a_draw_next_to_one_takes_the_last_candidate():
    class Next:
        def random(self) -> float:
            return 1 - 2.0**-53

    weights = np.full(3, 0.1, np.float32)
    (found,) = draw_templates(np.array([[0, 1, 2]]), np.ones((1, 3)), weights, 0.5, Next())  # type: ignore[arg-type]
    assert found.template == 2


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_what_one_vector_finds_moves_no_others_draw():
    rows, scores = np.arange(40).reshape(4, 10), np.ones((4, 10))
    whole = draw_templates(rows, scores, np.ones(40), 0.5, generator())
    scores[1] = 0
    assert draw_templates(rows, scores, np.ones(40), 0.5, generator()) == [
        match for match in whole if match.chunk != 1
    ]


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ValueError, match=r"vectors \[1\]"):
        draw_templates(
            np.zeros((2, 1), int), np.array([[1.0], [np.nan]]), np.ones(1), 0, generator()
        )
    for bank, real, message in (([], [1], "bank"), ([1], [], "real"), ([1], [2], "complex")):
        with pytest.raises(ValueError, match=message):
            complexity_weights(np.array(bank), np.array(real))


@given(st.lists(st.integers(1, 50), max_size=8), st.integers(0, 120), st.integers(0, 9))
def test_pairs_stay_within_the_budget_and_none_that_fits_is_skipped(sizes, left, seed):
    kept, rest = within_budget(sizes, left, np.random.default_rng(seed))
    assert rest == left - sum(sizes[place] for place in kept) >= 0
    assert all(sizes[place] > rest for place in set(range(len(sizes))) - set(kept))
    assert kept == sorted(set(kept))
    assert (kept, rest) == within_budget(sizes, left, np.random.default_rng(seed))
