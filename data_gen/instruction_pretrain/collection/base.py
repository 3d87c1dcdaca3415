"""Context-based data sets as texts with all their pairs (section 2.1, App. A)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from data_gen.corpus.dataset_files import MALFORMED, Files, Located, Records
from data_gen.instruction_pretrain.collection.windows import window
from data_gen.instruction_pretrain.formats import (
    ANSWER,
    CONTEXT_CLOSE,
    CONTEXT_OPEN,
    END,
    QUESTION,
    Pair,
)
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Reason, Rejection

MOST_EXAMPLES = 10_000  # of one data set, those with the most pairs (App. A)
# Table 12; sets with texts of several domains are in none of its columns.
DOMAINS = (
    *("encyclopedia", "fiction", "academic_tests", "trivia", "news", "expert_materials"),
    *("social_media", "code"),
)
MULTI_DOMAIN = "multi_domain"
Questions = Callable[[Any], Iterator["Question | Reason"]]
Adapter = tuple[Records, Questions]
"""How a set's files are read, and how a record becomes questions."""
_TAGS = (CONTEXT_OPEN, CONTEXT_CLOSE, QUESTION, ANSWER, END, "</s>")
_NO_LABEL = (None, "", -1)  # in files whose answers are withheld


@dataclass(frozen=True)
class Question:
    """One task on one text; the tasks of equal texts become one example."""

    text: str
    """The context."""
    pair: Pair
    """The task."""
    at: tuple[int, int] | None = None
    """Where the text answers it, from the first character to behind the last, if that is known:
    of a long text the window round it is the context."""
    before: tuple[str, ...] = ()
    """What the same conversation asked before: the same words after other turns ask anew."""


@dataclass(frozen=True)
class Example:
    """A text with its pairs: what the synthesizer is tuned to write."""

    id: str
    """Data set and sha256 of the text."""
    dataset: str
    """Key in DATASETS."""
    text: str
    """The raw text."""
    pairs: tuple[Pair, ...]
    """At least one, in the order of the data set."""


@dataclass(frozen=True)
class Dataset:
    """How a data set lies on disk, and how its records become questions."""

    name: str
    """Key in DATASETS."""
    domain: str
    """One of DOMAINS, or MULTI_DOMAIN (Figure 7, Table 12)."""
    source: str
    """Who published it, and where its official files are."""
    licence: str
    """As its authors state it; `none stated` where they do not."""
    train: tuple[str, ...]
    """Patterns of the official training files; of the test files where no others exist.

    `table.csv#train` is the part of a file whose rows name their splits.
    """
    records: Records
    """Reads the chosen files; one record at a time."""
    questions: Questions
    """Turns a record into questions, or reasons for which there is none; may raise what a malformed
    record makes it raise."""
    held_out: tuple[str, ...] = ()
    """Patterns of the official validation files."""
    hub: str = ""
    """Its name on the Hugging Face hub, where a copy has files that this adapter reads."""
    unseen: bool = False
    """One of the four sets of section 5.1 that the synthesizer is never tuned on."""
    label: str = ""
    """Key of a record's answer, where the set has records without it."""
    copy_of: str = ""
    """The set that this is another layout of; it is no set of its own where sets are counted."""

    @classmethod
    def of_table(
        cls, name: str, fields: Mapping[str, Any], records: Records, questions: Questions
    ) -> Self:
        """The set of an entry in datasets.yaml and its adapter."""
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(name=name, records=records, questions=questions, **given)


@dataclass
class Gathered:
    """The examples of a data set, and everything that is in none of them."""

    examples: list[Example] = field(default_factory=list)
    """In the order of their first questions."""
    rejected: list[Rejection] = field(default_factory=list)
    """Records and questions that no example holds: `malformed_file`, `malformed_record`,
    `unlabelled` (its answer is withheld, as in test sets), `no_context`, `no_question`,
    `no_answer`, `answer_not_among_options`, `holds_a_tag`, `repeated_question`, `unanswerable`."""
    records: int = 0
    """Records read, the unreadable ones included."""
    questions: int = 0
    """Questions found: pairs of examples, and rejected ones that the adapter did give."""
    in_windows: int = 0
    """Of them, those whose context is a window of a longer text."""
    surplus_examples: int = 0
    """Examples past the most of a data set, those with the fewest pairs."""
    surplus_pairs: int = 0
    """Pairs of those examples."""

    @property
    def reasons(self) -> Counter[str]:
        """What was rejected, by reason."""
        return Counter(piece.reason for piece in self.rejected)


def gather(
    dataset: Dataset,
    folder: str | Path,
    *,
    files: Sequence[str] | None = None,
    most_examples: int = MOST_EXAMPLES,
) -> Gathered:
    """All questions of one context as one example, at most `most_examples` with the most pairs.

    `files` are patterns in place of the data set's own training files.

    Raises:
      UserError: no folder, no such files, or an archive that cannot be unpacked.
    """
    found = Gathered()
    texts: dict[str, _Text] = {}
    with Files(folder, files or dataset.train) as opened:
        for record in _records(dataset, opened, folder):
            found.records += 1
            for piece in _pieces(dataset, record):
                problem = piece if isinstance(piece, Reason) else check_question(piece)
                found.questions += isinstance(piece, Question)
                if problem is None and isinstance(piece, Question):
                    text = window(piece.text, *piece.at) if piece.at else piece.text
                    found.in_windows += text is not piece.text
                    of_text = texts.setdefault(text.strip(), _Text())
                    found.rejected += of_text.add(piece, record.where)
                elif problem is not None:
                    found.rejected.append(Rejection.at(record.where, *problem))
    examples = []
    for text, of_text in texts.items():
        found.rejected += of_text.settle()
        found_id = example_id(dataset.name, text)
        examples.append(Example(found_id, dataset.name, text, tuple(of_text.pairs)))
    if len(examples) > most_examples:
        # Equal ones by their ids, which are as good as drawn: file order would favour first files.
        order = sorted(
            range(len(examples)), key=lambda i: (-len(examples[i].pairs), examples[i].id)
        )
        found.surplus_examples = len(examples) - most_examples
        found.surplus_pairs = sum(len(examples[i].pairs) for i in order[most_examples:])
        examples = [examples[i] for i in sorted(order[:most_examples])]
    found.examples = examples
    return found


class _Text:
    """The pairs of one text. A question is repeated where the same one came after the same turns.

    Repeated turns of a conversation wait: where its next turn is new they are needed once more,
    for it asks back ("what is that times 100?"), unless they are what stands last.
    """

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self._asked: set[tuple[str, ...]] = set()
        self._last: tuple[str, ...] = ()
        self._waiting: list[tuple[tuple[str, ...], Pair, Rejection]] = []

    def add(self, question: Question, where: str) -> list[Rejection]:
        """Take the question, or keep it waiting; what turned out to be repeated."""
        pair = _stripped(question.pair)
        before = tuple(asked.strip().lower() for asked in question.before)
        turns = (*before, pair.question.lower())
        follows = bool(self._waiting) and self._waiting[-1][0] == before
        repeated = [] if follows else self.settle()
        if turns in self._asked:
            again = Rejection.at(where, "repeated_question", question.pair.instruction)
            self._waiting.append((turns, pair, again))
            return repeated
        if follows and self._last != before:
            self.pairs += [pair for _, pair, _ in self._waiting]
            self._waiting = []
        self._asked.add(turns)
        self._last = turns
        self.pairs.append(pair)
        return repeated + self.settle()

    def settle(self) -> list[Rejection]:
        """Those that waited in vain."""
        repeated = [again for _, _, again in self._waiting]
        self._waiting = []
        return repeated


def example_id(dataset: str, text: str) -> str:
    """The same for the same text of the same data set."""
    return f"{dataset}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_question(question: Question) -> Reason | None:
    """Why a question cannot be used, if it cannot."""
    pair = question.pair
    words = [question.text, pair.instruction, pair.response, *pair.options, pair.rationale or ""]
    for word in words:
        if not isinstance(word, str):
            return Reason("malformed_record", f"{word!r} is no text")
    if not question.text.strip():
        return Reason("no_context", pair.instruction)
    if not pair.instruction.strip():
        return Reason("no_question", pair.response)
    if not pair.response.strip():
        return Reason("no_answer", pair.instruction)
    if pair.options and pair.response.strip() not in {option.strip() for option in pair.options}:
        return Reason("answer_not_among_options", f"{pair.response!r} of {pair.options!r}")
    whole = f"{question.text} {pair.question} {pair.answer}"
    tags = [tag for tag in _TAGS if tag in whole]
    return Reason("holds_a_tag", tags[0]) if tags else None


def _records(dataset: Dataset, files: Files, folder: str | Path) -> Iterator[Located]:
    """The records; a reader that fails has no place to go on from."""
    try:
        yield from dataset.records(files)
    except MALFORMED as error:
        raise UserError(
            f"the files of {dataset.name} in {folder} are not as their layout promises "
            f"({type(error).__name__}: {error}): give the folder as its authors publish it "
            f"({dataset.source}), or name the right files in `files`.",
            key="files",
            path=folder,
        ) from error


def _pieces(dataset: Dataset, record: Located) -> list[Question | Reason]:
    if record.error:
        return [Reason("malformed_file", record.error)]
    label, value = dataset.label, record.value
    if label and isinstance(value, dict) and label in value and value[label] in _NO_LABEL:
        return [Reason("unlabelled", f"`{label}` is {value[label]!r}")]
    try:
        found = list(dataset.questions(value))
    except MALFORMED as error:
        if label and isinstance(error, KeyError) and error.args == (label,):
            return [Reason("unlabelled", f"it has no `{label}`")]
        return [Reason("malformed_record", f"{type(error).__name__}: {error}")]
    return found or [Reason("no_question", "the record holds none")]


def _stripped(pair: Pair) -> Pair:
    return Pair(
        pair.instruction.strip(),
        pair.response.strip(),
        tuple(option.strip() for option in pair.options),
        None if pair.rationale is None else pair.rationale.strip(),
    )
