"""What the rules find, checked by hand on real sentences, and what they leave alone."""

from __future__ import annotations

from collections import Counter

import pytest

from data_gen.baselines.rules import is_whole, mine
from data_gen.baselines.sentences import split_sentences, split_title


def mined(text: str) -> list[tuple[str, str, dict[str, str]]]:
    found = mine(split_sentences(text))
    return [(task.type, task.sub, dict(task.slots)) for task in found]


def only(text: str, sub: str) -> dict[str, str]:
    (slots,) = [slots for _, found, slots in mined(text) if found == sub]
    return slots


def body(text: str) -> str:
    return split_title(text)[1]


def test_a_conclusion_is_an_entailment_and_an_effect(abstracts: list[str]) -> None:
    premise = (
        "Ventricular hypertrophy induced by renal hypertension in rats is associated with "
        "lengthening of action potential duration and a reproducible decrease in T wave magnitude."
    )
    hypothesis = (
        "This model was used to study the relation between the surface T wave configuration and "
        "regional differences in action potential duration."
    )
    text = body(abstracts[6])
    assert only(text, "entail") == {
        "premise": premise, "hypothesis": hypothesis, "connector": "Therefore"
    }  # fmt: skip
    assert only(text, "cause_effect") == {
        "cause": premise, "effect": hypothesis, "connector": "Therefore"
    }  # fmt: skip
    assert only(text, "contradict")["hypothesis"].startswith("Peaked T wave in SHAM ECG was not")
    assert Counter(sub for _, sub, _ in mined(text)) == Counter(
        entail=1, cause_effect=1, contradict=1, different=1
    )


def test_commas_are_for_paraphrases_alone(abstracts: list[str]) -> None:
    found = [(sub, slots) for _, sub, slots in mined(body(abstracts[5]))]
    assert [sub for sub, _ in found] == ["contradict", "different", "different"]
    assert found[0][1]["premise"].endswith("slight in the remaining 1/4.")
    assert found[2][1]["second"].startswith("By inhibition of androgenic serum levels, the")


def test_additions_likenesses_and_definitions(abstracts: list[str]) -> None:
    likeness = only(body(abstracts[10]), "similar")
    assert likeness["second"] == "It appears that growth ratio increases with the size of aerosol."
    assert likeness["connector"] == "In other words"
    assert only(body(abstracts[8]), "definition")["term"] == "Effective audibility"
    first = "The cells were kept in a medium that held no serum at all."
    addition = f"{first} Furthermore, the medium was changed on every second day of the week."
    assert only(addition, "neutral") == {
        "premise": first,
        "hypothesis": "The medium was changed on every second day of the week.",
        "connector": "Furthermore",
    }


def test_causes_in_real_news(news: list[dict[str, str]]) -> None:
    found = {
        slots["effect"]: slots["cause"]
        for row in news
        for _, sub, slots in mined(body(row["text"]))
        if sub == "effect_cause"
    }
    assert len(found) >= 8
    assert (
        found["PDA Engineering said it has temporarily deferred shipmetns of its PATRAN software "
              "for IBM computers."]
        == "A technical problem with the program."
    )  # fmt: skip
    assert "The slack economic activity." in found.values()


@pytest.mark.parametrize(
    ("sentence", "effect", "cause"),
    [
        (
            "He said the drop in American traffic was mainly due to a general fall in tourism.",
            "The drop in American traffic.",
            "A general fall in tourism.",
        ),
        (
            "Thus, the refinery was closed for long owing to the fact that pipes were quite rusty.",
            "The refinery was closed for long.",
            "Pipes were quite rusty.",
        ),
        ("The minister and his whole staff are due to arrive in the capital on Tuesday.", "", ""),
        ("The minister and his whole staff are due to inspect the new port on Tuesday.", "", ""),
        ("Rates will rise in the next round of negotiations due to get under way in May.", "", ""),
        ("The better result of this group was not due to the drug that was given to it.", "", ""),
        ("Reduced manufacturing costs due to lower rates are likely to boost the market.", "", ""),
        ("The share price fell by half due to the weather, which was bad, and the strike.", "", ""),
        ("It was closed due to the heavy snow and stayed shut due to a lack of workers.", "", ""),
    ],
)
def test_causes_are_cut_at_the_right_place(sentence: str, effect: str, cause: str) -> None:
    found = [slots for _, sub, slots in mined(sentence) if sub == "effect_cause"]
    assert found == ([{"effect": effect, "cause": cause}] if effect else [])


@pytest.mark.parametrize(
    ("sentence", "topic"),
    [
        ("The first part of this article is about the history of banks.", "The history of banks."),
        ("His new book on the war talks about those who came home.", "Those who came home."),
        ("The temple on the Hawaiian island is about 400 years older than was thought.", None),
        ("A study on the abalone habitat is about to get under way in south-west Victoria.", None),
        ("Both of his parents had died when he was about thirteen and very poor.", None),
        ("The bank in London held preliminary talks about a stake in the airline.", None),
    ],
)
def test_topics(sentence: str, topic: str | None) -> None:
    found = [slots["topic"] for _, sub, slots in mined(sentence) if sub == "topic"]
    assert found == ([] if topic is None else [topic])


FIRST = "The number of bystanders lowers the responsibility that each of them feels."
SECOND = "However, a witness with much empathy may well feel responsible for all of it."


def test_a_pair_stands_in_one_paragraph_and_both_are_statements() -> None:
    assert {sub for _, sub, _ in mined(f"{FIRST} {SECOND}")} == {"contradict", "different"}
    assert mined(f"{FIRST}\n{SECOND}") == []
    assert mined(f"{FIRST[:-1]}? {SECOND}") == []
    assert mined(f"{FIRST} {SECOND[:-1]}?") == []
    assert mined(f"{FIRST} Then it rained. {SECOND}") == []
    assert mined(f"{FIRST} However, a witness may feel it.") == []  # 50 characters at least


@pytest.mark.parametrize(
    "sentence",
    [
        "Short sentences are not taken by it.",
        "where this begins in the middle of a sentence it is not taken by the rules.",
        "A heading that ends with no mark at all is not taken for a sentence",
        r"The state space \mathcal{P} of the qudit is not taken for it holds a formula.",
        'He said that "the torn quotation is no whole sentence and not taken either.',
        "The bracket (that is opened and never closed is not taken for a sentence.",
        "Two sentences whose space was lost.They are not taken for one by the rules.",
        "12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35.",
        "Is a question taken for a statement by the rules that look for statements?",
    ],
)
def test_what_is_no_whole_sentence(sentence: str) -> None:
    assert is_whole(FIRST) and not is_whole(sentence)
