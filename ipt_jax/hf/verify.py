"""Compare our logits with transformers' on real text.

The one place of the trainer that touches torch: imported inside the function, and only for
`--verify`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ipt_jax.errors import UserError
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, module_of
from ipt_jax.tokenizers import Tokenizer


def logit_difference(
    folder: Path,
    config: DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    tokens: int = 256,
) -> float:
    """The largest absolute difference of logits, both sides in float32, over `texts`.

    Each text is cut to its first `tokens` tokens. The folder's own tokenizer must give the same
    ids as ours.

    Raises:
      UserError: the folder does not load, or its tokenizer gives other ids.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        their_tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: transformers does not load it ({error}).") from error
    model = module_of(config_in_float32(config), jax.tree.map(jnp.asarray, params))
    forward = jax.jit(lambda ids, positions: model.logits(model(ids, positions)))
    worst = 0.0
    for text in texts:
        ids = tokenizer.encode(text, bos=True)
        if list(their_tokenizer(text)["input_ids"]) != ids:
            raise UserError(
                f"{folder}: its tokenizer gives other ids than {tokenizer.name} for the text that "
                f"begins {text[:60]!r}; export the folder again."
            )
        ids_BT = np.asarray([ids[:tokens]], np.int32)
        positions_BT = np.arange(ids_BT.shape[1], dtype=np.int32)[None]
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(ids_BT).long()).logits.float().numpy()
        ours = np.asarray(forward(jnp.asarray(ids_BT), jnp.asarray(positions_BT)))
        worst = max(worst, float(np.max(np.abs(ours - expected))))
    return worst


def config_in_float32(config: DecoderConfig) -> DecoderConfig:
    """The same decoder computing in float32 and without dropout."""
    return dataclasses.replace(config, compute_dtype="float32", dropout=0.0)
