"""launch/ingest.py: corpora and pairs in the layouts they are published in -> record shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_gen.ingest import IngestConfig, ingest
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from tests.data_gen.written import records

ROOT = Path(__file__).parents[2]
ROLES = ("role", "content")


def config(folder: Path, **changes: Any) -> IngestConfig:
    """The shipped config, on files in its layouts."""
    path = ROOT / "configs" / "ingest" / "general_instructions.yaml"
    shipped = parse_config(IngestConfig, ["--config", str(path)], prog="x", description="x")
    made = {"input": [f"{folder}/*.*"], "output": str(folder / "out"), **changes}
    return replace(shipped, **made)


def said(*turns: str, keys: tuple[str, str] = ("from", "value")) -> dict[str, Any]:
    """Each turn: who speaks, a space, what."""
    return {"conversations": [dict(zip(keys, turn.split(" ", 1), strict=True)) for turn in turns]}


def test_pairs_in_the_layouts_that_are_about(tmp_path: Path) -> None:
    lines: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"conversations": ["Why? ", "So."], "source": "wiki"}, ("Why?", "So.")),
        (said("human A?", "gpt B.", "human C?", "gpt D."), ("A?", "B.", "C?", "D.")),
        (said("system S.", "user A?", "assistant B.", keys=ROLES), ("S.\n\nA?", "B.")),
        ({"instruction": "Add 1 and 2.", "output": "3", "idx": 7}, ("Add 1 and 2.", "3")),
        ({"id": "o.1", "system_prompt": "", "question": "Q?", "response": "R."}, ("Q?", "R.")),
        ({"system_prompt": "S.", "question": "Q?", "response": "R."}, ("S.\n\nQ?", "R.")),
    ]
    bad = [
        ({"text": "no pair"}, "it has the keys ['text']"),
        ({"conversations": ["Why?"]}, "1 turns"),
        ({"conversations": "Why?"}, "`conversations` is a str"),
        (said("human A?", "human B?"), "turn 2 is of 'human'"),
        (said("human A?", "gpt  "), "is empty"),
        ({"instruction": 3, "output": "3"}, "`instruction` holds a int"),
    ]
    every = [line for line, _ in lines] + [line for line, _ in bad]
    text = "".join(json.dumps(line) + "\n" for line in every)
    (tmp_path / "a.jsonl").write_text(text + "{\n" + json.dumps(said("human x\0", "gpt y")))
    table = pa.Table.from_pylist([said("user P?", "assistant Q.", keys=ROLES)])
    pq.write_table(table, tmp_path / "b.parquet")

    settings = config(tmp_path)
    summary = ingest(settings)
    wanted = [parts for _, parts in lines] + [("P?", "Q.")]
    found = records(Path(settings.output) / "shards")
    for record, turns in zip(found, wanted, strict=True):
        assert record.parts is not None and record.text == "\n\n".join(turns)
        assert tuple(part.strip() for part in record.parts) == turns
        assert record.loss == (0.0, 1.0) * (len(turns) // 2)
    assert (found[0].source, found[1].source, found[4].id) == ("wiki", "a", "o.1")
    assert found[3].provenance == {"metadata": {"idx": 7}} and found[4].provenance == {}
    assert (summary["records_in"], summary["records_out"]) == (15, 7)
    assert summary["rejected"] == {"no_pair": 6, "not_json": 1, "nul_character": 1}
    path = Path(settings.output) / "rejected" / "documents.jsonl"
    rejected = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["where"] for line in rejected] == [f"a.jsonl:{n}" for n in range(7, 15)]
    for line, (_, why) in zip(rejected, bad, strict=False):
        assert line["reason"] == "no_pair" and why in line["detail"]
    assert ingest(settings).items() >= summary.items()  # again: as it is


def test_the_mixtures_read_what_the_shipped_config_writes() -> None:
    path = ROOT / "configs" / "ingest" / "general_instructions.yaml"
    output = yaml.safe_load(path.read_text())["output"]
    read = [
        f"{mixture['root']}/{task['source']}"
        for file in (ROOT / "configs" / "mixtures").glob("*.yaml")
        for mixture in [yaml.safe_load(file.read_text())]
        for name, task in mixture["tasks"].items()
        if name == "general" and "genqa" not in mixture["root"]
    ]
    assert read == [f"{output}/shards"] * 10


def test_texts_come_out_as_they_went_in(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "licence": "MIT"}\n{"body": ""}\n')
    settings = config(tmp_path, pairs=[], text_field="body")
    summary = ingest(settings)
    assert records(Path(settings.output) / "shards") == [
        Record("a.jsonl:1", "x", "a", provenance={"metadata": {"licence": "MIT"}})
    ]
    assert summary["sources"] == [{"source": "a", "licence": "MIT", "records": 1}]
    assert summary["rejected"] == {"empty": 1}


def test_nothing_that_can_be_used_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    with pytest.raises(UserError, match=r"none of the 2 records.*'no_pair': 2.*documents\.jsonl"):
        ingest(config(tmp_path))
