"""Packing: every token once, and weights, positions and segments as they must be."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ipt_jax.data.packing import (
    Tokenised,
    assemble_rows,
    best_fit,
    concat_and_split,
    flatten,
    realised_rates,
    source_tokens,
)

Example = tuple[list[float], int]  # loss weights, source


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
    st.integers(2, 9),
)
def test_every_token_once_and_its_fields(examples, row_tokens):
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
    packed = concat_and_split(*flat, row_tokens, rows)

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


def test_a_row_by_hand():
    made = [
        Tokenised(np.asarray([1, 10, 11, 2]), None),
        Tokenised(np.asarray([1, 20, 21, 22, 2]), np.asarray([0, 0, 1, 1, 1], np.float32)),
    ]
    packed = concat_and_split(*flatten(made, [0, 1], [0, 1]), row_tokens=4, rows=2)
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


def test_a_gap_in_the_stream_is_padding():
    made = [Tokenised(np.asarray(ids), None) for ids in ([1, 2], [0, 0, 0], [3, 4, 5])]
    packed = concat_and_split(*flatten(made, [0, -1, 1], [2, -1, 2]), row_tokens=7, rows=1)
    expected = {
        "tokens": [1, 2, 0, 0, 0, 3, 4],
        "targets": [2, 0, 0, 0, 3, 4, 5],
        "loss_weights": [1, 0, 0, 0, 0, 1, 1],
        "segment_ids": [1, 1, 0, 0, 0, 2, 2],
        "positions": [0, 1, 0, 0, 0, 0, 1],
        "source_ids": [2, 2, -1, -1, -1, 2, 2],
    }
    assert {name: array[0].tolist() for name, array in packed.items()} == expected


def plainly_packed(sizes: list[int], row_tokens: int) -> list[int]:
    """Free tokens of best-fit decreasing's rows, found by looking at every row."""
    free: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(left, row) for row, left in enumerate(free) if left >= size]
        if fitting:
            free[min(fitting)[1]] -= size
        else:
            free.append(row_tokens - size)
    return sorted(free)


@given(st.lists(st.integers(0, 70), max_size=80), st.integers(2, 30))
def test_best_fit_is_best_fit_decreasing(lengths, row_tokens):
    """Every token once, only what is longer than a row is cut, rows as full as the plain way's."""
    pieces = best_fit(np.asarray(lengths, np.int64), row_tokens)
    assert (np.diff(pieces.row) >= 0).all()
    held = np.bincount(pieces.row, pieces.length, minlength=pieces.rows)
    assert (held > 0).all() and len(held) == pieces.rows
    for number, length in enumerate(lengths):
        mine = pieces.example == number
        order = np.argsort(pieces.start[mine])
        sizes = pieces.length[mine][order].tolist()
        whole, rest = divmod(length, row_tokens)
        assert sizes == [row_tokens] * whole + [rest] * (rest > 0)
        assert pieces.start[mine][order].tolist() == [row_tokens * n for n in range(len(sizes))]
    plain = plainly_packed([n % row_tokens for n in lengths if n % row_tokens], row_tokens)
    plain = [0] * sum(n // row_tokens for n in lengths) + plain
    assert sorted((row_tokens - held).tolist()) == sorted(plain)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12),
            st.integers(0, 3),
            st.sampled_from(["weights", "all", "damaged"]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(2, 9),
)
def test_laid_rows_against_a_loop(drawn, row_tokens):
    """Each field of each position, from the pieces and the examples one token at a time."""
    examples, token = [], 100
    for loss, _, kind in drawn:
        ids = np.arange(token, token + len(loss), dtype=np.int32)
        weights = np.asarray(loss, np.float32) if kind == "weights" else None
        examples.append(Tokenised(ids, weights, damaged=kind == "damaged"))
        token += len(loss)
    pieces = best_fit(np.asarray([len(e.tokens) for e in examples]), row_tokens)
    rows = assemble_rows(pieces, examples, [source for _, source, _ in drawn], row_tokens)
    padding = dict(tokens=0, targets=0, loss_weights=0, segment_ids=0, positions=0, source_ids=-1)
    expected = [[dict(padding) for _ in range(row_tokens)] for _ in range(pieces.rows)]
    column, segment = [0] * pieces.rows, [0] * pieces.rows
    for number, start, size, row in zip(
        pieces.example, pieces.start, pieces.length, pieces.row, strict=True
    ):
        example, place = examples[number], column[row]
        column[row] += size
        if example.damaged:
            continue
        segment[row] += 1
        for at in range(size):
            whole = start + at
            following = whole + 1 < len(example.tokens)
            weight = 1.0 if example.loss is None else example.loss[(whole + 1) * following]
            expected[row][place + at] = dict(
                tokens=example.tokens[whole],
                targets=example.tokens[whole + 1] if following else None,  # of weight 0
                loss_weights=weight if following else 0.0,
                segment_ids=segment[row],
                positions=at,
                source_ids=drawn[number][1],
            )
    assert {array.shape for array in rows.values()} == {(pieces.rows, row_tokens)}
    for row, cells in enumerate(expected):
        for place, cell in enumerate(cells):
            got = {name: array[row, place] for name, array in rows.items()}
            skipped = {"targets"} if cell["loss_weights"] == 0 else set()
            assert {n: got[n] for n in got.keys() - skipped} == {
                n: cell[n] for n in cell.keys() - skipped
            }
    kinds = {name: array.dtype for name, array in rows.items()}
    assert kinds.pop("loss_weights") == np.float32
    assert set(kinds.values()) == {np.dtype(np.int32)}
    for row in range(pieces.rows):  # a row is the same whatever is made beside it
        part = pieces.within(row, row + 1)
        alone = assemble_rows(part, examples, [source for _, source, _ in drawn], row_tokens)
        assert all((alone[name][0] == rows[name][row]).all() for name in rows)


def test_laid_rows_by_hand():
    made = [
        Tokenised(np.asarray([1, 10, 2]), None),
        Tokenised(np.asarray([1, 20, 21, 22, 23, 24, 2]), np.asarray([0, 0, 1, 1, 0.5, 1, 1])),
    ]
    pieces = best_fit(np.asarray([3, 7]), 5)
    found = (pieces.example, pieces.start, pieces.length, pieces.row)
    assert [array.tolist() for array in found] == [[1, 0, 1], [0, 0, 5], [5, 3, 2], [0, 1, 1]]
    expected = {
        "tokens": [[1, 20, 21, 22, 23], [1, 10, 2, 24, 2]],
        "targets": [[20, 21, 22, 23, 24], [10, 2, 24, 2, 0]],
        "loss_weights": [[0, 1, 1, 0.5, 1], [1, 1, 0, 1, 0]],
        "segment_ids": [[1, 1, 1, 1, 1], [1, 1, 1, 2, 2]],
        "positions": [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]],
        "source_ids": [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]],
    }
    assert {n: a.tolist() for n, a in assemble_rows(pieces, made, [0, 1], 5).items()} == expected


def test_counting_sources():
    counts = source_tokens(np.asarray([[0, 0, 2], [2, -1, -1]]), 3)
    assert counts.tolist() == [2, 0, 2]
    assert realised_rates(counts, ["a", "b", "c"]) == {"a": 0.5, "b": 0, "c": 0.5}
    assert realised_rates(np.zeros(1), ["a"]) == {"a": 0}
