"""Between a training run and a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ipt_jax.core.bounds import Config
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import folder_digest
from ipt_jax.core.records import atomic_write
from ipt_jax.core.run_folder import RunFolder, fingerprint_of
from ipt_jax.core.tokenizer_export import enable_special_tokens
from ipt_jax.core.tokenizers import Tokenizer, load_tokenizer
from ipt_jax.data.pipeline import DataConfig, open_mixture
from ipt_jax.hf.adapters import merge_lora, write_peft
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.hf.load import open_hugging_face, read_config, read_json
from ipt_jax.hf.verify import logit_difference
from ipt_jax.models.config import DecoderConfig, Params
from ipt_jax.training.checkpoints import SAVES, load_params, newest_list, save_params
from ipt_jax.training.starting_weights import (
    TrainedRun,
    base_of,
    first_difference,
    load_initial_params,
    read_run,
    read_tensors,
)

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOLERANCE = 1e-4  # largest absolute difference of float32 logits that is published
VERIFY_TEXTS = 8


@dataclass(frozen=True)
class ToHuggingFaceConfig(Config):
    """A run's newest checkpoint -> a Hugging Face folder."""

    run: Path = Path("runs/train")
    """Folder of a training run."""
    output: Path | None = None
    """The folder to write; null: export/ (with adapter=peft: adapter/) in the run folder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32 or bfloat16 weights."""
    adapter: Literal["merged", "peft"] = "merged"
    """Of a run that trained adapters: merged (a whole model) or peft (PEFT's folder, whose base
    stays where it is)."""
    base: Path | None = None
    """Where the base of a run's adapters lies now; null: the run's init_from."""
    base_name: str = ""
    """What PEFT's folder says its base is; empty: the folder that the adapters were trained on."""
    control_text: bool = False
    """Let the exported tokenizer take <s> and </s> that a prompt names for BOS and EOS: for models
    trained with `encode: parts`, such as synthesizers."""
    verify: bool = False
    """Compare logits with transformers' on real text; a folder that differs is not published."""
    verify_text: Path | None = None
    """UTF-8 file whose paragraphs are compared; null: the first records of the run's mixture."""


@dataclass(frozen=True)
class FromHuggingFaceConfig(Config):
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
      UserError: no run, no checkpoint, adapters without their base, or logits that differ by more
        than TOLERANCE.
    """
    run = read_run(config.run)
    if run.lora is None and (config.adapter == "peft" or config.base is not None):
        raise UserError(
            "trained all weights and has no adapter",
            key="adapter",
            path=config.run,
            advice="leave out --adapter and --base",
        )
    base = None if run.lora is None else base_of(run, config.base)
    peft_base = _hugging_face_base(base, run) if base and config.adapter == "peft" else None
    tokenizer = load_tokenizer(run.tokenizer)
    if _without_bos(config.run):
        tokenizer = tokenizer.without_bos()
    generation = _generation(run, tokenizer)
    params, _ = load_params(config.run / "checkpoints")
    output = config.output or config.run / ("adapter" if peft_base else "export")
    output = output.expanduser()
    difference: float | None = None

    def check(folder: Path) -> None:
        nonlocal difference
        weights, adapters = params, None
        if run.lora is not None and base is not None:
            weights = load_initial_params(base, run.decoder, run.lora.base_dtype)
            adapters = params
        difference = logit_difference(
            folder,
            run.decoder,
            weights,
            tokenizer,
            _verify_texts(config, run.settings),
            lora=run.lora,
            adapters=adapters,
            base=peft_base,
            generation=None if peft_base else generation,
        )
        if not difference <= TOLERANCE:
            raise UserError(
                f"not published, its logits differ from the run's by {difference:.2e} (allowed: "
                f"{TOLERANCE:.0e})",
                path=output,
                advice="with dtype=bfloat16 the weights are rounded, so verify float32 ones",
            )
        result = {"maximum_absolute_logit_difference": difference, "tolerance": TOLERANCE}
        atomic_write(folder / "verification.json", json.dumps(result))

    options: dict[str, Any] = {"dtype": config.dtype, "check": check if config.verify else None}
    if run.lora is not None and peft_base is not None:
        name = config.base_name or str(peft_base.resolve())
        write_peft(output, run.decoder, run.lora, params, name, tokenizer, **options)
    else:
        whole: Any = params
        if run.lora is not None and base is not None:
            whole = merge_lora(run.decoder, run.lora, params, read_tensors(base, run.decoder))
        options["generation"] = generation
        export_hugging_face(output, run.decoder, whole, tokenizer, **options)
    if config.control_text:
        enable_special_tokens(output)
    return output, difference


def from_hugging_face_folder(config: FromHuggingFaceConfig) -> Path:
    """Read the folder's weights and write them as a run folder's checkpoint.

    Raises:
      UserError: weights that cannot be read, or a run folder that holds something already.
    """
    decoder = read_config(config.folder)
    params = open_hugging_face(config.folder, decoder)
    owns = ("config.yaml", *(f"checkpoints/{name}" for name in SAVES))
    prints = {"folder": folder_digest(config.folder, ("*",))}
    with RunFolder.open(config.run, "weights", prints, owns=owns, fresh=None) as run:
        if not run.finished or newest_list(run.path / "checkpoints") is None:
            run.begin()
            _write_weights(config, run.path, decoder, params)
            run.finish()
    return run.path


def _write_weights(
    config: FromHuggingFaceConfig, run: Path, decoder: DecoderConfig, params: Params
) -> None:
    save_params(run / "checkpoints", params)
    described = {
        "model": {"preset": "tiny", "overrides": dataclasses.asdict(decoder)},
        "data": {"tokenizer": str(config.folder.resolve())},
        "init_from": str(config.folder.resolve()),
    }
    atomic_write(run / "config.yaml", yaml.safe_dump(described, sort_keys=False))


def _without_bos(run: Path) -> bool:
    """Whether the run's marker says that all its texts were trained on without BOS.

    Those with `encode: parts` that are given none bring their own, and do not count.
    """
    prints = fingerprint_of(run) or {}
    tasks = [key.removesuffix("bos") for key in prints if re.fullmatch(r"tasks\..*\.bos", key)]
    given = {(prints[f"{task}bos"], prints[f"{task}encode"]) for task in tasks}
    return given - {("false", "parts")} == {("false", "text")}


def _hugging_face_base(base: Path, run: TrainedRun) -> Path:
    """The Hugging Face folder that peft is to load under the run's adapters."""
    found = base if (base / "config.json").exists() else base / "export"
    if not (found / "config.json").exists():
        raise UserError(
            f"adapter=peft: the base of the adapters, {base}, is a run without an export/ that "
            "peft could load",
            key="adapter",
            path=base,
            advice=f"export it first (launch/convert.py to-hf --run {base})",
        )
    theirs = read_config(found)
    if name := first_difference(theirs, run.decoder):
        raise UserError(
            f"adapter=peft: {found / 'config.json'} gives {name} as {getattr(theirs, name)}, but "
            f"the run trained with {getattr(run.decoder, name)}, so that peft would build another "
            "model",
            key="adapter",
            path=found / "config.json",
            advice="export with adapter=merged",
        )
    return found


def _generation(run: TrainedRun, tokenizer: Tokenizer) -> dict[str, Any]:
    """What generation_config.json says: as in the Hugging Face folder that the run began with.

    Of one without that file, the special tokens that its config.json names, as transformers has
    it. The tokenizer's own BOS and EOS where the run began with no such folder, or with one whose
    texts do not end with the tokenizer's EOS.
    """
    own = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    own["_from_model_config"] = True
    folder = run.folder
    while not (folder / "config.json").exists():
        named = read_run(folder).settings.get("init_from")
        if named is None:
            return own
        folder = Path(named)
        if not any((folder / name).exists() for name in ("config.json", "config.yaml")):
            print(f"{folder}: is gone, so its generation_config.json could not be taken over.")
            return own
    found = read_json(folder / "config.json")
    if (path := folder / "generation_config.json").exists():
        found = read_json(path)
    else:
        found = own | {key: found[key] for key in SPECIAL_IDS if found.get(key) is not None}
    ends = found.get("eos_token_id")
    if tokenizer.eos_id in (ends if isinstance(ends, list) else [ends]):
        return found
    print(
        f"{path}: not taken over, for its eos_token_id is {ends} and the tokenizer "
        f"{tokenizer.name} ends with {tokenizer.eos_id}."
    )
    return own


def _verify_texts(config: ToHuggingFaceConfig, run: dict[str, Any]) -> Sequence[str]:
    asked = config.verify_text
    if asked is not None:
        try:
            texts = asked.read_text(encoding="utf-8").split("\n\n")
        except (OSError, UnicodeDecodeError) as error:
            said = f"cannot be read as UTF-8 text ({error})."
            raise UserError(said, key="verify_text", path=asked) from error
    elif "mixture" in run["data"]:
        source = next(filter(None, open_mixture(DataConfig(**run["data"])).sources))
        records = source.read(range(min(VERIFY_TEXTS, len(source))))
        texts = [record.text for record in records]
    else:
        said = "verify: this run has no mixture to take text from"
        raise UserError(said, key="verify_text", advice="give --verify_text")
    if not (found := [text for text in texts if text.strip()][:VERIFY_TEXTS]):
        said = f"verify: {asked or 'the first records of this run'}: no text there"
        raise UserError(said, key="verify_text", path=asked, advice="give --verify_text with some")
    return found
