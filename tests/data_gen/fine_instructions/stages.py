"""Corpora of shards, an engine that stops, and what a run of a stage leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import Completion, Request
from data_gen.stages.stage import Stage, Summary, run_stage
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from tests.data_gen.analysis.scripted import ScriptedEngine


def write_shards(folder: Path, records: Iterable[Record]) -> str:
    with ShardWriter(folder) as shards:
        for record in records:
            shards.write(record)
    return str(folder)


def records_of(folder: Path) -> list[Record]:
    source = RecordSource(folder)
    return source.read(range(len(source)))


def rejected_of(output: Path) -> dict[str, str]:
    """Reasons by id, of documents and of pieces."""
    lines = [line for path in (output / "rejected").iterdir() for line in path.open()]
    return {piece["id"]: piece["reason"] for piece in map(json.loads, lines)}


class Stopping(ScriptedEngine):
    """Dies after so many answers."""

    def __init__(self, say: Callable[[str], str | None], left: int) -> None:
        super().__init__(say)
        self.left = left

    def answer(self, request: Request) -> Completion:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().answer(request)


def run_stopped_and_whole(
    make: Callable[[str], Stage[Any, Any]], say: Callable[[str], str | None], after: int
) -> tuple[Summary, list[Request]]:
    """The summary of a run that was stopped and went on, and all that was asked at last.

    It leaves what a run leaves that was not stopped, and asks nothing twice.
    """
    whole = ScriptedEngine(say)
    expected = run_stage(make("whole"), engine=whole)
    first, second = Stopping(say, after), ScriptedEngine(say)
    with pytest.raises(KeyboardInterrupt):
        run_stage(make("stopped"), engine=first)
    summary = run_stage(make("stopped"), engine=second)
    # What the engine could not answer is asked again, nothing else.
    kept = [one for one in first.asked if say(one.prompt[0].content) is not None]  # type: ignore[union-attr]
    answered = [request.id for request in (*kept, *second.asked)]
    assert sorted(answered) == sorted(request.id for request in whole.asked)
    assert second.asked and len(first.asked) == after
    took = ("seconds", "completion_tokens_per_second", "gpu_hours")
    assert {k: v for k, v in summary.items() if k not in took} == {
        k: v for k, v in expected.items() if k not in took
    }
    folders = [Path(make(name).config.output) for name in ("stopped", "whole")]
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".sqlite")
        for folder in folders
    ]
    assert files[0] == files[1]
    for path in files[0]:
        if path.suffix == ".arrayrecord" or path.parent.name == "rejected":
            assert (folders[0] / path).read_bytes() == (folders[1] / path).read_bytes(), path
    return summary, whole.asked
