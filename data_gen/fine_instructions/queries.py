"""Real queries of people as records: what templates are made from (section 3.1).

The way of a query: file -> record of its source's layout -> query -> rules and moderation, block by
block -> `checked/` -> duplicates, evaluation sets, near-duplicates, all together -> `shards/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from data_gen.corpus.dataset_files import Located
from data_gen.corpus.seen_ids import SeenIds
from data_gen.engines import Completion, Request
from data_gen.fine_instructions.query_files import QueryFiles
from data_gen.fine_instructions.query_sources import (
    OTHER,
    PAPER_LISTS,
    PAPER_STATES,
    SOURCES,
    Query,
    QuerySource,
    flagged,
    query_of,
)
from data_gen.quality.decontaminate import DecontaminateConfig, open_rule
from data_gen.quality.dedup import ExactGate, MinHashConfig, NearDuplicateGate
from data_gen.quality.gate import Gate
from data_gen.quality.inputs import FilteredRecords, InputShards
from data_gen.quality.moderation import Classifier, ModerationConfig, ModerationGate
from data_gen.quality.rules import RulesConfig, RulesGate
from data_gen.quality.stage import check_records
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card
from data_gen.stages.config import StageConfig
from data_gen.stages.outputs import Reject
from data_gen.stages.stage import Stage, StageRun, Summary
from ipt_jax.core.bounds import Config, OneOf, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.fingerprint import file_digest, path_digest
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.report.markdown import markdown
from ipt_jax.core.report.values import Report, Section, Table
from ipt_jax.core.tokenizers import load_tokenizer

METHOD = "fi_queries"
QUERIES, CHECKED = "queries", "checked"
COUNTS_FILE = "counts.md"
_ROWS = "rows"  # note in the ledger: records of each file
_BATCH = 256  # records read and checked at a time
_TOGETHER = ("exact_text", "coverage", "near_duplicates")  # gates that see all queries
_SAMPLES = 8


@dataclass(frozen=True)
class QueryInput(Config):
    """Files of one source."""

    source: Annotated[str, OneOf(SOURCES)]
    """Name in SOURCES; `other` for queries of none of the paper's sources."""
    path: str
    """A file (.json, .jsonl, .csv, .tsv, .parquet and the source's own; .gz too), a folder or a
    saved Hugging Face data set within `root`, or hf://NAME[@REVISION][?subset=…&split=…], which is
    streamed twice, to count and to read."""
    files: list[str] | None = None
    """Of a folder, patterns in place of the source's own files."""
    limit: Positive | None = None
    """Read only so many records."""
    talks_to_a_model: bool | None = None
    """Whether these queries were put to a language model; null for what is known of the source."""


@dataclass(frozen=True, kw_only=True)
class QueriesConfig(StageConfig):
    """Data sets in, queries that pass all gates out."""

    method: str = METHOD
    output: str = "runs/fi_queries"
    """Folder: shards/, checked/ (before duplicates and evaluation sets), rejected/, counts.md and
    summary.json are written there."""
    sources: list[QueryInput] = field(default_factory=list)
    """Files, in order; of two equal queries the first stays."""
    root: str = "."
    """Where the paths of `sources` begin."""
    rules: RulesConfig = field(
        default_factory=lambda: RulesConfig(min_words=3, max_characters=20_000, languages=["en"])
    )
    """Length, form and language; the paper gives no numbers."""
    published_moderation: bool = True
    """Leave out what the data set itself says its moderation flagged."""
    moderation: ModerationConfig | None = field(default_factory=ModerationConfig)
    """Patterns and a classifier, in place of the paper's OpenAI Moderation API; null for none."""
    decontaminate: DecontaminateConfig | None = None
    """Evaluation sets that may not be in the queries, by Tulu 3's coverage; null for none."""
    near_duplicates: MinHashConfig | None = field(default_factory=MinHashConfig)
    """Which queries repeat an earlier one nearly; null to take out equal ones alone."""


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive records of one input."""

    id: str
    number: int
    """Of the input."""
    first: int
    """Of its records, all files one after another."""
    count: int


class Queries(Stage[QueriesConfig, QueryBlock]):
    """Records of data sets become queries; every record comes out or is rejected with a reason."""

    name, version, Config = METHOD, 1, QueriesConfig
    parts, plain = (CHECKED,), QUERIES
    places: ClassVar[Mapping[str, str]] = {QUERIES: "shards", CHECKED: CHECKED}
    owns = (COUNTS_FILE, *(f"rejected/{name}.jsonl" for name in _TOGETHER))
    free = ("sources", "root", "rules", "moderation", "decontaminate")
    units_in_memory = 1

    def __init__(self, config: QueriesConfig, *, classifier: Classifier | None = None) -> None:
        """`classifier` moderates in place of the model that the config names.

        Raises UserError: no sources, or some whose files are not there, all named.
        """
        super().__init__(config)
        if not config.sources:
            raise UserError(
                "`sources` is empty: name at least one source and its path.", key="sources"
            )
        self._classifier = classifier
        self._inputs: list[QueryFiles] = []
        before, missing = Counter[str](), list[UserError]()
        for entry in config.sources:
            # Files of one name in two inputs must not make the same ids.
            prefix = f"{before[entry.source]}/" if before[entry.source] else ""
            before[entry.source] += 1
            more = {"root": config.root, "patterns": entry.files, "limit": entry.limit}
            try:
                one = QueryFiles(entry.path, SOURCES[entry.source], prefix=prefix, **more)
                self._inputs.append(one)
            except UserError as error:
                missing.append(error)
        if missing:
            said = " ".join(map(str, missing))
            raise UserError(said, key="sources", path=missing[0].path)

    def identity(self) -> Mapping[str, Any]:
        """The inputs and what the gates read, by content."""
        config, found = self.config, dict[str, Any]()
        for number, (entry, one) in enumerate(zip(config.sources, self._inputs, strict=True)):
            found[f"sources/{number}"] = asdict(entry) | {"path": one.digest(config.output)}
        found["rules"] = rules = asdict(config.rules)
        if tokenizer := rules.pop("tokenizer"):
            found["rules/tokenizer"] = load_tokenizer(tokenizer).prints()
        if config.moderation is not None:
            found["moderation"] = asdict(config.moderation)
            for key in ("rules", "model"):
                path = found["moderation"].pop(key)
                found[f"moderation/{key}"] = path and path_digest(Path(path).expanduser())
        if config.decontaminate is not None:
            found["decontaminate"] = asdict(config.decontaminate)
            for number, one in enumerate(found["decontaminate"]["evaluations"], 1):
                path = Path(one.pop("path")).expanduser()
                found[f"evaluations/{number}/{one['name']}"] = file_digest(path)
        return found

    def open(self) -> None:
        config = self.config
        self._stack = ExitStack()
        for one in self._inputs:
            one.open(self._stack)
        self._each: list[Gate] = [RulesGate(config.rules)]
        if config.moderation is not None:
            self._each.append(ModerationGate(config.moderation, self._classifier))
        self._together: list[Gate] = [ExactGate("text")]
        if config.decontaminate is not None:
            self._together.append(open_rule("coverage", config.decontaminate))
        if config.near_duplicates is not None:
            self._together.append(NearDuplicateGate(config.near_duplicates))

    def begin(self, run: StageRun) -> None:
        self._run = run

    @property
    def units_per_block(self) -> int:
        return 1  # a unit is a block of records already

    def units(self, raw: RecordSource | None) -> list[QueryBlock]:
        ledger, size = self._run.ledger, self.config.records_per_shard
        rows = ledger.note(_ROWS)
        if rows is None:
            rows = [one.count() for one in self._inputs]
            ledger.set_note(_ROWS, rows)
        units = []
        for number, (one, counts) in enumerate(zip(self._inputs, rows, strict=True)):
            one.counts, total = counts, sum(counts)
            for first in range(0, total, size):
                name = f"{number:03d}-{one.source.name}/{first:09d}"
                units.append(QueryBlock(name, number, first, min(size, total - first)))
        return units

    def work(self, unit: QueryBlock) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        one = self._inputs[unit.number]
        records: list[Record] = []
        rejected: list[Rejection] = []
        for place, row in one.read(unit.first, unit.count):
            found = self._query(unit.number, place, row)
            records += [found] if isinstance(found, Record) else []
            rejected += [found] if isinstance(found, Rejection) else []
        kept: list[Record] = []
        for record, wrong in zip(records, check_records(records, self._each), strict=True):
            if wrong is None:
                kept.append(record)
            else:
                rejected.append(Rejection(record.id, record.provenance["place"], *wrong))
        name = one.source.name
        counts = Counter(f"rejected/{name}/{piece.reason}" for piece in rejected)
        counts[f"read/{name}"] = unit.count
        shown = [
            {
                "id": r.id,
                "source": r.source,
                "documents": [{"id": r.id, "text": r.text, "pairs": []}],
            }
            for r in kept[:_SAMPLES]
        ]
        return UnitOutput([(CHECKED, r) for r in kept], rejected, counts, samples=shown)

    def _query(self, number: int, place: str, row: Located) -> Record | Rejection:
        """The record of a query, or why there is none."""
        source, talks = self._inputs[number].source, self.config.sources[number].talks_to_a_model
        place = f"{source.name}/{place}"
        if row.error:
            return Rejection.at(place, "malformed_file", row.error)
        found = query_of(source, row.value)
        if isinstance(found, Query) and self.config.published_moderation:
            if named := flagged(row.value):
                found = Reason("published_moderation", named)
        if isinstance(found, Reason):
            return Rejection.at(place, *found)
        own = row.value if source is OTHER else {}  # of files of one's own, what a record says
        said = own.get("talks_to_a_model", source.talks_to_a_model)
        provenance = {
            "method": METHOD,
            "kind": source.kind,
            "talks_to_a_model": bool(said if talks is None else talks),
            "licence": str(own.get("licence") or own.get("license") or source.licence),
            "place": place,
        }
        if found.places:
            provenance["places"] = list(found.places)
        name, key = source.name, found.key
        if isinstance(given := own.get("source"), str) and given:
            name, key = given, key and f"{given}/{key}"
        key = f"{source.name}/{key}" if key else place
        return Record(key, found.text, name, provenance=provenance)

    def failed(self, unit: QueryBlock, failure: Reason) -> UnitOutput:
        raise RuntimeError(f"{unit.id}: {failure.detail}")

    def finish(self, totals: BlockTotals) -> Summary:
        """Write the queries that pass what all of them have to be seen for."""
        self._stack.close()
        config, output = self.config, self._run.output
        checked = InputShards([str(output.shards(CHECKED))])
        counts = Counter(totals.counts)
        names = [gate.name for gate in self._together]
        with output.rejected(*names) as reject:
            numbers = self._decide(checked, reject, counts)
        seen = SeenIds()
        with ShardWriter(output.shards(QUERIES), config.records_per_shard) as shards:
            for first in range(0, len(numbers), _BATCH):
                for record in checked.read(numbers[first : first + _BATCH].tolist()):
                    counts[f"kept/{_source_of(record)}"] += 1
                    if not seen.add(record.id):  # data sets give some ids to several records
                        record = replace(record, id=record.provenance["place"])
                    shards.write(record)
        tables = [_counts_of(source, counts) for source in SOURCES.values()]
        tables = [one for one in tables if one["read"] or one["paper"]]
        read = sum(one["read"] for one in tables)
        lines = totals.rejected.total() + output.left_out.total()
        if read != len(numbers) + lines:
            raise RuntimeError(f"queries were lost or doubled: {read}, {len(numbers)}, {lines}")
        reasons = sum((Counter(one["rejected"]) for one in tables), Counter[str]())
        if not len(numbers):
            raise UserError(
                f"none of the {read:,} records of `sources` is a query that passes all gates "
                f"({dict(reasons.most_common())}); {output.folder}/rejected says of each why. "
                "Correct `sources`, or loosen `rules`.",
                key="sources",
            )
        summary: Summary = {
            "queries_in": read,
            "queries_out": len(numbers),
            "queries_rejected": lines,
            "rejected_queries": dict(reasons.most_common()),
            "sources": tables,
            "paper_queries_listed": PAPER_LISTS,
            "paper_queries_stated": PAPER_STATES,
            "gates": [{"gate": gate.name, **gate.summary()} for gate in self._together],
        }
        atomic_write(output.folder / COUNTS_FILE, counts_report(summary))
        return summary

    def _decide(self, checked: InputShards, reject: Reject, counts: Counter[str]) -> np.ndarray:
        """Int64 numbers of the records that pass, in order; a pass over them a gate."""
        numbers = np.arange(len(checked))
        for gate in self._together:
            gate.prepare(FilteredRecords(checked, numbers))
            kept: list[int] = []
            for first in range(0, len(numbers), _BATCH):
                batch = numbers[first : first + _BATCH].tolist()
                records = checked.read(batch)
                for number, record, wrong in zip(batch, records, gate.check(records), strict=True):
                    if wrong is None:
                        kept.append(number)
                        continue
                    reason = f"{gate.name}:{wrong.reason}"
                    counts[f"rejected/{_source_of(record)}/{reason}"] += 1
                    place = record.provenance["place"]
                    reject(gate.name, Rejection(record.id, place, reason, wrong.detail))
            numbers = np.asarray(kept, np.int64)
        return numbers

    def card(self, summary: Summary) -> Card:
        rules, config = self.config.rules, self.config
        gates = [
            "The rules of length, form and language hold: "
            + ", ".join(f"{key} {value}" for key, value in asdict(rules).items() if value)
            + ".",
            "No text comes twice.",
        ]
        if config.published_moderation:
            gates.append("The data set's own moderation did not flag the first turn.")
        if config.moderation is not None:
            gates.append("No pattern of the moderation rules is found, and no classifier objects.")
        if config.decontaminate is not None:
            gates.append("No example of the evaluation sets is covered (Tulu 3).")
        if config.near_duplicates is not None:
            least = config.near_duplicates.threshold
            gates.append(f"No earlier query is {least} similar or more (Jaccard, word shingles).")
        return Card(
            title="Real user queries",
            about=(
                f"{summary['queries_out']:,} of {summary['queries_in']:,} queries of people, "
                "filtered as FineInstructions (section 3.1) does; counts.md has them by source."
            ),
            gates=gates,
        )


def counts_report(summary: Mapping[str, Any]) -> str:
    """The counts by source beside the paper's, as Markdown."""
    header = ("title", "licence", "paper", "read", "kept", "rejected")
    rows: list[tuple[object, ...]] = [
        (*(one[key] for key in header[:-1]), sum(one["rejected"].values()))
        for one in summary["sources"]
    ]
    sums = (summary[f"queries_{what}"] for what in ("in", "out", "rejected"))
    rows.append(("all", "", summary["paper_queries_listed"], *sums))
    note = (
        f"The paper's counts add to {summary['paper_queries_listed']:,}; it speaks of "
        f"{summary['paper_queries_stated']:,} queries."
    )
    table = Table("", header, rows, note, text_columns=2, total=True)
    reasons = Table("", ("reason", "queries"), list(summary["rejected_queries"].items()))
    sections = [Section("By source", [table]), Section("Rejected", [reasons])]
    return markdown(Report("Queries", "", [], sections))


def _source_of(record: Record) -> str:
    """The name in SOURCES; the record's `source` is another where files of one's own name it."""
    return record.id.partition("/")[0]


def _counts_of(source: QuerySource, counts: Mapping[str, int]) -> dict[str, Any]:
    """What became of a source's records, beside the paper's count."""
    under = f"rejected/{source.name}/"
    rejected = {k.removeprefix(under): n for k, n in counts.items() if k.startswith(under)}
    return {
        "source": source.name,
        "title": source.title,
        "licence": source.licence,
        "paper": source.paper_queries,
        "read": counts[f"read/{source.name}"],
        "kept": counts[f"kept/{source.name}"],
        "rejected": dict(sorted(rejected.items(), key=lambda item: -item[1])),
    }
