"""Pairs and the strings of the synthesizer: prompts out, generated pairs in (App. B, Table 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ipt_jax.core.rejection import Reason

CONTEXT_OPEN, CONTEXT_CLOSE = "<CON>", "</CON>"
QUESTION, ANSWER, END = "<QUE>", "<ANS>", "</END>"
# One space after BOS: the published synthesizer was tuned with it.
BOS, EOS = "<s> ", "</s>"
OPTIONS_HEAD = "\nOptions:\n"
STEPS = "\nLet's think step by step."
# What no text is made of, but tab, line feed and carriage return.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
CONCLUSION = "\nTherefore, the answer is "


@dataclass(frozen=True)
class Pair:
    """An instruction and its response, in one of the four formats of Table 7."""

    instruction: str
    """What is asked, without options and without the call to think step by step."""
    response: str
    """The answer alone."""
    options: tuple[str, ...] = ()
    """Options of a multiple-choice pair."""
    rationale: str | None = None
    """Chain of thought before the answer."""

    @property
    def question(self) -> str:
        """Everything between <QUE> and <ANS>."""
        text = self.instruction
        if self.options:
            text += OPTIONS_HEAD + "\n".join(f"- {option}" for option in self.options)
        return text if self.rationale is None else text + STEPS

    @property
    def answer(self) -> str:
        """Everything between <ANS> and </END>."""
        if self.rationale is None:
            return self.response
        return f"{self.rationale}{CONCLUSION}{self.response}"

    @classmethod
    def from_strings(cls, question: str, answer: str) -> Pair:
        """The structured pair whose `question` and `answer` are exactly these strings."""
        instruction, response = question, answer
        options: tuple[str, ...] = ()
        rationale: str | None = None
        if question.endswith(STEPS) and CONCLUSION in answer:
            instruction = question.removesuffix(STEPS)
            rationale, _, response = answer.rpartition(CONCLUSION)
        head, found, listed = instruction.rpartition(OPTIONS_HEAD)
        if found and all(line.startswith("- ") for line in listed.split("\n")):
            instruction = head
            options = tuple(line.removeprefix("- ") for line in listed.split("\n"))
        pair = cls(instruction, response, options, rationale)
        exact = pair.question == question and pair.answer == answer
        return pair if exact else cls(question, answer)


@dataclass(frozen=True)
class Shot:
    """A text with its pairs, as it stands in front of the next text."""

    text: str
    """Raw text."""
    pairs: tuple[Pair, ...]
    """At least one."""


@dataclass(frozen=True)
class ParsedPairs:
    """What a generation holds; every piece of it is in one of the two."""

    pairs: tuple[Pair, ...]
    """In the order of the generation."""
    rejected: tuple[Reason, ...]
    """Every other piece, as generated, with its reason: `no_question`, `no_answer`,
    `several_answers`, `empty_question`, `empty_answer`, `control_character`,
    `duplicate_question`, `unfinished`, `surplus`."""


def render_pair(pair: Pair) -> str:
    """One pair between its tags (Table 7)."""
    return f"{QUESTION} {pair.question} {ANSWER} {pair.answer} {END}"


def render_pairs(pairs: Sequence[Pair]) -> str:
    """Pairs joined by an empty line."""
    return "\n\n".join(render_pair(pair) for pair in pairs)


def render_example(text: str, pairs: Sequence[Pair]) -> str:
    """One whole example, BOS and EOS included (Table 13, with the released code's spaces)."""
    return f"{render_text(text)}{render_pairs(pairs)}{EOS}"


def render_text(text: str) -> str:
    """The text of an example, up to where its pairs begin."""
    return f"{BOS}{CONTEXT_OPEN} {text} {CONTEXT_CLOSE}\n\n"


def render_prompt(history: Sequence[Shot], text: str) -> str:
    """The synthesizer's prompt: earlier examples, then the text that is to get pairs."""
    shots = "".join(render_example(shot.text, shot.pairs) for shot in history)
    return shots + render_text(text)


def parse_pairs(
    generated: str, *, unique_questions: bool = True, max_pairs: int | None = None
) -> ParsedPairs:
    """Read pairs out of a generation, as the published parser does, and say why others are none.

    `unique_questions` drops a question that came before, upper and lower case alike. Pairs past
    `max_pairs` are rejected as `surplus`.
    """
    *pieces, tail = generated.split(END)
    pairs: list[Pair] = []
    rejected: list[Reason] = []
    seen: set[str] = set()
    for piece in pieces:
        question, *answers = (part.strip() for part in piece.split(ANSWER))
        bare = question.replace(QUESTION, "").strip()
        reason = None
        if not answers:
            reason = "no_answer"
        elif len(answers) > 1:
            reason = "several_answers"
        elif not question.startswith(QUESTION):
            reason = "no_question"
        elif not bare:
            reason = "empty_question"
        elif not answers[0]:
            reason = "empty_answer"
        elif _CONTROL.search(bare + answers[0]):
            reason = "control_character"
        elif unique_questions and bare.lower() in seen:
            reason = "duplicate_question"
        elif max_pairs is not None and len(pairs) >= max_pairs:
            reason = "surplus"
        if reason is not None:
            rejected.append(Reason(reason, piece))
            continue
        seen.add(bare.lower())
        pairs.append(Pair.from_strings(bare, answers[0]))
    if tail.strip() not in ("", EOS):
        rejected.append(Reason("unfinished", tail))
    return ParsedPairs(tuple(pairs), tuple(rejected))


# For models that were not tuned to write the format: free-form pairs, one line each, a question
# that begins as questions do. Lengths are bounded, or a weak model never ends a sentence.
_OPENINGS = "What|Who|When|Where|Why|How|Which|Did|Does|Is|Are|Was|Were|Can"
PAIR_REGEX = (
    rf"<QUE> ({_OPENINGS}) [^<>?\n]{{8,100}}\? <ANS> [^<> \n][^<>\n]{{0,118}}[^<> \n] </END>"
)


def pairs_regex(min_pairs: int, max_pairs: int) -> str:
    """Pattern of `min_pairs` to `max_pairs` pairs, for constrained decoding."""
    if not 1 <= min_pairs <= max_pairs:
        raise ValueError(f"1 <= min_pairs <= max_pairs does not hold: {min_pairs}, {max_pairs}")
    return rf"{PAIR_REGEX}(\n\n{PAIR_REGEX}){{{min_pairs - 1},{max_pairs - 1}}}"
