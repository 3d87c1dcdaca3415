"""What generations hold beside their F1: do they parse, repeat themselves, follow their shots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from data_gen.instruction_pretrain.formats import Pair, ParsedPairs, Shot, parse_pairs

FREE_FORM, MULTIPLE_CHOICE = "free-form", "multiple choice"
FREE_FORM_COT, MULTIPLE_CHOICE_COT = "free-form with CoT", "multiple choice with CoT"
PAIR_FORMATS = (FREE_FORM, MULTIPLE_CHOICE, FREE_FORM_COT, MULTIPLE_CHOICE_COT)


def format_of(pair: Pair) -> str:
    """One of the four formats of Table 7."""
    if pair.rationale is None:
        return MULTIPLE_CHOICE if pair.options else FREE_FORM
    return MULTIPLE_CHOICE_COT if pair.options else FREE_FORM_COT


@dataclass(frozen=True)
class Generation:
    """All that a model wrote after one text."""

    text: str
    """The raw text that the pairs are about."""
    generated: str
    """What was written."""
    cut: bool
    """Whether it ended at the token limit."""
    shots: tuple[Shot, ...] = ()
    """What stood before the text."""

    @cached_property
    def parsed(self) -> ParsedPairs:
        """Pairs with their repetitions, which are counted on their own."""
        return parse_pairs(self.generated, unique_questions=False)

    @property
    def well_formed(self) -> bool:
        """At least one pair, and nothing else but a last one that the token limit cut."""
        rejected = self.parsed.rejected
        only_cut = all(self.cut and piece.reason == "unfinished" for piece in rejected)
        return bool(self.parsed.pairs) and only_cut


@dataclass(frozen=True)
class GenerationStatistics:
    """Of many generations. Shares lie between 0 and 1 and are None where nothing was counted."""

    generations: int
    """Texts that pairs were asked for."""
    pairs: int
    """In all of them, repeated ones included."""
    cut_at_max_tokens: int
    """Generations that ended at the token limit."""
    well_formed_share: float | None
    """Of generations: at least one pair, nothing rejected but an end cut at the token limit."""
    with_pairs_share: float | None
    """Of generations: at least one pair."""
    rejected: dict[str, int]
    """Pieces that are no pair, by reason."""
    pairs_per_text: float | None
    """Over all generations, those without pairs too."""
    tokens_per_pair: float | None
    """Of question and answer, without tags."""
    repeated_share: float | None
    """Of pairs: the same question, options included, came before in the text, in whatever case."""
    literal_share: float | None
    """Of pairs: the response (after a rationale: the answer alone) stands so in the text."""
    format_shares: dict[str, float | None]
    """Of pairs, by format."""
    same_formats_share: float | None
    """Of generations after shots: their pairs have exactly the formats of the shots' pairs."""


def generation_statistics(
    generations: Sequence[Generation], count_tokens: Callable[[str], int]
) -> GenerationStatistics:
    """Count. `count_tokens` is the model's own."""
    pairs = repeated = literal = tokens = 0
    formats: Counter[str] = Counter()
    for generation in generations:
        seen: set[str] = set()
        for pair in generation.parsed.pairs:
            asked = pair.question.lower()
            repeated += asked in seen
            seen.add(asked)
            literal += pair.response in generation.text
            tokens += count_tokens(f"{pair.question} {pair.answer}")
            formats[format_of(pair)] += 1
            pairs += 1
    led = [g for g in generations if g.shots]
    same = sum(
        _formats(g.parsed.pairs) == _formats([pair for shot in g.shots for pair in shot.pairs])
        for g in led
    )
    rejected = Counter(p.reason for g in generations for p in g.parsed.rejected)
    count = len(generations)
    return GenerationStatistics(
        generations=count,
        pairs=pairs,
        cut_at_max_tokens=sum(g.cut for g in generations),
        well_formed_share=_share(sum(g.well_formed for g in generations), count),
        with_pairs_share=_share(sum(bool(g.parsed.pairs) for g in generations), count),
        rejected=dict(sorted(rejected.items())),
        pairs_per_text=_share(pairs, count),
        tokens_per_pair=_share(tokens, pairs),
        repeated_share=_share(repeated, pairs),
        literal_share=_share(literal, pairs),
        format_shares={name: _share(formats[name], pairs) for name in PAIR_FORMATS},
        same_formats_share=_share(same, len(led)),
    )


def _formats(pairs: Sequence[Pair]) -> set[str]:
    return set(map(format_of, pairs))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
