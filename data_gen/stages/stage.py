"""A stage turns units of work into records; what surrounds the work stands here, once.

The way of a record: corpus -> `shards/raw` -> `units` -> `work`, asked through the runner -> its
`UnitOutput` -> a block of shards, whole or absent -> summary and card.
"""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from data_gen.corpus import Document, corpus_sha256, find_files
from data_gen.engines import (
    Completion,
    Engine,
    EngineConfig,
    EngineIdentity,
    Request,
    identify_engine,
    max_in_flight,
    open_engine,
)
from data_gen.stages.blocks import BlockTotals, UnitOutput, run_blocks
from data_gen.stages.card import Card, write_card
from data_gen.stages.config import (
    AskingConfig,
    CorpusConfig,
    FolderConfig,
    OutputConfig,
    StageConfig,
)
from data_gen.stages.estimate import Estimate, estimate, sample_corpus, write_sample
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.ingest import RAW, Ingested, ingest_corpus
from data_gen.stages.ledger import ClosedLedger, Ledger
from data_gen.stages.outputs import OutputFolder
from data_gen.stages.progress import ProgressLog
from data_gen.stages.runner import Progress, Status, Unit, no_progress
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Manifest, RecordSource
from ipt_jax.core.rejection import Reason, Rejection

_NOT_IN_RECORDS = ("input", "output", "fresh", "engine", "method")  # or in another form
_OF_A_RUN = ("gpus", "price_per_gpu_hour", "dry_run", "dry_run_documents")
_DRAWN = ("max_tokens", "temperature", "top_k", "top_p", "constrain", "context_tokens")
Summary = dict[str, Any]


@dataclass(frozen=True)
class StageRun:
    """What a stage has at hand while it runs."""

    output: OutputFolder
    """The folder of the run."""
    ledger: Ledger
    """For notes on what is made once, such as a vocabulary."""
    engine: Engine
    """Counts tokens; requests go through `work`."""
    identity: EngineIdentity
    """Which model it is; all words are "none" where nothing is asked."""


class Stage[C: OutputConfig, U: Unit](ABC):
    """One method: its units, what each asks, and which records come of it.

    A subclass names itself, gives `units` and `work`, and what of the rest it needs. It knows
    nothing of resuming, folders, shards or pages.
    """

    name: ClassVar[str]
    """In METHODS, in every record's provenance and in the folder's marker."""
    version: ClassVar[int]
    """Raised when prompts, parsing or rules change, so that no run mixes two."""
    Config: ClassVar[type[OutputConfig]]
    """Its settings."""
    parts: ClassVar[tuple[str, ...]]
    """Shard sets that its units write."""
    places: ClassVar[Mapping[str, str]] = {}
    """Where those of them lie that are not in `shards/PART`."""
    plain: ClassVar[str | None] = None
    """The shard set of documents that stay as they are, one of `parts` or written in `finish`."""
    owns: ClassVar[tuple[str, ...]] = ()
    """Files that it writes beside those of every run."""
    free: ClassVar[tuple[str, ...]] = ()
    """Settings that no record depends on, or that `identity` has by content."""
    engine_key: ClassVar[str] = "engine"
    """Of the engine in the settings."""
    units_in_memory: ClassVar[int] = 64
    """At a time, where nothing is asked."""

    def __init__(self, config: C) -> None:
        self.config = config

    def identity(self) -> Mapping[str, Any]:
        """What records depend on beside config, engine and corpus, by name."""
        return {}

    def defaults(self) -> Mapping[str, str]:
        """What runs of earlier versions were made from and did not write down, by name."""
        return {"method": f"{self.name}/1"}

    def open(self) -> None:  # noqa: B027 (not every stage needs it, nor the next)
        """Read what is needed beside the corpus; nothing is written yet, so that what a UserError
        asks to be mended may be mended in the same folder."""

    def begin(self, run: StageRun) -> None:  # noqa: B027
        """Make ready; the engine is open, the corpus not yet read."""

    def check(self, document: Document) -> Reason | None:
        """Reason and detail for which a document cannot be used; None where it can."""
        return None

    @abstractmethod
    def units(self, raw: RecordSource | None) -> Sequence[U]:
        """The units, in order, read when they are asked for; `raw`: the corpus, if there is one."""

    @abstractmethod
    def work(self, unit: U) -> Generator[Request, Completion, UnitOutput]:
        """Ask and make records, as a pure function of unit and completions; may ask nothing."""

    def failed(self, unit: U, failure: Reason) -> UnitOutput:
        """What is left of a unit whose work raised an error."""
        return UnitOutput(rejected=[Rejection.at(unit.id, failure.reason, failure.detail)])

    def finish(self, totals: BlockTotals) -> Summary:
        """What the summary says beside what it says of every stage; all units have ended.

        Of a corpus: what became of its documents. `documents_augmented` and `documents_plain` have
        to add up with those that were rejected. Of other records: `in`, `out` and `rejected`.
        """
        return {"documents_augmented": totals.counts["documents"], **reasons_of(totals.unused)}

    def failed_requests(self, summary: Summary) -> FailedRequests:
        """What a summary says of requests without an answer."""
        return FailedRequests.of_summary(summary)

    def card(self, summary: Summary) -> Card | None:
        """What the data is and how it was made; None: it gets no card, and no samples."""
        return None

    @property
    def units_per_block(self) -> int:
        config = self.config
        return config.records_per_shard if isinstance(config, FolderConfig) else 1

    def turns_expected(self, units: Sequence[U]) -> int | None:
        """Requests at most, where that is known; for the progress bar."""
        return None

    def sampled(self) -> C:
        """The config that makes a sample go through the engine whole."""
        return self.config

    @property
    def share_asked(self) -> float:
        """Of the corpus's documents, those about which something is asked."""
        return 1.0

    @property
    def engine_config(self) -> EngineConfig | None:
        """None where nothing is asked."""
        return self.config.engine if isinstance(self.config, AskingConfig) else None


def run_stage(
    stage: Stage[Any, Any],
    progress: Progress = no_progress,
    *,
    engine: Engine | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> Summary:
    """Make the folder `stage.config.output` and give back its summary, which is written last.

    A finished folder of the same settings is left as it is; an unfinished one goes on where it
    stopped, and so does one with requests that failed: those that may pass, or more than
    `engine.max_failed_share`. The same inputs, settings and completions give the same bytes.
    `engine` replaces the one that the config names. `on_start` is called with the folder once it is
    sure that this run may write there.

    Raises:
      UserError: bad corpus, model or settings; a folder of a run with other settings.
    """
    config, asked = stage.config, stage.engine_config
    who = _identity(asked, engine)
    fingerprint = stage_fingerprint(stage, who)
    parts = [RAW] if _reads(config) else []
    parts += [part for part in (*stage.parts, stage.plain) if part]
    output = OutputFolder(Path(config.output), parts, stage.places)
    with output.hold(
        stage.name,
        fingerprint,
        fresh=config.fresh,
        owns=stage.owns,
        defaults=stage.defaults(),
    ) as run:
        finished = output.finished()
        most_failed = asked.max_failed_share if asked else 0.0
        if finished is not None and stage.failed_requests(finished).settled(most_failed):
            return finished
        stage.open()
        run.begin()
        with contextlib.ExitStack() as stack:
            ledger = stack.enter_context(Ledger(output.folder))
            output.begin()
            if on_start is not None:
                on_start(output.folder)
            if engine is None:
                engine = _NoEngine() if asked is None else open_engine(asked)
                stack.callback(engine.close)
            log = stack.enter_context(ProgressLog(output.folder))

            def tell(status: Status) -> None:
                progress(status)
                log(status)

            summary = _make(stage, StageRun(output, ledger, engine, who), tell)
        output.finish(summary, fingerprint)
        run.finish()
    return summary


def stage_fingerprint(stage: Stage[Any, Any], who: EngineIdentity | None = None) -> dict[str, Any]:
    """What a stage's folder is made from, by name: settings, corpus and model by content.

    Raises UserError as `run_stage`.
    """
    config, asked = stage.config, stage.engine_config
    left_out = {*_NOT_IN_RECORDS, *_OF_A_RUN, *stage.free}
    prints = {key: value for key, value in asdict(config).items() if key not in left_out}
    if asked is not None:
        who = who or identify_engine(asked)
        of_engine = {key: getattr(asked, key) for key in _DRAWN} | asdict(who)
        of_engine["vllm.dtype"] = asked.vllm.dtype
        prints |= {f"{stage.engine_key}.{key}": value for key, value in of_engine.items()}
    if _reads(config):
        prints["corpus"] = corpus_sha256(find_files(config.input))
    return {**prints, "method": f"{stage.name}/{stage.version}", **stage.identity()}


def estimate_stage(
    stage: Stage[Any, Any], progress: Progress = no_progress, *, engine: Engine | None = None
) -> Estimate:
    """What `run_stage` would take, from a sample that goes through the engine; keeps nothing.

    Raises:
      UserError: as run_stage.
    """
    config = stage.config
    documents, count = sample_corpus(config.documents(), config.dry_run_documents, config.seed)
    if not documents:
        raise UserError("the corpus holds no document that can be read: see `input`.", key="input")
    with tempfile.TemporaryDirectory(prefix="estimate-") as name:
        sample, folder = Path(name) / "sample.jsonl", Path(name) / "run"
        write_sample(documents, sample)
        whole = {"limit": None, "text_field": "text", "id_field": "id"}
        small = replace(stage.sampled(), input=[str(sample)], output=str(folder), **whole)
        summary = run_stage(type(stage)(small), progress, engine=engine)
        FailedRequests.of_summary(summary).tell(config.engine.max_failed_share)
        with ClosedLedger(folder) as ledger:
            tokens = ledger.token_counts()
    return estimate(
        count,
        len(documents),
        stage.share_asked,
        tokens,
        summary["seconds"],
        gpus=config.gpus,
        price_per_gpu_hour=config.price_per_gpu_hour,
    )


def _make(stage: Stage[Any, Any], run: StageRun, progress: Progress) -> Summary:
    config, asked, output = stage.config, stage.engine_config, run.output
    asking = isinstance(config, AskingConfig)
    stage.begin(run)
    ingested, raw = Ingested(Counter(), Counter()), None
    if _reads(config):
        documents, size = config.documents(), config.records_per_shard
        ingested = ingest_corpus(documents, output, run.ledger, stage.check, size)
        raw = RecordSource(output.shards(RAW), verify=False)
    units = stage.units(raw)
    totals = run_blocks(
        units,
        stage.work,
        stage.failed,
        run.engine,
        run.ledger,
        output,
        parts=stage.parts,
        units_per_block=stage.units_per_block,
        # Twice what the engine takes: it stays full while an early unit holds others back.
        units_in_flight=2 * max_in_flight(asked) if asked else stage.units_in_memory,
        turns_expected=stage.turns_expected(units) if asked else 0,
        progress=progress,
    )
    summary: Summary = {"method": stage.name}
    if asking and asked:
        who = run.identity
        summary |= {"model": who.model, "model_revision": who.revision, "engine": who.name}
        summary |= {"engine_version": who.version, "constrained_decoding": asked.constrain}
    if raw is not None:
        summary["documents_in"] = len(raw) + ingested.rejected.total()
        summary["documents_rejected"] = ingested.rejected.total()
        summary["rejected_documents"] = dict(ingested.rejected)
    summary |= stage.finish(totals)
    if isinstance(config, StageConfig):
        summary["rejected_pieces"] = dict(totals.rejected)
        if asking:
            summary |= asdict(totals.usage) | totals.failed.summary()
            summary |= _cost(config, run.ledger.seconds, totals.usage.completion_tokens)
        summary["seconds"] = round(run.ledger.seconds, 3)
    if raw is not None and stage.parts:
        written = {"documents_plain": _written(output, stage.plain)} if stage.plain else {}
        parts = ("documents_augmented", "documents_plain", "documents_rejected")
        _add_up(summary, "documents_in", parts, written)
    elif "in" in summary:
        left_out = output.left_out.total() + totals.rejected.total()
        written = {"out": _written(output, *stage.parts), "rejected": left_out}
        _add_up(summary, "in", ("out", "rejected"), written)
    if (card := stage.card(summary)) is not None:
        output.write_samples(totals.samples)
        write_card(output.folder, card, summary, ingested.sources, config.seed, run.identity)
    return summary


def reasons_of(unused: Mapping[str, str]) -> Summary:
    """How many documents gave no record, and why."""
    reasons = Counter(unused.values())
    return {"documents_plain": reasons.total(), "plain_reasons": dict(reasons)}


def _add_up(summary: Summary, whole: str, parts: Sequence[str], written: Mapping[str, int]) -> None:
    """What went in came out or was rejected, once; anything else would be our fault."""
    lost = summary[whole] != sum(summary[part] for part in parts)
    if lost or any(summary[part] != count for part, count in written.items()):
        raise RuntimeError(f"records or documents were lost or doubled: {written}, {summary}")


def _written(output: OutputFolder, *parts: str) -> int:
    return sum(Manifest.load(output.shards(part)).records for part in parts)


def _cost(config: AskingConfig, seconds: float, completion_tokens: int) -> Summary:
    hours = seconds / 3600 * config.gpus
    return {
        "gpu_hours": round(hours, 3),
        "cost": round(hours * config.price_per_gpu_hour, 2),
        "completion_tokens_per_second": round(completion_tokens / max(seconds, 1e-9), 1),
    }


def _identity(asked: EngineConfig | None, engine: Engine | None) -> EngineIdentity:
    return EngineIdentity(*["none"] * 4) if asked is None else identify_engine(asked, engine)


def _reads(config: OutputConfig) -> bool:
    return isinstance(config, CorpusConfig)


class _NoEngine:
    """What units that ask nothing are run with."""

    name = version = model = revision = "none"
    context_tokens = 0

    def count_tokens(self, text: object) -> int:
        raise RuntimeError("a stage without an engine counted a model's tokens")

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is not None:
                raise UserError(
                    f"{request.id} asked a model, but the method's settings name none: a config of "
                    "methods that ask is an AskingConfig.",
                    record=request.id,
                )
            yield from ()

    def close(self) -> None:
        pass
