"""CoQA, DoQA, ROPES, QuaRTz, MultiRC, QuAIL, Cosmos QA: real files, and what is wrong in some."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_gen.instruction_pretrain.collection import DATASETS, Gathered, gather
from data_gen.instruction_pretrain.formats import Pair


def pairs(found: Gathered) -> list[Pair]:
    return [pair for example in found.examples for pair in example.pairs]


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# CoQA


def test_coqa_of_the_real_files(shared: Path) -> None:
    dataset = DATASETS["coqa"]
    found = gather(dataset, shared / "data/coqa", files=["original_examples.json"])
    assert [len(example.pairs) for example in found.examples] == [20, 5, 20, 20, 10]
    assert found.reasons == {}
    library = found.examples[0]
    assert library.text.startswith("The Vatican Apostolic Library (), more commonly called the")
    assert library.pairs[:3] == (
        Pair("When was the Vat formally opened?", "It was formally established in 1475"),
        Pair("what is the library for?", "research"),
        Pair("for what subjects?", "history, and law"),
    )
    # As in Table 13, what the text does not tell is `unknown`.
    assert Pair("what must be requested to view?", "unknown") in pairs(found)
    official = shared / "data/hf_datasets_fixtures/coqa"
    assert [e.pairs for e in gather(dataset, official).examples] == [library.pairs]
    held_out = gather(dataset, official, files=dataset.held_out)
    assert held_out.examples[0].pairs[0] == Pair("What color was Cotton?", "white")


def test_coqa_whose_answers_are_not_those_of_the_questions(tmp_path: Path) -> None:
    asked = [{"input_text": f"Q{n}?", "turn_id": n} for n in (1, 2, 3)]
    said = [{"input_text": f"A{n}", "turn_id": n} for n in (1, 3, 3)]
    story = {"story": "A tale.", "questions": asked, "answers": said}
    data = [story, {**story, "answers": said[:2]}, {"story": "B", "questions": [], "answers": []}]
    write(tmp_path, "coqa-train-v1.0.json", {"version": "1.0", "data": data})
    found = gather(DATASETS["coqa"], tmp_path)
    assert pairs(found) == [Pair("Q1?", "A1"), Pair("Q3?", "A3")]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("malformed_record", "coqa-train-v1.0.json:0"),
        ("malformed_record", "coqa-train-v1.0.json:1"),
        ("no_question", "coqa-train-v1.0.json:2"),
    ]
    assert "question 2 has answer 3" in found.rejected[0].detail


# DoQA


def test_doqa_has_the_answers_as_the_expert_worded_them(shared: Path) -> None:
    dataset = DATASETS["doqa"]
    folder = shared / "data/hf_datasets_fixtures/doqa"
    found = gather(dataset, folder, files=dataset.held_out)
    (example,) = found.examples
    assert example.text.startswith("Milk won't help you - it's mostly water")
    assert example.text.endswith("just don't try homogenize it.")
    assert [pair.instruction for pair in example.pairs] == [
        "How can I avoid lumps in the cake?",
        "No, I haven't. I'll try that next. Is it safe to add more milk into the batter?",
    ]
    assert example.pairs[0].response == (
        "Yes. have you actually tried leaving the batter coarse? Just because the batter is lumpy "
        "does not mean that the cake will have big lumps"
    )
    (left,) = found.rejected
    assert left.reason == "unanswerable"
    assert left.detail == "Ok. What can I add to make it more softer and avoid hardening?"


# ROPES


def test_ropes_of_the_official_files(shared: Path) -> None:
    folder = shared / "data/hf_datasets_fixtures/ropes"
    found = gather(DATASETS["ropes"], folder)
    assert (len(found.examples), len(pairs(found)), found.reasons) == (2, 8, {})
    first = found.examples[0]
    background, situation = first.text.split("\n")
    assert background.startswith("Many chemicals that were once commonly used were later")
    assert situation.startswith("There is a study being conducted on a group of small children.")
    asked = "Which group has a higher likely hood of brain damage?"
    assert first.pairs[0] == Pair(asked, "Group B")
    without = gather(DATASETS["ropes"], folder, files=["test-1.0.json"])
    assert without.reasons == {"malformed_record": 10}  # each question of the test file
    assert "question 0: KeyError: 'answers'" in without.rejected[0].detail


def test_ropes_of_the_hub(tmp_path: Path) -> None:
    row = {"background": "B", "situation": "S", "question": "Q?", "answers": {"text": ["A"]}}
    (tmp_path / "plain_text").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "plain_text/train-0.parquet")
    (example,) = gather(DATASETS["ropes"], tmp_path).examples
    assert (example.text, example.pairs) == ("B\nS", (Pair("Q?", "A"),))


# QuaRTz


def test_quartz_of_the_official_files(shared: Path) -> None:
    dataset = DATASETS["quartz"]
    folder = shared / "data/hf_datasets_fixtures/quartz"
    found = gather(dataset, folder)
    assert found.examples[1].text == (
        "Electrons at lower energy levels, which are closer to the nucleus, have less energy."
    )
    assert found.examples[1].pairs == (
        Pair(
            "Electrons further away from a nucleus have _____ energy levels than close ones.",
            *("higher", ("higher", "lower")),
        ),
    )
    assert len(pairs(gather(dataset, folder, files=dataset.held_out))) == 2


def test_quartz_with_a_letter_that_is_no_option(tmp_path: Path) -> None:
    choices = [{"label": "A", "text": "more"}, {"label": "B", "text": "less"}]
    record = {"para": "P", "answerKey": "C", "question": {"stem": "Q?", "choices": choices}}
    write(tmp_path, "train.jsonl", lines(record, {"para": "P"}) + "{")
    found = gather(DATASETS["quartz"], tmp_path)
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("answer_not_among_options", "train.jsonl:1"),
        ("malformed_record", "train.jsonl:2"),
        ("malformed_file", "train.jsonl:3"),
    ]


# MultiRC


def test_multirc_joins_several_right_answers(shared: Path) -> None:
    found = gather(DATASETS["multirc"], shared / "data/multirc", files=["train.jsonl"])
    assert (found.records, found.questions, len(found.examples)) == (456, 5_131, 456)
    assert found.reasons == {"no_answer": 23, "repeated_question": 3}
    assert len(pairs(found)) == 5_131 - 26
    assert Counter(bool(pair.options) for pair in pairs(found)) == {False: 3_727, True: 1_378}
    assert pairs(found)[1].response == "The department of counterterrorism; Mullah Omar"
    assert pairs(found)[1].options == ()
    one = next(pair for pair in pairs(found) if pair.options)
    assert one.response in one.options and len(one.options) > 1


def test_multirc_of_the_official_file(tmp_path: Path) -> None:
    def asked(text: str, *right: bool) -> dict[str, object]:
        answers = [{"text": f"a{n}", "isAnswer": is_it} for n, is_it in enumerate(right)]
        return {"question": text, "sentences_used": [0], "answers": answers}

    text = "<b>Sent 1: </b>A mill.<br><b>Sent 2: </b>It turns.<br>"
    questions = [asked("One?", False, True), asked("Both?", True, True), asked("Only?", True)]
    bad = [asked("None?", False), {"question": "Bare?"}]
    record = {"id": "f", "paragraph": {"text": text, "questions": questions + bad}}
    write(tmp_path, "train_456-fixedIds.json", {"data": [record, {"id": "g"}]})
    found = gather(DATASETS["multirc"], tmp_path)
    assert [example.text for example in found.examples] == ["A mill.It turns."]
    assert pairs(found) == [
        *(Pair("One?", "a1", ("a0", "a1")), Pair("Both?", "a0; a1"), Pair("Only?", "a0"))
    ]
    name = "train_456-fixedIds.json"
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_answer", f"{name}:0"),
        ("malformed_record", f"{name}:0"),
        ("malformed_record", f"{name}:1"),
    ]


# QuAIL


def quail(asked: str, label: object) -> dict[str, object]:
    """A line with the official fields that are read."""
    answers = ["a mill", "an owl", "a weir", "not enough information"]
    return {
        **{"id": "f1_0", "context_id": "f1", "context": "A mill stands.", "question": asked},
        **{"question_type": "Factual", "answers": answers, "correct_answer_id": label},
    }


def test_quail_of_the_official_lines_and_of_the_hub(tmp_path: Path) -> None:
    official = [quail("What?", "0"), quail("When?", "3"), quail("Who?", "4"), quail("How?", "")]
    write(tmp_path, "quail_v1.3/json/train.jsonl", lines(*official))
    found = gather(DATASETS["quail"], tmp_path)
    options = ("a mill", "an owl", "a weir", "not enough information")
    assert [example.pairs for example in found.examples] == [
        (Pair("What?", "a mill", options), Pair("When?", "not enough information", options))
    ]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("malformed_record", "quail_v1.3/json/train.jsonl:3"),
        ("unlabelled", "quail_v1.3/json/train.jsonl:4"),
    ]
    (tmp_path / "quail").mkdir()
    table = pa.Table.from_pylist([quail("What?", 1)])
    pq.write_table(table, tmp_path / "quail/validation-00000-of-00001.parquet")
    held_out = gather(DATASETS["quail"], tmp_path, files=DATASETS["quail"].held_out)
    assert pairs(held_out) == [Pair("What?", "an owl", options)]


def quail_xml(*questions: str) -> str:
    asked = "".join(questions)
    return (
        '<data>\n <text domain="fiction" id="f1">\n  <metadata/>\n  <text_body>\n   A mill '
        f"stands.\nIt turns.\n  </text_body>\n  <questions>{asked}</questions>\n </text>\n</data>\n"
    )


def quail_asked(words: str, *correct: str) -> str:
    answers = "".join(
        f'<a id="{n}"{said}>\n     {option}\n    </a>\n'
        for n, (option, said) in enumerate(zip(("a mill", "an owl"), correct, strict=True))
    )
    return f'<q id="1" type="Factual">\n    {words}\n    {answers}   </q>\n'


def test_quail_of_the_official_xml(tmp_path: Path) -> None:
    folder = "quail_v1.3/xml"
    right, wrong = ' correct="True"', ' correct="False"'
    asked = [quail_asked("What?", wrong, right), quail_asked("Who?", "", "")]
    write(tmp_path, f"{folder}/randomized/quail_1.3_train_randomized.xml", quail_xml(*asked))
    # The same with the right option first, which is left alone, and what is no XML.
    write(tmp_path, f"{folder}/ordered/quail_1.3_train.xml", quail_xml(quail_asked("x", right, "")))
    write(tmp_path, f"{folder}/randomized/quail_1.3_dev_randomized.xml", "<data>")
    found = gather(DATASETS["quail"], tmp_path)
    (example,) = found.examples
    assert example.text == "A mill stands.\nIt turns."
    assert example.pairs == (Pair("What?", "an owl", ("a mill", "an owl")),)
    name = f"{folder}/randomized/quail_1.3_train_randomized.xml:f1.1"
    assert [(u.reason, u.where) for u in found.rejected] == [("unlabelled", name)]
    bad = gather(DATASETS["quail"], tmp_path, files=DATASETS["quail"].held_out)
    assert bad.reasons == {"malformed_file": 1}


# Cosmos QA


def test_cosmos_of_the_real_file(shared: Path) -> None:
    dataset = DATASETS["cosmosqa"]
    found = gather(dataset, shared / "data/cosmosqa", files=dataset.held_out)
    assert (found.records, len(found.examples), len(pairs(found))) == (2_000, 1_649, 2_000)
    assert found.reasons == {}
    first = pairs(found)[0]
    assert first.instruction == "Why is this person asking about divorce ?"
    assert first.response == first.options[1] == "He wants to get married to a different person ."
    assert all(len(pair.options) == 4 for pair in pairs(found))
