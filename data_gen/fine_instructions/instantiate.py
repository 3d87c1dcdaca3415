"""Templates become instructions with answers out of their documents: FineInstructions, section 3.3.

Reads match records: documents with `provenance["templates"]`, a list of
`{"id": …, "text": …, "chunk": …, "score": …}`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from data_gen.corpus import Document
from data_gen.engines import Completion, Request
from data_gen.engines.replies import after_thoughts, object_of
from data_gen.fine_instructions.excerpts import LEAST_SHARE, ExcerptError, Expansion, Source
from data_gen.fine_instructions.prompts import instantiate_prompt, published_instantiate_prompt
from data_gen.fine_instructions.rules import reply_by_rules
from data_gen.quality.language import load_language_identifier
from data_gen.stages.asking import (
    AskingStage,
    ChatConfig,
    carried_by,
    carried_fields,
    json_regex,
    json_text_regex,
)
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.config import CorpusConfig
from data_gen.stages.stage import StageRun, Summary, reasons_of
from ipt_jax.core.bounds import AtLeast, NotNegative, Share
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.tokenizers import load_tokenizer

METHOD, PAIRS, NULLS = "fi_instantiate", "pairs", "null"
BEFORE, BETWEEN = "Instruction: ", "\n\nAnswer: "
"""Section 4.2's form of a pair."""
# The second of each is the published data's name for it.
_INSTRUCTION_KEYS = ("instruction", "instantiated_instruction", "instantiated_template")
_ANSWER_KEYS = ("answer", "response")
# Also tags that are spelt otherwise: none may be left.
_LEFT = re.compile(r"<\s*/?\s*(?:fi|excerpt)\b[^<>]*>|<\s*(?:\.\.\.|…)\s*>", re.IGNORECASE)
_LANGUAGE_CHARACTERS = 4000
_FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z")


@dataclass(frozen=True)
class MatchedTemplate:
    """A template that was drawn for a document."""

    id: str
    """Of its record."""
    text: str
    """With its tags."""
    chunk: int
    """0: the whole document; k: its k-th chunk."""
    score: float
    """Cosine of both vectors."""


@dataclass(frozen=True, kw_only=True)
class InstantiateConfig(ChatConfig, CorpusConfig):
    """Documents with their templates in, pairs of instruction and answer out."""

    method: str = METHOD
    output: str = "runs/fi_instantiate"
    """Synthesis folder; made where missing."""
    form: Literal["ours", "published", "rules"] = "ours"
    """`ours`: rules and examples, the document first, for any chat model. `published`: template
    and document as JSON, as the published model `template_instantiator` and those tuned here read
    them. `rules`: no model is asked; the sentences that share most words with a template answer it
    (`rules.py`)."""
    excerpt_share: Share = LEAST_SHARE
    """Least share of an answer's characters that is copied from the document (section 3.3)."""
    pair_tokens: Annotated[int, AtLeast(16)] = 4096
    """Longest pair in tokens of `tokenizer`, BOS and EOS counted: the context it is trained in."""
    tokenizer: str = "llama3"
    """Name or folder of the tokenizer that counts them."""
    same_language: bool = True
    """Reject pairs that are in another language than their document (needs py3langid)."""
    language_score: Share = 0.9
    """How sure both languages must be to count as different."""
    most_templates: NotNegative = 6
    """Use so many of a document's templates, in order (section 4.2); 0 for all."""


def pair_parts(instruction: str, answer: str) -> tuple[str, str]:
    """What a model reads and what it writes; they join to section 4.2's form."""
    return f"{BEFORE}{instruction}{BETWEEN}", answer


def matched_templates(fields: Mapping[str, Any]) -> list[MatchedTemplate]:
    """The templates of a match record. Raises ValueError where they are not in the form above."""
    listed = fields.get("templates")
    if not isinstance(listed, list):
        raise ValueError(f"its field `templates` is {type(listed).__name__}, not a list")
    found = []
    for one in listed:
        try:
            made = MatchedTemplate(one["id"], one["text"], int(one["chunk"]), float(one["score"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a template is {one!r} ({error!r})") from error
        if not isinstance(made.id, str) or not isinstance(made.text, str):
            raise ValueError(f"a template is {one!r}: id and text are texts")
        if not math.isfinite(made.score) or made.chunk < 0:
            raise ValueError(f"a template is {one!r}: chunk or score cannot be")
        found.append(made)
    return found


@dataclass(frozen=True)
class Instance:
    """A template that was filled in and answered."""

    instruction: Expansion
    answer: Expansion
    reply: str
    """As a model that is tuned to it writes it: JSON on one line, excerpts not filled in."""


def read_instance(completion: Completion, source: Source, least_share: float) -> Instance | Reason:
    """Instruction and answer of a reply with their excerpts filled in, or why there are none.

    Reasons: `null` (the model says that the template does not fit); `engine_error`, `cut`,
    `no_json`, `several`; `no_instruction`, `no_answer`; `tags_left`; `excerpt_…` as ExcerptError;
    `low_share`.
    """
    reply = object_of(completion)
    if isinstance(reply, str):
        said = _FENCE.sub("", after_thoughts(completion.text).strip()).strip()
        if completion.finish_reason != "error" and said == "null":
            return Reason("null", "the template does not fit")
        return Reason(reply, completion.text[-300:])
    texts: list[str] = []
    for name, keys in (("instruction", _INSTRUCTION_KEYS), ("answer", _ANSWER_KEYS)):
        there = [key for key in keys if key in reply]
        value = reply[there[0]] if there else ""
        if value is None:
            return Reason("null", f"its {name} is null")
        if not isinstance(value, str) or not value.strip():
            return Reason(f"no_{name}", f"the reply has the keys {sorted(map(str, reply))}")
        texts.append(value.strip())
    expanded: list[Expansion] = []
    for name, text in zip(("instruction", "answer"), texts, strict=True):
        try:
            expanded.append(source.expand(text))
        except ExcerptError as error:
            reason = "tags_left" if error.reason == "tag" else f"excerpt_{error.reason}"
            return Reason(reason, f"{name}: {error.detail}")
        if left := _LEFT.search(expanded[-1].text):
            return Reason("tags_left", f"{name}: {left[0]} is left in the text")
    reply = dict(zip(("instruction", "answer"), texts, strict=True))
    instance = Instance(expanded[0], expanded[1], json.dumps(reply, ensure_ascii=False))
    if instance.answer.share < least_share:
        share = f"{instance.answer.share:.3f} of the answer is copied"
        return Reason("low_share", f"{share}: {instance.answer.text[:300]!r}")
    return instance


def _regex(template: str) -> str:
    """The pattern of a reply: an instruction without tags, an answer that quotes; or null."""
    end = json_text_regex(4, 160, "<")
    excerpt = rf"<excerpt>{end}(<\.\.\.>{end})?</excerpt>"
    answer = f"{json_text_regex(0, 160, '<')}({excerpt}{json_text_regex(0, 80, '<')}){{1,6}}"
    instruction = json_text_regex(4, 2 * len(template) + 200, "<")
    return json_regex({"instruction": instruction, "answer": answer}, null=True)


class Instantiate(AskingStage[InstantiateConfig]):
    """A model fills each template of a document in and answers it with the document's words."""

    name, version, Config = METHOD, 1, InstantiateConfig
    parts = (PAIRS, NULLS)
    free = ("tokenizer",)

    def __init__(self, config: InstantiateConfig) -> None:
        """Raises UserError: no such tokenizer."""
        super().__init__(config)
        self._tokenizer = load_tokenizer(config.tokenizer)
        self._identify: Callable[[str], tuple[str, float]] | None = None

    def prompt_texts(self) -> Sequence[str]:
        return [] if self.config.form == "rules" else [self._prompt("{document}", "{template}")]

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "tokenizer": self._tokenizer.prints()}

    def begin(self, run: StageRun) -> None:
        super().begin(run)
        if self.config.same_language:
            self._identify, _ = load_language_identifier("same_language")

    def _prompt(self, document: str, template: str) -> str:
        ours = self.config.form == "ours"
        return (instantiate_prompt if ours else published_instantiate_prompt)(document, template)

    def _templates(self, fields: Mapping[str, Any]) -> list[MatchedTemplate]:
        return matched_templates(fields)[: self.config.most_templates or None]

    def check(self, document: Document) -> Reason | None:
        try:
            templates = self._templates(carried_fields(document.metadata))
        except ValueError as error:
            return Reason("no_templates", str(error)[:500])
        longest = max((one.text for one in templates), key=len, default="")
        return self.too_long(self._prompt(document.text, longest)) if templates else None

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        templates = self._templates(carried_by(unit))
        source, records, made = Source(unit.text), list[tuple[str, Record]](), list[Instance]()
        language = self._language(unit.text) if self._identify and templates else None
        pieces, counts = list[Rejection](), Counter[str]()
        for number, template in enumerate(templates):
            prompt = self._prompt(unit.text, template.text)
            if self.config.form == "rules":
                reply = reply_by_rules(unit.text, template.text, template.chunk)
                completion = Completion(unit.id, reply, "stop", 0, 0)
            else:
                completion = yield self.request(unit.id, number, prompt, _regex(template.text))
            found = read_instance(completion, source, self.config.excerpt_share)
            if not isinstance(found, Reason):
                found = self._gates(found, language) or found
            counts["asked"] += 1
            if isinstance(found, Instance):
                records.append((PAIRS, self._pair(unit, number, template, prompt, found)))
                made.append(found)
            elif found.reason == "null":
                told = self._told(unit, template, prompt, "null")
                name = f"{unit.id}#{number}"
                records.append((NULLS, Record(name, template.text, METHOD, provenance=told)))
                counts["null"] += 1
            else:
                pieces.append(Rejection(f"{unit.id}#{number}", template.id, *found))
        counts["pairs"] = len(made)
        counts["documents"] = int(bool(made))
        if not made:
            reason = "no_pairs" if pieces else "all_null" if templates else "no_templates"
            return UnitOutput(records, pieces, counts, {unit.id: reason})
        pairs = [{"instruction": i.instruction.text, "response": i.answer.text} for i in made]
        shown = {"id": unit.id, "text": unit.text, "pairs": pairs}
        sample = {"id": unit.id, "source": METHOD, "documents": [shown]}
        return UnitOutput(records, pieces, counts, samples=[sample])

    def _language(self, text: str) -> tuple[str, float] | None:
        """Of the middle of a text, and how sure that is."""
        start = max(0, (len(text) - _LANGUAGE_CHARACTERS) // 2)
        middle = text[start : start + _LANGUAGE_CHARACTERS]
        return self._identify(middle) if self._identify else None

    def _gates(self, instance: Instance, language: tuple[str, float] | None) -> Reason | None:
        """Why a pair is rejected whose excerpts and share are right."""
        instruction, answer = instance.instruction.text, instance.answer.text
        text = "".join(pair_parts(instruction, answer))
        adds_bos = self._tokenizer.adds_bos
        tokens, most = len(self._tokenizer.encode(text, adds_bos, True)), self.config.pair_tokens
        if tokens > most:
            return Reason("long_pair", f"{tokens:,} tokens; at most {most:,}")
        if language is not None and self._identify is not None:
            # Without the form's own two words, which are English.
            read, sure = self._identify(f"{instruction}\n{answer}")
            if read != language[0] and min(sure, language[1]) >= self.config.language_score:
                return Reason("other_language", f"{read!r}; its document reads as {language[0]!r}")
        return None

    def _told(
        self, unit: Record, template: MatchedTemplate, prompt: str, reply: str
    ) -> dict[str, Any]:
        """Where a reply came from; with document, template text and reply a student is tuned."""
        return {
            **self.asked_provenance([prompt]),
            "parents": [unit.id],
            "sources": [unit.source],
            "template": template.id,
            "template_text": template.text,
            "chunk": template.chunk,
            "score": template.score,
            "reply": reply,
            "document_characters": len(unit.text),
            "seen_characters": carried_by(unit).get("seen_characters"),
        }

    def _pair(
        self, unit: Record, number: int, template: MatchedTemplate, prompt: str, found: Instance
    ) -> Record:
        parts = pair_parts(found.instruction.text, found.answer.text)
        provenance = {
            **self._told(unit, template, prompt, found.reply),
            "excerpt_share": round(found.answer.share, 4),
            # First character and end of each in the document.
            "answer_excerpts": [list(place) for place in found.answer.places],
            "instruction_excerpts": [list(place) for place in found.instruction.places],
        }
        name = f"{unit.id}#{number}"
        return Record(name, "".join(parts), METHOD, parts, (0.0, 1.0), provenance)

    def finish(self, totals: BlockTotals) -> Summary:
        counts = totals.counts
        asked, null, pairs = counts["asked"], counts["null"], counts["pairs"]
        rejected = asked - null - pairs
        left_out = totals.rejected.total() - totals.rejected["unit_failed"]
        if rejected != left_out:
            raise RuntimeError(f"replies were lost or doubled: {dict(counts)}, {left_out} rejected")
        return {
            "documents_augmented": counts["documents"],
            **reasons_of(totals.unused),
            "templates_asked": asked,
            "pairs": pairs,
            "null": null,
            "null_share": round(null / max(1, asked), 4),
            "pairs_rejected": rejected,
            "valid_share": round(pairs / max(1, asked - null), 4),
        }

    def card(self, summary: Summary) -> Card:
        return Card(
            title="FineInstructions pairs",
            about=(
                f"{summary['pairs']:,} instructions with answers, made of templates of people's "
                "queries and of documents that fit them by a language model; at least "
                f"{self.config.excerpt_share:.0%} of each answer is copied from its document "
                "(FineInstructions, section 3.3). No judge has read them. `shards/null` holds the "
                f"{summary['null']:,} templates that the model said do not fit their document."
            ),
            gates=[
                "A reply is one JSON object with instruction and answer; null leaves it out.",
                "Each excerpt stands in its document, and no tag is left.",
                f"At least {self.config.excerpt_share:.0%} of an answer's characters are copied.",
                f"A pair has at most {self.config.pair_tokens:,} tokens.",
                "It is in the language of its document.",
            ],
            sampling=self.sampling_settings(),
            prompts=[CardPrompt("The model reads", one) for one in self.prompt_texts()],
            model={"tokenizer": self.config.tokenizer},
        )
