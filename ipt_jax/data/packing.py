"""Rows of T tokens: examples one after another, cut every T tokens, as in the papers."""

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


def cut(
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
            the example it belongs to, index of its task. S is RT + 1 (the last token is only a
            target), or less where the stream ends: the rest is padding.
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
        "segment_ids": np.cumsum(starts_RT, axis=1, dtype=np.int32) * real_RT,
        "positions": (column_T - begin_RT) * real_RT,
        "source_ids": source[:-1].reshape(rows, T).astype(np.int32),
    }


def source_tokens(source_ids: np.ndarray, tasks: int) -> np.ndarray:
    """Tokens of each task in a batch, int64 [tasks]; padding does not count."""
    return np.bincount(source_ids[source_ids >= 0].ravel(), minlength=tasks)


def realised_rates(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Share of each task in counted tokens; all 0 where nothing was counted."""
    total = max(int(np.sum(counts)), 1)
    return {name: float(count) / total for name, count in zip(names, counts, strict=True)}
