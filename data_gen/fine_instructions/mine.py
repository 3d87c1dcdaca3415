"""Pairs of document and template, judged: what the encoder is tuned on and a threshold found by.

FineInstructions, section 3.2. Round 1 retrieves templates by a document's description; round 2 by
each of its chunks, which the encoder sees without the rest. A model says of each whether both go
together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from data_gen.corpus import Document
from data_gen.embedding.embedder import EncoderConfig, encoder_identity, open_embedder
from data_gen.embedding.index import Gpu
from data_gen.engines import Completion, Request
from data_gen.engines.replies import object_of
from data_gen.fine_instructions.bank import Bank, description_of
from data_gen.fine_instructions.prompts import COMPATIBLE_KEY, compatible_prompt
from data_gen.stages.asking import AskingStage, ChatConfig
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.config import CorpusConfig
from data_gen.stages.stage import StageRun, Summary, reasons_of
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import NotEmpty
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import digest_of
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection

METHOD, JUDGED = "fi_pairs_mined", "judged"
_REGEX = rf'\{{"{COMPATIBLE_KEY}": (true|false)\}}'


@dataclass(frozen=True, kw_only=True)
class MineConfig(ChatConfig, CorpusConfig):
    """Documents and a bank in, documents with judged templates out."""

    method: str = METHOD
    output: str = "runs/fi_pairs_mined"
    """Folder of the run; made where missing."""
    templates: str = "runs/fi_templates/shards/templates"
    """Folder of the templates' shards."""
    bank: str = "runs/fi_bank"
    """Folder of the bank that was made of them."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The one that the bank was made with."""
    descriptions: str | None = None
    """Round 1: folder of the shards of `fi_descriptions`; documents without one are left out.
    null: round 2, templates are retrieved by each chunk of a document."""
    ranks: Annotated[list[int], NotEmpty("ranks, 0 the nearest")] = field(
        default_factory=lambda: list(range(5))
    )
    """Which of the templates that a vector finds are judged: the five nearest (section 3.2). To
    find a threshold, further ones as well."""
    gpu: Gpu = "auto"
    """`auto`: the index is searched on GPUs where faiss-gpu is installed and sees one."""

    def check_together(self) -> None:
        if min(self.ranks) < 0 or len({*self.ranks}) < len(self.ranks):
            said = f"ranks={self.ranks}: each is at least 0, and none stands there twice."
            raise UserError(said, key="ranks")


@dataclass(frozen=True)
class JudgedTemplate:
    """A template that was judged for a document."""

    id: str
    """Of its record."""
    description: str
    """Of the documents that suit it."""
    chunk: int
    """0: the whole document; k: its k-th chunk."""
    score: float
    """Cosine by which it was retrieved."""
    fits: bool
    """It can be filled in and answered out of the document, or of the chunk."""


def judged_templates(record: Record) -> list[JudgedTemplate]:
    """Those of a record of `shards/judged`. Raises UserError where it has none in that form."""
    try:
        return [JudgedTemplate(**one) for one in record.provenance["judged"]]
    except (LookupError, TypeError) as error:
        raise UserError(
            f"the record {record.id!r} has no judged templates ({error!r}): give the shards that "
            f"`{METHOD}` writes.",
            key="pairs",
            record=record.id,
        ) from error


def read_judged(folders: Sequence[str]) -> Iterator[tuple[Record, list[JudgedTemplate]]]:
    """The records of such shards with their judged templates. Raises UserError."""
    for folder in folders:
        for record in RecordUnits(RecordSource(folder)):
            yield record, judged_templates(record)


class MinePairs(AskingStage[MineConfig]):
    """A model judges the templates that a document finds."""

    name, version, Config = METHOD, 1, MineConfig
    parts = (JUDGED,)
    # What is named by a path has its content in `identity`.
    free = ("templates", "bank", "encoder", "descriptions", "gpu")

    def __init__(self, config: MineConfig) -> None:
        """Raises UserError: as `Bank`, or there are no such descriptions."""
        super().__init__(config)
        self._encoder = encoder_identity(config.encoder)
        who = self._encoder["fingerprint"]
        self._bank = Bank(config.bank, config.templates, who, config.gpu)
        self._told = RecordSource(config.descriptions) if config.descriptions else None

    def prompt_texts(self) -> Sequence[str]:
        return [compatible_prompt("{document}", "{template}")]

    def identity(self) -> Mapping[str, Any]:
        told = self._told.fingerprint if self._told else "none: by chunks"
        bank = {"bank": self._bank.fingerprint, "encoder": self._encoder}
        return {**super().identity(), **bank, "descriptions": told}

    def begin(self, run: StageRun) -> None:
        super().begin(run)
        chunks = 0 if self._told else self.config.encoder.chunks
        self._embedder = open_embedder(replace(self.config.encoder, chunks=chunks))
        self._row_of: dict[str, int] = {}
        if self._told is not None:
            for row, record in enumerate(RecordUnits(self._told)):
                self._row_of[digest_of(record.provenance.get("parents"))] = row

    def check(self, document: Document) -> Reason | None:
        if self._told is None:
            return None  # a chunk is asked about, never the whole
        if digest_of([document.id]) not in self._row_of:
            return Reason("no_description", "`descriptions` has none of it")
        return self.too_long(compatible_prompt(document.text, ""))

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        judged, pieces, counts = list[JudgedTemplate](), list[Rejection](), Counter[str]()
        prompts = list[str]()
        for number, (chunk, text, row, score) in enumerate(self._retrieved(unit)):
            (template,) = self._bank.templates.read([row])
            prompts.append(compatible_prompt(text, template.text))
            reply = yield self.request(unit.id, number, prompts[-1], _REGEX)
            fits = _verdict(reply)
            if isinstance(fits, Reason):
                pieces.append(Rejection(f"{unit.id}#{number}", template.id, *fits))
                continue
            about = description_of(template)
            judged.append(JudgedTemplate(template.id, about, chunk, round(score, 6), fits))
            counts[f"judged/{chunk}"] += 1
            counts[f"fit/{chunk}"] += fits
        if not judged:
            reason = "no_verdict" if prompts else "no_vector"
            return UnitOutput(rejected=pieces, unused={unit.id: reason})
        provenance = {
            **self.asked_provenance(prompts),
            "parents": [unit.id],
            "encoder": self._encoder["fingerprint"],
            "judged": [vars(one) for one in judged],
        }
        record = Record(unit.id, unit.text, unit.source, provenance=provenance)
        pairs = [{"instruction": one.description, "response": str(one.fits)} for one in judged]
        shown = {"id": unit.id, "text": unit.text, "pairs": pairs}
        sample = {"id": unit.id, "source": unit.source, "documents": [shown]}
        counts["documents"] = 1
        return UnitOutput([(JUDGED, record)], pieces, counts, samples=[sample])

    def _retrieved(self, unit: Record) -> Iterator[tuple[int, str, int, float]]:
        """Chunk, what is judged of the document, row and score of each template to be judged.

        A document is embedded by itself: what it finds depends on no other, so that a run that is
        begun again asks the same.
        """
        if self._told is not None:
            (told,) = self._told.read([self._row_of[digest_of([unit.id])]])
            vectors_CE, texts, first = self._embedder.embed([told.text])[0], [unit.text], 0
        else:
            (vectors_CE, texts), first = self._embedder.embed_windows(unit.text), 1
        for chunk, (vector_E, text) in enumerate(zip(vectors_CE, texts, strict=True), first):
            if not np.isfinite(vector_E).all():
                continue
            rows, scores = self._bank.index.search(vector_E[None], 1 + max(self.config.ranks))
            for rank in self.config.ranks:
                row = int(rows[0, rank])
                if row >= 0:
                    yield chunk, text, row, float(scores[0, rank])

    def finish(self, totals: BlockTotals) -> Summary:
        counts = totals.counts
        chunks = sorted({name.partition("/")[2] for name in counts if "/" in name})
        return {
            "documents_augmented": counts["documents"],
            **reasons_of(totals.unused),
            "pairs": sum(counts[f"judged/{chunk}"] for chunk in chunks),
            "fit": sum(counts[f"fit/{chunk}"] for chunk in chunks),
            "judged_by_chunk": {chunk: counts[f"judged/{chunk}"] for chunk in chunks},
            "fit_by_chunk": {chunk: counts[f"fit/{chunk}"] for chunk in chunks},
        }

    def card(self, summary: Summary) -> Card:
        return Card(
            title="Documents with judged templates",
            about=(
                f"{summary['pairs']:,} pairs of a document and a template that it finds, of which "
                f"{summary['fit']:,} go together, says a language model (FineInstructions, "
                "section 3.2). The encoder is tuned on them."
            ),
            gates=["A verdict is the word true or false under its key."],
            sampling=self.sampling_settings(),
            prompts=[CardPrompt("The model reads", self.prompt_texts()[0])],
        )


def _verdict(completion: Completion) -> bool | Reason:
    reply = object_of(completion)
    if isinstance(reply, str):
        return Reason(reply, completion.text[-300:])
    fits = reply.get(COMPATIBLE_KEY)
    return fits if isinstance(fits, bool) else Reason("no_verdict", completion.text[-300:])
