"""The judge filter: a model scores each pair from 1 to 5, and those with 4 and 5 pass.

FineInstructions, section 3.4: an off-the-shelf judge (Flow Judge) with a Likert rubric from 1
(irrelevant or off-topic) to 5 (addresses the query without extraneous, vague or repetitive
content); pairs that score at least 4 are kept. A judge of another family than the model that wrote
the pairs is the better one: a published re-implementation's own model accepted 97% of them where
another accepted 71%.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

from data_gen.engines import (
    Completion,
    Engine,
    EngineConfig,
    Message,
    Prompt,
    Request,
    max_in_flight,
)
from data_gen.engines.replies import after_thoughts, json_objects
from data_gen.quality.gate import Gate
from data_gen.stages.asking import json_text_regex
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.ledger import Ledger
from data_gen.stages.runner import Done, run_units
from data_gen.stages.units import Records, RecordUnits
from ipt_jax.core.bounds import AtLeast, AtMost, Config
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason
from ipt_jax.core.seeds import seed_of

LOWEST, HIGHEST = 1, 5
_PAIR_TASK = "Judge how well the answer serves the instruction."
_TEXT_TASK = "Judge the text below: instructions or questions, each followed by its answer."
_RUBRIC = """\
5: does all that is asked; nothing in it is off the point, vague or said twice.
4: does what is asked, with small flaws: a needless sentence, a missing minor detail.
3: serves in part: something asked for is missing, or much is vague or beside the point.
2: touches what is asked, yet most of it is wrong, vague or beside the point.
1: has nothing to do with what is asked, or is no answer at all."""
# Flow-Judge's prompt: its sections, tags and order are what that model was tuned on; the words are
# our own.
_FLOW_JUDGE = """\
# GOAL
You are to judge how well an AI system did a task. You get {given} of the task, the criterion to \
judge by and a rubric of what each score stands for. Judge by these alone.
{inputs}
# OUTPUT
This is the output of the task:
<output>
{output}
</output>

# EVALUATION CRITERIA AND SCORING RUBRIC
This is the criterion to judge by, and what each score stands for:
<evaluation_criteria>
{criterion}
</evaluation_criteria>

<scoring_rubric>
{rubric}
</scoring_rubric>

# INSTRUCTIONS FOR THE EVALUATION
1. Make clear to yourself what the task is, and how the scores of the rubric differ.
2. Read {read}.
3. Hold the output against the description of each score and find the one that fits it best.
4. Then look at the details: a small one may decide between two scores.
5. Write your reasons down as feedback, in terms of the rubric and of what the output says.
6. Give the score that follows from them.

## FORMAT FOR THE EVALUATION
- The feedback stands within <feedback> tags, with nothing around them.
- The score stands within <score> tags as a number, behind the feedback, with nothing around them.

Judge with care, and by the criterion and the rubric alone."""
_FLOW_INPUT = """
# INPUT
These are the inputs of the task:
<inputs>
<instruction>
{asked}
</instruction>
</inputs>
"""
_CRITERION = "How well does the {what} serve what is asked, and with nothing beside it?"
_AGAIN = (
    "Your reply gave no score that can be read. Reply with the score alone: one whole number from "
    f"{LOWEST} to {HIGHEST}, in the form"
)
# Of constrained replies.
_PATTERNS = {
    "json": rf'\{{"reason": "{json_text_regex(0, 200)}", "score": [{LOWEST}-{HIGHEST}]\}}',
    "flow_judge": rf"<feedback>[^<]{{0,400}}</feedback>\n<score>[{LOWEST}-{HIGHEST}]</score>",
}
_SCORE_FORM = {"json": '{"score": N}', "flow_judge": "<score>N</score>"}
# What FineInstructions' form of a pair puts around an instruction: no words of the pair's own.
_FRAME = re.compile(r"\A(?:Instruction: )?(.*?)(?:\n\nAnswer:)?\Z", re.DOTALL)
_REPLY = (
    "Say in one or two sentences what is good and what is wanting. Then give the score as a whole "
    f"number from {LOWEST} to {HIGHEST}. Reply with JSON alone, in this form:\n"
    '{"reason": "...", "score": N}'
)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
# Not `1-5`, `3 or 4`, `4th`, `40%`.
_ENDS = r"(?![\w%])(?!\s*(?:-|–|to|or|and)\s*\d)"
_SCALE = r"(?:\s*(?:/|out\s+of)\s*(?P<scale>\d+(?:\.\d+)?))?"
# A score with its name: `Score: 4`, `"score": "4"`, `<score>4</score>`, `Final rating = 4 / 5`.
_NAMED = re.compile(
    r"(?<!/)\b(?:score|rating|grade|verdict)\b[\"'*_`]*\s*(?:[(\[][^)\]\n]{0,20}[)\]]\s*)?"
    rf"(?:\bis\b|\bof\b|[:=>–\n-])[\s\"'*_`<\[(]*(?P<value>{_NUMBER}){_ENDS}{_SCALE}",
    re.IGNORECASE,
)
_OUT_OF = re.compile(rf"(?<![\w./])(?P<value>{_NUMBER})\s*(?:/|out\s+of)\s*(?P<scale>\d+)(?![\w/])")
_LINE = re.compile(
    rf"^[ \t*_`\"'(\[#]*(?:(?:score|rating)[ \t]+)?(?P<value>{_NUMBER})[ \t*_`\"')\].!]*$",
    re.MULTILINE | re.IGNORECASE,
)
_ANY = re.compile(rf"(?<![\w.])(?P<value>{_NUMBER})(?![\w%])")
_KEYS = ("score", "rating", "grade", "verdict")
_JSON_VALUE = re.compile(rf"({_NUMBER})(?:\s*(?:/|out\s+of)\s*(\d+))?")


@dataclass(frozen=True)
class JudgeConfig(Config):
    """The judge model, and what passes."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """The model, and how its verdicts are drawn. One cut within its number is rejected."""
    keep_at_least: Annotated[int, AtLeast(LOWEST), AtMost(HIGHEST)] = 4
    """Least score that passes (FineInstructions keeps 4 and 5)."""
    form: Literal["json", "flow_judge"] = "json"
    """Prompt: `json` for any chat model; `flow_judge` as the model Flow-Judge was tuned on."""
    ask_again: bool = True
    """Ask once more where a reply gives no score that counts; after that the record is rejected."""
    chat: bool = True
    """Ask through the model's chat template; false for a model that has none."""
    seed: int = 0
    """Each request's seed derives from it and the record's id."""


@dataclass(frozen=True)
class Verdict:
    """What a judge's reply says."""

    score: int | None
    """1 to 5; None where the reply gives no clear one."""
    problem: str = ""
    """Without score: `no_score`, `ambiguous`, `not_whole`, `out_of_range`, `other_scale`, `cut`,
    `engine_error`."""
    reply: str = field(default="", compare=False)
    """What the judge wrote."""


def build_prompt(record: Record, form: str = "json") -> str:
    """The judge's prompt: the pair where the record has parts with and without loss, else the
    whole text."""
    asked, answered = _pair_of(record)
    if form == "flow_judge":
        return _flow_judge_prompt(asked, answered)
    if asked:
        return _prompt(_PAIR_TASK, ("INSTRUCTION", asked), ("ANSWER", answered))
    return _prompt(_TEXT_TASK, ("TEXT", answered))


def _pair_of(record: Record) -> tuple[str, str]:
    """What is asked, if it is told apart from what is answered, and the rest of the text."""
    if record.parts is not None and record.loss is not None:
        marked = list(zip(record.parts, record.loss, strict=True))
        asked = "".join(part for part, weight in marked if weight == 0).strip()
        answered = "".join(part for part, weight in marked if weight > 0).strip()
        if asked and answered:
            framed = _FRAME.match(asked)
            return (framed[1].strip() if framed else "") or asked, answered
    return "", record.text.strip()


def _prompt(task: str, *parts: tuple[str, str]) -> str:
    blocks = [f"<<<{name}\n{text}\n{name}>>>" for name, text in parts]
    return "\n\n".join([task, *blocks, f"Scores:\n{_RUBRIC}", _REPLY]) + "\n"


def _flow_judge_prompt(asked: str, answered: str) -> str:
    rubric = reversed(_RUBRIC.splitlines())  # from the lowest score to the highest
    return _FLOW_JUDGE.format(
        given="inputs and output" if asked else "the output",
        inputs=_FLOW_INPUT.format(asked=asked) if asked else "",
        output=answered,
        criterion=_CRITERION.format(what="answer" if asked else "text's every answer"),
        rubric="\n".join(f"- Score {line}" for line in rubric),
        read="the inputs and the output" if asked else "the output",
    )


def parse_verdict(reply: str, cut: bool = False) -> Verdict:
    """The score in a judge's reply.

    Looked for in this order: JSON with a `score` (fenced or within prose too), a score with its
    name (`Score: 4`, `<score>4</score>`), a number out of five (`4/5`), a line that is a number.
    Different scores in one reply are none: it is `ambiguous`. What a model thinks within
    `<think>` is left out. `cut` says that the reply ended at the token limit; a number at its very
    end may then be half of one.
    """
    reply = after_thoughts(reply)
    if not (values := [v for found in json_objects(reply) for v in _scores(found)]):
        found = next((f for p in (_NAMED, _OUT_OF, _LINE) if (f := list(p.finditer(reply)))), [])
        if found and cut and found[-1].end() >= len(reply.rstrip()):
            return Verdict(None, "cut")
        values = [(float(m["value"]), m.groupdict().get("scale")) for m in found]
    if not values:
        several = len({match["value"] for match in _ANY.finditer(reply)}) > 1
        return Verdict(None, "cut" if cut else "ambiguous" if several else "no_score")
    if any(scale is not None and float(scale) != HIGHEST for _, scale in values):
        return Verdict(None, "other_scale")
    if len({value for value, _ in values}) > 1:
        return Verdict(None, "ambiguous")
    value = values[0][0]
    if value != int(value):
        return Verdict(None, "not_whole")
    if not LOWEST <= value <= HIGHEST:
        return Verdict(None, "out_of_range")
    return Verdict(int(value))


def _scores(found: Any) -> Iterator[tuple[float, str | None]]:
    """Value and scale of each score in a JSON object."""
    for key, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, dict):
            yield from _scores(value)
        elif str(key).strip().lower() in _KEYS and not isinstance(value, bool):
            match = _JSON_VALUE.fullmatch(str(value).strip())
            if match:
                yield float(match[1]), match[2]


def _question(place: int, record: Record, config: JudgeConfig) -> Request:
    """Named by its place among the records and what is asked: neither alone tells two apart."""
    constrain = config.engine.constrain
    sampling = config.engine.sampling(regex=_PATTERNS[config.form] if constrain else None)
    prompt = build_prompt(record, config.form)
    seed = seed_of(config.seed, "judge", record.id)
    content = json.dumps([prompt, config.chat, asdict(sampling), seed], sort_keys=True)
    name = f"{place:08d}#{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    asked: Prompt = (Message("user", prompt),) if config.chat else prompt
    return Request(name, asked, sampling, seed)


def _ask(config: JudgeConfig, request: Request) -> Generator[Request, Completion, Completion]:
    completion = yield request
    no_score = completion.finish_reason != "error" and _read(completion).score is None
    if not (config.ask_again and no_score):
        return completion
    said, prompt = f"{_AGAIN} {_SCORE_FORM[config.form]}", request.prompt
    if isinstance(prompt, str):
        again: Prompt = f"{prompt}\n{completion.text}\n\n{said}\n"
    else:
        # Some templates refuse a turn without words.
        turn = Message("assistant", completion.text or "...")
        again = (*prompt, turn, Message("user", said))
    seed = seed_of(request.seed, "again")
    second = yield Request(f"{request.id}/again", again, request.sampling, seed)
    # One that fails is told of as such and asked again by a later run.
    return second


def _read(completion: Completion | Reason) -> Verdict:
    if isinstance(completion, Reason):
        return Verdict(None, completion.reason, completion.detail)
    if completion.finish_reason == "error":
        return Verdict(None, "engine_error", completion.text)
    verdict = parse_verdict(completion.text, cut=completion.finish_reason == "length")
    return replace(verdict, reply=completion.text)


class JudgeGate(Gate):
    """Lets records pass that the judge gives `keep_at_least` or more.

    All records are asked about in one stream, ahead of those that are checked; what was answered
    stands in the ledger and is not asked again.
    """

    name = "judge"
    needs_corpus = True

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._scores: Counter[int] = Counter()
        self._asked_again = 0
        self._failed = FailedRequests()
        self._answers: Generator[Done[Request, Completion]] | None = None

    def begin(self, engine: Engine, ledger: Ledger) -> None:
        self._engine, self._ledger = engine, ledger

    def prepare(self, corpus: Records) -> None:
        self._answers = run_units(
            (_question(at, one, self._config) for at, one in enumerate(RecordUnits(corpus))),
            partial(_ask, self._config),
            self._engine,
            self._ledger,
            units_in_flight=2 * max_in_flight(self._config.engine),
        )

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        assert self._answers is not None, "checked before it was prepared"
        verdicts: list[Reason | None] = []
        for _ in records:
            done = next(self._answers)
            self._failed.requests += done.usage.completions
            self._asked_again += done.usage.completions > 1
            self._failed.add(done.errors)
            verdict = _read(done.outcome)
            if verdict.score is None:
                said = verdict.reply
                if not done.errors:
                    said = f"no score that counts in {said[-300:]!r}"
                verdicts.append(Reason(verdict.problem, said))
                continue
            self._scores[verdict.score] += 1
            low = verdict.score < self._config.keep_at_least
            verdicts.append(Reason("low_score", f"score {verdict.score}") if low else None)
        return verdicts

    def summary(self) -> dict[str, Any]:
        scores = {str(score): self._scores[score] for score in sorted(self._scores)}
        asked = {"completions": self._failed.requests, **self._failed.summary()}
        return {"scores": scores, "asked_again": self._asked_again, **asked}

    def close(self) -> None:
        if self._answers is not None:
            self._answers.close()
