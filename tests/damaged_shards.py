"""Shards spoilt as disks spoil them, and the records that this costs."""

from pathlib import Path

from ipt_jax.core.errors import UserError
from ipt_jax.core.records import RecordSource


def damage(shard: Path, at: int | None = None) -> None:
    """Turn the bits of one byte: in the middle if not told."""
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 255
    shard.write_bytes(data)


def unreadable(folder: Path) -> list[int]:
    """The records that cannot be read, one by one."""
    source, found = RecordSource(folder, skip_damaged=True), []
    for index in range(len(source)):
        try:
            source.read([index])
        except UserError:
            found.append(index)
    return found
