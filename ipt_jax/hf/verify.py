"""Compare our logits with transformers' on real text.

The one place of the trainer that touches torch, transformers and peft: imported inside the
functions, and only for `--verify`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import Tokenizer
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, module_of
from ipt_jax.models.lora import LoraConfig


def logit_difference(
    folder: Path,
    config: DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    tokens: int = 256,
    lora: LoraConfig | None = None,
    adapters: Params | None = None,
    base: Path | None = None,
    generation: Mapping[str, Any] | None = None,
) -> float:
    """The largest absolute difference of logits, both sides in float32, over `texts`.

    Each text is cut to its first `tokens` tokens. The folder's own tokenizer must give the same
    ids as ours; where ours came from a tokenizer.json, it must have the special and added tokens
    and the chat template that lie beside it.

    Args:
      folder: a Hugging Face model, or with `base` a PEFT adapter.
      config: our decoder.
      params: its weights; with `adapters`, their base in any dtype.
      tokenizer: ours.
      texts: what is compared.
      tokens: the longest row.
      lora: what the adapters are, where there are any.
      adapters: ours, as `ipt_jax.models.lora.new_adapters` makes them.
      base: Hugging Face folder on which peft puts `folder`, rounded to `lora.base_dtype`.
      generation: what transformers must take from the folder for `generate`, key by key.

    Raises:
      UserError: a folder does not load, its tokenizer or its settings for generation are others,
        or a text has ids that the model has no row for.
    """
    import torch
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    base_dtype = "float32" if lora is None else lora.base_dtype
    try:
        theirs = _load(folder) if base is None else _load_adapted(folder, base, base_dtype)
        their_tokenizer = AutoTokenizer.from_pretrained(folder)
        wanted = _expected(tokenizer)
    except (OSError, ValueError) as error:
        raise UserError(f"transformers does not load it ({error}).", path=folder) from error
    _compare("tokenizer", folder, _described(their_tokenizer), wanted)
    if generation:
        _compare("generation", folder, theirs.generation_config.to_dict(), generation)
    placed = _on_device((params, adapters))

    @jax.jit
    def forward(placed: Any, ids_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        weights, factors = placed
        model = module_of(config_in_float32(config), weights, factors, lora)
        return model.logits(model(ids_BT, positions_BT))

    worst = 0.0
    for text in texts:
        ids = tokenizer.encode(text, bos=tokenizer.adds_bos)
        if list(their_tokenizer(text)["input_ids"]) != ids:
            raise UserError(
                f"its tokenizer gives other ids than {tokenizer.name} for the text that begins "
                f"{text[:60]!r}",
                path=folder,
                advice="export the folder again",
            )
        if max(ids) >= config.vocabulary_size:
            raise UserError(
                f"{tokenizer.name} gives the id {max(ids)} for the text that begins {text[:60]!r}, "
                f"but the model has {config.vocabulary_size} rows (model.vocabulary_size)",
                key="model.vocabulary_size",
                path=folder,
                advice="name the tokenizer that it was trained with",
            )
        ids_BT = np.asarray([ids[:tokens]], np.int32)
        positions_BT = np.arange(ids_BT.shape[1], dtype=np.int32)[None]
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(ids_BT).long()).logits.float().numpy()
        ours = np.asarray(forward(placed, ids_BT, positions_BT))
        worst = max(worst, float(np.max(np.abs(ours - expected))))
    return worst


def _described(tokenizer: Any) -> dict[str, Any]:
    """What verification compares of a transformers tokenizer beside its ids."""
    names = ("eos_token", "bos_token", "pad_token", "chat_template")
    added = tokenizer.get_added_vocab()
    return {name: getattr(tokenizer, name) for name in names} | {"added tokens": added}


def _expected(tokenizer: Tokenizer) -> dict[str, Any]:
    from transformers import AutoTokenizer

    source = Path(tokenizer.name)
    if all((source / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return _described(AutoTokenizer.from_pretrained(tokenizer.name))
    own = {"eos_token": tokenizer.eos_token, "bos_token": tokenizer.bos_token}
    return {name: token for name, token in own.items() if token is not None}


def _compare(what: str, folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if key not in ("_from_model_config", "transformers_version") and found.get(key) != value:
            raise UserError(
                f"transformers takes {key}={found.get(key)!r} from it for its {what}, but where it "
                f"came from it is {value!r}",
                key=key,
                path=folder,
                advice="export the folder again",
            )


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _load_adapted(folder: Path, base: Path, base_dtype: str) -> Any:
    import torch
    from peft import PeftModel

    model = _load(base)
    # Rounded as the run's frozen weights were; buffers (rotary frequencies) stay as they are.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, base_dtype)).to(torch.float32)
    return PeftModel.from_pretrained(model, folder).eval()


def _on_device(tree: Any) -> Any:
    """Leaves may be arrays on disk, see `ipt_jax.training.checkpoints.load_params`."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def config_in_float32(config: DecoderConfig) -> DecoderConfig:
    """The same decoder computing in float32 and without dropout."""
    return dataclasses.replace(config, compute_dtype="float32", dropout=0.0)
