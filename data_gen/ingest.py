"""Any corpus or file of pairs to record shards, with counts and what was rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_gen.corpus import corpus_sha256, find_files
from data_gen.corpus.pairs import PairLayout
from data_gen.stages.config import CorpusConfig
from data_gen.stages.ingest import write_documents
from data_gen.stages.outputs import OutputFolder
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import SHARD_FILES
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of

KIND = "ingest"
_OWNS = (
    *(*RUN_FILES, "summary.json", "rejected/documents.jsonl"),
    *(f"shards/{name}" for name in SHARD_FILES),
)


@dataclass(frozen=True, kw_only=True)
class IngestConfig(CorpusConfig):
    """A corpus, or data sets of pairs, in; record shards out."""

    output: str = "runs/corpus"
    """Folder: shards/, rejected/ and summary.json are written there."""
    pairs: list[PairLayout] = field(default_factory=list)
    """Layouts of pairs, of which a record has the first that fits; none: records are texts."""


def ingest(
    config: IngestConfig, *, on_start: Callable[[Path], None] | None = None
) -> dict[str, Any]:
    """Write the folder `config.output` and give back its summary, which is written last.

    Records come out as they went in, in order; of pairs, the responses carry loss. A finished
    folder of the same input and config is left as it is. `on_start` is called with the folder once
    it is sure that this run may write there.

    Raises:
      UserError: as `read_corpus` does; no record can be used; the folder is of something else.
    """
    settings = asdict(config)
    del settings["output"], settings["fresh"]
    settings["input"] = corpus_sha256(find_files(config.input))
    with RunFolder.open(
        config.output, KIND, prints_of(settings), owns=_OWNS, fresh=config.fresh
    ) as run:
        output = OutputFolder(run.path, ("raw",), {"raw": "shards"})
        if run.finished and (done := output.finished()) is not None:
            return done
        run.begin()
        if on_start is not None:
            on_start(run.path)
        output.begin()
        found = write_documents(
            config.documents(config.pairs),
            output,
            run.path / "shards",
            records_per_shard=config.records_per_shard,
        )
        records, rejected = found.sources.total(), dict(found.rejected.most_common())
        if not records:
            raise UserError(
                f"none of the {found.rejected.total():,} records of `input` can be used "
                f"({rejected}); {run.path}/rejected/documents.jsonl says of each why. Correct "
                "`pairs`, `text_field` or `input`."
            )
        summary: dict[str, Any] = {"records_in": records + found.rejected.total()}
        summary |= {"records_out": records, "rejected": rejected}
        summary["sources"] = [
            {"source": source, "licence": licence, "records": count}
            for (source, licence), count in found.sources.most_common()
        ]
        output.finish(summary, settings)
        run.finish()
    return summary
