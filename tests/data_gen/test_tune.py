"""launch/tune.py: data sets in, a tuned model out that an engine runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_gen.engines import EngineConfig, Request, SamplingParams, open_engine
from data_gen.fine_instructions.students import StudentsConfig
from data_gen.instruction_pretrain.formats import render_prompt
from data_gen.instruction_pretrain.tuning import TuningConfig, TuningSource
from ipt_jax.chains.tune import TuneConfig
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.pipeline import open_mixture
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.models.config import PRESETS, ModelConfig
from ipt_jax.models.decoder import new_params
from tests.launching import ROOT, launch

pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
OVERRIDES = {"vocabulary_size": 32000, "max_positions": 512}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with Mistral's tokenizer."""
    import jax

    decoder = ModelConfig("tiny", OVERRIDES).decoder()
    assert decoder.layers == PRESETS["tiny"].layers
    folder = tmp_path_factory.mktemp("base") / "tiny"
    params = new_params(decoder, jax.random.key(0))
    return export_hugging_face(folder, decoder, params, load_tokenizer("mistral-7b-v0.1"))


def of_data_sets(shared: Path) -> dict[str, Any]:
    source = {"dataset": "aqua", "folder": "aqua", "files": ["dev.json"], "most_examples": 60}
    return {"root": str(shared / "data"), "sequence_tokens": 512, "sources": [source]}


def tune(base: Path, folder: Path, data: dict[str, Any], *more: str, adapter: Any = None) -> str:
    students = "student" in data
    mixture = "fi_genericizer" if students else "ipt_synthesizer"
    config = {
        "folder": str(folder),
        "base": str(base),
        "dtype": "float32",
        "students" if students else "tuning": data,
        "training": {
            "model": {"preset": "tiny", "overrides": OVERRIDES},
            "data": {
                "mixture": str(ROOT / "configs" / "mixtures" / f"{mixture}.yaml"),
                "row_tokens": 512,
            },
            "adapter": adapter,
            "optimizer": {"peak_learning_rate": 0.05, "warmup_steps": 1},
            "batch_tokens": 512,
            "train_tokens": 1024,
            "compilation_cache": None,
        },
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    ended = launch("launch/tune.py", "--config", path, *more)
    assert ended.code == 0, ended.err
    return ended.out


def answer(**settings: Any) -> str:
    engine = open_engine(EngineConfig(name="transformers", context_tokens=512, **settings))
    try:
        prompt = render_prompt((), "A ship is leaving a port.")
        assert engine.count_tokens(prompt) == len(prompt_ids(prompt))
        (found,) = engine.generate([Request("a", prompt, SamplingParams(max_tokens=8))])
        return found.text
    finally:
        engine.close()


def prompt_ids(prompt: str) -> list[int]:
    """BOS once, then the prompt's characters."""
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    assert prompt.startswith("<s> ")
    return [tokenizer.bos_id or 0, *tokenizer.encode(prompt.removeprefix("<s>"))]


def test_sequences_training_and_export_in_one_command(
    base: Path, shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapted"
    tune(base, folder, of_data_sets(shared), adapter={"rank": 4})
    data = json.loads((folder / "ipt_tuning" / "summary.json").read_text())
    mixture = DataConfig(
        mixture=str(ROOT / "configs" / "mixtures" / "ipt_synthesizer.yaml"), root=str(folder)
    )
    assert open_mixture(mixture).epoch_tokens == (data["tokens"],)
    assert json.loads((folder / "train" / "summary.json").read_text())["final_loss"] > 0
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4 and len(settings["target_modules"]) == 7
    cache = str(tmp_path / "cache")
    alone = answer(model=str(base))
    assert answer(model=str(base), adapter=str(folder / "adapter"), cache_folder=cache) != alone
    # Again: every stage is done.
    before = (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    tune(base, folder, of_data_sets(shared), adapter={"rank": 4})
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_model_that_was_tuned_whole_reads_its_prompts_as_trained(
    base: Path, shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    said = tune(base, folder, of_data_sets(shared), "--only_data", "true")
    assert "\naqua: 254 records with 217 questions" in said and "37 no_context" in said
    assert said.strip().endswith("whole/ipt_tuning") and not (folder / "train").exists()
    tune(base, folder, of_data_sets(shared))
    config = json.loads((folder / "export" / "tokenizer_config.json").read_text())
    assert config["split_special_tokens"] is False
    answer(model=str(folder / "export"))


def test_a_teachers_records_train_a_student_that_reads_its_prompts_as_trained(
    base: Path, tmp_path: Path
) -> None:
    folder, template = tmp_path / "student", "How far is <fi>a town</fi>?"
    with ShardWriter(tmp_path / "templates") as shards:
        for number in range(40):
            told = {"query": f"How far is  {number}?", "documents": "A map.", "query_source": "s"}
            told |= {"parents": [f"q{number}"]}
            shards.write(Record(f"fi_templates/q{number}", template, "s", provenance=told))
    data = {"student": "genericizer", "input": [str(tmp_path / "templates")], "chat": False}
    said = tune(base, folder, {**data, "held_out_share": 0.2}, adapter={"rank": 4})
    summary = json.loads((folder / "fi_students" / "summary.json").read_text())
    assert f"genericizer: 40 records, {summary['out']} examples" in said
    assert summary["reasons"] == {"held_out": 40 - summary["out"]} and 20 < summary["out"] < 40
    mixture = str(ROOT / "configs" / "mixtures" / "fi_genericizer.yaml")
    assert open_mixture(DataConfig(mixture=mixture, root=str(folder))).epoch_tokens == (
        summary["tokens"],
    )
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    both = TuningConfig(sources=[TuningSource("aqua", "x")])
    with pytest.raises(UserError) as refused:
        TuneConfig(students=StudentsConfig(), tuning=both)
    assert refused.value.key == "students"
