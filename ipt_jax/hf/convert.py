"""Between a training run and a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ipt_jax.data.pipeline import DataConfig, open_mixture
from ipt_jax.errors import UserError
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.hf.load import load_hugging_face, read_config
from ipt_jax.hf.verify import logit_difference
from ipt_jax.models.config import DecoderConfig, ModelConfig
from ipt_jax.records import atomic_write
from ipt_jax.tokenizers import load_tokenizer
from ipt_jax.training.checkpoints import load_params, save_params

TOLERANCE = 1e-4  # largest absolute difference of float32 logits that is published
VERIFY_TEXTS = 8


@dataclass(frozen=True)
class ToHuggingFaceConfig:
    """A run's newest checkpoint -> a Hugging Face folder."""

    run: Path = Path("runs/train")
    """Folder of a training run."""
    output: Path | None = None
    """The folder to write; null: export/ in the run folder."""
    dtype: str = "float32"
    """float32 or bfloat16 weights."""
    verify: bool = False
    """Compare logits with transformers' on real text; a folder that differs is not published."""
    verify_text: Path | None = None
    """UTF-8 file whose paragraphs are compared; null: the first records of the run's mixture."""


@dataclass(frozen=True)
class FromHuggingFaceConfig:
    """A Hugging Face folder -> a run folder that `init_from` and `to-hf` read."""

    folder: Path = Path("model")
    """Hugging Face folder of the Mistral or Llama family."""
    run: Path = Path("runs/converted")
    """Run folder to make."""


def to_hugging_face_folder(config: ToHuggingFaceConfig) -> tuple[Path, float | None]:
    """Export, and verify if asked.

    Returns:
      The folder, and the largest absolute logit difference (None where not verified).

    Raises:
      UserError: no run, no checkpoint, or logits that differ by more than TOLERANCE.
    """
    decoder, tokenizer_name, run = _read_run(config.run)
    tokenizer = load_tokenizer(tokenizer_name)
    params, _ = load_params(config.run / "checkpoints")
    output = config.output or config.run / "export"
    difference: float | None = None

    def check(folder: Path) -> None:
        nonlocal difference
        texts = _verify_texts(config, run)
        difference = logit_difference(folder, decoder, params, tokenizer, texts)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{output}: not published, its logits differ from the run's by {difference:.2e} "
                f"(allowed: {TOLERANCE:.0e}); with dtype=bfloat16 the weights are rounded, so "
                "verify float32 ones."
            )

    export_hugging_face(
        output,
        decoder,
        params,
        tokenizer,
        dtype=config.dtype,
        check=check if config.verify else None,
    )
    if difference is not None:
        result = {"maximum_absolute_logit_difference": difference, "tolerance": TOLERANCE}
        atomic_write(config.run / "verification.json", json.dumps(result))
    return output, difference


def from_hugging_face_folder(config: FromHuggingFaceConfig) -> Path:
    """Read the folder's weights and write them as a run folder's checkpoint.

    Raises:
      UserError: weights that cannot be read, or a run folder that holds something already.
    """
    if config.run.exists() and any(config.run.iterdir()):
        raise UserError(f"run={config.run}: not empty; choose another folder.")
    decoder = read_config(config.folder)
    params = load_hugging_face(config.folder, decoder)
    config.run.mkdir(parents=True, exist_ok=True)
    save_params(config.run / "checkpoints", params)
    described = {
        "model": {"preset": "tiny", "overrides": dataclasses.asdict(decoder)},
        "data": {"tokenizer": str(config.folder.resolve())},
    }
    atomic_write(config.run / "config.yaml", yaml.safe_dump(described, sort_keys=False))
    return config.run


def load_initial_params(folder: Path, decoder: DecoderConfig) -> Any:
    """The weights that training starts from: a Hugging Face folder's or another run's.

    Raises:
      UserError: neither, or weights of another shape.
    """
    if (folder / "config.json").exists():
        return load_hugging_face(folder, decoder)
    theirs, _, _ = _read_run(folder)
    shapes = ("vocabulary_size", "width", "mlp_width", "layers", "heads", "kv_heads", "head_width")
    for name in (*shapes, "tied_embeddings"):
        if getattr(theirs, name) != getattr(decoder, name):
            raise UserError(
                f"init_from={folder}: its {name} is {getattr(theirs, name)}, the config's "
                f"{getattr(decoder, name)}; choose the preset that fits the weights."
            )
    return load_params(folder / "checkpoints")[0]


def _read_run(folder: Path) -> tuple[DecoderConfig, str, dict[str, Any]]:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder}: no training run (no config.yaml there); name a run folder.")
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    return ModelConfig(**run["model"]).decoder(), run["data"]["tokenizer"], run


def _verify_texts(config: ToHuggingFaceConfig, run: dict[str, Any]) -> Sequence[str]:
    if config.verify_text is not None:
        try:
            text = config.verify_text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"verify_text={config.verify_text}: cannot be read as UTF-8 text ({error})."
            ) from error
        found = [part for part in text.split("\n\n") if part.strip()][:VERIFY_TEXTS]
        if not found:
            raise UserError(f"verify_text={config.verify_text}: holds no text.")
        return found
    if "mixture" not in run["data"]:
        raise UserError("verify: this run has no mixture to take text from; give --verify_text.")
    source = next(filter(None, open_mixture(DataConfig(**run["data"])).sources))
    return [record.text for record in source.read(range(min(VERIFY_TEXTS, len(source))))]
