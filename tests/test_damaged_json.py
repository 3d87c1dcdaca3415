"""JSON files that were damaged: the readers name them, whatever is wrong in them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from data_gen.engines import adapter, vllm
from data_gen.instruction_pretrain.analysis.synthesized import SynthesizedTexts
from data_gen.stages import outputs
from data_gen.stages.outputs import OutputFolder
from ipt_jax.core.errors import UserError
from ipt_jax.core.jobs import job_seconds
from ipt_jax.core.manifest import Manifest
from ipt_jax.core.report.source import read_source
from ipt_jax.core.run_folder import RunFolder
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.core.weight_files import weight_files
from ipt_jax.evaluation import harness, results
from ipt_jax.hf import load
from ipt_jax.training.integrity import find_corruption

ROOT = Path(__file__).parents[1]
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
WRONG = [DEEP, b"[" * 300 + b"]" * 300, b'{"a": "flipp\xe5d"}', b'{"a": ' + b"7" * 5000 + b"}"]


def the_tokenizer(path: Path) -> None:
    beside = path.with_name("tokenizer.json")
    if path != beside:
        tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(beside))
    load_tokenizer(str(path.parent))


# File -> what reads it.
READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("config.json", lambda path: load.read_config(path.parent)),
    ("generation_config.json", load.read_json),
    ("adapter_config.json", load.read_json),
    ("config.json", lambda path: vllm._model_context(path.parent)),
    ("adapter_config.json", adapter._read_config),
    ("model.safetensors.index.json", lambda path: weight_files(path.parent)),
    *((f"{name}.json", the_tokenizer) for name in ("tokenizer_config", "special_tokens_map")),
    ("tokenizer.json", the_tokenizer),
    ("manifest.json", lambda path: Manifest.load(path.parent)),
    ("run.json", lambda path: RunFolder.open(path.parent, "train", {}, owns=())),
    ("stages.json", lambda path: job_seconds(path.parent)),
    ("results.json", results.read_results),
    ("results_1.json", lambda path: results.read_lm_eval(path.parent, "model")),
    ("environment.json", read_source),
    ("summary.json", lambda path: SynthesizedTexts(path.parent)),
]


@pytest.mark.parametrize("wrong", WRONG, ids=["deep", "300 deep", "flipped byte", "long number"])
@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_damaged_file_is_named(tmp_path, name, read, wrong):
    (tmp_path / name).write_bytes(wrong)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}")) as refusal:
        read(tmp_path / name)
    assert name in str(refusal.value)


@pytest.mark.parametrize("wrong", WRONG, ids=["deep", "300 deep", "flipped byte", "long number"])
def test_what_can_be_made_again_is_not_taken(tmp_path, wrong, capsys):
    for name in ("summary.json", "results.json", "checksums.json", "stages.json"):
        (tmp_path / name).write_bytes(wrong)
    assert OutputFolder(tmp_path, ("raw",)).finished() is None
    assert outputs._before_markers(tmp_path, "tuning") is None
    assert harness._already_measured(tmp_path, {}) is harness._before_markers(tmp_path) is None
    assert f"{tmp_path / 'results.json'} is damaged" in capsys.readouterr().out
    damage = find_corruption(tmp_path)
    assert damage is not None and damage.slug == "bad-list"


def test_every_json_file_is_read_by_the_one_reader():
    straight = re.compile(r"json\.load\(|json\.loads\([^\n]*\.read_(text|bytes)\(")
    for folder in ("ipt_jax", "data_gen", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not straight.search(path.read_text(encoding="utf-8")), path
