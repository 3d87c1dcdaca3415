"""Multi-round inference: which shots a text carries, what it is asked, where a chain ends.

Round r of M handles the r-th part of the selected texts; text i of a part carries text i of the
parts before it, with their pairs (section 2.1, Figure 3, App. B). Chains are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from data_gen.engines import Completion, Request
from data_gen.instruction_pretrain.formats import (
    ParsedPairs,
    Shot,
    parse_pairs,
    render_prompt,
)


@dataclass(frozen=True)
class Budget:
    """What fits into the synthesizer."""

    count_tokens: Callable[[str], int]
    """Exact tokens of a prompt."""
    context_tokens: int
    """Prompt and completion together."""
    max_tokens: int
    """Kept free for the completion."""

    def fits(self, prompt: str) -> bool:
        """Whether `prompt` leaves room for the completion."""
        room = self.context_tokens - self.max_tokens
        # A token is at least one byte of text, so a short prompt need not be counted.
        return len(prompt.encode()) < room or self.count_tokens(prompt) <= room


@dataclass(frozen=True)
class Turn:
    """One text of a chain after its round."""

    index: int
    """Place of the text in the chain, which is its round."""
    prompt: str
    """What the synthesizer was given."""
    shots: int
    """Texts of this chain that the prompt carried."""
    completion: Completion
    """What the engine gave back, an error included."""
    parsed: ParsedPairs
    """The pairs in it; none in an error."""

    @property
    def inherits(self) -> bool:
        """The prompt carried an earlier text and at least one pair was parsed."""
        return self.shots > 0 and bool(self.parsed.pairs)


def truncate_shots(history: Sequence[Shot], text: str, budget: Budget) -> tuple[Shot, ...] | None:
    """The latest shots that fit before `text`, the oldest dropped first; None: not even alone."""
    for first in range(len(history) + 1):
        kept = tuple(history[first:])
        if budget.fits(render_prompt(kept, text)):
            return kept
    return None


def split_rounds(selected: int, rounds: int) -> list[range]:
    """Chains over `selected` shuffled texts: 1/M of them each round, chain i = one of each part.

    The last chains are a text shorter where M does not divide the number.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    chains = -(-selected // rounds)
    return [range(start, selected, chains) for start in range(chains)]


def run_rounds(
    texts: Sequence[str],
    budget: Budget,
    request: Callable[[int, str], Request],
    *,
    demonstrations: Sequence[Shot] = (),
    max_pairs: int | None = None,
) -> Generator[Request, Completion, list[Turn]]:
    """Ask about each text of a chain in its round, and give back the turns.

    `request` makes a request out of a text's place and its prompt. A text without pairs ends its
    chain: the next one starts afresh. `demonstrations` stand before a text that carries no shot of
    its own chain (for models not tuned to the format). A text that does not fit even alone has no
    turn.
    """
    turns: list[Turn] = []
    history: list[Shot] = []
    for index, text in enumerate(texts):
        kept = truncate_shots(history, text, budget)
        if kept is None:
            continue
        prompt = render_prompt(kept or truncate_shots(demonstrations, text, budget) or (), text)
        completion = yield request(index, prompt)
        written = "" if completion.finish_reason == "error" else completion.text
        parsed = parse_pairs(written, max_pairs=max_pairs)
        turns.append(Turn(index, prompt, len(kept), completion, parsed))
        history = [*kept, Shot(text, parsed.pairs)] if parsed.pairs else []
    return turns


def group_shots(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Turns that make one M-shot example each; texts without pairs are in none."""
    found: list[list[Turn]] = []
    for turn in turns:
        if not turn.parsed.pairs:
            continue
        if turn.inherits:
            found[-1].append(turn)
        else:
            found.append([turn])
    return found
