"""The whole synthesis with a deterministic engine: sums, bytes, kills, bad input."""

from __future__ import annotations

import json
import random
import runpy
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import Completion, EngineIdentity, Request
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.formats import parse_pairs
from data_gen.methods import synthesize
from data_gen.quality.moderation import ModerationConfig, ModerationGate
from data_gen.quality.rules import RulesConfig, RulesGate
from data_gen.stages import stage
from data_gen.stages.failed_requests import TOO_MANY_FAILED, FailedRequests
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from tests.data_gen.fakes import FakeEngine
from tests.data_gen.written import records, written
from tests.forked import Forked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"id": f"d{n}", "text": f"Text number {n}.", "licence": "MIT"})
        for n in range(150)
    ]
    path.write_text("\n".join(lines))
    return path


def config_for(corpus: Path, output: Path, **changes: Any) -> SynthesisConfig:
    base = SynthesisConfig(input=[str(corpus)], output=str(output), fraction=0.8, rounds=3)
    return replace(base, **changes)


def test_every_document_is_once_in_augmented_plain_or_rejected(
    corpus: Path, tmp_path: Path
) -> None:
    damaged = [
        b'{"id": "bad1", "text": "caf\xe9"}',
        b'{"id": "bad2"}',
        b'{"id": "d3", "text": "again"}',
        b'{"id": "bad3", "text": ""}',
        b'{"id": "bad4", "text": "' + b"word " * 5000 + b'"}',
    ]
    corpus.write_bytes(corpus.read_bytes() + b"\n" + b"\n".join(damaged))
    out = tmp_path / "out"
    summary = synthesize(config_for(corpus, out), engine=FakeEngine())
    assert summary["documents_in"] == 155
    assert summary["documents_rejected"] == 5
    assert summary["rejected_documents"] == {
        "undecodable": 1,
        "no_text": 1,
        "duplicate_id": 1,
        "empty": 1,
        "too_long": 1,
    }
    rejected = (out / "rejected" / "documents.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in rejected} == set(summary["rejected_documents"])
    raw = [record.id for record in records(out / "shards/raw")]
    plain = [record.id for record in records(out / "shards/plain")]
    parents = [
        p for record in records(out / "shards/augmented") for p in record.provenance["parents"]
    ]
    assert raw == [f"d{n}" for n in range(150)]
    assert sorted([*plain, *parents]) == sorted(raw)
    assert plain == [name for name in raw if name in set(plain)]
    assert len(plain) == summary["documents_plain"] == sum(summary["plain_reasons"].values())
    assert summary["plain_reasons"]["not_selected"] == 30
    assert summary["plain_reasons"]["no_pairs"] > 0
    files = sorted((out / "rejected").glob("pieces-*.jsonl"))
    pieces = "".join(path.read_text() for path in files).splitlines()
    assert len(files) == 1 and len(pieces) == sum(summary["rejected_pieces"].values())
    assert set(summary["rejected_pieces"]) == {"unfinished", "duplicate_question"}


def test_augmented_records_hold_their_texts_and_pairs(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = synthesize(config_for(corpus, out), engine=FakeEngine())
    texts = {record.id: record.text for record in records(out / "shards/raw")}
    augmented = records(out / "shards/augmented")
    assert sum(record.provenance["pairs"] for record in augmented) == summary["pairs"]
    assert max(len(record.provenance["parents"]) for record in augmented) == 3
    for record in augmented:
        assert record.loss is not None and set(record.loss) == {1.0}
        assert all(texts[parent] in record.text for parent in record.provenance["parents"])
        assert record.provenance["model"] == "fake-model"
    samples = json.loads((out / "samples.json").read_text())
    assert len(samples) == 8
    for sample, record in zip(samples, augmented, strict=False):
        assert sample["id"] == record.id
        for document in sample["documents"]:
            for pair in document["pairs"]:
                assert pair["instruction"] in record.text and pair["response"] in record.text


def test_records_say_which_pairs_they_hold_as_they_were_written(
    corpus: Path, tmp_path: Path
) -> None:
    engine = FakeEngine()
    synthesize(config_for(corpus, tmp_path / "out"), engine=engine)
    assert {request.sampling.stop for request in engine.asked} == {("</s>",)}
    for record in records(tmp_path / "out" / "shards/augmented"):
        generated = record.provenance["generated"]
        assert len(generated) == len(record.provenance["parents"])
        pairs = [pair for one in generated for pair in parse_pairs(one).pairs]
        assert len(pairs) == record.provenance["pairs"] > 0
        assert all(pair.instruction in record.text for pair in pairs)


def test_templates_of_ones_own_are_used_and_are_part_of_the_run(
    corpus: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text('free_form: ["ASK {question} SAY {answer}"]\narrangements: {reading: 1}\n')
    settings = config_for(corpus, tmp_path / "out", templates=str(mine))
    synthesize(settings, engine=FakeEngine())
    two = [r for r in records(tmp_path / "out" / "shards/augmented") if r.provenance["pairs"] > 1]
    assert sum("ASK W" in record.text and " SAY " in record.text for record in two) > 0.8 * len(two)
    mine.write_text('free_form: ["{question} {answer}"]\n')
    with pytest.raises(UserError, match="templates_sha256"):
        synthesize(settings, engine=FakeEngine())


class Refusing(FakeEngine):
    """Answers some requests with an error."""

    def __init__(self, kind: str, first: str) -> None:
        super().__init__()
        self.kind, self.first = kind, first

    def answer(self, request: Request) -> Completion:
        if not request.id.startswith(self.first):
            return super().answer(request)
        text = f"http_400: no model for {request.id} (attempts: 1)"
        return Completion(request.id, text, "error", 0, 0, self.kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "first", "most", "failed", "asked_again"),
    [
        ("permanent", "", 0.01, 120, 120),  # refuses everything
        ("transient", "chain-00000007/0", 0.01, 1, 3),  # later rounds hung on it
        ("permanent", "chain-00000007/0", 0.01, 1, 0),  # would fail again, and is one in 120
        ("permanent", "chain-00000007/0", 0.001, 1, 3),
    ],
)
def test_requests_that_failed_are_named_and_asked_again(
    corpus: Path, tmp_path: Path, kind: str, first: str, most: float, failed: int, asked_again: int
) -> None:
    settings = config_for(corpus, tmp_path / "out", records_per_shard=36)
    settings = replace(settings, engine=replace(settings.engine, max_failed_share=most))
    summary = synthesize(settings, engine=Refusing(kind, first))
    assert summary["requests_failed"] == failed == summary["plain_reasons"]["engine_error"]
    assert summary["request_errors"] == {"http_400: no model for chain-#/#": failed}
    texts = "".join(p.read_text() for p in (tmp_path / "out" / "rejected").glob("pieces-*.jsonl"))
    assert texts.count("no model for chain-") == failed
    engine = FakeEngine()
    synthesize(settings, engine=engine)
    assert len(engine.asked) == asked_again
    if asked_again:
        whole = replace(settings, output=str(tmp_path / "whole"))
        synthesize(whole, engine=FakeEngine())
        assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_the_door_says_what_failed_and_ends_with_its_code(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(stage, "open_engine", lambda config: Refusing("transient", ""))
    identity = EngineIdentity("fake", "1", "fake-model", "r1")
    monkeypatch.setattr(stage, "identify_engine", lambda *_: identity)
    for more, code in (("0.5", TOO_MANY_FAILED), ("1", 0)):
        monkeypatch.setattr(
            sys, "argv",
            ["synthesize", f"--input=[{corpus}]", f"--output={tmp_path / 'out'}",
             f"--engine.max_failed_share={more}"],
        )  # fmt: skip
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / "launch" / "synthesize.py"), run_name="__main__")
        assert end.value.code == code
        said = capsys.readouterr().err
        assert "30 of 30 requests failed (100.0%), 30 of them with: http_400: no model" in said
        assert "30 may pass" in said and str(tmp_path / "out" / "rejected") in said
    failed = FailedRequests(requests=10)
    failed.tell(0.0)
    assert not capsys.readouterr().err  # nothing failed, nothing is said


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(
    corpus: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(config_for(corpus, tmp_path / name, seed=seed), engine=FakeEngine())
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert written(tmp_path / "a") != written(tmp_path / "c")


def run_slowly(corpus: Path, out: Path, log: Path) -> None:
    settings = config_for(corpus, out, records_per_shard=36)
    synthesize(settings, engine=FakeEngine(log, delay_seconds=0.004))


def test_a_run_killed_ten_times_goes_on_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"d{n}", "text": f"Text number {n}."}) for n in range(600)]
    corpus.write_text("\n".join(lines))
    out, log = tmp_path / "out", tmp_path / "log"
    points = random.Random(0).sample(range(1, 460), 10)
    whole_blocks = []
    for point in sorted(points):
        child = Forked(run_slowly, corpus, out, log)
        deadline = time.monotonic() + 600
        while child.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(set(log.read_text().splitlines())) >= point:
                break
            time.sleep(0.002)
        assert child.poll() is None, "the run ended before it could be killed"
        child.kill()
        child.communicate()
        assert not (out / "summary.json").exists()
        assert not (out / "shards" / "augmented" / "manifest.json").exists()
        whole_blocks.append(len(list(out.glob("shards/augmented/*.arrayrecord"))))
    assert whole_blocks == sorted(whole_blocks) and whole_blocks[-1] > whole_blocks[0]
    engine, settings = FakeEngine(), {"records_per_shard": 36}
    summary = synthesize(config_for(corpus, out, **settings), engine=engine)
    synthesize(config_for(corpus, tmp_path / "whole", **settings), engine=FakeEngine())
    assert written(out) == written(tmp_path / "whole")
    asked = log.read_text().splitlines() + [request.id for request in engine.asked]
    assert set(asked) == {f"chain-{c:08d}/{turn}" for c in range(160) for turn in range(3)}
    # Only answers that were not yet committed are asked for again: at most 16 at each kill.
    assert len(asked) - len(set(asked)) <= 10 * 17
    assert summary["completions"] == 480


def test_a_finished_folder_is_left_alone_until_fresh_or_other_settings(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = synthesize(config_for(corpus, out), engine=FakeEngine())
    idle = FakeEngine()
    assert synthesize(config_for(corpus, out), engine=idle) == first
    assert not idle.asked
    with pytest.raises(UserError, match=r"rounds \(then 3, now 2\).*--fresh"):
        synthesize(config_for(corpus, out, rounds=2), engine=FakeEngine())
    assert synthesize(config_for(corpus, out), engine=idle) == first
    again = FakeEngine()
    synthesize(config_for(corpus, out, rounds=2, fresh=True), engine=again)
    assert again.asked
    corpus.write_text(corpus.read_text().replace("number 7.", "number seven."))
    with pytest.raises(UserError, match="something else: corpus"):
        synthesize(config_for(corpus, out, rounds=2), engine=FakeEngine())


@pytest.mark.parametrize("part", ["raw", "plain", "augmented"])
def test_a_folder_with_a_shard_gone_or_changed_is_not_taken_for_finished(
    corpus: Path, tmp_path: Path, part: str
) -> None:
    out = tmp_path / "out"
    synthesize(config_for(corpus, out), engine=FakeEngine())
    whole = written(out)
    shard = next((out / "shards" / part).glob("*.arrayrecord"))
    if part == "plain":
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    engine = FakeEngine()
    synthesize(config_for(corpus, out), engine=engine)
    assert written(out) == whole
    assert not engine.asked


def test_a_context_too_short_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_tokens"):
        synthesize(config_for(corpus, tmp_path), engine=FakeEngine(context_tokens=100))


def test_the_sample_corpus_is_what_its_page_says() -> None:
    folder = REPOSITORY / "data_gen" / "sample_corpus"
    sets = {
        name: [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("documents.jsonl", "held_out.jsonl")
    }
    documents, held_out = sets.values()
    assert len(documents) >= 200 and len(held_out) == 120
    assert not {one["text"] for one in documents} & {one["text"] for one in held_out}
    book = {one["id"].split("/")[1] for one in documents if one["source"] == "fairytaleqa"}
    assert not book & {one["id"].split("/")[1] for one in held_out}
    page = (folder / "ATTRIBUTION.md").read_text("utf-8")
    for one in [*documents, *held_out]:
        assert f"| {one['source']} |" in page and one["licence"] in page
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000


def test_the_sample_queries_are_those_of_the_page_and_pass_the_gates() -> None:
    folder = REPOSITORY / "data_gen" / "sample_corpus"
    found = [
        json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()
    ]
    page = (folder / "ATTRIBUTION.md").read_text("utf-8")
    for (source, licence), count in Counter((q["source"], q["licence"]) for q in found).items():
        assert f"| {source} | {count} | {licence} |" in page
    assert len(found) == len({q["id"] for q in found}) == len({q["text"].lower() for q in found})
    assert len(found) == 500 and max(len(q["text"]) for q in found) <= 600
    talks = {q["source"] for q in found if q["talks_to_a_model"]}
    assert talks == {"chatbot_arena", "oasst1"}
    queries = [Record(q["id"], q["text"], q["source"]) for q in found]
    rules = RulesConfig(min_words=3, languages=["en"])
    for gate in (ModerationGate(ModerationConfig()), RulesGate(rules)):
        assert gate.check(queries) == [None] * 500
    assert (folder / "queries.jsonl").stat().st_size < 150_000
