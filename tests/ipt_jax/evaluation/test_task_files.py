"""Task YAMLs: relative data files made absolute, everything else as it was."""

import collections
import json
from pathlib import Path

import pytest
import yaml

from ipt_jax.core.errors import UserError
from ipt_jax.evaluation import task_files
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


def test_what_a_task_names_lies_beside_the_yaml_that_names_it(tmp_path: Path) -> None:
    for folder, loaded in (("here", "mine"), ("there", "base")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "use.py").write_text("def text(doc):\n    return __file__\n")
        (tmp_path / folder / f"{loaded}.jsonl").write_text("{}\n")
    (tmp_path / "here" / "mine.yaml").write_text(
        "task: mine\ninclude: ../there/base.yaml\ndoc_to_text: !function use.text\n"
        "dataset_kwargs: {data_files: [mine.jsonl, 'm*.jsonl', 'https://a/b.jsonl'], data_dir: .}\n"
    )
    (tmp_path / "there" / "base.yaml").write_text(
        "dataset_path: json\ndataset_kwargs: {data_files: no.jsonl}\ntask_list: [a]\n"
        "metric_list: [{metric: !function use.text}, {metric: !function os.path.join}]\n"
    )
    render_tasks(["mine"], tmp_path / "here", tmp_path / "out")
    task = yaml.load((tmp_path / "out" / "mine.yaml").read_text(), task_files._Loader)
    here = str(tmp_path / "here")
    assert task.pop("dataset_kwargs") == {
        "data_files": [f"{here}/mine.jsonl", f"{here}/m*.jsonl", "https://a/b.jsonl"],
        "data_dir": here,
    }
    for function, folder in ((task["doc_to_text"], "here"), (task["metric_list"][0], "there")):
        spec = function["metric"] if isinstance(function, dict) else function
        module = tmp_path / "out" / (spec.removesuffix(".text").replace(".", "/") + ".py")
        assert module.resolve() == tmp_path / folder / "use.py"
    assert task["metric_list"][1] == {"metric": "os.path.join"}
    assert task.keys() == {"dataset_path", "metric_list", "task", "doc_to_text"}


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TASK)
    with pytest.raises(UserError, match=r"mine\.yaml: its data file .*items\.jsonl"):
        render_tasks(["mine"], tmp_path, tmp_path / "out")
    for text, said in {
        "task: [": "not a readable task",
        "include: mine.yaml": "includes itself",
        "include: gone.yaml": r"not a readable task .*gone\.yaml",
    }.items():
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"\.yaml: .*{said}|{said}"):
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
