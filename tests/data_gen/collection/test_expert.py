"""Papers and reports: Qasper, COVID-QA, ConvFinQA, PubMedQA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_gen.instruction_pretrain.collection import DATASETS, gather, windows
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Rejection


def _written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def _table(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return folder


def test_the_sets_of_figure_7() -> None:
    sets = [d for d in DATASETS.values() if d.domain == "expert_materials" and not d.copy_of]
    names = {"qasper", "covid_qa", "convfinqa", "spartqa", "babi", "qasc", "ecqa", "pubmedqa"}
    assert {d.name for d in sets} == names  # 8 of 27 are the 29.6% of Table 12
    assert all(d.source and d.licence and d.train for d in sets)


# ---- Qasper -------------------------------------------------------------------------------------


def test_qasper(shared: Path) -> None:
    folder = shared / "data/hf_datasets_fixtures/qasper"
    found = gather(DATASETS["qasper"], folder)
    (paper,) = found.examples
    assert (found.records, found.questions, found.rejected) == (1, 9, [])
    lines = paper.text.split("\n")
    assert lines[0].startswith("Minimally Supervised Learning of Affective Events Using")
    assert lines[1].startswith("Recognizing affective events that trigger")
    assert lines[2] == "Introduction" and lines[3].startswith("Affective events BIBREF0 are")
    assert "" not in lines  # its formulas are empty paragraphs
    assert paper.pairs[0] == Pair(
        "What is the seed lexicon?",
        "a vocabulary of positive and negative predicates that helps determine the polarity score "
        "of an event",
    )
    assert paper.pairs[4].response == "negative, positive"  # two extracted spans
    held_out = gather(DATASETS["qasper"], folder, files=DATASETS["qasper"].held_out)
    # A paper of 2,381 words, too long for a sequence: its questions have windows of their evidence.
    assert (held_out.in_windows, held_out.questions, held_out.rejected) == (4, 4, [])
    found_in = {pair.instruction: one.text for one in held_out.examples for pair in one.pairs}
    for asked, evidence in (
        ("which multilingual approaches do they compare with?", "Table TABREF19 and TABREF26"),
        ("what are the pivot-based baselines?", "Table TABREF19 and TABREF26"),
        ("which datasets did they experiment with?", "We evaluate our cross-lingual pre-training"),
        ("what language pairs are explored?", "The statistics of Europarl and MultiUN"),
    ):
        assert evidence in found_in[asked] and 790 < len(found_in[asked].split()) < 900


def _qasper_paper(*answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Our own paper in the layout of qasper-train-v0.3.json, a question for each of `answers`."""
    return {
        "title": "On kettles",
        "abstract": "We boil water.",
        "full_text": [
            {"section_name": "Method", "paragraphs": ["A kettle is filled.", "", "It is heated."]},
            {"section_name": None, "paragraphs": ["Steam rises."]},
        ],
        "qas": [
            {"question": f"Q{place}?", "question_id": str(place), "answers": given}
            for place, given in enumerate(answers)
        ],
        "figures_and_tables": [],
    }


def _said(**changes: Any) -> dict[str, Any]:
    answer = {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": ""}
    return {"answer": {**answer, **changes, "evidence": [], "highlighted_evidence": []}}


def test_qasper_kinds_of_answers(tmp_path: Path) -> None:
    none = _said(unanswerable=True)
    paper = _qasper_paper(
        [_said(yes_no=False)],
        [_said(yes_no=True)],
        [none, _said(extractive_spans=["water", "steam"])],
        [none, none],
        [],
        [{"answer": {}}],
    )
    folder = _written(tmp_path, "qasper-train-v0.3.json", {"1.2": paper, "3.4": {"title": "x"}})
    found = gather(DATASETS["qasper"], folder)
    (example,) = found.examples
    assert example.text == (
        "On kettles\nWe boil water.\nMethod\nA kettle is filled.\nIt is heated.\nSteam rises."
    )
    assert [pair.response for pair in example.pairs] == ["No", "Yes", "water, steam"]
    here = "qasper-train-v0.3.json"
    assert found.rejected == [
        Rejection.at(f"{here}:1.2", "unanswerable", "Q3?"),
        Rejection.at(f"{here}:1.2", "no_answer", "Q4?"),
        Rejection(
            f"{here}:1.2", f"{here}:1.2", "malformed_record", "question 5: KeyError: 'unanswerable'"
        ),
        Rejection.at(f"{here}:3.4", "malformed_record", "KeyError: 'abstract'"),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [('{"1.2": ', "cannot be read: "), ("[1, 2]", "is not laid out as this set: AttributeError")],
)
def test_a_damaged_document_is_one_unreadable_record(
    tmp_path: Path, content: str, problem: str
) -> None:
    _written(tmp_path, "a/qasper-train-v0.3.json", content)
    _written(tmp_path, "b/qasper-train-v0.3.json", {"1": _qasper_paper([_said(yes_no=True)])})
    found = gather(DATASETS["qasper"], tmp_path)
    assert len(found.examples) == 1 and found.records == 2
    (piece,) = found.rejected
    assert (piece.reason, piece.where) == ("malformed_file", "a/qasper-train-v0.3.json")
    assert piece.detail.startswith(problem)


# ---- Windows ----------------------------------------------------------------------------------


def test_a_question_of_a_long_paper_has_the_window_of_its_answer(tmp_path: Path) -> None:
    """3,000 words of which one sentence in fifty has an answer, the same words in each."""
    said = [f"Sentence {n} tells of cell {n} and of little else." for n in range(333)]
    said[::50] = [f"Drug {n} works in {n} days." for n in range(7)]
    text = " \n" + " ".join(said)
    asked = [
        {
            "question": f"How long of {n}?",
            "answers": [{"text": "days", "answer_start": text.index(f"{n} days") + 2}],
        }
        for n in range(7)
    ]
    far = {"text": text[50:9000], "answer_start": 50}
    more = [
        {"question": "Nowhere?", "answers": [{"text": "hours", "answer_start": 3}]},
        {"question": "Off by some?", "answers": [{"text": "Drug 3 works", "answer_start": 7}]},
        {"question": "All?", "answers": [far]},
    ]
    short = {"context": " ".join(said[:100]), "qas": asked[:1]}
    document = {"data": [{"paragraphs": [{"context": text, "qas": asked + more}, short]}]}
    found = gather(DATASETS["covid_qa"], _written(tmp_path, "COVID-QA.json", document))
    assert (found.rejected, found.in_windows, found.questions) == ([], 9, 11)
    by_text = {one.text: [pair.instruction for pair in one.pairs] for one in found.examples}
    assert by_text.pop(text.strip()) == ["Nowhere?"]  # as long as it was, and counted in tuning
    assert by_text.pop(" ".join(said[:100])) == ["How long of 0?"]
    for window, questions in by_text.items():
        assert window.startswith(("Sentence", "Drug")) and window.endswith(".")
        for question in questions:
            number = question.removeprefix("How long of ").removesuffix("?")
            assert not number.isdigit() or f"Drug {number} works in {number} days." in window
            assert "Off" not in question or "Drug 3 works" in window
            assert "All" not in question or far["text"] in window
        assert 800 <= len(window.split()) < 830 or "All?" in questions
    assert len(by_text) < 9  # near answers share a window
    unbroken = "word " * 3000
    assert windows.window(unbroken, 7000, 7004) == ("word " * 800).strip()


# ---- COVID-QA -----------------------------------------------------------------------------------


def test_covid_qa_in_both_layouts(tmp_path: Path) -> None:
    """COVID-QA.json has SQuAD's layout with numbers as ids; the hub's rows hold a question each."""
    asked = {"question": "How long?", "id": 1, "is_impossible": False}
    spans = [{"text": "ten days", "answer_start": 14}]
    beyond = {"question": "Why?", "id": 2, "is_impossible": True, "answers": []}
    text = "It lasted for ten days."
    paragraph = {"context": text, "qas": [{**asked, "answers": spans}, beyond], "document_id": 7}
    empty = {"context": "Another report.", "qas": [], "document_id": 8}
    document = {"data": [{"paragraphs": [paragraph, empty]}]}
    official = gather(
        DATASETS["covid_qa"], _written(tmp_path / "official", "COVID-QA.json", document)
    )
    row = {**asked, "context": text, "answers": {"text": ["ten days"], "answer_start": [14]}}
    name = "covid_qa_deepset/train-00000-of-00001.parquet"
    hub = gather(DATASETS["covid_qa"], _table(tmp_path / "hub", name, [row]))
    (example,) = official.examples
    assert (example.text, example.pairs) == (text, (Pair("How long?", "ten days"),))
    assert hub.examples == official.examples and hub.rejected == []
    assert official.rejected == [
        Rejection.at("COVID-QA.json:0.0", "unanswerable", "Why?"),
        Rejection.at("COVID-QA.json:0.1", "no_question", "the record holds none"),
    ]


# ---- ConvFinQA ----------------------------------------------------------------------------------


def test_convfinqa_copy(shared: Path) -> None:
    found = gather(
        DATASETS["convfinqa"], shared / "data/convfinqa", files=("convfinqa_dataset.json",)
    )
    assert (found.records, found.questions, len(found.examples)) == (210, 729, 123)
    # Of 12 turns other conversations on the page used the same words, after other turns.
    assert (sum(len(example.pairs) for example in found.examples), found.rejected) == (729, [])
    (page,) = [e for e in found.examples if e.text.startswith("federal realty investment trust")]
    assert page.text == (
        "federal realty investment trust schedule iii summary of real estate and accumulated "
        "depreciation 2014continued three years ended december 31 , 2005 reconciliation of "
        "accumulated depreciation and amortization .\n"
        "| $ 450697000\n"
        "additions during period 2014depreciation and amortization expense | 83656000\n"
        "deductions during period 2014disposition and retirements of property | -15244000\n"
        "balance december 31 2003 | 514177000\n"
        "balance december 31 2004 | 595338000\n"
        "balance december 31 2005 | 663750000"
    )  # the lone full stop behind the table is no text
    assert page.pairs[3] == Pair("what is that less 1?", "11.49%")


def _convfinqa_record() -> dict[str, Any]:
    """Our own page in the layout of czyssrs/ConvFinQA's train.json."""
    return {
        "pre_text": ["sales rose .", "costs fell ."],
        "post_text": ["."],
        "table": [["", "2020", "2021"], ["sales", "$ 100", "$ 110"]],
        "id": "Single_AB/2021/page_1.pdf-1",
        "annotation": {
            "dialogue_break": ["what were sales in 2021?", "and the rise?", "was that a rise?"],
            "turn_program": ["110", "subtract(110, 100)", "greater(110, 100)"],
            "qa_split": [0, 0, 0],
            "exe_ans_list": [110.0, 0.1, "yes"],
        },
        "qa": {"question": "what is the rise?", "answer": "10%", "exe_ans": 0.1},
    }


def test_convfinqa_official(tmp_path: Path) -> None:
    unequal = _convfinqa_record()
    unequal["annotation"]["exe_ans_list"].pop()
    unknown = _convfinqa_record()
    unknown["post_text"] = ["another page ."]
    unknown["annotation"] |= {"dialogue_break": ["what else?"], "exe_ans_list": [None]}
    folder = _written(tmp_path, "train.json", [_convfinqa_record(), unequal, unknown])
    found = gather(DATASETS["convfinqa"], folder)
    (page,) = found.examples
    assert page.text == ("sales rose . costs fell .\n| 2020 | 2021\nsales | $ 100 | $ 110")
    assert page.pairs == (
        Pair("what were sales in 2021?", "110"),
        Pair("and the rise?", "0.1"),
        Pair("was that a rise?", "yes"),
    )
    reasons = [(piece.reason, piece.where) for piece in found.rejected]
    assert reasons == [("malformed_record", "train.json:[1]"), ("no_answer", "train.json:[2]")]


def test_convfinqa_turns(tmp_path: Path) -> None:
    record = _convfinqa_record()
    asked = record["annotation"]["dialogue_break"]
    turns = [
        {**record, "cur_dial": asked[:end], "exe_ans": answer, "turn_ind": end - 1}
        for end, answer in ((1, 110.0), (2, 0.1), (3, "yes"))
    ]
    by_turn = _written(tmp_path / "turns", "train_turn.json", turns)
    whole = _written(tmp_path / "whole", "train.json", [record])
    found = gather(DATASETS["convfinqa"], by_turn, files=("train_turn.json",))
    assert found.examples == gather(DATASETS["convfinqa"], whole).examples


def test_turns_are_repeated_only_after_the_same_turns_and_keep_what_they_ask_back_to(
    tmp_path: Path,
) -> None:
    def page(*asked: str) -> dict[str, Any]:
        record = _convfinqa_record()
        record["annotation"] |= {"dialogue_break": asked, "exe_ans_list": [1.0] * len(asked)}
        return record

    conversations = [
        page("the sum?", "times 100?"),
        page("the sum?", "times 100?"),  # said again: both are repeated
        page("the rise?", "Times 100?"),  # of another number
        page("the sum?", "as a share?"),  # a new turn, which asks back to a repeated one
        page("the sum?", "as a share?", "times 100?"),  # what it asks back to stands before it
    ]
    found = gather(DATASETS["convfinqa"], _written(tmp_path, "train.json", conversations))
    assert [pair.instruction for pair in found.examples[0].pairs] == [
        *("the sum?", "times 100?", "the rise?", "Times 100?", "the sum?", "as a share?"),
        "times 100?",
    ]
    where = ["train.json:[1]"] * 2 + ["train.json:[4]"] * 2
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("repeated_question", w) for w in where
    ]


# ---- PubMedQA -----------------------------------------------------------------------------------


def test_pubmedqa(shared: Path) -> None:
    found = gather(DATASETS["pubmedqa"], shared / "data/pubmedqa")
    assert (found.records, len(found.examples), found.rejected) == (500, 500, [])
    first = found.examples[0]
    assert first.text.startswith("Telephone counseling and tailored print communications have")
    assert first.text.split("\n")[1] == "Three-year randomized field trial."
    (pair,) = first.pairs
    asked = "Can tailored interventions increase mammography use among HMO women?"
    assert (pair.instruction, pair.response, pair.options) == (asked, "yes", ())
    assert pair.rationale is not None
    assert pair.rationale.startswith("The effects of the intervention were most pronounced")
    decisions = [example.pairs[0].response for example in found.examples]
    counts = {answer: decisions.count(answer) for answer in set(decisions)}
    assert counts == {"yes": 276, "no": 169, "maybe": 55}


def test_pubmedqa_of_the_hub_and_without_a_decision(tmp_path: Path) -> None:
    official = {
        "QUESTION": "Does tea help?",
        "CONTEXTS": ["We gave tea.", "We asked."],
        "LONG_ANSWER": "It helped half of them.",
        "final_decision": "maybe",
    }
    undecided = {key: official[key] for key in official if key != "final_decision"}
    folder = _written(tmp_path / "a", "ori_pqal.json", {"11": official, "12": undecided})
    found = gather(DATASETS["pubmedqa"], folder)
    pair = Pair("Does tea help?", "maybe", rationale="It helped half of them.")
    assert [(e.text, e.pairs) for e in found.examples] == [("We gave tea.\nWe asked.", (pair,))]
    assert found.rejected == [Rejection.at("ori_pqal.json:12", "no_answer", "Does tea help?")]
    row = {
        "pubid": 11,
        "question": official["QUESTION"],
        "context": {"contexts": official["CONTEXTS"], "labels": ["A", "B"], "meshes": []},
        "long_answer": official["LONG_ANSWER"],
        "final_decision": "maybe",
    }
    hub = _table(tmp_path / "b", "pqa_labeled/train-00000-of-00001.parquet", [row])
    assert gather(DATASETS["pubmedqa"], hub).examples == found.examples
