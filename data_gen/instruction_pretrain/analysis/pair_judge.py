"""Relevance, accuracy and task category of pairs by a judge (section 5.2, Table 6, App. E)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_gen.engines import Completion, SamplingParams
from data_gen.engines.replies import object_of
from data_gen.instruction_pretrain.analysis.categories import CATEGORIES, SCENARIOS, scenario_of
from data_gen.instruction_pretrain.analysis.f1 import mean
from data_gen.instruction_pretrain.formats import Pair
from data_gen.stages.cached import Query, as_user

_BY_LOWER_CASE = {category.lower(): category for category in CATEGORIES}
_TASK = (
    "A program wrote an instruction and its response from a text. Look at three things.\n"
    "relevant: 1 if the instruction is about what the text says, else 0.\n"
    "accurate: 1 if the response does what the instruction asks and the text bears it out, else "
    "0. A response that is partly wrong is 0.\n"
    "category: the kind of task, one name out of the list, spelt as it stands there."
)
_REPLY = (
    "Reply with JSON alone, in this form:\n"
    '{"relevant": 0 or 1, "accurate": 0 or 1, "category": "..."}'
)


@dataclass(frozen=True)
class PairVerdict:
    """What a judge says of one pair."""

    relevant: bool
    """Whether the instruction belongs to the text (context relevance)."""
    accurate: bool
    """Whether the response is right by instruction and text (response accuracy)."""
    category: str
    """One of CATEGORIES."""


@dataclass(frozen=True)
class JudgedPairs:
    """Table 6's row and Figure 6, out of the verdicts that could be read."""

    judged: int
    """Pairs with a verdict."""
    without_verdict: dict[str, int]
    """Pairs without, by reason; they are in no figure."""
    accuracy: float | None
    """Share of accurate responses."""
    relevance: float | None
    """Share of relevant instructions."""
    categories: dict[str, int]
    """Pairs by category, most first."""
    scenarios: dict[str, float | None]
    """Share of pairs by scenario."""


def judge_prompt(text: str, pair: Pair) -> str:
    """The prompt, in our own words."""
    blocks = [("TEXT", text), ("INSTRUCTION", pair.question), ("RESPONSE", pair.answer)]
    shown = [f"<<<{name}\n{content.strip()}\n{name}>>>" for name, content in blocks]
    return "\n\n".join([_TASK, *shown, f"Categories: {'; '.join(CATEGORIES)}", _REPLY]) + "\n"


def judge_question(name: str, text: str, pair: Pair, max_tokens: int) -> Query:
    """What is asked, as a chat."""
    return Query(name, as_user(judge_prompt(text, pair)), SamplingParams(max_tokens=max_tokens))


def parse_pair_verdict(completion: Completion) -> PairVerdict | str:
    """The verdict, or why there is none: `engine_error`, `cut`, `no_json`, `several`,
    `no_relevant`, `no_accurate`, `no_category`, `unknown_category`."""
    found = object_of(completion)
    if isinstance(found, str):
        return found
    relevant, accurate = _binary(found.get("relevant")), _binary(found.get("accurate"))
    if relevant is None:
        return "no_relevant"
    if accurate is None:
        return "no_accurate"
    named = found.get("category")
    if not isinstance(named, str) or not named.strip():
        return "no_category"
    category = _BY_LOWER_CASE.get(named.strip().lower())
    return "unknown_category" if category is None else PairVerdict(relevant, accurate, category)


def judged_pairs(verdicts: Sequence[PairVerdict | str]) -> JudgedPairs:
    """Add up."""
    read = [one for one in verdicts if isinstance(one, PairVerdict)]
    count = len(read)
    categories = Counter(one.category for one in read)
    scenarios = Counter(scenario_of(one.category) for one in read)
    return JudgedPairs(
        judged=count,
        without_verdict=dict(Counter(one for one in verdicts if isinstance(one, str))),
        accuracy=mean(one.accurate for one in read),
        relevance=mean(one.relevant for one in read),
        categories=dict(categories.most_common()),
        scenarios={name: scenarios[name] / count if count else None for name in SCENARIOS},
    )


def pair_verdicts(
    questions: Sequence[Query], completions: Mapping[str, Completion]
) -> list[PairVerdict | str]:
    """In the order of the questions."""
    return [parse_pair_verdict(completions[question.name]) for question in questions]


def _binary(value: object) -> bool | None:
    return {"0": False, "1": True, "false": False, "true": True}.get(str(value).strip().lower())
