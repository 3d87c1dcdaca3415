"""The stage: sums, bytes, kills, bad input, and the command."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.baselines import stage
from data_gen.baselines.config import ReadingComprehensionConfig
from data_gen.methods import synthesize
from data_gen.stages.ledger import LEDGER_NAME
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.core.run_folder import FolderRefused
from tests.data_gen.written import records, written
from tests.forked import Forked
from tests.launching import launch
from tests.run_folders import unlisted


def config_for(corpus: Any, output: Any, **changes: Any) -> ReadingComprehensionConfig:
    base = ReadingComprehensionConfig(
        input=[str(corpus)], output=str(output), domain="finance", records_per_shard=64
    )
    return replace(base, **changes)


@pytest.fixture
def corpus(tmp_path: Path, news: list[dict[str, str]]) -> Path:
    path = tmp_path / "news.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in news[:300]))
    return path


def test_every_document_is_once_in_augmented_plain_or_rejected(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = corpus.read_text().splitlines()
    lines[5] = json.dumps({"id": "short", "text": "Nothing."})
    lines += ['{"id": "empty", "text": ""}', "no json", lines[0]]
    corpus.write_text("\n".join(lines))
    real = stage.reading_comprehension

    def fails_once(name: str, *rest: Any) -> Any:
        if name == "training/10":
            raise ValueError("a rule that fails")
        return real(name, *rest)

    monkeypatch.setattr(stage, "reading_comprehension", fails_once)
    out = tmp_path / "out"
    summary = synthesize(config_for(corpus, out))
    raw = [record.id for record in records(out / "shards/raw")]
    plain = [record.id for record in records(out / "shards/plain")]
    augmented = records(out / "shards/augmented")
    parents = [record.provenance["parents"][0] for record in augmented]
    assert len(raw) == 300 and sorted([*plain, *parents]) == sorted(raw)
    assert plain == [name for name in raw if name in set(plain)]
    assert summary["documents_in"] == 303 and summary["documents_rejected"] == 3
    assert summary["rejected_documents"] == {"empty": 1, "not_json": 1, "duplicate_id": 1}
    assert summary["documents_augmented"] == len(augmented) > 200
    assert summary["documents_plain"] == len(plain) == sum(summary["plain_reasons"].values())
    assert summary["plain_reasons"]["nothing_mined"] == 1
    assert summary["plain_reasons"]["unit_failed"] == summary["rejected_pieces"]["unit_failed"] == 1
    pieces = "".join(path.read_text() for path in (out / "rejected").glob("pieces-*.jsonl"))
    assert json.loads(pieces)["id"] == "training/10" and "a rule that fails" in pieces
    tasks = sum((Counter(record.provenance["tasks"]) for record in augmented), Counter[str]())
    assert summary["tasks_by_type"] == dict(tasks) and summary["tasks"] == tasks.total()
    one = augmented[0]
    assert one.source == "reading_comprehension" and one.parts is None
    assert one.provenance["domain"] == "finance" and one.provenance["seed"] == 0
    assert one.provenance["sources"] == ["news"]
    card = (out / "card.md").read_text()
    assert "arXiv 2309.09530" in card and "| summarization.title |" in card.replace("\\", "")
    assert [s["id"] for s in json.loads((out / "samples.json").read_text())] == [
        record.id for record in augmented[:8]
    ]


def test_the_same_settings_give_the_same_bytes_and_a_seed_changes_them(
    corpus: Path, tmp_path: Path
) -> None:
    first = config_for(corpus, tmp_path / "a", limit=100)
    summary = synthesize(first)
    files = written(tmp_path / "a")
    assert (tmp_path / "a" / "domain.model").stat().st_size > 10_000
    synthesize(replace(first, output=str(tmp_path / "b")))
    assert written(tmp_path / "b") == files and len(files) >= 9
    synthesize(replace(first, output=str(tmp_path / "c"), seed=1))
    other = written(tmp_path / "c")
    raw, made = "shards/raw/part-00000.arrayrecord", "shards/augmented/part-00000.arrayrecord"
    assert other[raw] == files[raw] and other[made] != files[made]
    assert synthesize(first) == summary  # finished: left as it is
    with pytest.raises(FolderRefused) as caught:
        synthesize(replace(first, seed=2))
    assert caught.value.differs == ("seed",) and not unlisted(tmp_path / "a")
    again = synthesize(replace(first, seed=1, fresh=True))
    assert written(tmp_path / "a") == other and again["documents_in"] == 100


def finished_blocks(folder: Path) -> int:
    """Blocks on record in the ledger that a living run writes."""
    try:
        with closing(sqlite3.connect(f"file:{folder / LEDGER_NAME}?mode=ro", uri=True)) as ledger:
            return ledger.execute("SELECT count(*) FROM blocks").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


def test_a_killed_run_goes_on_to_the_same_shards(
    tmp_path: Path, news: list[dict[str, str]], vocabulary: bytes
) -> None:
    corpus, model = tmp_path / "news.jsonl", tmp_path / "domain.model"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in news[:500]))
    model.write_bytes(vocabulary)
    out = tmp_path / "out"
    process = Forked(synthesize, config_for(corpus, out, domain_vocabulary=str(model)))
    try:
        deadline = time.monotonic() + 900
        while finished_blocks(out) < 2:  # a shard whose block is not on record is written again
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert not (out / "summary.json").exists()
    done = {p: p.stat().st_mtime_ns for p in out.glob("shards/augmented/part-0000[01].arrayrecord")}
    config = config_for(corpus, out, domain_vocabulary=str(model))
    summary = synthesize(config)
    assert {path: path.stat().st_mtime_ns for path in done} == done and len(done) == 2
    whole = synthesize(replace(config, output=str(tmp_path / "whole")))
    assert written(out) == written(tmp_path / "whole")
    del summary["seconds"], whole["seconds"]
    assert summary == whole and not (out / "domain.model").exists()


def test_titles_come_from_a_field_or_not_at_all(
    tmp_path: Path, pubmed: list[dict[str, str]], abstracts: list[str]
) -> None:
    corpus = tmp_path / "pubmed.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in pubmed))
    named = config_for(corpus, tmp_path / "a", domain="biomedicine", title_field="title")
    summary = synthesize(named)
    titles = {row["id"]: row["title"] for row in pubmed}
    for record in records(tmp_path / "a" / "shards/augmented"):
        assert " ".join(titles[record.provenance["parents"][0]].split()) in record.text
    assert summary["tasks_by_type"]["summarization.title"] > 80
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in abstracts))
    none = config_for(corpus, tmp_path / "b", first_line_is_title=False)
    assert "summarization.title" not in synthesize(none)["tasks_by_type"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain_vocabulary": "nowhere.model"}, "`domain_vocabulary`.*cannot be read"),
        ({"general_vocabulary": "gpt5"}, "no tokenizer 'gpt5'"),
        ({"instructions": "nowhere.yaml"}, "there is no file of wordings nowhere.yaml"),
    ],
)
def test_bad_settings_stop_the_run_before_it_writes(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        synthesize(config_for(corpus, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_command_and_its_config(shared: Path, root: Path, tmp_path: Path) -> None:
    config = "configs/synthesize/reading_comprehension.yaml"
    given = parse_config(
        ReadingComprehensionConfig, ["--config", str(root / config)], prog="x", description="x"
    )
    assert given.output == "runs/reading_comprehension" and given.most_per_sub == 2
    texts = f"[{shared / 'data/lmops_adaptllm_raw_texts/*.txt'}]"
    ended = launch(
        "launch/synthesize.py", "--config", config, "--output", tmp_path, "--input", texts
    )
    assert ended.code == 0, ended.err
    for line in ('"documents_in": 12', '"documents_augmented": 12', '"documents_rejected": 0'):
        assert line in ended.out
    assert len(records(tmp_path / "shards/augmented")) == 12
    assert {"config.yaml", "environment.json", "card.md"} <= {p.name for p in tmp_path.iterdir()}
