"""Task YAMLs: relative data files made absolute, everything else as it was."""

import collections
import json
from pathlib import Path

import pytest
import yaml

from ipt_jax.errors import UserError
from ipt_jax.evaluation.task_files import TASKS_FOLDER, render_tasks

TASK = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"


def lines(name: str) -> list[dict]:
    text = (TASKS_FOLDER / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_data_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hashes = render_tasks(["sample_continuation"], TASKS_FOLDER, tmp_path / "out")
    assert list(hashes) == ["sample_continuation"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sample_continuation.yaml"]
    task = yaml.safe_load((tmp_path / "out" / "sample_continuation.yaml").read_text())
    assert Path(task["dataset_kwargs"]["data_files"]["test"]).is_absolute()
    assert Path(task["dataset_kwargs"]["data_files"]["test"]).is_file()


def test_functions_and_their_modules_are_carried_along(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TASK + "doc_to_text: !function mine.text\n")
    (tmp_path / "mine.py").write_text("def text(doc):\n    return doc['text']\n")
    (tmp_path / "items.jsonl").write_text("{}\n")
    render_tasks(["mine"], tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "mine.py").is_file()
    assert "doc_to_text: !function 'mine.text'" in (tmp_path / "out" / "mine.yaml").read_text()


def test_the_hash_follows_the_data(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TASK)
    (tmp_path / "items.jsonl").write_text("{}\n")
    before = render_tasks(["mine"], tmp_path, tmp_path / "out")
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n')
    assert render_tasks(["mine"], tmp_path, tmp_path / "out") != before


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TASK)
    with pytest.raises(UserError, match=r"mine\.yaml: its data file .*items\.jsonl"):
        render_tasks(["mine"], tmp_path, tmp_path / "out")
    (tmp_path / "mine.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"mine\.yaml: not a readable task"):
        render_tasks(["mine"], tmp_path, tmp_path / "out")


def test_continuation_items_are_sound() -> None:
    items = lines("sample_continuation.jsonl")
    assert 150 <= len(items) <= 200
    assert len({item["id"] for item in items}) == len(items)
    for item in items:
        assert len(item["context"].split()) <= 200
        assert len(set(item["choices"])) == 4 and 0 <= item["answer"] < 4
    # Neither the place nor the length of a choice may give the answer away.
    places = collections.Counter(item["answer"] for item in items)
    assert max(places.values()) / len(items) < 0.4
    longest = sum(
        max(range(4), key=lambda n, item=item: len(item["choices"][n])) == item["answer"]
        for item in items
    )
    assert 0.1 < longest / len(items) < 0.4


def test_no_item_was_trained_on(root: Path) -> None:
    corpus = root / "data_gen" / "sample_corpus" / "documents.jsonl"
    text = " ".join(corpus.read_text(encoding="utf-8").split())
    for item in lines("sample_perplexity.jsonl"):
        assert json.dumps(item["text"], ensure_ascii=False)[1:120] not in text
    for item in lines("sample_continuation.jsonl"):
        true = item["choices"][item["answer"]]
        assert len(true.split()) < 8 or json.dumps(true, ensure_ascii=False)[1:-1] not in text
