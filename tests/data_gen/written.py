"""What a stage wrote, as tests compare it."""

from __future__ import annotations

from pathlib import Path

from ipt_jax.core.records import Record, RecordSource


def records(folder: Path) -> list[Record]:
    """All of a shard set."""
    source = RecordSource(folder)
    return source.read(range(len(source)))


def written(output: Path) -> dict[str, bytes]:
    """The bytes of shards, manifests, rejections and samples, which no clock changes."""
    files = [*output.glob("shards/*/*"), *output.glob("rejected/*"), *output.glob("samples.json")]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}
