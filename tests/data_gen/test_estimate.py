"""What a run will take, from a sample that goes through the engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_gen.corpus import Document
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.methods import stage_of, synthesize
from data_gen.stages.estimate import estimate, print_estimate, sample_corpus
from data_gen.stages.progress import describe
from data_gen.stages.runner import Status, Usage
from data_gen.stages.stage import estimate_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Rejection
from tests.data_gen.fakes import FakeEngine


def test_a_sample_is_fair_and_in_corpus_order() -> None:
    corpus = [Document(f"d{n}", "text", "s") for n in range(50)]
    corpus.insert(7, Rejection("x", "x", "empty", ""))  # type: ignore[arg-type]
    drawn = Counter[str]()
    for seed in range(400):
        sample, seen = sample_corpus(corpus, 10, seed)
        names = [one.id for one in sample]
        assert seen == 50 and len(names) == 10
        assert names == sorted(names, key=lambda name: int(name[1:]))
        drawn.update(names)
    assert len(drawn) == 50 and min(drawn.values()) > 45 and max(drawn.values()) < 120  # mean 80
    assert sample_corpus(corpus, 99, 0) == ([c for c in corpus if isinstance(c, Document)], 50)


def test_sums_scale_with_the_corpus_and_intervals_with_the_spread() -> None:
    tokens = [(100, 10), (200, 10), (300, 10), (400, 10)]
    found = estimate(1000, 4, 0.2, tokens, 8.0, gpus=2, price_per_gpu_hour=3.0)
    assert found.asked == 200
    assert found.completion_tokens == (2000.0, 2000.0, 2000.0)
    low, expected, high = found.prompt_tokens
    assert expected == 50_000 and high - expected == pytest.approx(expected - low)
    assert high - expected == pytest.approx(50 * 1.96 * 129.0994 * 2, rel=1e-5)
    assert found.seconds == 400.0
    assert found.gpu_hours == pytest.approx(400 / 3600 * 2)
    assert found.cost == pytest.approx(found.gpu_hours * 3)


def test_the_estimate_of_a_run_holds_what_the_run_then_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"key": n, "body": "word " * (5 + n % 37)} for n in range(300)]
    corpus.write_text("\n".join(map(json.dumps, lines)))
    config = SynthesisConfig(
        input=[str(corpus)], output=str(tmp_path / "out"), fraction=0.5, rounds=2,
        text_field="body", id_field="key", dry_run_documents=100, gpus=1, price_per_gpu_hour=2.0,
    )  # fmt: skip
    engine = FakeEngine(delay_seconds=0.001)
    found = estimate_stage(stage_of(config), engine=engine)
    assert (found.documents, found.sampled, found.asked) == (300, 100, 150)
    assert len(engine.asked) == 100 and not (tmp_path / "out").exists()
    print_estimate(found)
    assert "documents: 300, of which 150 will be asked about" in capsys.readouterr().out
    summary = synthesize(config, engine=FakeEngine(delay_seconds=0.001))
    for name in ("prompt_tokens", "completion_tokens"):
        low, _, high = getattr(found, name)
        assert 0.9 * low <= summary[name] <= 1.1 * high
    assert found.seconds > 0.15
    log = (tmp_path / "out" / "progress.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["usage"]["completions"] == 150
    assert summary["cost"] == round(summary["seconds"] / 3600 * 2, 2)


def test_the_terminal_tells_speeds_rejections_and_cost() -> None:
    status = Status(
        fresh=Usage(100, 5000, 2000), rejected={"no_pairs": 3, "unfinished": 1200}, seconds=50.0
    )
    said = describe(status, gpus=8, price_per_gpu_hour=2.0)
    assert said == (
        "2.0 answers/s · 100 tokens/s read · 40 written · 1,203 rejected (1,200 unfinished) · "
        "0.11 GPU hours · cost 0.22"
    )
    assert "GPU" not in describe(status)


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="holds no document"):
        estimate_stage(stage_of(SynthesisConfig(input=[str(corpus)])), engine=FakeEngine())
