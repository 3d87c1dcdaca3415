"""One token for each row of logits: by its own pattern, its own seed, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_gen.engines.base import SamplingParams
from ipt_jax.core.errors import UserError


class Constraints:
    """Compiled patterns (llguidance) for one tokenizer; one matcher for each request.

    xgrammar was tried first: compiling a pattern with bounded repeats took over ten minutes.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._compiled: Any = None

    def matcher(self, regex: str) -> Any:
        """A fresh llguidance.LLMatcher. Raises UserError for a pattern it cannot compile."""
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        if self._compiled is None:
            self._compiled = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary)
        matcher = LLMatcher(self._compiled, LLMatcher.grammar_from_regex(regex))
        if matcher.is_error():
            raise UserError(
                f"the pattern {regex[:200]!r} for constrained decoding does not compile "
                f"({matcher.get_error()}): mend the pattern, or set `engine.constrain` to false.",
                key="engine.constrain",
            )
        return matcher


def apply_grammar_mask(logits: torch.Tensor, matchers: list[Any | None]) -> None:
    """Set the logits [row, vocabulary] of tokens that a row's matcher does not allow to -inf."""
    constrained = [row for row, matcher in enumerate(matchers) if matcher is not None]
    if not constrained:
        return
    vocabulary = logits.shape[1]
    bits = np.zeros((len(constrained), -(-vocabulary // 32)), np.int32)
    for place, row in enumerate(constrained):
        matchers[row].unsafe_compute_mask_ptr(bits[place].ctypes.data, bits[place].nbytes)  # type: ignore[union-attr]
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :vocabulary]
    banned = torch.from_numpy(allowed == 0)
    if len(constrained) == len(matchers):
        logits.masked_fill_(banned, -torch.inf)
    else:
        logits[constrained] = logits[constrained].masked_fill(banned, -torch.inf)


def sample_tokens(
    logits: torch.Tensor, sampling: list[SamplingParams], generators: list[np.random.Generator]
) -> list[int]:
    """One token id for each row of float32 `logits` [row, vocabulary].

    A row's draw takes exactly one block of numbers from its own generator (Gumbel-max), so that
    it does not depend on the rows beside it.
    """
    chosen = logits.argmax(dim=-1).tolist()
    for row, params in enumerate(sampling):
        if params.temperature <= 0:
            continue
        count = min(params.top_k or logits.shape[1], logits.shape[1])
        if params.top_k or params.top_p < 1:
            top, ids = torch.topk(logits[row], count)
            values, token_ids = top.numpy().astype(np.float64), ids.numpy()
        else:
            values, token_ids = logits[row].numpy().astype(np.float64), None
        values = values / params.temperature
        if params.top_p < 1:
            weights = np.exp(values - values[0])
            before = np.cumsum(weights) - weights  # the likeliest token always stays
            values[before > params.top_p * weights.sum()] = -np.inf
        place = int(np.argmax(values + generators[row].gumbel(size=count)))
        chosen[row] = int(token_ids[place]) if token_ids is not None else place
    return chosen
