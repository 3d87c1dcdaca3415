"""Any corpus or file of pairs to record shards, with counts and what was rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_gen.corpus import MAX_CHARACTERS, corpus_sha256, find_files, read_corpus
from data_gen.corpus.pairs import PairLayout
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


@dataclass(frozen=True)
class IngestConfig:
    """A corpus, or data sets of pairs, in; record shards out."""

    input: list[str] = field(default_factory=list)
    """Files (.jsonl, .json, .txt, also .gz and .zst; .parquet, .array_record, .warc and .wet),
    folders of record shards, saved Hugging Face data sets, hf://NAME, patterns, and any address
    that fsspec reads."""
    output: str = "runs/corpus"
    """Folder: shards/, rejected/ and summary.json are written there."""
    pairs: list[PairLayout] = field(default_factory=list)
    """Layouts of pairs, of which a record has the first that fits; none: records are texts."""
    text_field: str = "text"
    """Field of a record that holds the text; text files, archives and shards need none."""
    id_field: str = "id"
    """Field of a record that holds the id."""
    max_characters: int = MAX_CHARACTERS
    """Longer documents are rejected."""
    limit: int | None = None
    """Read only so many records."""
    records_per_shard: int = 4096
    """Records in one shard."""
    fresh: bool = False
    """Start over: delete what an earlier run left in `output`."""


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
    del settings["output"], settings["fresh"], settings["input"]
    settings["input"] = corpus_sha256(find_files(config.input))
    with RunFolder.open(
        config.output, KIND, prints_of(settings), owns=_OWNS, fresh=config.fresh
    ) as run:
        output = OutputFolder(run.path, ("",))
        if run.finished and (done := output.finished()) is not None:
            return done
        run.begin()
        if on_start is not None:
            on_start(run.path)
        output.begin()
        documents = read_corpus(
            config.input,
            text_field=config.text_field,
            id_field=config.id_field,
            max_characters=config.max_characters,
            limit=config.limit,
            pairs=config.pairs,
        )
        found = write_documents(
            documents, output, run.path / "shards", records_per_shard=config.records_per_shard
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
