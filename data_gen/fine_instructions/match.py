"""Matching: which templates each document is asked.

FineInstructions, section 3.2. A document's C + 1 vectors each look for templates whose description
is near; of those above the threshold one is drawn for each vector, by how complex real queries are.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, overload

import numpy as np

from data_gen.embedding.embedder import EncoderConfig, encoder_identity
from data_gen.embedding.index import Gpu
from data_gen.embedding.store import VectorStore
from data_gen.engines import Completion, Request
from data_gen.engines.config import RayConfig
from data_gen.fine_instructions.bank import Bank, origin_of
from data_gen.fine_instructions.calibrate import CALIBRATE, PAPER_THRESHOLD
from data_gen.fine_instructions.drawing import (
    BINS,
    Match,
    complexity_weights,
    draw_templates,
)
from data_gen.fine_instructions.look_up import LookUp, RayLookUp
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card
from data_gen.stages.config import CorpusConfig, StageConfig
from data_gen.stages.stage import Stage, Summary, reasons_of
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import AtLeast, AtMost, NotEmpty, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import generator_of

METHOD = "fi_match"
MATCHED = "matched"
TALK_TO_MODELS = ("wildchat", "lmsys_chat", "chatbot_arena", "oasst1", "sharelm")
"""Sources whose queries people put to models (section 3.2: "WildChat, LMSys*, OAsst1, ShareLM")."""


@dataclass(frozen=True, kw_only=True)
class MatchConfig(CorpusConfig, StageConfig):
    """A corpus and a bank of templates in, documents with their templates out."""

    method: str = METHOD
    output: str = "runs/fi_match"
    """Folder of the run; made where missing."""
    templates: str = "runs/fi_templates/shards/templates"
    """Folder of the templates' shards."""
    bank: str = "runs/fi_bank"
    """Folder of the bank that was made of them."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Which embeds documents: the one that the bank was made with."""
    vectors: str | None = None
    """Store of the documents' vectors, found by their ids; null: they are embedded in the run."""
    candidates: Positive = 100
    """Templates that are looked at for each vector."""
    threshold: Annotated[float, AtLeast(-1), AtMost(1)] = PAPER_THRESHOLD
    """Cosine from which on a template fits. It belongs to the encoder: the paper's 0.865 to its
    own, and for yours `launch/match.py calibrate` finds one from judged pairs."""
    most_templates: Positive = 6
    """Templates of a document at most; each vector gives one, so that it binds above 5 chunks."""
    weights: Literal["complexity", "none"] = "complexity"
    """`complexity`: candidates are drawn so that templates have as many tags as those of
    `real_sources` do. `none`: each is as likely as another."""
    real_sources: Annotated[list[str], NotEmpty("names of sources")] = field(
        default_factory=lambda: list(TALK_TO_MODELS)
    )
    """Sources whose templates say how complex real queries are; those of queries that say
    `talks_to_a_model` count as well."""
    batch: Positive = 256
    """Documents that are embedded and looked up together."""
    ray: RayConfig = field(default_factory=RayConfig)
    """`ray.actors`: embed and look up in so many actors of a Ray cluster, at most
    `records_per_shard` / `batch` of them at once; what comes out is the same."""
    gpu: Gpu = "auto"
    """`auto`: the index is searched on GPUs where faiss-gpu is installed and sees one."""


@dataclass(frozen=True)
class Batch:
    """Documents that are matched together."""

    id: str
    documents: Sequence[Record]


class FiMatch(Stage[MatchConfig, Batch]):
    """Each document with the templates that were drawn for it; those that nothing fits are counted.

    A record is the document as it came, and `templates` in its provenance: of each `id` and `text`,
    the `origin` of its query, how many `tags`, the `chunk` that found it (0: the whole) and the
    `score`; and `seen_characters`, how many of the document the encoder saw (null: its vectors came
    from a store). A stage that reads the shards as its corpus finds both in `metadata.provenance`.
    """

    name, version, Config = METHOD, 1, MatchConfig
    parts = (MATCHED,)
    # What is named by a path has its content in `identity`.
    free = ("templates", "bank", "encoder", "vectors", "gpu", "ray")
    units_in_memory = 1

    def __init__(self, config: MatchConfig) -> None:
        """Raises UserError: as `Bank`, and where no template says how complex real queries are."""
        super().__init__(config)
        self._store = VectorStore(config.vectors) if config.vectors else None
        if self._store is not None:
            header = self._store.header
            self._encoder = {"fingerprint": header.fingerprint, "settings": header.settings}
        else:
            self._encoder = encoder_identity(config.encoder)
        who = self._encoder["fingerprint"]
        self._bank = Bank(config.bank, config.templates, who, "never")
        self._weights_N = self._weights()

    def identity(self) -> Mapping[str, Any]:
        return {"bank": self._bank.fingerprint, "encoder": self._encoder}

    def open(self) -> None:
        config, encoder = self.config, self.config.encoder
        if self._store is not None:
            encoder = None
            self._row_of = {name: row for row, name in enumerate(self._store.ids)}
        who, k = self._encoder["fingerprint"], config.candidates
        opened = functools.partial(LookUp, encoder, self._bank.folder, who, k, config.gpu)
        self._look_up = RayLookUp(opened, config.ray) if config.ray.actors else opened()

    def units(self, raw: RecordSource | None) -> _Batches:
        assert raw is not None
        return _Batches(RecordUnits(raw), self.config.records_per_shard)

    @property
    def units_per_block(self) -> int:
        return 1

    def work(self, unit: Batch) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        size, documents = self.config.batch, unit.documents
        pieces = [documents[first : first + size] for first in range(0, len(documents), size)]
        found = self._look_up.find_all([self._asked(piece) for piece in pieces])
        drawn = [
            self._drawn(document, rows_CK, scores_CK, int(seen))
            for piece, (rows_NCK, scores_NCK, seen_N) in zip(pieces, found, strict=True)
            for document, rows_CK, scores_CK, seen in zip(
                piece, rows_NCK, scores_NCK, seen_N, strict=True
            )
        ]
        # All at once: a group of records is unpacked for each single one.
        rows = sorted({match.template for one in drawn for match in one.matches})
        templates = dict(zip(rows, self._bank.templates.read(rows), strict=True))
        return _together(self._output(one, templates) for one in drawn)

    def _asked(self, documents: Sequence[Record]) -> Sequence[str] | np.ndarray:
        """Texts, or vectors [N, C + 1, E] where there is a store; NaN where it has none."""
        if self._store is None:
            return [document.text for document in documents]
        vectors_NCE = self._store.vectors
        found_NCE = np.full((len(documents), *vectors_NCE.shape[1:]), np.nan, np.float16)
        for place, document in enumerate(documents):
            row = self._row_of.get(document.id)
            if row is not None:
                found_NCE[place] = vectors_NCE[row]
        return found_NCE

    def _drawn(
        self, document: Record, rows_CK: np.ndarray, scores_CK: np.ndarray, seen: int
    ) -> _Drawn:
        if np.isnan(scores_CK).any():
            return _Drawn(document, [], np.nan, seen)
        config = self.config
        generator = generator_of(config.seed, METHOD, document.id)
        drawn = draw_templates(rows_CK, scores_CK, self._weights_N, config.threshold, generator)
        if len(drawn) > config.most_templates:
            kept = generator.choice(len(drawn), config.most_templates, replace=False)
            drawn = [drawn[place] for place in sorted(kept)]
        return _Drawn(document, drawn, float(scores_CK.max()), seen)

    def _output(self, drawn: _Drawn, templates: Mapping[int, Record]) -> UnitOutput:
        config, document, best = self.config, drawn.document, drawn.best
        if np.isnan(best):
            return _no_vector(document)
        counts = {f"best.{_hundredth(best)}": 1}
        if not drawn.matches:
            reason = "no_template" if best < config.threshold else "no_real_complexity"
            return UnitOutput(counts=counts, unused={document.id: reason})
        told = [self._told(match, templates[match.template]) for match in drawn.matches]
        provenance = {
            **document.provenance,
            "method": METHOD,
            "seed": config.seed,
            "encoder": self._encoder["fingerprint"],
            "threshold": config.threshold,
            "parents": [document.id],
            "seen_characters": drawn.seen if drawn.seen >= 0 else None,
            "templates": told,
        }
        record = Record(document.id, document.text, document.source, provenance=provenance)
        counts |= {"documents": 1, "templates": len(told)}
        counts |= {f"chunk.{match.chunk}": 1 for match in drawn.matches}
        tags = Counter(min(template["tags"], BINS) for template in told)
        counts |= {f"tags.{number}": count for number, count in tags.items()}
        pairs = [{"instruction": one["text"], "response": ""} for one in told]
        shown = [{"id": document.id, "text": document.text, "pairs": pairs}]
        sample = {"id": document.id, "source": document.source, "documents": shown}
        return UnitOutput([(MATCHED, record)], counts=counts, samples=[sample])

    def _told(self, match: Match, template: Record) -> dict[str, Any]:
        return {
            "id": template.id,
            "text": template.text,
            "origin": origin_of(template),
            "tags": int(self._bank.tags_N[match.template]),
            "chunk": match.chunk,
            "score": round(match.score, 6),
        }

    def _weights(self) -> np.ndarray:
        """Of each template of the bank, float32 [N]."""
        config, tags_N = self.config, self._bank.tags_N
        if config.weights == "none":
            return np.ones(len(tags_N), np.float32)
        real_N = self._bank.from_origins(config.real_sources) | self._bank.talks_N
        if not real_N.any():
            raise UserError(
                f"real_sources={config.real_sources}: no template of the bank comes from any of "
                "them, and no query says `talks_to_a_model`; it has "
                f"{', '.join(self._bank.about['origins'])}. Name those whose queries people put to "
                "models, or set `weights: none`.",
                key="real_sources",
            )
        weights = complexity_weights(tags_N, tags_N[real_N]).astype(np.float32)
        return weights[np.clip(tags_N, 1, BINS) - 1]

    def failed(self, unit: Batch, failure: Reason) -> UnitOutput:
        # No document's fault: memory, a cluster, an index. It is done again by the same command.
        raise RuntimeError(f"{unit.id}: {failure.detail}")

    def finish(self, totals: BlockTotals) -> Summary:
        counts, best = totals.counts, _under(totals.counts, "best.")
        if best and not counts["documents"]:
            raise self._nothing_fits(best, "no_real_complexity" in totals.unused.values())
        return {
            "documents_augmented": counts["documents"],
            **reasons_of(totals.unused),
            "templates": counts["templates"],
            "templates_by_chunk": _under(counts, "chunk."),
            "templates_by_tags": _under(counts, "tags."),
            "best_scores": best,
            "threshold": self.config.threshold,
            "bank_templates": len(self._bank),
            "bank": self._bank.fingerprint,
            "encoder": self._encoder["fingerprint"],
        }

    def _nothing_fits(self, best: Mapping[str, int], some_fit: bool) -> UserError:
        if some_fit:
            return UserError(
                "weights='complexity': of the templates that fit, none has as many tags as any of "
                "`real_sources`. Set `weights: none`, or a bank with more of those.",
                key="weights",
            )
        highest = sorted(best, key=float, reverse=True)[:3]
        seen = ", ".join(f"{score} ({best[score]:,} documents)" for score in highest)
        return UserError(
            f"threshold={self.config.threshold}: no template fits any of {sum(best.values()):,} "
            f"documents. The highest scores are {seen}. A threshold belongs to its encoder "
            f"({PAPER_THRESHOLD} to the paper's, tuned twice): find this one's from judged pairs "
            f"with `{CALIBRATE}`, and set `threshold` to what it says.",
            key="threshold",
            advice=CALIBRATE,
        )

    def card(self, summary: Summary) -> Card:
        config = self.config
        return Card(
            title="Documents matched with instruction templates",
            about=(
                f"{summary['documents_augmented']:,} documents with {summary['templates']:,} "
                f"templates out of {summary['bank_templates']:,} (FineInstructions, section 3.2). "
                "No model wrote any of it beside the templates."
            ),
            gates=[f"A template's description has a cosine of at least {config.threshold}."],
            sampling={"weights": config.weights, "candidates of a vector": config.candidates},
            model={"encoder": summary["encoder"]},
        )


@dataclass(frozen=True)
class _Drawn:
    """What was drawn for a document."""

    document: Record
    matches: Sequence[Match]
    best: float
    """Highest score of any candidate; NaN where the document has no vector."""
    seen: int
    """Characters that the encoder saw; -1: not known."""


class _Batches(Sequence[Batch]):
    """A corpus, so many documents at a time."""

    def __init__(self, documents: RecordUnits, size: int) -> None:
        self._documents, self._size = documents, size

    def __len__(self) -> int:
        return -(-len(self._documents) // self._size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        first = index * self._size
        return Batch(f"documents-{first:012d}", self._documents[first : first + self._size])


def _no_vector(document: Record) -> UnitOutput:
    reason = Reason("no_vector", "the encoder gives it none, or the store of vectors lacks its id")
    piece = Rejection(document.id, document.source, *reason)
    return UnitOutput(rejected=[piece], unused={document.id: reason.reason})


def _together(outputs: Iterable[UnitOutput]) -> UnitOutput:
    made = list(outputs)
    return UnitOutput(
        [record for one in made for record in one.records],
        [piece for one in made for piece in one.rejected],
        sum((Counter(one.counts) for one in made), Counter[str]()),
        {name: reason for one in made for name, reason in one.unused.items()},
        [sample for one in made for sample in one.samples],
    )


def _under(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    found = [(k.removeprefix(prefix), n) for k, n in counts.items() if k.startswith(prefix)]
    return dict(sorted(found, key=lambda item: float(item[0])))


def _hundredth(score: float) -> str:
    return f"{np.floor(score * 100) / 100:.2f}"
