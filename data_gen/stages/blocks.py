"""Units in blocks: the output of a block appears whole or not at all, and is never made twice.

A block is so many consecutive units. Of each part (`augmented`, …) it has a shard of its own,
numbered as the block is, and a file of what was rejected. All are written under temporary names,
synced, renamed, and only then is the block finished in the ledger. One with requests that the
engine could not answer is written too, but not finished: the next run asks for them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_gen.engines.base import Completion, Engine, Request
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.ledger import Ledger
from data_gen.stages.outputs import OutputFolder
from data_gen.stages.runner import Progress, Unit, Usage, no_progress, run_units
from ipt_jax.core.records import (
    DEFAULT_OPTIONS,
    MANIFEST_NAME,
    Manifest,
    Record,
    ShardInfo,
    atomic_write,
    file_sha256,
    serialize,
    shard_name,
)
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.shard_file import ShardFile

_SHARD = re.compile(r"part-\d{5,}\.arrayrecord(\.tmp)?")
_SAMPLES = 8  # shown to a person, of the first block


@dataclass(frozen=True)
class UnitOutput:
    """What one unit leaves behind."""

    records: Sequence[tuple[str, Record]] = ()
    """Part and record."""
    rejected: Sequence[Rejection] = ()
    """What was not used of its completions."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Added up over all units."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Ids of documents that gave no record, with the reason."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Its records as they are shown to a person."""


@dataclass(frozen=True)
class BlockTotals:
    """All blocks of a run together."""

    counts: Counter[str]
    """Sums of UnitOutput.counts."""
    rejected: Counter[str]
    """Rejected pieces by reason."""
    unused: dict[str, str]
    """Ids of documents that gave no record, with the reason."""
    samples: list[dict[str, Any]]
    """The first records."""
    usage: Usage
    """Of all units."""
    failed: FailedRequests
    """Requests without an answer."""


def run_blocks[U: Unit](
    units: Sequence[U],
    work: Callable[[U], Generator[Request, Completion, UnitOutput]],
    failed_output: Callable[[U, Reason], UnitOutput],
    engine: Engine,
    ledger: Ledger,
    folder: OutputFolder,
    *,
    parts: Sequence[str],
    units_per_block: int,
    units_in_flight: int = 1024,
    turns_expected: int | None = None,
    progress: Progress = no_progress,
) -> BlockTotals:
    """Bring every block of `units` to its end and write the manifests of `parts`.

    Finished blocks are passed over: their files are only compared with their checksums. One whose
    files are gone or changed is made again from the ledger. `units` are read one after another;
    `work` must be a pure function of the unit and the completions, `failed_output` (of a unit whose
    work raised) of the unit and the failure.

    Raises:
      UserError: as run_units, and where a shard cannot be written.
    """
    count = -(-len(units) // units_per_block)
    finished = _finished(ledger, folder, count)
    todo = [number for number in range(count) if number not in finished]
    for part in parts if todo else ():  # no reader takes the folder for whole meanwhile
        (folder.shards(part) / MANIFEST_NAME).unlink(missing_ok=True)
    failed = FailedRequests()

    def members(number: int) -> range:
        first = number * units_per_block
        return range(first, min(first + units_per_block, len(units)))

    rejected = sum((Counter(result["rejected"]) for result in finished.values()), Counter[str]())
    ended = run_units(
        (units[index] for number in todo for index in members(number)),
        work,
        engine,
        ledger,
        units_in_flight=units_in_flight,
        turns_expected=turns_expected,
        before=sum((Usage(**result["usage"]) for result in finished.values()), Usage()),
        progress=lambda status: progress(replace(status, rejected=rejected)),
    )
    with contextlib.closing(ended):
        for number in todo:
            before = failed.failed
            with _Block(folder, number) as block:
                for _ in members(number):
                    done = next(ended)
                    failed.add(done.errors)
                    output = done.outcome
                    if isinstance(output, Reason):
                        output = failed_output(done.unit, output)
                    rejected.update(piece.reason for piece in output.rejected)
                    block.add(output, done.usage)
                finished[number] = block.publish()
            if failed.failed == before:
                ledger.finish_block(number, finished[number])
        for done in ended:
            raise RuntimeError(f"the unit {done.unit.id} ended though it was not begun")
    ordered = [finished[number] for number in range(count)]
    for part in parts:
        _write_manifest(folder.shards(part), ordered, part)
    return _totals(ordered, failed)


def _finished(ledger: Ledger, folder: OutputFolder, count: int) -> dict[int, dict[str, Any]]:
    """Results of the blocks whose files are still as they were written."""
    found = {}
    for number, result in ledger.blocks().items():
        files = [(folder.rejected_pieces(number), result.get("rejected_sha256"))]
        for part, info in result["shards"].items():
            files.append((folder.shards(part) / info["name"], info["sha256"]))
        whole = all(path.is_file() and file_sha256(path) == sha256 for path, sha256 in files)
        if number < count and whole:
            found[number] = result
        else:
            ledger.forget_block(number)
    return found


class _Block:
    """The files of one block while they are written."""

    def __init__(self, folder: OutputFolder, number: int) -> None:
        self._folder, self._number = folder, number
        self._shards: dict[str, ShardFile] = {}
        self._lines: list[bytes] = []
        self._counts, self._reasons = Counter[str](), Counter[str]()
        self._unused: dict[str, str] = {}
        self._samples: list[dict[str, Any]] = []
        self._usage = Usage()

    def __enter__(self) -> _Block:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards.values():
            shard.discard()

    def add(self, output: UnitOutput, usage: Usage) -> None:
        """Take in what the next unit leaves behind."""
        for part, record in output.records:
            if part not in self._shards:
                place = self._folder.shards(part)
                place.mkdir(parents=True, exist_ok=True)
                path = place / shard_name(self._number)
                self._shards[part] = ShardFile(path, DEFAULT_OPTIONS, self._folder.tokenizer)
            self._shards[part].write(serialize(record), record.text)
        for piece in output.rejected:
            self._reasons[piece.reason] += 1
            self._lines.append(piece.line())
        self._counts.update(output.counts)
        self._unused.update(output.unused)
        if self._number == 0:
            self._samples += [dict(one) for one in output.samples][: _SAMPLES - len(self._samples)]
        self._usage += usage

    def publish(self) -> dict[str, Any]:
        """Make the files last under their names; the block's result for the ledger."""
        infos = {part: shard.finish() for part, shard in self._shards.items()}
        rejected = b"".join(self._lines)
        atomic_write(self._folder.rejected_pieces(self._number), rejected)
        for shard in self._shards.values():
            shard.publish()
        return {
            "shards": {part: asdict(info) for part, info in infos.items()},
            "rejected_sha256": hashlib.sha256(rejected).hexdigest(),
            "counts": dict(self._counts),
            "rejected": dict(self._reasons),
            "unused": self._unused,
            "samples": self._samples,
            "usage": asdict(self._usage),
        }


def _write_manifest(folder: Path, results: Sequence[Mapping[str, Any]], part: str) -> None:
    infos = [ShardInfo(**r["shards"][part]) for r in results if part in r["shards"]]
    folder.mkdir(parents=True, exist_ok=True)
    names = {info.name for info in infos}
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in names:
            path.unlink()  # of an earlier run, or of one that was killed
    Manifest(folder, tuple(infos)).write(folder)


def _totals(results: Sequence[Mapping[str, Any]], failed: FailedRequests) -> BlockTotals:
    totals = BlockTotals(Counter(), Counter(), {}, [], Usage(), failed)
    usage = Usage()
    for result in results:
        totals.counts.update(result["counts"])
        totals.rejected.update(result["rejected"])
        totals.unused.update(result["unused"])
        totals.samples.extend(result["samples"])
        usage += Usage(**result["usage"])
    failed.requests = usage.completions
    return replace(totals, usage=usage)
