"""The gates as a stage: record shards in, record shards out, a line for each rejected record."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_gen.engines import Engine, identify_engine, open_engine
from data_gen.quality.decontaminate import DecontaminateConfig, open_rule
from data_gen.quality.dedup import ExactGate, MinHashConfig, NearDuplicateGate
from data_gen.quality.gate import Gate, RecordList
from data_gen.quality.inputs import InputShards, Survivors
from data_gen.quality.judge import JudgeConfig, JudgeGate
from data_gen.quality.moderation import Classifier, ModerationConfig, ModerationGate
from data_gen.quality.rules import RulesConfig, RulesGate
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.ledger import LEDGER_FILES, Ledger
from ipt_jax.core.bounds import Config, Positive
from ipt_jax.core.errors import UserError, did_you_mean, require
from ipt_jax.core.files import naming
from ipt_jax.core.fingerprint import file_digest, path_digest
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import SHARD_FILES, Record, RecordSource, ShardWriter, atomic_write
from ipt_jax.core.rejection import Reason
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of
from ipt_jax.core.tokenizers import load_tokenizer

READ = "read"  # the gate's name of what could not be read
_BATCH = 256  # records read and checked at a time


@dataclass(frozen=True)
class FilterConfig(Config):
    """Record shards in, those that pass all gates out."""

    input: list[str] = field(default_factory=list)
    """Folders of record shards, in order."""
    output: str = "runs/filtered"
    """Folder: `shards/`, `rejected/`, `details/`, `summary.json`."""
    gates: list[str] = field(default_factory=list)
    """Gates in the order in which records meet them, each at most once: `rules`, `exact_text`,
    `first_sentences`, `near_duplicates`, `substring`, `coverage`, `ngram`, `moderation`,
    `judge`."""
    rules: RulesConfig = field(default_factory=RulesConfig)
    """Of `rules`."""
    near_duplicates: MinHashConfig = field(default_factory=MinHashConfig)
    """Of `near_duplicates`."""
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    """Of `substring`, `coverage` and `ngram`."""
    moderation: ModerationConfig = field(default_factory=ModerationConfig)
    """Of `moderation`."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Of `judge`."""
    records_per_shard: Positive = 4096
    """Records in one shard of the output."""
    fresh: bool = False
    """Delete what an earlier run made in `output` and start over."""

    def check_together(self) -> None:
        valid = f"given: at least one of {', '.join(GATES)}"
        require("gates", self.gates, bool(self.gates), valid)
        for name in self.gates:
            if name not in GATES:
                said = f"gates names {name!r}, which is none. {did_you_mean(name, GATES)}"
                raise UserError(said, key="gates")
        if twice := [name for name, count in Counter(self.gates).items() if count > 1]:
            said = f"gates names {twice[0]!r} twice: a gate is met at most once."
            raise UserError(said, key="gates")


@dataclass(frozen=True)
class Given:
    """What a caller may give instead of what the config names."""

    engine: Engine | None = None
    """The judge."""
    classifier: Classifier | None = None
    """The moderation classifier."""
    ledger: Ledger | None = None
    """Keeps the judge's answers; else they are kept as long as the gate is open."""


def _open_judge(config: FilterConfig, given: Given, stack: ExitStack) -> Gate:
    engine, ledger = given.engine, given.ledger
    if ledger is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="judge-"))
        ledger = stack.enter_context(Ledger(Path(folder)))
    if engine is None:
        engine = open_engine(config.judge.engine)
        stack.callback(engine.close)
    gate = JudgeGate(config.judge, engine, ledger)
    stack.callback(gate.close)
    return gate


GATES: dict[str, Callable[[FilterConfig, Given, ExitStack], Gate]] = {
    "rules": lambda config, given, stack: RulesGate(config.rules),
    "exact_text": lambda config, given, stack: ExactGate("text"),
    "first_sentences": lambda config, given, stack: ExactGate("first_two_sentences"),
    "near_duplicates": lambda config, given, stack: NearDuplicateGate(config.near_duplicates),
    "substring": lambda config, given, stack: open_rule("substring", config.decontaminate),
    "coverage": lambda config, given, stack: open_rule("coverage", config.decontaminate),
    "ngram": lambda config, given, stack: open_rule("ngram", config.decontaminate),
    "moderation": lambda config, given, stack: ModerationGate(config.moderation, given.classifier),
    "judge": _open_judge,
}


_OWNS = (
    *(*RUN_FILES, *LEDGER_FILES, "summary.json", *(f"shards/{name}" for name in SHARD_FILES)),
    *(f"{folder}/{gate}.jsonl" for folder in ("rejected", "details") for gate in (READ, *GATES)),
)
_SECTIONS = {
    "rules": {"rules"},
    "near_duplicates": {"near_duplicates"},
    "decontaminate": {"substring", "coverage", "ngram"},
    "moderation": {"moderation"},
    "judge": {"judge"},
}  # of the config, and the gates that read them
Tell = Callable[[str, int, int], None]
"""Is told of a pass over the records: its gates, how many records are done, and of how many."""


def run_filter(
    config: FilterConfig,
    *,
    given: Given | None = None,
    on_start: Callable[[Path], None] | None = None,
    tell: Tell = lambda gates, done, total: None,
) -> dict[str, Any]:
    """Write the filter folder `config.output` and give back its summary, which is written last.

    Records come out as they went in, in order. `on_start` is called with the folder once it is
    sure that this run may write there. The same input, config and answers of the judge give the
    same bytes. A run with a judge keeps its answers in `ledger.sqlite`: stopped, it goes on, and so
    does one with requests that failed, as `run_stage` does. A finished folder of the same
    input and config is left as it is.

    Raises:
      UserError: input, a model or an evaluation set is missing or bad; a folder of another run.
    """
    corpus, opened = InputShards(config.input), given or Given()
    prints = prints_of(_fingerprint(config, corpus, opened.engine))
    with RunFolder.open(config.output, "filter", prints, owns=_OWNS, fresh=config.fresh) as run:
        if (done := _finished(config, run)) is not None:
            return done
        run.begin()
        if on_start is not None:
            on_start(run.path)
        summary = _run(config, corpus, opened, run.path, tell)
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        atomic_write(run.path / "summary.json", text)
        run.finish()
    return summary


def _run(
    config: FilterConfig, corpus: InputShards, opened: Given, output: Path, tell: Tell
) -> dict[str, Any]:
    with ExitStack() as stack:
        if JudgeGate.name in config.gates and opened.ledger is None:
            opened = replace(opened, ledger=stack.enter_context(Ledger(output)))
        gates = [GATES[name](config, opened, stack) for name in config.gates]
        rejected = stack.enter_context(_Rejected(output / "rejected", config.gates))
        numbers, counts = _run_gates(corpus, gates, rejected, tell)
        with ShardWriter(output / "shards", config.records_per_shard) as shards:
            for some in _batches(numbers):
                for record in corpus.read(some):
                    shards.write(record)
        for gate in gates:
            _write_lines(output / "details" / f"{gate.name}.jsonl", gate.details())
        return _summary(len(corpus), len(numbers), gates, counts, rejected.lines)


def _finished(config: FilterConfig, run: RunFolder) -> dict[str, Any] | None:
    """The summary, where the run ended, with its shards and no request to be asked again."""
    if not run.finished:
        return None
    try:
        RecordSource(run.path / "shards", verify=False)
        summary = load_json(run.path / "summary.json")
    except (UserError, FileNotFoundError, ValueError):
        return None
    settled = failed_requests(summary["gates"]).settled(config.judge.engine.max_failed_share)
    return summary if settled else None


def failed_requests(steps: Iterable[Mapping[str, Any]]) -> FailedRequests:
    """Those of the judge, out of the `gates` of a summary."""
    judge = next((step for step in steps if step["gate"] == JudgeGate.name), {})
    return FailedRequests.of_summary(judge)


def _fingerprint(
    config: FilterConfig, corpus: InputShards, engine: Engine | None
) -> dict[str, Any]:
    """What the records that reach the judge, and its answers, depend on."""
    settings = asdict(config)
    del settings["output"], settings["fresh"]
    drawn = settings["judge"].pop("engine")
    for one in settings["decontaminate"]["evaluations"]:
        del one["path"]  # this and the next: named by content below
    del settings["moderation"]["rules"], settings["moderation"]["model"]
    del settings["rules"]["tokenizer"]
    for section, gates in _SECTIONS.items():
        if not gates & {*config.gates}:
            del settings[section]
    if JudgeGate.name in config.gates:
        identity = identify_engine(config.judge.engine) if engine is None else engine
        said = {key: getattr(identity, key) for key in ("name", "version", "model", "revision")}
        for key in ("max_tokens", "temperature", "top_k", "top_p", "context_tokens"):
            said[key] = drawn[key]
        settings |= {f"judge.engine.{key}": value for key, value in said.items()}
    return {**settings, **_named_files(config), "input": corpus.fingerprints}


def _named_files(config: FilterConfig) -> dict[str, Any]:
    """What the gates read beside the records, by content. Raises UserError for what is missing."""
    found: dict[str, Any] = {}
    if _SECTIONS["decontaminate"] & {*config.gates}:
        for number, file in enumerate(config.decontaminate.evaluations, 1):
            found[f"evaluations/{number}/{file.name}"] = file_digest(Path(file.path).expanduser())
    if "moderation" in config.gates:
        for key in ("rules", "model"):
            path = getattr(config.moderation, key)
            found[f"moderation/{key}"] = path and path_digest(Path(path).expanduser())
    if "rules" in config.gates and config.rules.tokenizer:
        found["rules/tokenizer"] = load_tokenizer(config.rules.tokenizer).prints()
    return found


def check_records(records: Sequence[Record], gates: Sequence[Gate]) -> list[Reason | None]:
    """The gates over records in memory: for each why it may not pass, with the gate's name in
    front of the reason (`rules:min_words`), or None."""
    verdicts: list[Reason | None] = [None] * len(records)
    left = list(range(len(records)))
    for gate in gates:
        some = [records[number] for number in left]
        gate.prepare(RecordList(some))
        for number, verdict in zip(left, gate.check(some), strict=True):
            if verdict is not None:
                reason = f"{gate.name}:{verdict.reason}"
                verdicts[number] = Reason(reason, verdict.detail)
        left = [number for number in left if verdicts[number] is None]
    return verdicts


class _Rejected:
    """The folder `rejected/`: for each gate a file with one line a record, in input order."""

    def __init__(self, folder: Path, gates: Sequence[str]) -> None:
        self._folder, self._gates = folder, gates
        self._files: dict[str, IO[str]] = {}
        self._open = ExitStack()
        self.lines = 0

    def __enter__(self) -> _Rejected:
        self._folder.mkdir(parents=True, exist_ok=True)
        for gate in (READ, *self._gates):  # of a run that was stopped
            (self._folder / f"{gate}.jsonl").unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for gate, file in self._files.items():
            with naming(self._folder / f"{gate}.jsonl"):
                file.flush()
                os.fsync(file.fileno())
        self._open.close()

    def write(self, gate: str, name: str, where: str, verdict: Reason) -> None:
        if gate not in self._files:
            path = self._folder / f"{gate}.jsonl"
            file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            self._files[gate] = self._open.enter_context(file)
        line = {
            "id": name,
            "gate": gate,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "where": where,
        }
        with naming(self._folder / f"{gate}.jsonl"):
            self._files[gate].write(json.dumps(line, ensure_ascii=False) + "\n")
        self.lines += 1


def _run_gates(
    corpus: InputShards, gates: Sequence[Gate], rejected: _Rejected, tell: Tell
) -> tuple[np.ndarray, dict[str, Counter[str]]]:
    """Numbers of the records that pass, and the rejections of each gate by reason."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in (READ, *(g.name for g in gates))}
    # A gate that has to see all records first begins a pass of its own.
    passes: list[list[Gate]] = [[]]
    for gate in gates:
        if gate.needs_corpus:
            passes.append([])
        passes[-1].append(gate)
    numbers = np.arange(len(corpus))
    for first, some_gates in enumerate(passes):
        names = ", ".join(gate.name for gate in some_gates) or READ
        tell(names, 0, len(numbers))
        if some_gates and some_gates[0].needs_corpus:
            some_gates[0].prepare(Survivors(corpus, numbers))
        kept: list[int] = []
        done = 0
        for batch in _batches(numbers):
            # What could be read once can be read again.
            if first == 0:
                records = _readable(corpus, batch, rejected, counts[READ])
            else:
                records = dict(zip(batch, corpus.read(batch), strict=True))
            for gate in some_gates:
                records = _passed(gate, records, corpus, rejected, counts[gate.name])
            kept += records
            done += len(batch)
            tell(names, done, len(numbers))
        numbers = np.asarray(kept, np.int64)
    return numbers, counts


def _readable(
    corpus: InputShards, numbers: Sequence[int], rejected: _Rejected, counts: Counter[str]
) -> dict[int, Record]:
    good: dict[int, Record] = {}
    for number, found in corpus.read_good(numbers):
        if isinstance(found, Record) and found.text.strip():
            good[number] = found
            continue
        name = found.id if isinstance(found, Record) else ""
        wrong = (
            Reason("empty", "its text holds nothing")
            if isinstance(found, Record)
            else Reason("damaged", str(found))
        )
        counts[wrong.reason] += 1
        rejected.write(READ, name, corpus.where(number), wrong)
    return good


def _passed(
    gate: Gate,
    records: Mapping[int, Record],
    corpus: InputShards,
    rejected: _Rejected,
    counts: Counter[str],
) -> dict[int, Record]:
    passed: dict[int, Record] = {}
    verdicts = gate.check(list(records.values())) if records else []
    for (number, record), verdict in zip(records.items(), verdicts, strict=True):
        if verdict is None:
            passed[number] = record
        else:
            counts[verdict.reason] += 1
            rejected.write(gate.name, record.id, corpus.where(number), verdict)
    return passed


def _batches(numbers: np.ndarray) -> Iterator[list[int]]:
    for first in range(0, len(numbers), _BATCH):
        yield numbers[first : first + _BATCH].tolist()


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(dict(line), ensure_ascii=False) + "\n" for line in lines)
    if text:
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, text.encode(errors="backslashreplace"))


def _summary(
    total: int,
    passed: int,
    gates: Sequence[Gate],
    counts: Mapping[str, Counter[str]],
    lines: int,
) -> dict[str, Any]:
    """Counts of the run. Raises RuntimeError where they do not add up, which would be our fault."""
    steps: list[dict[str, Any]] = []
    left = total
    for name, own in [(READ, {}), *((gate.name, gate.summary()) for gate in gates)]:
        out = left - counts[name].total()
        reasons = dict(sorted(counts[name].items()))
        steps.append({"gate": name, "in": left, "out": out, "rejected": reasons, **own})
        left = out
    if left != passed or total != passed + lines:
        raise RuntimeError(
            f"{total} records went in, {passed} came out, {lines} lines of rejected records were "
            f"written, and {total - left} were counted: these must add up"
        )
    return {"in": total, "out": passed, "rejected": lines, "gates": steps}
