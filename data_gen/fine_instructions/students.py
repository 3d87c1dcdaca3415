"""What students are tuned on: queries with their templates, documents with what was made of them.

FineInstructions, sections 3.1 and 3.3. An example is a chat with the base model: a user's turn,
token for token as an engine sends it to the tuned model, and the reply with the end of its turn.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from data_gen.engines import Completion, Message, Prompt, Request, resolve_model
from data_gen.engines.config import ModelConfig
from data_gen.engines.prompts import PromptEncoder
from data_gen.fine_instructions.budget import document_rows
from data_gen.fine_instructions.genericize import render_reply
from data_gen.fine_instructions.prompts import published_instantiate_prompt
from data_gen.fine_instructions.templates import Template
from data_gen.quality.inputs import InputShards
from data_gen.stages.asking import carried_by
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card
from data_gen.stages.config import StageConfig
from data_gen.stages.stage import Stage, StageRun, Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import Fraction, NotEmpty, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import seed_of
from ipt_jax.core.tokenizers import load_tokenizer

METHOD, EXAMPLES, HELD_OUT_FILE = "fi_students", "examples", "held_out.jsonl"
_BATCH = 256  # records read at a time
_DRAWS = 1 << 63  # what seed_of is below
_PROBE = "what the assistant says"
# A word of one of these puts an example under that topic, the first that fits.
_TOPICS = {
    "code": re.compile(
        r"```|\b(?:python|java(?:script)?|typescript|c\+\+|golang|rust|sql|html|css|php|bash|regex|"
        r"json|api|git|docker|linux|code|compil\w+|debug\w*|program(?:s|ming)?|"
        r"software|scripts?|algorithms?)(?!\w)",
        re.IGNORECASE,
    ),
    "math": re.compile(
        r"\d\s*[+*×^=]\s*\d|\d [-/] \d|\\(?:frac|sqrt|sum|int)\b|\b(?:math\w*|algebra\w*|"
        r"geometr\w+|calculus|equations?|theorems?|integrals?|derivatives?|polynomials?|"
        r"matri(?:x|ces)|probabilit(?:y|ies)|arithmetic|fractions?|logarithms?|square roots?|"
        r"prime numbers?)\b",
        re.IGNORECASE,
    ),
}


@dataclass(frozen=True, kw_only=True)
class StudentsConfig(StageConfig):
    """Shards that a teacher wrote in, examples to tune a student on out."""

    method: str = METHOD
    output: str = "runs/fi_students"
    """Folder: shards/ to tune on, rejected/, held_out.jsonl (queries, or documents with their
    templates: a corpus to try the student on) and summary.json are written there."""
    student: Literal["genericizer", "instantiator"] = "genericizer"
    """`genericizer`: a query, then its template and the documents that suit it, of shards of
    fi_templates; asked by the `form: tuned` there. `instantiator`: a template and a document, then
    instruction and answer, or null, of shards of fi_instantiate; asked by its `form: published`."""
    input: Annotated[list[str], NotEmpty("folders of shards")] = field(
        default_factory=lambda: ["runs/fi_templates/shards/templates"]
    )
    """Folders of record shards: templates; or pairs (of the second round those that a judge let
    pass) and, beside them, `shards/null`."""
    documents: list[str] = field(default_factory=list)
    """Folders of record shards of the documents that pairs were made of: `shards/raw`."""
    tokenizer: str = "smollm2-135m-instruct"
    """Of the model that is tuned, with its chat template: a Hugging Face folder, a hub name, or
    smollm2-135m-instruct."""
    chat: bool = True
    """Ask through the model's chat template; false for a model that has none."""
    sequence_tokens: Positive = 4096
    """Most tokens of an example; longer ones are rejected."""
    examples: Positive = 100_000
    """Most examples (the paper: ~50K queries, ~100K pairs), drawn among all."""
    stratify: bool = False
    """Draw so that strata have as many examples each as can be (section 3.3, second round). In one
    are those alike in tokens and in tags of the template (both by doublings, eight tags and more
    together) and in topic (code, math or neither, by key words). The smallest stratum is first to
    give all it has, up to an equal share of what is wanted still. Without, all are in one."""
    null_share: Fraction = 0.05
    """Largest share of examples that say null (section 3.3: ~5%)."""
    held_out_share: Fraction = 0.02
    """Share of queries or documents, by what they say, of which nothing is tuned on."""

    def check_together(self) -> None:
        if self.student == "instantiator" and not self.documents:
            said = "documents is empty: name the folders of documents that pairs were made of."
            raise UserError(said, key="documents")


class ChatParts:
    """A user's turn and the reply to it in parts, as a model meets them."""

    def __init__(self, model: str, chat: bool) -> None:
        """Raises UserError: no such model, no chat template, or nothing that ends a turn."""
        folder = resolve_model(ModelConfig(model)).folder
        self._encoder, self._chat = PromptEncoder.load(folder), chat
        self.tokenizer = load_tokenizer(str(folder))
        names = sorted(self.tokenizer.control_tokens, key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self._end = self.tokenizer.eos_token
        if chat:
            turns = (Message("user", "?"), Message("assistant", _PROBE))
            ends = self._control.search(self._encoder.render(turns).rpartition(_PROBE)[2])
            self._end = ends[0] if ends else self._end
        if not self._end:
            said = f"nothing ends what the model in {folder} says: give it an `eos_token`."
            raise UserError(said, key="tokenizer", path=folder)

    def identity(self) -> Mapping[str, Any]:
        """What parts depend on beside the texts."""
        template = self._encoder.tokenizer.chat_template if self._chat else None
        return {"tokenizer": self.tokenizer.prints(), "chat_template": template}

    def __call__(self, asked: str, reply: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Parts and their loss. What has none is the prompt, each control token a part of its own,
        so that it is one token (`encode: parts`); then come the reply and the end of its turn."""
        prompt = self._encoder.render(self._prompt(asked))
        before = [part for part in self._control.split(prompt) if part]
        return (*before, reply, str(self._end)), (*[0.0] * len(before), 1.0, 1.0)

    def count(self, asked: str, reply: str) -> int | Reason:
        """Tokens of both, or why they cannot be tuned on: `control_text`, `other_tokens`."""
        if found := self._control.search(asked) or self._control.search(reply):
            return Reason("control_text", f"it says {found[0]}, which is a token of the chat")
        parts, loss = self(asked, reply)
        ids, owners = self.tokenizer.encode_parts(parts, loss)
        prompt = ids[owners < len(parts) - 2].tolist()
        if prompt != (sent := self._encoder.encode(self._prompt(asked))):
            said = f"its prompt has {len(prompt)} tokens, and an engine sends {len(sent)} others"
            return Reason("other_tokens", said)
        return len(ids)

    def _prompt(self, asked: str) -> Prompt:
        return (Message("user", asked),) if self._chat else asked


@dataclass(frozen=True)
class Example:
    """What a student is to read and to write."""

    record: Record
    """Of the teacher: a template, a pair, or what became null."""
    asked: str
    """The user's turn."""
    reply: str
    template: str
    """With its tags."""
    about: str
    """What its topic is told by."""
    subject: Mapping[str, Any]
    """Query or document as a record of a corpus, with what the student's stage reads of it."""

    @property
    def null(self) -> bool:
        """Whether the template does not fit the document."""
        return self.reply == "null"

    def stratum(self, tokens: int) -> str:
        """Which examples it is alike: of as many tokens and tags, and of its topic."""
        tags = max(1, min(Template(self.template, "").complexity, 8))
        topic = next((name for name, word in _TOPICS.items() if word.search(self.about)), "other")
        return f"{_doubling(tokens)}+ tokens, {_doubling(tags)}+ tags, {topic}"


class Examples:
    """Records of a teacher as examples, by their rows."""

    def __init__(self, config: StudentsConfig) -> None:
        """Raises UserError: no such folder."""
        self.shards = InputShards(config.input)
        instantiator = config.student == "instantiator"
        self._documents = InputShards(config.documents) if instantiator else None

    def identity(self) -> Mapping[str, Any]:
        """Records by content."""
        documents = self._documents.fingerprints if self._documents else []
        return {"records": self.shards.fingerprints, "documents": documents}

    @functools.cached_property
    def _owners(self) -> np.ndarray:
        assert self._documents is not None
        return document_rows(self._documents, self.shards)

    def read(self, rows: Sequence[int]) -> list[Example]:
        """In ascending order. Raises UserError for a record that no teacher of this student wrote,
        and as `document_rows`."""
        records = self.shards.read(rows)
        if self._documents is None:
            return list(map(_of_query, records))
        owners = self._owners[list(rows)].tolist()
        wanted = sorted(set(owners))
        at = dict(zip(wanted, self._documents.read(wanted), strict=True))
        return [_of_document(one, at[owner]) for one, owner in zip(records, owners, strict=True)]


def _of_query(record: Record) -> Example:
    query, documents, source = (_told(record, k) for k in ("query", "documents", "query_source"))
    subject = {"id": record.provenance["parents"][0], "text": query, "source": source}
    subject["talks_to_a_model"] = record.provenance.get("talks_to_a_model", False)
    reply = render_reply(Template(record.text, documents))
    return Example(record, query, reply, record.text, query, subject)


def _of_document(record: Record, document: Record) -> Example:
    template, reply = _told(record, "template_text"), _told(record, "reply")
    subject = {"id": document.id, "text": document.text, "source": document.source}
    subject["templates"] = carried_by(document).get("templates", [])
    asked = published_instantiate_prompt(document.text, template)
    return Example(record, asked, reply, template, record.text, subject)


def _told(record: Record, key: str) -> str:
    if isinstance(said := record.provenance.get(key), str):
        return said
    raise UserError(
        f"the record {record.id!r} has no `{key}` in its provenance: give shards of the stage that "
        "the `student` takes over, written by this version.",
        key="input",
        record=record.id,
    )


def equal_shares(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """How many of each stratum: from the smallest on all it has, up to an equal share of what is
    wanted still. They add up to `wanted`, or to all there are."""
    shares = dict[str, int]()
    for place, (name, size) in enumerate(sorted(sizes.items(), key=lambda one: (one[1], one[0]))):
        shares[name] = min(size, wanted // (len(sizes) - place))
        wanted -= shares[name]
    return shares


class Candidate(NamedTuple):
    """An example that may be tuned on."""

    draw: int
    """The lowest are taken first."""
    row: int
    id: str
    null: bool
    stratum: str
    tokens: int


def draw_examples(found: Sequence[Candidate], config: StudentsConfig) -> list[Candidate]:
    """At most `examples` of them in the order of their rows, at most `null_share` of them null."""
    answers, nulls = ([one for one in found if one.null is null] for null in (False, True))
    share = config.null_share
    reserved = min(len(nulls), round(config.examples * share))
    kept = _balanced(answers, config.examples - reserved, config.stratify)
    kept += _balanced(nulls, round(len(kept) * share / (1 - share)), config.stratify)
    return sorted(kept, key=lambda one: one.row)


def _balanced(found: Sequence[Candidate], wanted: int, stratify: bool) -> list[Candidate]:
    strata: dict[str, list[Candidate]] = {}
    for one in sorted(found):
        strata.setdefault(one.stratum if stratify else "", []).append(one)
    shares = equal_shares({name: len(members) for name, members in strata.items()}, wanted)
    return [one for name, members in strata.items() for one in members[: shares[name]]]


class Students(Stage[StudentsConfig, Record]):
    """A teacher's records become examples, each of them once, or are rejected with a reason.

    Which ones are kept is decided first, as by the gates; the units are those.
    """

    name, version, Config = METHOD, 1, StudentsConfig
    parts, places = (EXAMPLES,), {EXAMPLES: "shards"}
    owns = (HELD_OUT_FILE, f"rejected/{EXAMPLES}.jsonl")
    free = ("documents", "tokenizer")

    def __init__(self, config: StudentsConfig) -> None:
        """Raises UserError: no such shards, and as `ChatParts`."""
        super().__init__(config)
        self._examples = Examples(config)
        self._chat = ChatParts(config.tokenizer, config.chat)

    def identity(self) -> Mapping[str, Any]:
        return {**self._examples.identity(), **self._chat.identity()}

    def begin(self, run: StageRun) -> None:
        self._output, self._held_out = run.output, dict[str, Mapping[str, Any]]()

    def units(self, raw: RecordSource | None) -> RecordUnits:
        found, reasons, shards = list[Candidate](), Counter[str](), self._examples.shards
        with self._output.rejected(EXAMPLES) as reject:

            def left_out(row: int, name: str, wrong: Reason) -> None:
                reasons[wrong.reason] += 1
                reject(EXAMPLES, Rejection(name, shards.where(row), *wrong))

            for first in range(0, len(shards), _BATCH):
                rows = range(first, min(first + _BATCH, len(shards)))
                for row, example in zip(rows, self._examples.read(rows), strict=True):
                    one = self._candidate(row, example)
                    if isinstance(one, Reason):
                        left_out(row, example.record.id, one)
                    else:
                        found.append(one)
            kept = draw_examples(found, self.config)
            rows_kept = {one.row for one in kept}
            for one in found:
                if one.row not in rows_kept:
                    left_out(one.row, one.id, Reason("surplus", one.stratum))
        null = sum(one.null for one in kept)
        self._summary = {
            "in": len(shards),
            "out": len(kept),
            "rejected": reasons.total(),
            "student": self.config.student,
            "tokens": sum(one.tokens for one in kept),
            "null": null,
            "null_share": round(null / max(1, len(kept)), 4),
            "held_out": len(self._held_out),
            "reasons": dict(reasons),
            "strata_found": dict(sorted(Counter(one.stratum for one in found).items())),
            "strata_kept": dict(sorted(Counter(one.stratum for one in kept).items())),
        }
        return RecordUnits(_Kept(self, [one.row for one in kept]))

    def _candidate(self, row: int, example: Example) -> Candidate | Reason:
        seed, name, said = self.config.seed, example.record.id, example.subject["text"]
        draw = seed_of(seed, "held_out", " ".join(said.lower().split()))
        if draw < self.config.held_out_share * _DRAWS:
            self._held_out[example.subject["id"]] = example.subject
            return Reason("held_out", example.subject["id"])
        tokens, most = self._chat.count(example.asked, example.reply), self.config.sequence_tokens
        if isinstance(tokens, Reason):
            return tokens
        if tokens > most:
            return Reason("too_long", f"{tokens:,} tokens; `sequence_tokens` is {most:,}")
        draw, stratum = seed_of(seed, "example", name), example.stratum(tokens)
        return Candidate(draw, row, name, example.null, stratum, tokens)

    def read(self, rows: Sequence[int]) -> list[Record]:
        """The examples at these rows as they are tuned on."""
        return [self._record(example) for example in self._examples.read(rows)]

    def _record(self, example: Example) -> Record:
        parts, loss = self._chat(example.asked, example.reply)
        teacher = example.record.provenance
        provenance = {
            "method": METHOD,
            "parents": [example.record.id],
            "teacher": {key: teacher.get(key) for key in ("model", "revision")},
            "seed": self.config.seed,
        }
        name = f"{METHOD}/{example.record.id}"
        return Record(name, "".join(parts), self.config.student, parts, loss, provenance)

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        return UnitOutput([(EXAMPLES, unit)])

    def finish(self, totals: BlockTotals) -> Summary:
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in self._held_out.values()]
        atomic_write(self._output.folder / HELD_OUT_FILE, "".join(lines))
        return self._summary

    def card(self, summary: Summary) -> Card:
        return Card(
            title=f"Examples for the {summary['student']} of FineInstructions",
            about=(
                f"{summary['out']:,} chats of {summary['tokens']:,} tokens in which a model learns "
                "what a larger one did (FineInstructions, sections 3.1 and 3.3); loss on what it "
                "writes."
            ),
            gates=[
                f"An example has at most {self.config.sequence_tokens:,} tokens.",
                "Its prompt has the tokens that an engine sends.",
                "Nothing is made of a query or document that is held out.",
            ],
            model={"tokenizer": self.config.tokenizer},
        )


@dataclass(frozen=True)
class _Kept:
    """The examples that are kept."""

    stage: Students
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers: Sequence[int], /) -> list[Record]:
        return self.stage.read([self.rows[number] for number in numbers])


def print_examples(summary: Mapping[str, Any]) -> None:
    """Print what became of a teacher's records."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["reasons"].items())
    print(
        f"{summary['student']}: {summary['in']:,} records, {summary['out']:,} examples with "
        f"{summary['tokens']:,} tokens ({summary['null']:,} null); left out: {reasons or 'none'}"
    )


def _doubling(number: int) -> int:
    """The power of two that a number lies above."""
    return 1 << (number.bit_length() - 1)
