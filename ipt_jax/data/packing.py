"""Rows of T tokens, packed in one of two ways.

Concatenate: examples one after another, cut every T tokens, as in the papers. Best fit: each
example whole in one row, in the fullest row that has room for it, longest examples first; only
what is longer than a row is cut.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tokenised:
    """One example as it enters a row."""

    tokens: np.ndarray
    """int32 [n], BOS and EOS included."""
    loss: np.ndarray | None
    """float32 [n], the weight of each token as a target; None where all are 1."""
    damaged: bool = False
    """Stands for a record that could not be read: becomes padding."""


@dataclass(frozen=True)
class PackedSegments:
    """What lies in R rows: n pieces of examples, row by row and from left to right."""

    example: np.ndarray
    """int64 [n], number of the example."""
    start: np.ndarray
    """int64 [n], first token of the piece within its example."""
    length: np.ndarray
    """int64 [n], tokens of the piece."""
    row: np.ndarray
    """int64 [n], ascending."""
    rows: int
    """R."""

    def in_order(self, rank: np.ndarray) -> "PackedSegments":
        """The same rows in another order: ``rank`` [R] is the new number of each."""
        row = rank[self.row]
        order = np.argsort(row, kind="stable")
        arrays = (self.example, self.start, self.length, row)
        return PackedSegments(*(array[order] for array in arrays), rows=self.rows)

    def within(self, first: int, last: int) -> "PackedSegments":
        """The pieces in rows first..last - 1, whose rows count from 0."""
        low, high = np.searchsorted(self.row, [first, last]).tolist()
        arrays = (self.example, self.start, self.length, self.row - first)
        return PackedSegments(*(array[low:high] for array in arrays), rows=last - first)


def flatten(
    examples: Sequence[Tokenised], numbers: Sequence[int], sources: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The stream of a run of examples: tokens, loss, example number, source of each token."""
    lengths = [len(example.tokens) for example in examples]
    tokens = np.concatenate([example.tokens for example in examples] or [np.empty(0, np.int32)])
    loss = np.ones(len(tokens), np.float32)
    start = 0
    for example, length in zip(examples, lengths, strict=True):
        if example.loss is not None:
            loss[start : start + length] = example.loss
        start += length
    number = np.repeat(np.asarray(numbers, np.int64), lengths)
    source = np.repeat(np.asarray(sources, np.int32), lengths)
    return tokens.astype(np.int32, copy=False), loss, number, source


def concat_and_split(
    tokens: np.ndarray,
    loss: np.ndarray,
    number: np.ndarray,
    source: np.ndarray,
    row_tokens: int,
    rows: int,
) -> Rows:
    """Cut a stream into R = ``rows`` rows of T = ``row_tokens``.

    Args:
        tokens, loss, number, source: [S], the stream: token, its weight as a target, number of
            the example it belongs to, index of its task; both -1 for padding. S is RT + 1 (the
            last token is only a target), or less where the stream ends: the rest is padding.
        row_tokens: T.
        rows: R.

    Returns:
        Arrays [R, T]. Row r has the inputs stream[rT:(r+1)T] under ``tokens`` and
        stream[rT+1:(r+1)T+1] under ``targets``. ``loss_weights`` (float32) is 0 where the target
        belongs to another example than the input, so that the first token of an example is never
        learnt. ``segment_ids`` count from 1 in each row, 0 for padding; ``positions`` restart with
        each segment and with each row; ``source_ids`` is the input's task, -1 for padding.
    """
    T = row_tokens
    missing = rows * T + 1 - len(tokens)
    if missing > 0:
        tokens = np.pad(tokens, (0, missing))
        loss = np.pad(loss, (0, missing))
        number = np.pad(number, (0, missing), constant_values=-1)
        source = np.pad(source, (0, missing), constant_values=-1)
    # Whether the next token, which is the target, belongs to the same example [RT]; then, by row:
    # where an example or a row begins, and from that the column that each token's segment began at.
    same = number[1:] == number[:-1]
    number_RT = number[:-1].reshape(rows, T)
    real_RT = number_RT >= 0
    starts_RT = np.ones((rows, T), bool)
    starts_RT[:, 1:] = number_RT[:, 1:] != number_RT[:, :-1]
    column_T = np.arange(T, dtype=np.int32)
    begin_RT = np.maximum.accumulate(np.where(starts_RT, column_T, 0), axis=1)
    return {
        "tokens": np.ascontiguousarray(tokens[:-1].reshape(rows, T)),
        "targets": np.ascontiguousarray(tokens[1:].reshape(rows, T)),
        "loss_weights": np.where(same, loss[1:], 0).astype(np.float32).reshape(rows, T) * real_RT,
        "segment_ids": np.cumsum(starts_RT & real_RT, axis=1, dtype=np.int32) * real_RT,
        "positions": (column_T - begin_RT) * real_RT,
        "source_ids": source[:-1].reshape(rows, T).astype(np.int32),
    }


def best_fit(lengths: np.ndarray, row_tokens: int) -> PackedSegments:
    """Put examples of int64 [n] tokens into rows of T = ``row_tokens``, best fit decreasing.

    An example longer than a row is cut into pieces of T, a row each, and a rest that is packed
    like the others; one without tokens lies nowhere. Rows made of one piece of T come first, in
    the order of examples; the others follow from the longest example to the shortest.
    """
    # Of each example the rows that it fills and what is left over; then one piece a filled row,
    # `nth` of its example, and the rests from the longest to the shortest.
    whole, rest = np.divmod(lengths, row_tokens)
    example = np.repeat(np.arange(len(lengths)), whole)
    nth = np.arange(len(example)) - np.repeat(np.cumsum(whole) - whole, whole)
    order = np.argsort(-rest, kind="stable")
    order = order[: np.count_nonzero(rest)]
    row, rows = _place(rest[order].tolist(), row_tokens)
    pieces = PackedSegments(
        example=np.concatenate([example, order]),
        start=np.concatenate([nth * row_tokens, (whole * row_tokens)[order]]),
        length=np.concatenate([np.full(len(example), row_tokens), rest[order]]),
        row=np.concatenate([np.arange(len(example)), len(example) + row]),
        rows=len(example) + rows,
    )
    return pieces.in_order(np.arange(pieces.rows))


def _place(sizes: list[int], row_tokens: int) -> tuple[np.ndarray, int]:
    """Row of each size (int64), and how many rows there are."""
    spaces: list[int] = []  # free tokens of the rows that are not full: each number once, ascending
    having: list[list[int]] = [[] for _ in range(row_tokens)]  # the rows with so many free
    placed: list[int] = []
    rows = 0
    for size in sizes:
        at = bisect.bisect_left(spaces, size)
        if at == len(spaces):
            row, free = rows, row_tokens - size
            rows += 1
        else:
            space = spaces[at]
            row, free = having[space].pop(), space - size
            if not having[space]:
                del spaces[at]
        if free:
            if not having[free]:
                bisect.insort(spaces, free)
            having[free].append(row)
        placed.append(row)
    return np.asarray(placed, np.int64), rows


def assemble_rows(
    pieces: PackedSegments, examples: Sequence[Tokenised], sources: Sequence[int], row_tokens: int
) -> Rows:
    """Rows of T = ``row_tokens`` from pieces, with the examples they count and their tasks.

    Returns:
        Arrays [R, T] as those of ``concat_and_split``, with two differences: what follows the last
        piece of a row is padding, and the target of a piece's last token is the example's next
        token where the example was cut there. Where it ends, the target has weight 0.
    """
    R, T = pieces.rows, row_tokens
    # Pieces and, behind the last piece of each row that is not full, one of padding: row, length
    # and task of each of these [n + padded], row by row. `order` is their number among the two
    # lists one after the other, so that what is at or past n is padding.
    free = T - np.bincount(pieces.row, pieces.length, minlength=R).astype(np.int64)
    (padded,) = np.nonzero(free)
    order = np.argsort(np.concatenate([pieces.row, padded]), kind="stable")
    real = np.asarray([not e.damaged for e in examples], bool)[pieces.example]
    real = np.concatenate([real, np.zeros(len(padded), bool)])[order]
    row = np.concatenate([pieces.row, padded])[order]
    length = np.concatenate([pieces.length, free[padded]])[order]
    source = np.asarray(sources, np.int32)[pieces.example]
    source = np.concatenate([source, np.zeros(len(padded), np.int32)])[order]
    source = np.where(real, source, -1).astype(np.int32)
    # Segments count from 1 in each row: all real pieces up to this one, less those before the row.
    segment = np.cumsum(real)
    first = np.searchsorted(row, np.arange(R))
    segment = (segment - (segment - real)[first][row]) * real
    end = np.cumsum(length)

    nothing, ones = np.zeros(T, np.int32), np.ones(T, np.float32)
    weighted = any(example.loss is not None for example in examples)
    parts, losses, cuts = [], [], []
    numbers, starts = pieces.example.tolist(), pieces.start.tolist()
    for place, size, at in zip(order.tolist(), length.tolist(), end.tolist(), strict=True):
        if place >= len(numbers) or examples[numbers[place]].damaged:
            parts.append(nothing[:size])
            losses.append(ones[:size])
            continue
        example, start = examples[numbers[place]], starts[place]
        parts.append(example.tokens[start : start + size])
        if weighted:
            loss = ones[:size] if example.loss is None else example.loss[start : start + size]
            losses.append(loss)
        if start + size < len(example.tokens):
            cuts.append((at - 1, start + size, example))
    tokens = np.concatenate(parts) if parts else np.empty(0, np.int32)
    targets = np.zeros(R * T, np.int32)
    targets[:-1] = tokens[1:]
    targets[T - 1 :: T] = 0
    weights = np.ones(R * T, np.float32)
    if weighted:
        weights[:-1] = np.concatenate(losses)[1:]
    weights[end - 1] = 0
    positions = np.arange(R * T, dtype=np.int32)
    positions -= np.repeat((end - length).astype(np.int32), length)
    for last, size in zip(end[~real].tolist(), length[~real].tolist(), strict=True):
        positions[last - size : last] = 0
        weights[last - size : last] = 0
    for at, following, example in cuts:
        targets[at] = example.tokens[following]
        weights[at] = 1 if example.loss is None else example.loss[following]
    flat = {
        "tokens": tokens.astype(np.int32, copy=False),
        "targets": targets,
        "loss_weights": weights,
        "segment_ids": np.repeat(segment.astype(np.int32), length),
        "positions": positions,
        "source_ids": np.repeat(source, length),
    }
    return {name: array.reshape(R, T) for name, array in flat.items()}


def source_tokens(source_ids: np.ndarray, tasks: int) -> np.ndarray:
    """Tokens of each task in a batch, int64 [tasks]; padding does not count."""
    return np.bincount(source_ids[source_ids >= 0].ravel(), minlength=tasks)


def realised_rates(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Share of each task in counted tokens; all 0 where nothing was counted."""
    total = max(int(np.sum(counts)), 1)
    return {name: float(count) / total for name, count in zip(names, counts, strict=True)}
