"""A packed example has the loss of each token that it has alone: real text, the real model."""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.data.mixture import PACKINGS
from ipt_jax.data.pipeline import MixtureRows, open_mixture
from ipt_jax.data.tasks import Mixture, Task
from ipt_jax.models.config import ModelConfig
from ipt_jax.models.decoder import module_of, new_params

T = 64
CONFIG = ModelConfig("tiny", {"vocabulary_size": 32000}).decoder()


@jax.jit
def _losses(params, tokens, targets, positions, segments) -> jax.Array:
    model = module_of(CONFIG, params)
    logits = jax.nn.log_softmax(model.logits(model(tokens, positions, segments)))
    return -jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


def losses(*arrays) -> np.ndarray:
    """Cross-entropy of each target, [B, T]."""
    return np.asarray(_losses(*arrays))


@pytest.fixture(scope="module")
def params():
    made = jax.jit(functools.partial(new_params, CONFIG))(jax.random.key(0))
    # Weights larger than at the start of training, so that attention is far from uniform.
    return jax.tree.map(lambda p: p * 8 if p.ndim > 1 else p, made)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_and_alone(tmp_path, documents, write_shards, params, packing):
    texts = [text[: 60 + 37 * n] for n, text in enumerate(documents[:12])]
    task = Task("a", write_shards(tmp_path / "a", texts))
    data = open_mixture(Mixture("m", (task,)))
    rows = MixtureRows(data, row_tokens=T, seed=0, packing=packing)
    packed = rows.take(0, len(rows))
    weights = packed["loss_weights"] > 0
    segments = jnp.asarray(packed["segment_ids"])
    together = losses(params, packed["tokens"], packed["targets"], packed["positions"], segments)

    # Each segment in a row of its own, from its first column; a causal model sees no padding.
    alone = {name: [] for name in ("tokens", "targets", "weights", "together")}
    for row, ids in enumerate(packed["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            (places,) = np.nonzero(ids == segment)
            found = (packed["tokens"], packed["targets"], weights, together)
            for name, array in zip(alone, found, strict=True):
                alone[name].append(np.resize(np.append(array[row, places], [0] * T), T))
    tokens, targets, learnt, expected = (np.stack(arrays) for arrays in alone.values())
    assert len(tokens) > len(rows)
    positions = np.broadcast_to(np.arange(T), tokens.shape)
    learnt = learnt.astype(bool)
    found = losses(params, tokens, targets, positions, None)
    np.testing.assert_allclose(found[learnt], expected[learnt], rtol=1e-4, atol=1e-4)
    assert found[learnt].std() > 0.5  # losses that differ, so that equal ones say something

    # Nothing else is learnt, and nothing left out: every token but the first of each example.
    known = data.tokenizer.encode_batch(texts, bos=True, eos=True)
    pairs = Counter(pair for ids in known for pair in itertools.pairwise(ids))
    got = zip(packed["tokens"][weights].tolist(), packed["targets"][weights].tolist(), strict=True)
    assert Counter(got) == pairs
    if packing == "best_fit":  # whole where they fit
        whole = {tuple(ids) for ids in known if len(ids) <= T}
        starts = [tuple(row[: len(ids)].tolist()) for row in tokens for ids in whole]
        assert len(whole) > 2 and whole <= set(starts)
