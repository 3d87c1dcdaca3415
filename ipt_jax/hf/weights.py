"""One table between our parameters and Hugging Face's names, read in both directions.

Hugging Face keeps projections as [out, in] and one tensor a block; ours are [in, …, out], stacked
over blocks and partly fused (see ipt_jax.models.decoder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params

Array = np.ndarray
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Entry:
    """One of our parameters (of one block, where stacked) and the tensors that it becomes."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    split: Callable[[DecoderConfig, Array], tuple[Array, ...]]
    join: Callable[[DecoderConfig, tuple[Array, ...]], Array]

    def names(self, block: int | None) -> tuple[str, ...]:
        """The tensors' full names; `block` is None where they are not stacked."""
        if block is None:
            return self.theirs
        return tuple(f"model.layers.{block}.{name}" for name in self.theirs)


def _same(ours: tuple[str, ...], theirs: str) -> Entry:
    return Entry(ours, (theirs,), lambda c, a: (a,), lambda c, t: t[0])


def _split_qkv(c: DecoderConfig, a: Array) -> tuple[Array, ...]:
    parts = (a[:, :, :-2], a[:, :, -2], a[:, :, -1])
    return tuple(part.reshape(c.width, -1).T for part in parts)


def _join_qkv(c: DecoderConfig, tensors: tuple[Array, ...]) -> Array:
    parts = [t.T.reshape(c.width, c.kv_heads, -1, c.head_width) for t in tensors]
    return np.concatenate(parts, 2)


BLOCK = (
    _same(("blocks", "attention_norm_LD"), "input_layernorm.weight"),
    Entry(
        ("blocks", "query_key_value_LDKGh"),
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        _split_qkv,
        _join_qkv,
    ),
    Entry(
        ("blocks", "output_LHhD"),
        ("self_attn.o_proj.weight",),
        lambda c, a: (a.reshape(-1, c.width).T,),
        lambda c, t: t[0].T.reshape(c.heads, c.head_width, c.width),
    ),
    _same(("blocks", "mlp_norm_LD"), "post_attention_layernorm.weight"),
    Entry(
        ("blocks", "gate_up_LD2F"),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        lambda c, a: (a[:, 0].T, a[:, 1].T),
        lambda c, t: np.stack([t[0].T, t[1].T], 1),
    ),
    Entry(
        ("blocks", "down_LFD"),
        ("mlp.down_proj.weight",),
        lambda c, a: (a.T,),
        lambda c, t: t[0].T,
    ),
)
EMBEDDING = _same(("embedding_VD",), "model.embed_tokens.weight")
ENDS = (_same(("final_norm_D",), "model.norm.weight"),)
UNEMBEDDING = _same(("unembedding_VD",), "lm_head.weight")


def entries(config: DecoderConfig) -> Iterator[tuple[Entry, int | None, tuple[str, ...]]]:
    """Every table entry in file order, with its block (None: not stacked) and full names."""
    yield EMBEDDING, None, EMBEDDING.names(None)
    for block in range(config.layers):
        for entry in BLOCK:
            yield entry, block, entry.names(block)
    for entry in (*ENDS, *(() if config.tied_embeddings else (UNEMBEDDING,))):
        yield entry, None, entry.names(None)


def to_hugging_face(config: DecoderConfig, params: Params) -> Iterator[tuple[str, Array]]:
    """Name and float32 tensor, one after the other: only one block's tensor exists at a time."""
    for entry, block, names in entries(config):
        array: Any = params
        for part in entry.ours:
            array = array[part]
        ours = np.asarray(array if block is None else array[block])
        for name, tensor in zip(names, entry.split(config, ours), strict=True):
            yield name, np.ascontiguousarray(tensor)


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face form with its shape, in file order."""
    c = config
    shapes = {
        "input_layernorm": (c.width,),
        "post_attention_layernorm": (c.width,),
        "q_proj": (c.heads * c.head_width, c.width),
        "k_proj": (c.kv_heads * c.head_width, c.width),
        "v_proj": (c.kv_heads * c.head_width, c.width),
        "o_proj": (c.width, c.heads * c.head_width),
        "gate_proj": (c.mlp_width, c.width),
        "up_proj": (c.mlp_width, c.width),
        "down_proj": (c.width, c.mlp_width),
        "embed_tokens": (c.vocabulary_size, c.width),
        "lm_head": (c.vocabulary_size, c.width),
        "norm": (c.width,),
    }
    return {n: shapes[n.split(".")[-2]] for _, _, names in entries(c) for n in names}


def from_hugging_face(
    config: DecoderConfig, get: Callable[[str], Array], dtype: str = "float32"
) -> Params:
    """Our parameters from `get(name)`, asked for in file order and filled block by block."""
    params: Params = {"blocks": {}}
    for entry, block, names in entries(config):
        ours = entry.join(config, tuple(get(name) for name in names))
        folder = params["blocks"] if entry.ours[0] == "blocks" else params
        leaf = entry.ours[-1]
        if block is None:
            folder[leaf] = ours.astype(DTYPES[dtype])
            continue
        if leaf not in folder:
            folder[leaf] = np.empty((config.layers, *ours.shape), DTYPES[dtype])
        folder[leaf][block] = ours
    return params
