"""Keys and values of a changing batch: one slot a request, filled and freed one by one.

transformers' DynamicCache copies all keys and values at every step (torch.cat) and its attention
repeats them for every group of heads; at 500 tokens and 16 requests of a 135M model the two move
more bytes than the weights. Here a step writes one position a row, and attention reads the
buffer in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

ATTENTION_NAME = "ipt_slots"
_BLOCK_TOKENS = 128  # capacity grows in these steps


class SlotCache:
    """Key-value buffers [slot, key-value head, token, head width], one pair a layer.

    Rows 0..active-1 are in use. Set `rows` before a prefill (fresh rows, prompts padded on the
    right) or `positions` before a decode step (one new token in each active row).
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.capacity_tokens = 0
        self.rows: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self._row_index: torch.Tensor = torch.empty(0, dtype=torch.long)
        self._length = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def start_prefill(self, rows: torch.Tensor, length_tokens: int) -> None:
        """Next forward writes `length_tokens` positions of `rows`."""
        self._reserve(length_tokens)
        self.rows, self.positions, self._length = rows, None, length_tokens

    def start_decode(self, positions: torch.Tensor) -> None:
        """Next forward writes position `positions[i]` of row i."""
        self._length = int(positions.max()) + 1
        self._reserve(self._length)
        self._row_index = torch.arange(len(positions))
        self.rows, self.positions = None, positions

    def move(self, source: int, target: int) -> None:
        """Copy row `source` onto `target`, whose request has ended."""
        for buffer in (*self._keys, *self._values):
            buffer[target] = buffer[source]

    def _reserve(self, length_tokens: int) -> None:
        if length_tokens <= self.capacity_tokens:
            return
        capacity = -(-length_tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS
        grow = capacity - self.capacity_tokens
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = torch.nn.functional.pad(old, (0, 0, 0, grow))
        self.capacity_tokens = capacity

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the attention layers of transformers; [row, head, token, width] both ways."""
        if layer == len(self._keys):
            shape = (self.slots, keys.shape[1], self.capacity_tokens, keys.shape[3])
            self._keys.append(keys.new_zeros(shape))
            self._values.append(values.new_zeros(shape))
        key_buffer, value_buffer = self._keys[layer], self._values[layer]
        if self.rows is not None:
            key_buffer[self.rows, :, : self._length] = keys
            value_buffer[self.rows, :, : self._length] = values
            return keys, values
        assert self.positions is not None
        key_buffer[self._row_index, :, self.positions] = keys[:, :, 0]
        value_buffer[self._row_index, :, self.positions] = values[:, :, 0]
        active = len(self.positions)
        return key_buffer[:active, :, : self._length], value_buffer[:active, :, : self._length]

    def get_seq_length(self, *_: Any) -> int:
        """Asked for by some models; positions are always passed explicitly."""
        return self._length


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for SlotCache, registered with transformers under ATTENTION_NAME.

    Prefill (no mask): causal over the prompt; padding on the right is never looked at. Decode
    (mask [row, 1, 1, token]): heads that share keys are laid along the query axis, so that keys
    and values are read once and never repeated.
    """
    rows, heads, tokens, width = query.shape
    key_heads = key.shape[1]
    if attention_mask is None:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=tokens > 1, scale=scaling, enable_gqa=heads != key_heads
        )
        return out.transpose(1, 2).contiguous(), None
    grouped = query.reshape(rows, key_heads, heads // key_heads, width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, width), None
