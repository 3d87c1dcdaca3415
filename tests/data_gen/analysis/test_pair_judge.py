"""The judge: its prompt, its replies read strictly, Table 6 added up."""

from __future__ import annotations

import pytest

from data_gen.engines import Completion
from data_gen.instruction_pretrain.analysis.categories import (
    CATEGORIES,
    SCENARIOS,
    scenario_of,
)
from data_gen.instruction_pretrain.analysis.pair_judge import (
    PairVerdict,
    judge_prompt,
    judge_question,
    judged_pairs,
    parse_pair_verdict,
)
from data_gen.instruction_pretrain.formats import Pair

PAIR = Pair("Which?", "b", ("a", "b"), "Not a.")


def said(text: str, reason: str = "stop") -> Completion:
    return Completion("", text, reason, 1, 1)  # type: ignore[arg-type]


def test_there_are_76_categories_in_9_scenarios_each_in_one() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 76 and len(SCENARIOS) == 9
    assert scenario_of("Mathematics") == "Reasoning"


def test_the_prompt_holds_text_pair_and_all_categories() -> None:
    prompt = judge_prompt("The text. ", PAIR)
    assert "<<<TEXT\nThe text.\nTEXT>>>" in prompt
    assert f"<<<INSTRUCTION\n{PAIR.question}\nINSTRUCTION>>>" in prompt
    assert f"<<<RESPONSE\n{PAIR.answer}\nRESPONSE>>>" in prompt
    assert all(category in prompt for category in CATEGORIES)
    question = judge_question("n", "t", PAIR, 50)
    assert question.sampling.temperature == 0 and question.prompt[0].role == "user"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (
            '{"relevant": 1, "accurate": 0, "category": "Mathematics"}',
            PairVerdict(True, False, "Mathematics"),
        ),
        (
            'Sure.\n```json\n{"relevant": "1", "accurate": true, "category": " misc. "}\n```',
            PairVerdict(True, True, "Misc."),
        ),
        (
            '<think>{"relevant": 0}</think>{"relevant":0,"accurate":0,"category":"Explanation"}',
            PairVerdict(False, False, "Explanation"),
        ),
        ("relevant: 1, accurate: 1, category: Mathematics", "no_json"),
        ('{"relevant": 2, "accurate": 1, "category": "Mathematics"}', "no_relevant"),
        ('{"relevant": 1, "accurate": "yes", "category": "Mathematics"}', "no_accurate"),
        ('{"relevant": 1, "accurate": 1}', "no_category"),
        ('{"relevant": 1, "accurate": 1, "category": "Maths"}', "unknown_category"),
        (
            '{"relevant": 1, "accurate": 1, "category": "Mathematics"} or '
            '{"relevant": 0, "accurate": 1, "category": "Mathematics"}',
            "several",
        ),
        ("<think>{}", "no_json"),
    ],
)
def test_replies(reply: str, verdict: PairVerdict | str) -> None:
    assert parse_pair_verdict(said(reply)) == verdict


def test_a_cut_reply_and_an_error_are_named() -> None:
    assert parse_pair_verdict(said('{"relevant": 1, "acc', "length")) == "cut"
    assert parse_pair_verdict(said("prompt too long", "error")) == "engine_error"


def test_only_what_could_be_read_counts() -> None:
    found = judged_pairs(
        [
            PairVerdict(True, True, "Mathematics"),
            PairVerdict(True, False, "Mathematics"),
            PairVerdict(True, False, "Summarization"),
            PairVerdict(False, False, "Textual Entailment"),
            "no_json",
            "no_json",
            "cut",
        ]
    )
    assert (found.judged, found.without_verdict) == (4, {"no_json": 2, "cut": 1})
    assert (found.accuracy, found.relevance) == (0.25, 0.75)
    assert found.categories == {"Mathematics": 2, "Summarization": 1, "Textual Entailment": 1}
    assert found.scenarios["Reasoning"] == 0.75 and found.scenarios["Dialogue"] == 0.0
    nothing = judged_pairs(["no_json"])
    assert nothing.accuracy is nothing.relevance is nothing.scenarios["Reasoning"] is None
