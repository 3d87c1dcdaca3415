"""lm-evaluation-harness, the real one, on a tiny random model, offline."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.evaluation.harness import (
    SAMPLE_TASKS,
    EvaluationConfig,
    asked_of,
    evaluate_models,
    format_table,
)
from ipt_jax.evaluation.results import read_results
from ipt_jax.evaluation.task_files import TASKS_FOLDER


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral of 2M parameters with the real tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=32000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("a comma, = and [] in the path") / "tiny"
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    load_tokenizer("mistral-7b-v0.1").save_pretrained(folder)
    return folder


def bits_per_byte(folder: Path, texts: list[str], window: int = 256) -> float:
    """By definition: each token after BOS and the tokens before it, as many as the model holds."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    bits = 0.0
    for text in texts:
        ids = torch.tensor(load_tokenizer(str(folder)).encode(text, bos=True))
        for start in range(1, len(ids), window):
            end = min(start + window, len(ids))
            with torch.inference_mode():
                logits = network(ids[None, max(0, end - 1 - window) : end - 1]).logits[0]
            chosen = torch.log_softmax(logits, -1)[start - end :].gather(1, ids[start:end, None])
            bits -= chosen.sum().item() / math.log(2)
    return bits / sum(len(text.encode()) for text in texts)


def own_tasks(folder: Path) -> Path:
    """Two tasks with what they read spread over three folders; one item of two is too long."""
    shutil.copytree(TASKS_FOLDER, folder)
    files = {
        "choice.yaml": "include: shared/_base.yaml\ntask: choice\noutput_type: multiple_choice\n"
        "doc_to_choice: [' yes', ' no']\ndoc_to_target: !function my_utils.target\n",
        "written.yaml": "include: shared/_base.yaml\ntask: written\noutput_type: generate_until\n"
        "doc_to_target: none\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4}\n",
        "my_utils.py": "def target(doc):\n    return (doc['a'] + 1) % 2\n",
        "shared/_base.yaml": "include: ../plain/_data.yaml\ndoc_to_text: !function texts.text\n",
        "shared/texts.py": "def text(doc):\n    return doc['words'] * 'one '\n",
        "plain/_data.yaml": "dataset_path: json\ndataset_kwargs: {data_files: {test: two.jsonl}}\n"
        "test_split: test\n",
        "plain/two.jsonl": '{"words": 300, "a": 0}\n{"words": 3, "a": 1}\n',
    }
    for name in ("shared", "plain"):
        (folder / name).mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
def test_real_run_then_nothing_to_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(
        models={"tiny": model},
        output=tmp_path / "out",
        tasks=[*SAMPLE_TASKS, "choice", "written"],
        include_path=own_tasks(tmp_path / "tasks"),
        limit=4,
    )
    results = evaluate_models(config)
    assert {(r.task, r.metric, r.truncated) for r in results} == {
        ("sample_continuation", "acc", 0),
        ("sample_continuation", "acc_norm", 0),
        ("sample_perplexity", "bits_per_byte", 0),
        ("choice", "acc", 1),
        ("choice", "acc_norm", 1),
        ("written", "exact_match", 1),
    }
    perplexity = next(r for r in results if r.task == "sample_perplexity")
    lines = (TASKS_FOLDER / "sample_perplexity.jsonl").read_text().splitlines()[:4]
    expected = bits_per_byte(model, [json.loads(line)["text"] for line in lines])
    assert perplexity.value == pytest.approx(expected, rel=1e-5)
    assert perplexity.n == 4 and not perplexity.higher_is_better
    assert perplexity.low is not None and perplexity.low < perplexity.value
    assert read_results(tmp_path / "out" / "results.json") == results
    whole = json.loads((tmp_path / "out" / "results.json").read_text())
    assert whole["lm_eval"]["tiny"]["results"]["sample_perplexity"]
    # lm-eval's own number is the same ratio.
    own = whole["lm_eval"]["tiny"]["results"]["sample_perplexity"]["bits_per_byte,none"]
    assert perplexity.value == pytest.approx(own, rel=1e-6)
    assert "tiny   sample_continuation" in format_table(results)
    assert "2 (1 cut)" in format_table(results)
    assert not (tmp_path / "out" / "tiny" / "cache").exists()

    def refuse(*arguments: object) -> int:
        raise AssertionError("measured again")

    monkeypatch.setattr("ipt_jax.evaluation.harness._run", refuse)
    moved = replace(config, include_path=shutil.move(config.include_path, tmp_path / "moved"))
    assert evaluate_models(moved) == results
    monkeypatch.setattr("ipt_jax.evaluation.harness.version", lambda name: "99")
    with pytest.raises(AssertionError, match="measured again"):
        evaluate_models(moved)


def test_what_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_tasks(tmp_path / "tasks")
    (folder / "other.yaml").write_text("task: other\n")
    config = EvaluationConfig(models={}, tasks=["choice", "sample_continuation"])
    config = replace(config, include_path=folder)
    before = asked_of(config, tmp_path / "0")
    for number, (name, differs) in enumerate({
        "other.yaml": {"tasks/choice"},  # all beside a module: it may read any of it
        "my_utils.py": {"tasks/choice"},
        "choice.yaml": {"tasks/choice"},
        "shared/_base.yaml": {"tasks/choice"},
        "plain/_data.yaml": {"tasks/choice"},
        "plain/two.jsonl": {"tasks/choice"},
        "shared/texts.py": {"tasks/choice"},
        "sample_continuation.jsonl": {"tasks/choice", "tasks/sample_continuation"},
    }.items(), 1):  # fmt: skip
        old, times = (folder / name).read_bytes(), (folder / name).stat()
        (folder / name).write_bytes(old[:-1] + b" \n")
        os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        after = asked_of(config, tmp_path / str(number))
        assert {key for key in before if before[key] != after[key]} == differs, name
        (folder / name).write_bytes(old)
    (tmp_path / "harness" / "tasks").mkdir(parents=True)
    code = tmp_path / "harness" / "__init__.py"
    monkeypatch.setattr(
        "ipt_jax.evaluation.harness.find_spec", lambda name: SimpleNamespace(origin=str(code))
    )
    theirs = [asked_of(replace(config, tasks=["hellaswag"]), tmp_path / "8")]
    (tmp_path / "harness" / "tasks" / "hellaswag.yaml").write_text("task: hellaswag\n")
    theirs.append(asked_of(replace(config, tasks=["hellaswag"]), tmp_path / "9"))
    assert theirs[0]["lm-eval's tasks"] != theirs[1]["lm-eval's tasks"]


@pytest.mark.slow
def test_unknown_task_names_model_task_and_log(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError) as caught:
        evaluate_models(EvaluationConfig({model.name: model}, tmp_path / "out", ["no_such_task"]))
    for word in ("tiny", "no_such_task", "lm_eval.log"):
        assert word in str(caught.value)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"models": {}}, "models"),
        ({"models": {"a/b": Path("x")}}, "models.a/b"),
        ({"models": {"a": Path("no_such_folder")}}, Path("no_such_folder")),
        ({"tasks": []}, "tasks"),
        ({"include_path": Path("no_such_folder")}, "include_path"),
    ],
)
def test_bad_settings(change: dict, named: str | Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    settings = {"models": {"m": model}, "output": tmp_path / "out"} | change
    with pytest.raises(UserError) as refused:
        evaluate_models(EvaluationConfig(**settings))
    assert named in (refused.value.key, refused.value.path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_half_an_export_is_refused(missing: str, tmp_path: Path) -> None:
    for name in {"config.json", "model.safetensors", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="export"):
        EvaluationConfig(models={"m": tmp_path}).check()
