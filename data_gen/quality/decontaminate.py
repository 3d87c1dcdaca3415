"""Decontamination: training records that hold evaluation examples, by three rules, and counts.

`substring` is IPT's (appendix D, after the GPT-4 report), `coverage` Tulu 3's (FineInstructions,
section 3.1, uses it), `ngram` the plain one of GPT-3. A training record that matches any example
is removed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_gen.quality.evaluations import EvaluationExample, EvaluationFile, load_evaluations
from data_gen.quality.gate import Gate
from data_gen.quality.overlaps import OverlapIndex
from data_gen.quality.substrings import SubstringIndex, alphanumerics, draw_substrings
from ipt_jax.core.bounds import Config, Fraction, NotNegative, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason


@dataclass(frozen=True)
class DecontaminateConfig(Config):
    """Evaluation sets, and the numbers of the three rules."""

    evaluations: list[EvaluationFile] = field(default_factory=list)
    """Sets whose examples may not be in the training records."""
    substrings: Positive = 3
    """`substring`: drawn from each example (GPT-4 report)."""
    substring_characters: Positive = 50
    """`substring`: letters and digits of each; a shorter example is taken whole."""
    shortest_characters: NotNegative = 20
    """`substring`: examples with fewer letters and digits are not looked for, and are counted as
    `unmatchable`. The paper has no such bound (0), and an example of one word then removes every
    record that holds it: of 24M characters of texts examples of 10 to 14 letters removed 5%, those
    of 15 to 19 0.06%, those of 20 to 49 (10,449 of them) none."""
    coverage_ngram: Positive = 8
    """`coverage`: words of an n-gram (Tulu 3)."""
    coverage: Fraction = 0.5
    """`coverage`: an example matches where more than this share of its words lies in n-grams of
    one and the same training record."""
    contaminated_share: Fraction = 0.02
    """A training set (records of one `source`) is contaminated where more than this share of an
    evaluation set matches it (Tulu 3)."""
    ngram: Positive = 13
    """`ngram`: words of an n-gram that an example and a training record may not share."""
    seed: int = 0
    """Of the drawn substrings."""


@dataclass(frozen=True)
class Match:
    """An evaluation example found in a training record."""

    example: int
    """Number of the example."""
    score: float
    """`coverage`: share of the example's words; `ngram`: of them in shared n-grams; `substring`:
    matching substrings over those drawn."""
    evidence: str
    """A piece of text that both hold."""


@dataclass(frozen=True)
class SetCounts:
    """What was found of one evaluation set: a column of IPT's table 9."""

    examples: int
    """In the set."""
    contaminated: int
    """Of them, found in a training record."""
    unmatchable: int
    """Of them, too short for the rule, or without a letter or digit; they match nothing."""


@dataclass
class _Found:
    best: Match
    training_id: str
    source: str
    training_records: int = 1


class Decontamination(Gate):
    """Base of the three rules; keeps the counts over all records that it checked."""

    def __init__(
        self, examples: Sequence[EvaluationExample], contaminated_share: float = 0.02
    ) -> None:
        if not examples:
            raise UserError(
                "decontamination needs at least one evaluation example.", key="evaluations"
            )
        self.examples = tuple(examples)
        self._share = contaminated_share
        self._found: dict[int, _Found] = {}
        self._by_source: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._removed = 0
        self.unmatchable: frozenset[int] = frozenset()
        """Numbers of the examples that the rule cannot look for."""

    @abstractmethod
    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Match]]]:
        """Number of each contaminated text, in order, with all that it matches, best first."""

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        verdicts: list[Reason | None] = [None] * len(records)
        for number, matches in self.matches([record.text for record in records]):
            record = records[number]
            self._removed += 1
            for match in matches:
                name = self.examples[match.example].set_name
                self._by_source[record.source][name].add(match.example)
                found = self._found.get(match.example)
                if found is None:
                    self._found[match.example] = _Found(match, record.id, record.source)
                    continue
                found.training_records += 1
                if match.score > found.best.score:
                    found.best, found.training_id = match, record.id
                    found.source = record.source
            first = self.examples[matches[0].example]
            more = f" and {len(matches) - 1} more" if len(matches) > 1 else ""
            verdicts[number] = Reason(
                "contaminated",
                f"{first.set_name} example {first.id}{more}, score {matches[0].score:.3f}: "
                f"{matches[0].evidence[:200]!r}",
            )
        return verdicts

    def counts(self) -> dict[str, SetCounts]:
        """Of each evaluation set, in order of their first examples."""
        total = Counter(example.set_name for example in self.examples)
        hit = Counter(self.examples[number].set_name for number in self._found)
        short = Counter(self.examples[number].set_name for number in self.unmatchable)
        return {name: SetCounts(total[name], hit[name], short[name]) for name in total}

    def shares(self) -> dict[str, dict[str, float]]:
        """By training set, the share of each evaluation set that it matches, where any does."""
        total = Counter(example.set_name for example in self.examples)
        return {
            source: {name: len(found) / total[name] for name, found in sets.items()}
            for source, sets in sorted(self._by_source.items())
        }

    def contaminated_sources(self) -> list[str]:
        """Training sets that match more than the given share of any evaluation set (Tulu 3)."""
        return [name for name, sets in self.shares().items() if max(sets.values()) > self._share]

    def summary(self) -> dict[str, Any]:
        return {
            "training_records": self._removed,
            "evaluations": {name: asdict(counts) for name, counts in self.counts().items()},
            "shares": self.shares(),
            "contaminated_sources": self.contaminated_sources(),
        }

    def details(self) -> Iterable[dict[str, Any]]:
        for number, found in sorted(self._found.items()):
            example = self.examples[number]
            yield {
                "evaluation": example.set_name,
                "example": example.id,
                "training_records": found.training_records,
                "training_id": found.training_id,
                "source": found.source,
                "score": round(found.best.score, 6),
                "evidence": found.best.evidence,
            }


class SubstringRule(Decontamination):
    """A record is contaminated where its letters and digits hold an example's drawn substring."""

    name = "substring"

    def __init__(self, examples: Sequence[EvaluationExample], config: DecontaminateConfig) -> None:
        super().__init__(examples, config.contaminated_share)
        self._patterns: list[str] = []
        self._owners: list[int] = []
        self._drawn: Counter[int] = Counter()
        for number, example in enumerate(self.examples):
            if len(alphanumerics(example.text)) < config.shortest_characters:
                continue
            drawn = draw_substrings(
                example, config.substrings, config.substring_characters, config.seed
            )
            self._patterns += drawn
            self._owners += [number] * len(drawn)
            self._drawn[number] += len(drawn)
        self.unmatchable = frozenset(range(len(self.examples))) - set(self._owners)
        self._index = SubstringIndex(self._patterns)

    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Match]]]:
        by_text: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for text, pattern in self._index.find(texts):
            by_text[text][self._owners[pattern]].append(pattern)
        for text in sorted(by_text):
            yield (
                text,
                _best_first(
                    Match(number, len(hit) / self._drawn[number], self._patterns[hit[0]])
                    for number, hit in by_text[text].items()
                ),
            )


class CoverageRule(Decontamination):
    """A record is contaminated where its 8-grams cover more than half of an example's words."""

    name = "coverage"

    def __init__(self, examples: Sequence[EvaluationExample], config: DecontaminateConfig) -> None:
        super().__init__(examples, config.contaminated_share)
        self._index = OverlapIndex([example.text for example in examples], config.coverage_ngram)
        self._least = config.coverage
        self.unmatchable = _shorter(self._index)

    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Match]]]:
        for text, shared in self._index.find(texts):
            matches = [m for m in _overlaps(self._index, shared) if m.score > self._least]
            if matches:
                yield text, _best_first(matches)


class NgramRule(Decontamination):
    """A record is contaminated where it shares one n-gram of words with an example."""

    name = "ngram"

    def __init__(self, examples: Sequence[EvaluationExample], config: DecontaminateConfig) -> None:
        super().__init__(examples, config.contaminated_share)
        self._index = OverlapIndex([example.text for example in examples], config.ngram)
        self.unmatchable = _shorter(self._index)

    def matches(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Match]]]:
        for text, shared in self._index.find(texts):
            yield text, _best_first(_overlaps(self._index, shared))


RULES: dict[str, type[SubstringRule] | type[CoverageRule] | type[NgramRule]] = {
    rule.name: rule for rule in (SubstringRule, CoverageRule, NgramRule)
}


def open_rule(name: str, config: DecontaminateConfig) -> Decontamination:
    """The gate of that rule over the evaluation sets that `config` names."""
    return RULES[name](load_evaluations(config.evaluations), config)


def contamination_table(
    raw: Mapping[str, SetCounts], augmented: Mapping[str, SetCounts] | None = None
) -> str:
    """IPT's table 9 in Markdown."""
    header, *rows = contamination_rows(raw, augmented)
    lines = [header, ("---", *("---:" for _ in raw)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def contamination_rows(
    raw: Mapping[str, SetCounts], augmented: Mapping[str, SetCounts] | None = None
) -> list[tuple[str, ...]]:
    """IPT's table 9, the names of its columns first: one for each evaluation set.

    Args:
      raw: counts of a rule over the raw corpora.
      augmented: the same rule over the instruction-augmented corpora, which hold the raw texts
        and the synthesized pairs; the last row is the difference.

    Raises:
      UserError: the two are counts over different sets, or the second misses what the first has.
    """
    rows = {
        "Total Eval Examples": [counts.examples for counts in raw.values()],
        "Contam in Raw Corpora": [counts.contaminated for counts in raw.values()],
    }
    if augmented is not None:
        if {n: c.examples for n, c in raw.items()} != {n: c.examples for n, c in augmented.items()}:
            raise UserError(
                "the counts over raw and augmented corpora are of different evaluation sets: "
                "run the same rule with the same `evaluations` over both.",
                key="evaluations",
            )
        both = [augmented[name].contaminated for name in raw]
        added = [more - few for more, few in zip(both, rows["Contam in Raw Corpora"], strict=True)]
        if min(added, default=0) < 0:
            raise UserError(
                "fewer examples are in the augmented corpora than in the raw ones: the augmented "
                "corpora must hold the raw texts too.",
                key="evaluations",
            )
        rows |= {"Contam in Ins-Aug Corpora": both, "Contam in Synthesized Pairs": added}
    return [("", *raw), *((name, *map(str, values)) for name, values in rows.items())]


def _shorter(index: OverlapIndex) -> frozenset[int]:
    return frozenset((index.tokens < index.ngram).nonzero()[0].tolist())


def _overlaps(index: OverlapIndex, shared: Mapping[int, set[int]]) -> Iterator[Match]:
    for number, places in shared.items():
        share = index.covered(places) / int(index.tokens[number])
        yield Match(number, share, index.words_at(number, min(places)))


def _best_first(matches: Iterable[Match]) -> list[Match]:
    return sorted(matches, key=lambda match: (-match.score, match.example))
