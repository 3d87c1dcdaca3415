"""The judge filter: a model scores each pair from 1 to 5, and those with 4 and 5 pass.

FineInstructions, section 3.4: an off-the-shelf judge (Flow Judge) with a Likert rubric from 1
(irrelevant or off-topic) to 5 (addresses the query without extraneous, vague or repetitive
content); pairs that score at least 4 are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

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


def build_prompt(record: Record) -> str:
    """The judge's prompt: the pair where the record has parts with and without loss, else the
    whole text."""
    if record.parts is not None and record.loss is not None:
        marked = list(zip(record.parts, record.loss, strict=True))
        asked = "".join(part for part, weight in marked if weight == 0).strip()
        answered = "".join(part for part, weight in marked if weight > 0).strip()
        if asked and answered:
            return _prompt(_PAIR_TASK, ("INSTRUCTION", asked), ("ANSWER", answered))
    return _prompt(_TEXT_TASK, ("TEXT", record.text.strip()))


def _prompt(task: str, *parts: tuple[str, str]) -> str:
    blocks = [f"<<<{name}\n{text}\n{name}>>>" for name, text in parts]
    return "\n\n".join([task, *blocks, f"Scores:\n{_RUBRIC}", _REPLY]) + "\n"


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
    sampling = config.engine.sampling()
    prompt, seed = build_prompt(record), seed_of(config.seed, "judge", record.id)
    content = json.dumps([prompt, config.chat, asdict(sampling), seed], sort_keys=True)
    name = f"{place:08d}#{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    asked: Prompt = (Message("user", prompt),) if config.chat else prompt
    return Request(name, asked, sampling, seed)


def _ask(request: Request) -> Generator[Request, Completion, Completion]:
    completion = yield request
    return completion


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
        self._failed = FailedRequests()
        self._answers: Generator[Done[Request, Completion]] | None = None

    def begin(self, engine: Engine, ledger: Ledger) -> None:
        self._engine, self._ledger = engine, ledger

    def prepare(self, corpus: Records) -> None:
        self._answers = run_units(
            (_question(at, one, self._config) for at, one in enumerate(RecordUnits(corpus))),
            _ask,
            self._engine,
            self._ledger,
            units_in_flight=2 * max_in_flight(self._config.engine),
        )

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        assert self._answers is not None, "checked before it was prepared"
        verdicts: list[Reason | None] = []
        for _ in records:
            done = next(self._answers)
            self._failed.requests += 1
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
        return {"scores": scores, **asked}

    def close(self) -> None:
        if self._answers is not None:
            self._answers.close()
