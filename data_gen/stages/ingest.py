"""The corpus of a run as records: what every method reads, in corpus order, at random access."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from data_gen.corpus import Document
from data_gen.stages.ledger import Ledger
from data_gen.stages.outputs import OutputFolder
from ipt_jax.core.records import Manifest, Record, ShardWriter
from ipt_jax.core.rejection import Rejection

RAW = "raw"
UNKNOWN = "not stated"
Check = Callable[[Document], tuple[str, str] | None]
_NOTE = "intake"


@dataclass(frozen=True)
class Ingested:
    """What became of a corpus."""

    rejected: Counter[str]
    """Documents that were not taken, by reason."""
    sources: Counter[tuple[str, str]]
    """Documents that were, by source and licence (metadata `licence` or `license`)."""


def ingest_corpus(
    documents: Iterable[Document | Rejection],
    output: OutputFolder,
    ledger: Ledger,
    check: Check,
    records_per_shard: int,
) -> Ingested:
    """Write every accepted document to shards/raw, the others to rejected/ with their reasons.

    `check` gives the reason and the detail for which the method cannot take a document. A run that
    goes on finds the shards of the first time and reads nothing.

    Raises:
      UserError: as `documents` does, and where a shard cannot be written.
    """
    before = ledger.note(_NOTE)
    if before is not None and output.is_whole(RAW):
        if Manifest.load(output.shards(RAW)).fingerprint == before["fingerprint"]:
            return ingested_before(ledger)
    reasons, sources = Counter[str](), Counter[tuple[str, str]]()
    with (
        ShardWriter(output.shards(RAW), records_per_shard) as shards,
        output.rejected("documents") as reject,
    ):
        for found in documents:
            if isinstance(found, Rejection):
                reasons[found.reason] += 1
                reject("documents", found)
            elif (problem := check(found)) is not None:
                reasons[problem[0]] += 1
                reject("documents", Rejection(found.id, found.source, *problem))
            else:
                shards.write(_record(found))
                licence = found.metadata.get("licence") or found.metadata.get("license")
                sources[found.source, str(licence or UNKNOWN)] += 1
    note = {
        "rejected": reasons,
        "sources": [[*key, count] for key, count in sources.items()],
        "fingerprint": Manifest.load(output.shards(RAW)).fingerprint,
    }
    ledger.set_note(_NOTE, note)
    return Ingested(reasons, sources)


def ingested_before(ledger: Ledger) -> Ingested:
    """What became of the corpus of this run, which has been read."""
    found = ledger.note(_NOTE)
    sources = {(source, licence): count for source, licence, count in found["sources"]}
    return Ingested(Counter(found["rejected"]), Counter(sources))


def _record(document: Document) -> Record:
    metadata, parts = dict(document.metadata), document.parts
    kept = {"metadata": _jsonable(metadata)} if metadata else {}
    kept |= _jsonable(dict(document.provenance)) if document.provenance else {}
    loss = tuple(float(number % 2) for number in range(len(parts))) if parts else None
    return Record(document.id, document.text, document.source, parts or None, loss, kept)


def _jsonable(metadata: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(metadata, default=str)  # parquet gives dates and the like
    return json.loads(text, parse_constant=lambda _: None)  # and NaN, which JSON has not
