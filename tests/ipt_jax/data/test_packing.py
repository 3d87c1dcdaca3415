"""Packing: every token once, and weights, positions and segments as they must be."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ipt_jax.data.packing import Tokenised, cut, flatten, realised_rates, source_tokens

Example = tuple[list[float], int]  # loss weights, source


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
    st.integers(2, 9),
)
def test_every_token_once_and_its_fields(examples: list[Example], row_tokens: int) -> None:
    """Against a loop over single tokens, for whole streams whose last row may be partial."""
    stream = []  # (token, loss, example, place in example, source)
    made = []
    for number, (loss, source) in enumerate(examples):
        ids = np.arange(len(stream), len(stream) + len(loss), dtype=np.int32) + 100
        made.append(Tokenised(ids, np.asarray(loss, np.float32)))
        for place, weight in enumerate(loss):
            stream.append((100 + len(stream), weight, number, place, source))
    flat = flatten(made, list(range(len(made))), [source for _, source in examples])
    rows = -(-len(stream) // row_tokens)
    packed = cut(*flat, row_tokens, rows)

    assert {array.shape for array in packed.values()} == {(rows, row_tokens)}
    assert packed["tokens"].ravel()[: len(stream)].tolist() == [entry[0] for entry in stream]
    for at in range(rows * row_tokens):
        row, column = divmod(at, row_tokens)
        got = {name: array[row, column] for name, array in packed.items()}
        if at >= len(stream):
            assert (got["segment_ids"], got["source_ids"], got["loss_weights"]) == (0, -1, 0)
            continue
        _, _, number, _, source = stream[at]
        in_row = [entry[2] for entry in stream[row * row_tokens : at + 1]]
        assert got["source_ids"] == source
        assert got["segment_ids"] == len(set(in_row))
        assert got["positions"] == in_row.count(number) - 1
        following = stream[at + 1] if at + 1 < len(stream) else None
        if following is None:
            assert got["loss_weights"] == 0
        else:
            assert got["targets"] == following[0]
            assert got["loss_weights"] == (following[1] if following[2] == number else 0)


def test_a_row_by_hand() -> None:
    made = [
        Tokenised(np.asarray([1, 10, 11, 2]), None),
        Tokenised(np.asarray([1, 20, 21, 22, 2]), np.asarray([0, 0, 1, 1, 1], np.float32)),
    ]
    packed = cut(*flatten(made, [0, 1], [0, 1]), row_tokens=4, rows=2)
    expected = {
        "tokens": [[1, 10, 11, 2], [1, 20, 21, 22]],
        "targets": [[10, 11, 2, 1], [20, 21, 22, 2]],
        "loss_weights": [[1, 1, 1, 0], [0, 1, 1, 1]],
        "segment_ids": [[1, 1, 1, 1], [1, 1, 1, 1]],
        "positions": [[0, 1, 2, 3], [0, 1, 2, 3]],
        "source_ids": [[0, 0, 0, 0], [1, 1, 1, 1]],
    }
    assert {name: array.tolist() for name, array in packed.items()} == expected
    kinds = {name: array.dtype for name, array in packed.items()}
    assert kinds.pop("loss_weights") == np.float32
    assert set(kinds.values()) == {np.dtype(np.int32)}


def test_counting_sources() -> None:
    counts = source_tokens(np.asarray([[0, 0, 2], [2, -1, -1]]), 3)
    assert counts.tolist() == [2, 0, 2]
    assert realised_rates(counts, ["a", "b", "c"]) == {"a": 0.5, "b": 0, "c": 0.5}
    assert realised_rates(np.zeros(1), ["a"]) == {"a": 0}
