"""The judge filter: every form of verdict, and what a model leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from data_gen.engines import Completion, Request
from data_gen.quality.judge import JudgeConfig, JudgeGate, Verdict, build_prompt, parse_verdict
from ipt_jax.errors import UserError
from ipt_jax.records import Record


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"reason": "Good.", "score": 4}', 4),
        ('{"score": "5", "reason": "All of it."}', 5),
        ('{"score": 4.0}', 4),
        ('{"score": "4/5"}', 4),
        ('{"Rating": 2}', 2),
        ('```json\n{\n  "reason": "It fits {mostly}.",\n  "score": 3\n}\n```', 3),
        ('Here is my verdict:\n{"reason": "I first meant Score: 2", "score": 4}\nThank you, 1.', 4),
        ('{"verdict": {"score": 4, "relevance": 5}}', 4),
        ('{"score": 4} and once more {"score": 4}', 4),
        ("{not json} Score: 4", 4),
        ('{"score": [4]}', 4),
        ('{"score": 4, "reason": "an answer without end', 4),
        ("Score: 4", 4),
        ("**Score:** 4", 4),
        ("**Score: 4**", 4),
        ("Score - 4", 4),
        ("The score is 4.", 4),
        ("It earns a rating of 5, for 3 reasons.", 5),
        ("Score (1-5): 4", 4),
        ("Rating [1 to 5] = 2", 2),
        ("Final rating = 4 / 5", 4),
        ("## Score\n\n4\n", 4),
        ("<feedback>Two flaws, 3 lines.</feedback>\n<score>3</score>\nDone in 2 steps.", 3),
        ("score: 4\nReason: names 2 of 3 causes.", 4),
        ("4/5", 4),
        ("I would say 4 out of 5 here.", 4),
        ("4", 4),
        (" 5.\n", 5),
        ("Score 4", 4),
        ("4\n\nThe answer covers 2 of the points.", 4),
        ("<think>Perhaps Score: 2? No.</think>\nScore: 4", 4),
        ("it could be 3 ...</think>4", 4),
    ],
)
def test_verdicts_that_give_a_score(reply: str, score: int) -> None:
    assert parse_verdict(reply) == Verdict(score)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", "no_score"),
        ("A good answer.", "no_score"),
        ("Score: four", "no_score"),
        ("The answer names 4 causes.", "no_score"),
        ("It answers 3 of the 4 questions.", "ambiguous"),
        ("Score: 4\n...\nFinal score: 3", "ambiguous"),
        ('{"score": 4} {"score": 2}', "ambiguous"),
        ('{"helpfulness": {"score": 5}, "truth": {"score": 3}}', "ambiguous"),
        ("Score: 3-4", "ambiguous"),
        ("Score: 3 or 4", "ambiguous"),
        ("3/5 or 4/5", "ambiguous"),
        ("Score: 4.5", "not_whole"),
        ('{"score": 3.5}', "not_whole"),
        ("Score: 8/10", "other_scale"),
        ('{"score": "8/10"}', "other_scale"),
        ("7 out of 10", "other_scale"),
        ("Score: 7", "out_of_range"),
        ("Score: 0", "out_of_range"),
        ('{"score": -4}', "out_of_range"),
        ('{"score": true}', "no_score"),
        ('{"score": null}', "no_score"),
        ("Score: 90%", "no_score"),
        ("This suits a grade 4 reader.", "no_score"),
        ("<think>Score: 4, I think, but", "no_score"),
        ("Rate it from 1 to 5.", "ambiguous"),
    ],
)
def test_verdicts_that_give_none(reply: str, problem: str) -> None:
    assert parse_verdict(reply) == Verdict(None, problem)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ('{"score": 4, "reason": "an', Verdict(4)),
        ('{"reason": "because", "score": 4', Verdict(None, "cut")),
        ("Score: 4", Verdict(None, "cut")),
        ("It is long, and 2 things and 3", Verdict(None, "cut")),
        ("Score: 4. It", Verdict(4)),
    ],
)
def test_a_reply_cut_at_the_limit(reply: str, wanted: Verdict) -> None:
    assert parse_verdict(reply, cut=True) == wanted


def pair(name: str, asked: str, answered: str) -> Record:
    return Record(name, asked + answered, "made", (asked, answered), (0.0, 1.0))


def test_the_prompt_shows_pair_or_text_and_the_rubric() -> None:
    prompt = build_prompt(pair("1", "Name a sea.\n", "The Red Sea."))
    assert "<<<INSTRUCTION\nName a sea.\nINSTRUCTION>>>" in prompt
    assert "<<<ANSWER\nThe Red Sea.\nANSWER>>>" in prompt
    assert all(f"\n{score}: " in prompt for score in range(1, 6))
    assert '"score": N' in prompt
    whole = build_prompt(Record("2", "Q: Name a sea. A: The Red Sea.", "made"))
    assert "<<<TEXT\nQ: Name a sea. A: The Red Sea.\nTEXT>>>" in whole
    assert "INSTRUCTION" not in whole
    all_loss = Record("3", "ab", "made", ("a", "b"), (1.0, 1.0))
    assert "<<<TEXT\nab\nTEXT>>>" in build_prompt(all_loss)


class Judge:
    """Replies from a table by a word of the prompt, out of order; leaves one out."""

    name, version, model, revision, context_tokens = "fake", "1", "judge", "r", 4096
    REPLIES = (
        ("good", ('{"score": 5}', "stop")),
        ("fair", ("Score: 4", "stop")),
        ("poor", ("Score: 3", "stop")),
        ("odd", ("who knows", "stop")),
        ("cut", ("Score: 4", "length")),
        ("error", ("Score: 5", "error")),
    )

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def count_tokens(self, text: object) -> int:
        return 1

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        self.asked = [request for request in requests if request is not None]
        for request in reversed(self.asked):
            for word, (text, why) in self.REPLIES:
                if f"It is {word}." in str(request.prompt):
                    yield Completion(request.id, text, why, 1, 1)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


def test_only_a_clear_score_of_four_or_five_passes() -> None:
    names = ["good", "fair", "poor", "odd", "cut", "error", "missing", "good"]
    records = [pair(f"r{n}", "Ask.", f"It is {name}.") for n, name in enumerate(names)]
    judge = Judge()
    gate = JudgeGate(JudgeConfig(), judge)
    found = [None if one is None else one.reason for one in gate.check(records)]
    wanted = [None, None, "low_score", "no_score", "cut", "engine_error", "no_reply", None]
    assert found == wanted
    assert gate.summary() == {"scores": {"3": 1, "4": 1, "5": 2}}
    detail = gate.check(records)[3]
    assert detail is not None and "who knows" in detail.detail
    # A request's seed depends on the record, not on the batch around it.
    seeds = [request.seed for request in judge.asked]
    assert len(set(seeds)) == 8
    gate.check(records[3:4])
    assert [request.seed for request in judge.asked] == seeds[3:4]
    assert JudgeGate(JudgeConfig(keep_at_least=5), judge).check(records[1:2])[0] is not None


def test_the_judge_is_asked_by_chat_unless_told_otherwise() -> None:
    judge = Judge()
    JudgeGate(JudgeConfig(), judge).check([pair("1", "Ask.", "It is good.")])
    (message,) = judge.asked[0].prompt
    assert message.role == "user" and "It is good." in message.content  # type: ignore[union-attr]
    JudgeGate(JudgeConfig(chat=False), judge).check([pair("1", "Ask.", "It is good.")])
    assert judge.asked[0].prompt == message.content  # type: ignore[union-attr]
    assert judge.asked[0].sampling.max_tokens == JudgeConfig().engine.max_tokens
    with pytest.raises(UserError, match="`keep_at_least` is 6"):
        JudgeConfig(keep_at_least=6)
