"""Public data sets in the layouts that they are published in -> record shards, joined by id."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.corpus import CorpusFile, find_files
from data_gen.corpus.documents import Raw
from data_gen.corpus.seen_ids import SeenIds
from data_gen.fine_instructions.bank import description_of, origin_of
from data_gen.fine_instructions.budget import BudgetConfig, BudgetPairs
from data_gen.fine_instructions.instantiate import pair_parts
from data_gen.ingest import IngestConfig, ingest
from data_gen.published import PUBLISHED, RowShape
from data_gen.stages.stage import run_stage
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from tests.data_gen.written import records

CONFIGS = Path(__file__).parents[2] / "configs" / "ingest"
ROWS = (
    "warc_record_id",
    "text",
    "template_id",
    "instantiated_instruction",
    "answer",
    "token_count",
)
FI = "fineinstructions_nemotron"


def shipped(name: str, *options: str) -> IngestConfig:
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), *options]
    return parse_config(IngestConfig, arguments, prog="x", description="x")


def rejected(output: str) -> dict[str, tuple[str, str]]:
    """Reason and detail by id, of rows and of units."""
    found = {}
    for path in Path(output).glob("rejected/**/*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            found[line["id"]] = (line["reason"], line["detail"])
    return found


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def nemotron(tmp_path: Path) -> Path:
    """Two files of rows; the text of `a` is in its second row, that of `b` in the other file."""
    files = [
        [("a", "", 1, "Why?", "So.", 0), ("a", "Text of a. " * 9, 2, "How?", "Thus.", 40),
         ("b", "", 3, "Who?", "He.", 0), ("c", "", 4, "Where?", "There.", 0),
 ("a", "", 5, "When?", "", 0), ("d", "", None, "", None, 0),
         ("a", "", 1, "Why?", "So.", 0)],
        [("b", "Text of b. " * 9, None, None, None, 30), ("b", "", 6, "What?", "That.", 0)],
    ]  # fmt: skip
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist([dict(zip(ROWS, row, strict=True)) for row in rows])
        pq.write_table(table, tmp_path / f"train-0000{number}-of-00002.parquet")
    lines(tmp_path / "judge-00000-_-00002.json", [])
    scores = json.dumps([4, 5, 3, 5, 4, 1, 4]), json.dumps([9, 5])
    for number, text in enumerate(scores):
        (tmp_path / f"judge-0000{number}-_-00002.json").write_text(text)
    return tmp_path


def test_pairs_are_joined_to_their_documents_by_id(nemotron: Path) -> None:
    config = replace(shipped(FI), input=[f"{nemotron}/*.parquet"], output=f"{nemotron}/out")
    summary = ingest(config)
    documents, pairs = (records(nemotron / "out/shards" / name) for name in ("documents", "pairs"))
    assert [(one.id, one.parts) for one in documents] == [("a", None), ("b", None)]
    assert [one.id for one in pairs] == ["a/1", "a/2", "b/6"]
    first = pairs[0]
    assert first.parts == pair_parts("Why?", "So.") and first.loss == (0.0, 1.0)
    told = {"parents": ["a"], "template": 1, "judge_score": 4, "part": "pairs", "published": FI}
    assert told.items() <= first.provenance.items() and first.source == FI
    found = rejected(config.output)
    assert {name: reason for name, (reason, _) in found.items()} == {
        "b/3": "low_score", "c/4": "no_document", "a/5": "no_pair", "a/1": "duplicate_id",
        "train-00000-of-00002.parquet:6": "no_record",
    }  # fmt: skip
    assert (summary["records_in"], summary["records_out"]) == (10, 5)
    assert (summary["documents"], summary["pairs"]) == (2, 3)
    assert sum(summary["rejected"].values()) == 5 and summary["rejected"]["no_document"] == 1
    assert ingest(config).items() >= summary.items()
    fsspec = pytest.importorskip("fsspec", reason="opens URLs")
    fsspec.filesystem("memory").put(f"{nemotron}/", "/nemotron", recursive=True)
    away = replace(config, input=["memory:///nemotron/train-*.parquet"], output=f"{nemotron}/away")
    assert ingest(away)["rejected"] == summary["rejected"]
    # What goes by documents takes them as they are.
    folders = [str(nemotron / "out/shards" / name) for name in ("pairs", "documents")]
    kept = {"output": f"{nemotron}/kept", "tokenizer": "mistral-7b-v0.1"}
    budget = BudgetConfig(input=folders[:1], documents=folders[1:], **kept)
    assert run_stage(BudgetPairs(budget))["out"] == 3


def test_scores_that_are_not_there_are_named(nemotron: Path) -> None:
    config = replace(shipped(FI), input=[f"{nemotron}/*.parquet"], output=f"{nemotron}/out")
    (beside := nemotron / "judge-00001-_-00002.json").write_text("[4]")
    with pytest.raises(UserError) as refused:
        ingest(config)
    assert refused.value.record == "train-00001-of-00002.parquet:2"
    beside.unlink()
    with pytest.raises(UserError) as refused:
        ingest(config)
    assert (refused.value.key, refused.value.path) == ("least_score", str(beside))
    row = dict(zip(ROWS, ("a", "", 1, "Why?", "So.", 0), strict=True))
    with pytest.raises(UserError) as refused:  # streamed, no file has a name
        next(RowShape(PUBLISHED[FI], 4)(Raw("b:1", row), CorpusFile("hf://a/b", "hub")))
    assert refused.value.key == "least_score"
    ingest(replace(config, least_score=0, output=f"{nemotron}/all"))
    scored = [one.provenance.get("judge_score") for one in records(nemotron / "all/shards/pairs")]
    assert scored == [4, 5, 3, None]  # those of the other file are kept


def test_a_file_of_something_else_is_refused_by_file_record_and_key(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"template": "What is <fi>a thing</fi>?", "description": "x"}])
    config = replace(shipped("finetemplates"), input=[f"{tmp_path}/a.jsonl"])
    with pytest.raises(UserError) as refused:
        ingest(replace(config, output=f"{tmp_path}/out"))
    error = refused.value
    assert (error.key, error.record) == ("compatible_document_description", "a.jsonl:1")
    assert error.path == f"{tmp_path}/a.jsonl"
    pairs = shipped("general_instructions").pairs
    for options, key in (
        ({"least_score": 4}, "least_score"), ({"pairs": pairs}, "pairs"),
        ({"published": "finetemplate"}, "published"),
    ):  # fmt: skip
        with pytest.raises(UserError) as refused:
            replace(config, **options)
        assert refused.value.key == key


def test_templates_are_what_a_bank_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ("What is <fi>a thing</fi> in <fi>a place</fi>?", "Texts on things.", {"source": "gooaq"}),
        ("Nothing open", "Texts.", {}),
        ("Tell <fi>me <fi>more</fi></fi>", "Texts.", {}),
        ("Tell me <fi>of it</fi>", " ", {}),
        ("Tell me <fi>of it</fi>", "Others.", {}),
    ]
    keys = ("template", "compatible_document_description")
    table = [
        {**dict(zip(keys, row, strict=False)), "template_id": number, **row[2]}
        for number, row in enumerate(rows)
    ]
    lines(tmp_path / "a.jsonl", table)
    config = replace(shipped("finetemplates"), input=[f"{tmp_path}/*.jsonl"])
    config = replace(config, output=f"{tmp_path}/out")
    ingest(config)
    first, last = records(tmp_path / "out/shards")
    assert (first.id, description_of(first), origin_of(first)) == ("0", "Texts on things.", "gooaq")
    assert first.provenance["complexity"] == 2 and origin_of(last) == "finetemplates"
    reasons = {name: reason for name, (reason, _) in rejected(config.output).items()}
    assert reasons == {"1": "no_tag", "2": "nested_tag", "3": "no_documents"}
    other = replace(PUBLISHED["finetemplates"], licence="another")  # what the table says counts
    monkeypatch.setitem(PUBLISHED, "finetemplates", other)
    with pytest.raises(UserError):
        ingest(config)


def test_the_corpora_of_instruction_pre_training(tmp_path: Path) -> None:
    asked = [{"Q": "Who?", "A": "He."}, {"Q": "Where?", "A": "There."}]
    told = {"rc_name": "squad", "QA_type": "qa"}
    sets = [
        {"context": "A text.", "QA_list": asked, **told},
        {"context": "", "QA_list": asked, **told},
        {"context": "A text.", "QA_list": [], **told},
        {"context": "A text.", "QA_list": [{"Q": "Who?", "A": ""}], **told},
    ]
    for name in ("squad", "race"):
        lines(tmp_path / name / "shard/00000.jsonl", sets[: 4 if name == "squad" else 1])
    config = shipped("ipt_collection", "--output", f"{tmp_path}/collection")
    config = replace(config, input=[f"{tmp_path}/*/shard/*.jsonl"])
    ingest(config)
    found = records(tmp_path / "collection/shards")
    assert [one.id for one in found] == ["race/shard/00000.jsonl:1", "squad/shard/00000.jsonl:1"]
    assert found[0].parts == ("A text.\n\nWho?\n\n", "He.\n\n", "Where?\n\n", "There.")
    assert found[0].loss == (0.0, 1.0, 0.0, 1.0) and found[0].provenance["dataset"] == "squad"
    reasons = [reason for reason, _ in rejected(config.output).values()]
    assert sorted(reasons) == ["no_context", "no_pair", "no_record"]

    lines(tmp_path / "part-0/shard/00000.txt", [{"text": "One."}, {"text": "Two."}, {"text": ""}])
    config = shipped("ipt_augmented", "--output", f"{tmp_path}/augmented")
    config = replace(config, input=[f"{tmp_path}/part-*/shard/*.txt#jsonl"])
    ingest(config)
    assert [one.text for one in records(tmp_path / "augmented/shards")] == ["One.", "Two."]
    (as_text,) = find_files([f"{tmp_path}/part-*/shard/*.txt"])
    (stated,) = find_files(config.input)
    assert (as_text.form, stated.form, stated.path) == ("txt", "jsonl", as_text.path)
    (tmp_path / "a.jsonl.zstd").touch()  # as Common Crawl names those of Nemotron-CC
    (packed,) = find_files([f"{tmp_path}/a.jsonl.zstd"])
    assert (packed.form, packed.packed) == ("jsonl", "zst")
    with pytest.raises(UserError) as refused:  # the form decides what is in the folder
        ingest(replace(config, input=[as_text.path]))
    assert str(refused.value.path) == f"{tmp_path}/augmented"


def test_every_shipped_config_names_a_set_that_is_known() -> None:
    names = {shipped(path.stem).published for path in CONFIGS.glob("*.yaml")} - {""}
    assert names == PUBLISHED.keys() - {"medicine_instruction_augmented_corpora"}


def test_seen_ids_are_found_again_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_gen.corpus.seen_ids._MOST_IN_SET", 100)
    seen = SeenIds()
    assert all([seen.add(str(number)) for number in range(500)])
    assert all(str(number) in seen for number in range(500)) and "500" not in seen
