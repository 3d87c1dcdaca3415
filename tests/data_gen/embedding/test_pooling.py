"""Gaussian pooling against its definition in appendix B, written out."""

import math

import pytest
import torch

from data_gen.embedding.pooling import GaussianPooling


def by_definition(hidden: torch.Tensor, chunks: int, sigma: float, alpha: float) -> torch.Tensor:
    """Of one text without padding, [T, E]."""
    T = len(hidden)
    mean = sum(hidden) / T
    found = [mean]
    for k in range(1, chunks + 1):
        weights = [
            math.exp(-0.5 * ((t - k / (chunks + 1) * T) / (sigma * T)) ** 2)
            for t in range(1, T + 1)
        ]
        local = sum(w * h for w, h in zip(weights, hidden, strict=True)) / sum(weights)
        found.append((1 - alpha) * mean + alpha * local)
    return torch.stack(found)


@pytest.mark.parametrize(("chunks", "sigma", "alpha"), [(5, 0.05, 1.0), (3, 0.2, 0.4), (0, 1, 1)])
@pytest.mark.parametrize("left", [True, False])
def test_it_is_the_definition_on_either_side_of_padding(chunks, sigma, alpha, left):
    torch.manual_seed(0)
    lengths, T, E = (40, 17, 25), 40, 8
    hidden = torch.randn(3, T, E, dtype=torch.float64)
    mask = torch.zeros(3, T, dtype=torch.int64)
    for row, length in zip(mask, lengths, strict=True):
        row[T - length :] = 1 if left else 0
        row[:length] = row[:length] if left else 1
    pooled = GaussianPooling(chunks, sigma, alpha)(hidden, mask)
    assert pooled.shape == (3, chunks + 1, E)
    for found, row, seen in zip(pooled, hidden, mask, strict=True):
        expected = by_definition(row[seen.bool()], chunks, sigma, alpha)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_texts_shorter_than_a_chunk_have_finite_vectors():
    for length in range(1, 12):
        mask = torch.zeros(1, 12, dtype=torch.bool)
        mask[:, :length] = True
        weights = GaussianPooling().weights(mask)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 6))
        assert (weights[:, :, length:] == 0).all()
        assert GaussianPooling().windows(mask).any(-1).all()
    assert GaussianPooling().weights(torch.ones(1, 1))[0, :, 0].tolist() == [1.0] * 6


def test_windows_are_where_a_gaussian_is_half_as_high():
    T = 1000
    windows = GaussianPooling().windows(torch.ones(1, T))[0]
    for k, window in enumerate(windows, 1):
        places = (window.nonzero().flatten() + 1).tolist()
        inside = [t for t in range(1, T + 1) if abs(t - k * T / 6) <= 0.05 * 1.17741 * T]
        assert places == inside
    # 0.108 of a text at either end lie in no window.
    covered = windows.any(0).nonzero().flatten()
    assert 107 <= covered[0] <= 108 and 107 <= T - 1 - covered[-1] <= 108 + 1


@pytest.mark.parametrize("given", [{"num_chunks": -1}, {"sigma": 0.0}, {"alpha": 1.5}])
def test_settings_that_cannot_be_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        GaussianPooling(**given)


def test_a_row_of_padding_is_named():
    mask = torch.tensor([[1, 1], [0, 0]])
    for pool in (GaussianPooling().weights, GaussianPooling().windows):
        with pytest.raises(ValueError, match=r"rows \[1\]"):
            pool(mask)
