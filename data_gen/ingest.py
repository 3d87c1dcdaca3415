"""Any corpus, pairs or public data set to record shards, with counts and what was rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from data_gen.corpus import Document, corpus_sha256, find_files
from data_gen.corpus.pairs import PairLayout, as_pair
from data_gen.corpus.reading import Shape
from data_gen.corpus.seen_ids import SeenIds
from data_gen.engines import Completion, Request
from data_gen.errors.shared import input_error
from data_gen.published import PUBLISHED, RowShape
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.config import CorpusConfig
from data_gen.stages.ingest import RAW, ingested_before
from data_gen.stages.stage import Stage, StageRun, Summary, reasons_of, run_stage
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import NotNegative, OneOf
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import digest_of
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection


@dataclass(frozen=True, kw_only=True)
class IngestConfig(CorpusConfig):
    """A corpus, or data sets of pairs, in; record shards out."""

    output: str = "runs/corpus"
    """Folder: shards/, rejected/ and summary.json are written there."""
    pairs: list[PairLayout] = field(default_factory=list)
    """Layouts of pairs, of which a record has the first that fits; none: records are texts."""
    published: Annotated[str, OneOf(("", *PUBLISHED))] = ""
    """A public data set whose rows `input` holds: a name in data_gen/published.yaml, which says
    what they are, in place of `pairs` and `text_field`."""
    least_score: NotNegative = 0
    """Reject pairs of a public data set that its own judge scored lower (`low_score`)."""

    def check_together(self) -> None:
        scored = self.published and PUBLISHED[self.published].scores
        if self.published and self.pairs:
            raise UserError("pairs: `published` says what the rows hold; give one.", key="pairs")
        if self.least_score and not scored:
            said = f"least_score={self.least_score}: `published` names no data set with scores."
            raise UserError(said, key="least_score")

    def documents(self, shape: Shape | None = None) -> Iterator[Document | Rejection]:
        if self.published:
            shape = RowShape(PUBLISHED[self.published], self.least_score)
        elif self.pairs:
            shape = lambda raw, _: (as_pair(raw, self.pairs),)  # noqa: E731
        return super().documents(shape)


class Ingest(Stage[IngestConfig, Record]):
    """Records come out as they went in, in order; of pairs, the responses carry loss.

    What every stage does with a corpus is all that there is to do: there are no units.
    """

    name, version, Config = "ingest", 1, IngestConfig
    parts, places = (), {RAW: "shards"}

    def __init__(self, config: IngestConfig) -> None:
        super().__init__(config)
        self._corpus = corpus_sha256(find_files(config.input))

    def identity(self) -> Mapping[str, Any]:
        known = PUBLISHED.get(self.config.published)
        facts = {"published": digest_of(repr(known))} if known else {}
        return {"input": self._corpus, **facts}  # what earlier versions called `corpus`

    def defaults(self) -> Mapping[str, str]:
        old = {"corpus": self._corpus, "published": "", "least_score": "0"}
        return {**super().defaults(), **old}

    def begin(self, run: StageRun) -> None:
        self._run = run

    def units(self, raw: RecordSource | None) -> Sequence[Record]:
        """None; raises UserError where no record can be used."""
        assert raw is not None
        self._found = ingested_before(self._run.ledger)
        if not len(raw):
            rejected = self._found.rejected
            raise input_error(
                f"none of the {rejected.total():,} records of `input` can be used "
                f"({dict(rejected.most_common())}); {self._run.output.folder}/rejected/"
                "documents.jsonl says of each why. Correct `pairs`, `text_field` or `input`."
            )
        return ()

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        raise NotImplementedError("there are no units")

    def finish(self, totals: BlockTotals) -> Summary:
        rejected = self._found.rejected + Counter(totals.unused.values())
        sources = self._found.sources
        return {
            "records_in": sources.total() + self._found.rejected.total(),
            "records_out": sources.total() - len(totals.unused),
            "rejected": dict(rejected.most_common()),
            "sources": [
                {"source": source, "licence": licence, "records": count}
                for (source, licence), count in sources.most_common()
            ],
        }


class IngestParts(Ingest):
    """Of a public data set whose rows hold documents and pairs: shards of each.

    `shards/raw` has them as they came; a pair whose document is not among them is rejected, for
    nothing that goes by documents (budget, analysis) could use it.
    """

    parts, places = ("documents", "pairs"), {}

    def units(self, raw: RecordSource | None) -> Sequence[Record]:
        super().units(raw)
        assert raw is not None
        self._documents = SeenIds()
        for record in RecordUnits(raw):
            if record.provenance["part"] == "documents":
                self._documents.add(record.id)
        return RecordUnits(raw)

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        part = unit.provenance["part"]
        for parent in unit.provenance.get("parents", ()):
            if parent not in self._documents:
                told = Reason("no_document", f"its document {parent} is not in `input`")
                return self.failed(unit, told)
        return UnitOutput([(part, unit)], counts={"documents": 1, f"part.{part}": 1})

    def failed(self, unit: Record, failure: Reason) -> UnitOutput:
        piece = Rejection(unit.id, unit.source, *failure)
        return UnitOutput(rejected=[piece], unused={unit.id: failure.reason})

    def finish(self, totals: BlockTotals) -> Summary:
        counts = {part: totals.counts[f"part.{part}"] for part in self.parts}
        told = {"documents_augmented": totals.counts["documents"], **reasons_of(totals.unused)}
        return {**super().finish(totals), **told, **counts}


def ingest(config: IngestConfig, *, on_start: Callable[[Path], None] | None = None) -> Summary:
    """`run_stage` of `Ingest`."""
    known = PUBLISHED.get(config.published)
    stage = IngestParts if known and len(known.parts) > 1 else Ingest
    return run_stage(stage(config), on_start=on_start)
