"""The report: everything asked for is in it, what models wrote is text, bad files are named."""

import json
import re
from pathlib import Path

import pytest

from ipt_jax.chains.quickstart_page import quickstart_report
from ipt_jax.core.errors import UserError
from tests.made_run import HOSTILE, write_report, write_run
from tests.pages import Page, assert_nothing_foreign


def test_everything_asked_for_is_there(tmp_path: Path) -> None:
    page = assert_nothing_foreign(write_report(tmp_path).read_text(encoding="utf-8"))
    for words in (
        "not which data makes the better model",
        "trained once (raw: 12.3M parameters, 1.47M tokens; mixed:",
        "to 2 models, to a comparison",
        "2 models on 2 tasks, by lm-evaluation-harness",
        "SmolLM2-135M-Instruct gave 281 answers, in 2 rounds",
        "A grammar let SmolLM2-135M-Instruct write only",
        "Training loss",
        "Tokens and mixture rates by source",
        "rate asked rate realised",
        "augmented 251",
        "plain: kept as raw text 38",
        "rejected: not taken as a document 3",
        "documents in 292",
        "answer repeats question 57",
        "The fox lives in the wood.",
        "95% interval",
        "0.1900 – 0.3300",
        "4.40e-06",
        "Time by stage",
        "jax 0.11.2",
    ):
        assert words in page.text, words
    assert list(page.figures) == [
        *("Training loss", "Mixture rates", "sample_continuation: acc"),
        *("sample_perplexity: bits_per_byte", "Time by stage"),
    ]
    curves = [one for one in page.figures["Training loss"]["data"] if one["mode"] == "lines"]
    assert [(one["name"], len(one["x"])) for one in curves] == [("raw", 180), ("mixed", 180)]
    assert page.tags.count("details") == 8
    assert "do not add up" not in page.text


def test_a_page_says_only_what_is_true_of_its_run(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    path = made["synthesis_folder"] / "summary.json"
    summary = json.loads(path.read_text())
    failed = {"requests_failed": 80, "request_errors": {"http_400: no": 80}}
    changed = {"model": "llama-70b", "rounds": 1, "constrained_decoding": False, **failed}
    path.write_text(json.dumps(summary | changed))
    made["training_folders"] = {"raw": made["training_folders"]["raw"]}
    made["evaluation_results"] = made["evaluation_results"][:1]
    text = Page(quickstart_report(tmp_path / "report.html", **made).read_text()).text
    assert "llama-70b gave 201 answers." in text
    assert "to 1 model, to" in text and "1 model on 1 task, by" in text
    assert "request failed http 400: no 80" in text
    for words in ("rounds", "second round", "two", "both", "Both", "small", "constrain", "SmolLM2"):
        assert not re.search(rf"\b{words}", text), words


def test_what_models_wrote_is_text(tmp_path: Path) -> None:
    html = write_report(tmp_path, text=HOSTILE).read_text(encoding="utf-8")
    assert HOSTILE in assert_nothing_foreign(html).text


def test_hostile_names_stay_text_in_charts(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    made["training_folders"] = {HOSTILE: made["training_folders"]["raw"]}
    made["stage_seconds"] = {HOSTILE: 1.0}
    made["logit_checks"] = {HOSTILE: 1.0}
    html = quickstart_report(tmp_path / "report.html", **made).read_text(encoding="utf-8")
    assert "NO" in assert_nothing_foreign(html).words, (
        "a logit difference over the tolerance is told"
    )


def test_counts_that_do_not_add_up_are_told(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    path = made["synthesis_folder"] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"documents_in": 293}))
    html = quickstart_report(tmp_path / "report.html", **made).read_text(encoding="utf-8")
    assert "These counts do not add up" in html


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("synthesis/summary.json", None),
        ("synthesis/summary.json", "{}"),
        ("synthesis/summary.json", "[]"),
        ("synthesis/samples.json", '[{"id": "a"}]'),
        ("synthesis/samples.json", None),
        ("synthesis/environment.json", "{"),
        ("train_raw/metrics.jsonl", '{"tokens": 1, "loss": 2}\n{"tokens":'),
        ("train_raw/metrics.jsonl", '{"tokens": 1}'),
        ("train_mixed/summary.json", "{}"),
        ("train_mixed/summary.json", b"\xff\xfe"),
    ],
)
def test_a_bad_file_is_named(file: str, content: str | bytes | None, tmp_path: Path) -> None:
    made = write_run(tmp_path)
    path = tmp_path / file
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(file)):
        quickstart_report(tmp_path / "report.html", **made)
    assert not (tmp_path / "report.html").exists()
