"""Any corpus or file of pairs to record shards, with counts and what was rejected."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_gen.corpus import Document, corpus_sha256, find_files
from data_gen.corpus.pairs import PairLayout
from data_gen.engines import Completion, Request
from data_gen.errors.shared import input_error
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.config import CorpusConfig
from data_gen.stages.ingest import RAW, ingested_before
from data_gen.stages.stage import Stage, StageRun, Summary, run_stage
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Rejection


@dataclass(frozen=True, kw_only=True)
class IngestConfig(CorpusConfig):
    """A corpus, or data sets of pairs, in; record shards out."""

    output: str = "runs/corpus"
    """Folder: shards/, rejected/ and summary.json are written there."""
    pairs: list[PairLayout] = field(default_factory=list)
    """Layouts of pairs, of which a record has the first that fits; none: records are texts."""

    def documents(self, pairs: Sequence[PairLayout] = ()) -> Iterator[Document | Rejection]:
        return super().documents(self.pairs)


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
        return {"input": self._corpus}  # what earlier versions called `corpus`

    def defaults(self) -> Mapping[str, str]:
        return {**super().defaults(), "corpus": self._corpus}

    def begin(self, run: StageRun) -> None:
        self._run = run

    def units(self, raw: RecordSource | None) -> tuple[Record, ...]:
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
        rejected, sources = self._found.rejected, self._found.sources
        return {
            "records_in": sources.total() + rejected.total(),
            "records_out": sources.total(),
            "rejected": dict(rejected.most_common()),
            "sources": [
                {"source": source, "licence": licence, "records": count}
                for (source, licence), count in sources.most_common()
            ],
        }


def ingest(config: IngestConfig, *, on_start: Callable[[Path], None] | None = None) -> Summary:
    """`run_stage` of `Ingest`."""
    return run_stage(Ingest(config), on_start=on_start)
