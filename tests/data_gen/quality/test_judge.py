"""The judge filter: every form of verdict, and what a model leaves out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import Completion, EngineConfig, Request
from data_gen.engines.streaming import RequestSource
from data_gen.quality.judge import JudgeConfig, JudgeGate, Verdict, build_prompt, parse_verdict
from data_gen.quality.stage import Filter, FilterConfig, check_records
from data_gen.stages.ledger import Ledger
from data_gen.stages.stage import run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.rejection import Reason


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
    """Replies from a table by a word of the prompt, out of order, a few at a time."""

    name, version, model, revision, context_tokens = "fake", "1", "judge", "r", 4096
    REPLIES = (
        ("good", ('{"score": 5}', "stop")),
        ("fair", ("Score: 4", "stop")),
        ("poor", ("Score: 3", "stop")),
        ("odd", ("who knows", "stop")),
        ("cut", ("Score: 4", "length")),
        ("error", ("http_400: no", "error")),
    )

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[Request] = []
        self.most_under_way = 0
        self._dies_after = dies_after

    def count_tokens(self, text: object) -> int:
        return 1

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        feed = RequestSource(requests)
        while taken := feed.take(700):
            self.most_under_way = max(self.most_under_way, len(taken))
            for request in reversed(taken):
                if len(self.asked) == self._dies_after:
                    raise KeyboardInterrupt
                self.asked.append(request)
                for word, (text, why) in self.REPLIES:
                    if f"It is {word}." in str(request.prompt):
                        yield Completion(request.id, text, why, 1, 1)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


def judged(
    folder: Path, judge: Judge, records: list[Record], config: JudgeConfig | None = None
) -> tuple[list[Reason | None], dict[str, Any]]:
    with Ledger(folder) as ledger:
        gate = JudgeGate(config or JudgeConfig())
        gate.begin(judge, ledger)
        try:
            return check_records(records, [gate]), gate.summary()
        finally:
            gate.close()


def test_only_a_clear_score_of_four_or_five_passes(tmp_path: Path) -> None:
    names = ["good", "fair", "poor", "odd", "cut", "error", "good"]
    records = [pair(f"r{n}", "Ask.", f"It is {name}.") for n, name in enumerate(names)]
    judge = Judge()
    verdicts, summary = judged(tmp_path / "a", judge, records)
    found = [None if one is None else one.reason.removeprefix("judge:") for one in verdicts]
    assert found == [None, None, "low_score", "no_score", "cut", "engine_error", None]
    assert summary == {
        "scores": {"3": 1, "4": 1, "5": 2}, "asked_again": 2, "completions": 9,
        "requests_failed": 1, "requests_to_ask_again": 0, "request_errors": {"http_400: no": 1},
    }  # fmt: skip
    assert "who knows" in verdicts[3].detail and verdicts[5].detail == "http_400: no"  # type: ignore[union-attr]
    # A request's seed depends on the record, not on the batch around it.
    seeds = {request.prompt: request.seed for request in judge.asked}
    assert len({request.seed for request in judge.asked}) == 9
    alone = Judge()
    judged(tmp_path / "b", alone, records[3:4])
    assert [request.seed for request in alone.asked] == [seeds[one.prompt] for one in alone.asked]
    assert judged(tmp_path / "c", judge, records[1:2], JudgeConfig(keep_at_least=5))[0][0]


def test_a_reply_without_a_score_is_asked_about_once_more(tmp_path: Path) -> None:
    class Late(Judge):
        def __init__(self, second: str, why: str = "stop") -> None:
            super().__init__()
            self.REPLIES = (("odd", ("a fine answer", "stop")),)
            self.second = (second, why)

        def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                text, why = self.second
                if completion.request_id.endswith("/again"):
                    completion = replace(completion, text=text, finish_reason=why)
                yield completion

    records = [pair("1", "Ask.", "It is odd.")]
    late = Late("<score>5</score>")
    config = JudgeConfig(form="flow_judge")
    assert judged(tmp_path / "a", late, records, config)[0] == [None]
    first, again = (one.prompt for one in late.asked)
    assert again[: len(first)] == first and len(again) == len(first) + 2
    assert again[1].role == "assistant" and again[1].content == "a fine answer"  # type: ignore[union-attr]
    assert "<score>N</score>" in again[2].content  # type: ignore[union-attr]
    # What was answered before a stop is not asked again, either time.
    verdicts, summary = judged(tmp_path / "a", Late("never asked"), records, config)
    assert verdicts == [None] and (summary["asked_again"], summary["completions"]) == (1, 2)
    (failed,), summary = judged(tmp_path / "b", Late("http_500", "error"), records)
    assert failed.reason == "judge:engine_error" and summary["requests_failed"] == 1  # type: ignore[union-attr]
    once = Late("<score>5</score>")
    ((wrong,), _) = judged(tmp_path / "c", once, records, JudgeConfig(ask_again=False))
    assert wrong.reason == "judge:no_score" and len(once.asked) == 1  # type: ignore[union-attr]
    plain = Late("4")
    assert judged(tmp_path / "d", plain, records, JudgeConfig(chat=False))[0] == [None]
    text = plain.asked[1].prompt
    assert text.startswith(f"{plain.asked[0].prompt}\na fine answer") and '{"score": N}' in text  # type: ignore[union-attr]


def test_flow_judges_prompt_has_that_models_sections_in_order() -> None:
    parts = ("Instruction: Name {a} sea.\n\nAnswer: ", "The Red Sea.")
    prompt = build_prompt(Record("1", "".join(parts), "fi", parts, (0.0, 1.0)), "flow_judge")
    wanted = [
        "# GOAL\n", "# INPUT\n",
        "<inputs>\n<instruction>\nName {a} sea.\n</instruction>\n</inputs>\n",
        "# OUTPUT\n", "<output>\nThe Red Sea.\n</output>\n",
        "# EVALUATION CRITERIA AND SCORING RUBRIC\n", "<evaluation_criteria>\n",
        "</evaluation_criteria>\n", "<scoring_rubric>\n- Score 1: ", "\n- Score 5: ",
        "</scoring_rubric>\n", "# INSTRUCTIONS FOR THE EVALUATION\n",
        "## FORMAT FOR THE EVALUATION\n", "<feedback>", "<score>",
    ]  # fmt: skip
    places = [prompt.index(one) for one in wanted]
    assert places == sorted(places) and "{output}" not in prompt
    # Pairs of other methods: a text with its pairs is judged whole, without inputs.
    texts = ("A text.\n\n", "Question: Who?\nAnswer: I.")
    whole = build_prompt(Record("2", "".join(texts), "ipt", texts, (1.0, 1.0)), "flow_judge")
    assert "<output>\nA text.\n\nQuestion: Who?\nAnswer: I.\n</output>" in whole
    assert "# INPUT" not in whole and "inputs" not in whole
    # The frame of a pair is not taken for its words, nor its words for the frame.
    odd = pair("3", "Instruction: Instruction: x\n\nAnswer: y\n\nAnswer: ", "z")
    assert "<<<INSTRUCTION\nInstruction: x\n\nAnswer: y\nINSTRUCTION>>>" in build_prompt(odd)


@pytest.mark.parametrize("form", ["json", "flow_judge"])
def test_a_constrained_reply_is_one_with_a_score(tmp_path: Path, form: Any) -> None:
    judge = Judge()
    config = JudgeConfig(form=form, engine=EngineConfig(constrain=True))
    judged(tmp_path, judge, [pair("a", "Ask.", "It is good.")], config)
    pattern = re.compile(judge.asked[0].sampling.regex or "")
    replies = {
        "json": '{"reason": "It \\"fits\\".", "score": 4}',
        "flow_judge": "<feedback>It fits.</feedback>\n<score>4</score>",
    }
    assert parse_verdict(replies[form]).score == 4 and pattern.fullmatch(replies[form])
    assert not pattern.fullmatch(replies[form].replace("4", "7"))


def test_the_judge_is_asked_by_chat_unless_told_otherwise(tmp_path: Path) -> None:
    judge, records = Judge(), [pair("1", "Ask.", "It is good.")]
    judged(tmp_path, judge, records)
    (message,) = judge.asked[0].prompt
    assert message.role == "user" and "It is good." in message.content  # type: ignore[union-attr]
    judged(tmp_path, judge, records, JudgeConfig(chat=False))  # another question: asked anew
    assert judge.asked[1].prompt == message.content  # type: ignore[union-attr]
    assert judge.asked[1].sampling.max_tokens == JudgeConfig().engine.max_tokens


def test_a_judging_that_stopped_goes_on_and_asks_each_question_once(tmp_path: Path) -> None:
    words = ["good", "poor", "error"]
    records = [pair(f"r{n}", f"Ask {n}.", f"It is {words[n % 3]}.") for n in range(900)]
    with ShardWriter(tmp_path / "in") as shards:
        for record in records:
            shards.write(record)

    def config(name: str) -> FilterConfig:
        asked, given = (
            JudgeConfig(engine=EngineConfig(max_failed_share=0.5)),
            [str(tmp_path / "in")],
        )
        return FilterConfig(input=given, output=str(tmp_path / name), gates=["judge"], judge=asked)

    first, second, whole = Judge(dies_after=480), Judge(), Judge()
    with pytest.raises(KeyboardInterrupt):
        run_stage(Filter(config("out")), engine=first)
    summary = run_stage(Filter(config("out")), engine=second)
    assert summary == run_stage(Filter(config("whole")), engine=whole)
    answered = [r for r in first.asked if "It is error." not in str(r.prompt)]
    assert len(answered) + len(second.asked) == 900 and whole.most_under_way == 700
    for name in ("shards/part-00000.arrayrecord", "rejected/judge.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    asked = len(second.asked)
    assert run_stage(Filter(config("out")), engine=second) == summary
    assert len(second.asked) == asked
    # With fewer failures allowed it is not, and those alone are asked again.
    strict = JudgeConfig(engine=EngineConfig(max_failed_share=0.1))
    again, healthy = replace(config("out"), judge=strict), Judge()
    healthy.REPLIES = (*Judge.REPLIES[:-1], ("error", ("Score: 5", "stop")))
    summary = run_stage(Filter(again), engine=healthy)
    assert len(healthy.asked) == 300 and summary["out"] == 600
    with pytest.raises(UserError, match="keep_at_least|judge changed"):
        (tmp_path / "out" / "summary.json").unlink()
        run_stage(Filter(replace(again, judge=replace(strict, keep_at_least=5))), engine=healthy)


def test_what_the_judge_answers_later_changes_what_follows_it(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "in") as shards:
        for name in "ab":
            shards.write(pair(name, "Ask.", "It is good."))
    config = FilterConfig(
        input=[str(tmp_path / "in")], output=str(tmp_path / "out"), gates=["judge", "exact_text"]
    )

    class FailsFirst(Judge):
        def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            for place, completion in enumerate(super().generate(requests)):
                failed = replace(completion, text="http_400: no", finish_reason="error")
                yield completion if place < 1 else failed

    def kept() -> list[str]:
        source = RecordSource(tmp_path / "out" / "shards")
        return [record.id for record in source.read(range(len(source)))]

    run_stage(Filter(config), engine=FailsFirst())
    assert kept() == ["b"]
    summary, healthy = run_stage(Filter(config), engine=Judge()), Judge()
    assert kept() == ["a"] and summary["gates"][2]["rejected"] == {"duplicate": 1}
    # As an earlier version left it.
    (tmp_path / "out" / "ledger.sqlite").unlink()
    marker = json.loads((tmp_path / "out" / "run.json").read_text())
    for name in ("method", "judge.engine.constrain", "judge.engine.vllm.dtype"):
        del marker["fingerprint"][name]
    (tmp_path / "out" / "run.json").write_text(json.dumps(marker))
    assert run_stage(Filter(config), engine=healthy) == summary and not healthy.asked
