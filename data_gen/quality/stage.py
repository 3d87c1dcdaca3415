"""The gates as a stage: record shards in, record shards out, a line for each rejected record."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.engines import Completion, EngineConfig, Request
from data_gen.quality.decontaminate import DecontaminateConfig, open_rule
from data_gen.quality.dedup import ExactGate, MinHashConfig, NearDuplicateGate
from data_gen.quality.gate import Gate, RecordList
from data_gen.quality.inputs import FilteredRecords, InputShards
from data_gen.quality.judge import JudgeConfig, JudgeGate
from data_gen.quality.moderation import Classifier, ModerationConfig, ModerationGate
from data_gen.quality.rules import RulesConfig, RulesGate
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.config import FolderConfig
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.outputs import Reject
from data_gen.stages.stage import Stage, StageRun, Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.errors import UserError, did_you_mean, require
from ipt_jax.core.files import atomic_write
from ipt_jax.core.fingerprint import file_digest, path_digest
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.run_folder import print_of
from ipt_jax.core.tokenizers import load_tokenizer

READ = "read"  # the gate's name of what could not be read
_BATCH = 256  # records read and checked at a time


@dataclass(frozen=True, kw_only=True)
class FilterConfig(FolderConfig):
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


GATES: dict[str, Callable[[FilterConfig, Classifier | None], Gate]] = {
    "rules": lambda config, _: RulesGate(config.rules),
    "exact_text": lambda config, _: ExactGate("text"),
    "first_sentences": lambda config, _: ExactGate("first_two_sentences"),
    "near_duplicates": lambda config, _: NearDuplicateGate(config.near_duplicates),
    "substring": lambda config, _: open_rule("substring", config.decontaminate),
    "coverage": lambda config, _: open_rule("coverage", config.decontaminate),
    "ngram": lambda config, _: open_rule("ngram", config.decontaminate),
    "moderation": lambda config, given: ModerationGate(config.moderation, given),
    "judge": lambda config, _: JudgeGate(config.judge),
}
_SECTIONS = {
    "rules": {"rules"},
    "near_duplicates": {"near_duplicates"},
    "decontaminate": {"substring", "coverage", "ngram"},
    "moderation": {"moderation"},
    "judge": {"judge"},
}  # of the config, and the gates that read them
Tell = Callable[[str, int, int], None]
"""Is told of a pass over the records: its gates, how many records are done, and of how many."""


class Filter(Stage[FilterConfig, Record]):
    """Records that pass all gates come out as they went in, in order; the units are those.

    Which they are is decided first, pass by pass: a gate that has to see all records that reach it
    begins one. What is held of a record that passed is its number, of one that did not nothing but
    what its gate holds; its line is in `rejected/GATE.jsonl`. A run that is begun again decides
    again, with the judge's answers out of the ledger.
    """

    name, version, Config = "filter", 1, FilterConfig
    parts, places = ("kept",), {"kept": "shards"}
    owns = tuple(
        f"{folder}/{gate}.jsonl" for folder in ("rejected", "details") for gate in (READ, *GATES)
    )
    free = tuple(_SECTIONS)
    engine_key = "judge.engine"

    def __init__(
        self,
        config: FilterConfig,
        *,
        classifier: Classifier | None = None,
        tell: Tell = lambda gates, done, total: None,
    ) -> None:
        """`classifier` moderates in place of the model that the config names.

        Raises UserError: no such input.
        """
        super().__init__(config)
        self._corpus = InputShards(config.input)
        self._classifier, self._tell = classifier, tell

    @property
    def engine_config(self) -> EngineConfig | None:
        return self.config.judge.engine if "judge" in self.config.gates else None

    def identity(self) -> Mapping[str, Any]:
        """The settings of the gates that are met, and what those read, by content."""
        config, met = self.config, {*self.config.gates}
        found: dict[str, Any] = {
            key: asdict(getattr(config, key)) for key in _SECTIONS if _SECTIONS[key] & met
        }
        if "judge" in found:
            found["judge"].pop("engine")
            # Earlier versions had neither, and asked so; those did not ask again, and what they
            # could not read they rejected, as it would be now.
            if found["judge"]["form"] == "json":
                del found["judge"]["form"]
            if found["judge"]["ask_again"]:
                del found["judge"]["ask_again"]
        if "decontaminate" in found:
            for number, one in enumerate(found["decontaminate"]["evaluations"], 1):
                path = Path(one.pop("path")).expanduser()
                found[f"evaluations/{number}/{one['name']}"] = file_digest(path)
        if "moderation" in found:
            for key in ("rules", "model"):
                path = found["moderation"].pop(key)
                found[f"moderation/{key}"] = path and path_digest(Path(path).expanduser())
        if "rules" in found and (tokenizer := found["rules"].pop("tokenizer")):
            found["rules/tokenizer"] = load_tokenizer(tokenizer).prints()
        return {**found, "input": self._corpus.fingerprints}

    def defaults(self) -> Mapping[str, str]:
        known, asked = {**super().defaults()}, self.config.judge.engine
        known["judge.engine.constrain"] = print_of(asked.constrain)
        return known | {"judge.engine.vllm.dtype": asked.vllm.dtype}

    def open(self) -> None:
        self._gates = [GATES[name](self.config, self._classifier) for name in self.config.gates]

    def begin(self, run: StageRun) -> None:
        self._run = run
        for gate in self._gates:
            gate.begin(run.engine, run.ledger)

    def units(self, raw: RecordSource | None) -> RecordUnits:
        output, ledger = self._run.output, self._run.ledger
        with ExitStack() as stack:
            for gate in self._gates:
                stack.callback(gate.close)
            reject = stack.enter_context(output.rejected(READ, *self.config.gates))
            numbers = self._decide(reject)
        kept = hashlib.sha256(numbers.tobytes()).hexdigest()
        if ledger.note("kept") != kept:  # the judge did not answer all when blocks were written
            for block in ledger.blocks():
                ledger.forget_block(block)
            ledger.set_note("kept", kept)
        return RecordUnits(FilteredRecords(self._corpus, numbers))

    def _decide(self, reject: Reject) -> np.ndarray:
        """Numbers of the records that pass."""
        corpus = self._corpus
        self._counts = {name: Counter[str]() for name in (READ, *self.config.gates)}

        def left_out(gate: str, number: int, name: str, wrong: Reason) -> None:
            self._counts[gate][wrong.reason] += 1
            reject(gate, Rejection(name, corpus.where(number), *wrong))

        def readable(batch: Sequence[int]) -> Iterator[tuple[int, Record]]:
            for number, found in corpus.read_good(batch):
                if not isinstance(found, Record):
                    left_out(READ, number, "", Reason("damaged", str(found)))
                elif not found.text.strip():
                    left_out(READ, number, found.id, Reason("empty", "its text holds nothing"))
                else:
                    yield number, found

        passes: list[list[Gate]] = [[]]
        for gate in self._gates:
            if gate.needs_corpus:
                passes.append([])
            passes[-1].append(gate)
        numbers = np.arange(len(corpus))
        for place, gates in enumerate(passes):
            names = ", ".join(gate.name for gate in gates) or READ
            self._tell(names, 0, len(numbers))
            if gates and gates[0].needs_corpus:
                gates[0].prepare(FilteredRecords(corpus, numbers))
            kept: list[int] = []
            for first in range(0, len(numbers), _BATCH):
                batch = numbers[first : first + _BATCH].tolist()
                # What could be read once can be read again.
                records = zip(batch, corpus.read(batch), strict=True) if place else readable(batch)
                left = list(records)
                for gate in gates:
                    verdicts = gate.check([record for _, record in left]) if left else []
                    judged = list(zip(left, verdicts, strict=True))
                    for (number, record), wrong in judged:
                        if wrong is not None:
                            left_out(gate.name, number, record.id, wrong)
                    left = [one for one, wrong in judged if wrong is None]
                kept += [number for number, _ in left]
                self._tell(names, first + len(batch), len(numbers))
            numbers = np.asarray(kept, np.int64)
        return numbers

    def work(self, record: Record) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # the judge has answered
        return UnitOutput([("kept", record)])

    def finish(self, totals: BlockTotals) -> Summary:
        left, steps = len(self._corpus), list[dict[str, Any]]()
        own = {gate.name: gate.summary() for gate in self._gates}
        for name, reasons in self._counts.items():
            out = left - reasons.total()
            counted = dict(sorted(reasons.items()))
            steps.append({"gate": name, "in": left, "out": out, "rejected": counted})
            steps[-1] |= own.get(name, {})
            left = out
        for gate in self._gates:
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in gate.details()]
            if lines:
                path = self._run.output.folder / "details" / f"{gate.name}.jsonl"
                path.parent.mkdir(exist_ok=True)
                atomic_write(path, "".join(lines).encode(errors="backslashreplace"))
        total = len(self._corpus)
        return {"in": total, "out": left, "rejected": total - left, "gates": steps}

    def failed_requests(self, summary: Summary) -> FailedRequests:
        """Those of the judge."""
        judge = next((step for step in summary["gates"] if step["gate"] == JudgeGate.name), {})
        return FailedRequests.of_summary(judge)


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
