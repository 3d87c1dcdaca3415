"""lm-evaluation-harness, the real one, on a tiny random model, offline."""

import json
from pathlib import Path

import pytest

from ipt_jax.errors import UserError
from ipt_jax.evaluation.harness import (
    EvaluationConfig,
    evaluate,
    evaluate_models,
    format_table,
)
from ipt_jax.evaluation.results import read_results
from ipt_jax.tokenizers import load_tokenizer


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
    folder = tmp_path_factory.mktemp("model") / "tiny"
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    load_tokenizer("mistral-7b-v0.1").save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_real_run_then_nothing_to_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(models={"tiny": model}, output=tmp_path / "out", limit=4)
    results = evaluate_models(config)
    assert {(r.task, r.metric) for r in results} == {
        ("sample_continuation", "acc"),
        ("sample_continuation", "acc_norm"),
        ("sample_perplexity", "bits_per_byte"),
    }
    perplexity = next(r for r in results if r.task == "sample_perplexity")
    # A model that knows nothing spends log2(32000) bits on each token of about four bytes.
    assert 3.0 < perplexity.value < 5.0 and perplexity.n == 4 and not perplexity.higher_is_better
    assert perplexity.low is not None and perplexity.low < perplexity.value
    assert read_results(tmp_path / "out" / "results.json") == results
    whole = json.loads((tmp_path / "out" / "results.json").read_text())
    assert whole["lm_eval"]["tiny"]["results"]["sample_perplexity"]
    # lm-eval's own number is the same ratio.
    own = whole["lm_eval"]["tiny"]["results"]["sample_perplexity"]["bits_per_byte,none"]
    assert perplexity.value == pytest.approx(own, rel=1e-6)
    assert "tiny   sample_continuation" in format_table(results)
    assert not (tmp_path / "out" / "tiny" / "cache").exists()

    def refuse(*arguments: object) -> int:
        raise AssertionError("measured again")

    monkeypatch.setattr("ipt_jax.evaluation.harness._run", refuse)
    assert evaluate_models(config) == results
    with pytest.raises(AssertionError, match="measured again"):
        evaluate(model, ["sample_continuation"], tmp_path / "out", name="tiny", limit=3)


@pytest.mark.slow
def test_unknown_task_names_model_task_and_log(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError) as caught:
        evaluate(model, ["no_such_task"], tmp_path / "out")
    for word in ("tiny", "no_such_task", "lm_eval.log"):
        assert word in str(caught.value)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"a/b": Path("x")}}, "models.a/b"),
        ({"models": {"a": Path("no_such_folder")}}, "no_such_folder: no config.json"),
        ({"tasks": []}, "tasks is empty"),
        ({"limit": 0}, "limit=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"include_path": Path("no_such_folder")}, "include_path=no_such_folder"),
    ],
)
def test_bad_settings(change: dict, said: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    settings = {"models": {"m": tmp_path}, "output": tmp_path / "out"} | change
    with pytest.raises(UserError, match=said):
        evaluate_models(EvaluationConfig(**settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_half_an_export_is_refused(missing: str, tmp_path: Path) -> None:
    for name in {"config.json", "model.safetensors", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="export"):
        EvaluationConfig(models={"m": tmp_path}).check()
