"""One shard of records on its way to the disk."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from ipt_jax.core.errors import UserError
from ipt_jax.core.manifest import ShardInfo, file_sha256

_COUNTED_AT_ONCE = 256  # texts


class TokenCounter(Protocol):
    """What is needed of a tokenizer to put token counts into the manifest."""

    @property
    def name(self) -> str:
        """Key of the counts."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS and EOS."""
        ...


class ShardFile:
    """A shard is a temporary file beside its place until ``publish`` renames it.

    Raises UserError, naming the shard, where the disk is full or may not be written.
    """

    def __init__(self, path: Path, options: str, tokenizer: TokenCounter | None = None) -> None:
        self.path = path
        self.records = 0
        self._temporary = path.with_name(f"{path.name}.tmp")
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._text_bytes = self._tokens = 0
        with shard_errors(self.path):
            self._writer: ArrayRecordWriter | None = ArrayRecordWriter(
                str(self._temporary), options
            )

    def write(self, data: bytes, text: str) -> None:
        """Append a serialised record; ``text`` is what the manifest counts."""
        assert self._writer is not None, "written to after its end"
        with shard_errors(self.path):
            self._writer.write(data)
        self.records += 1
        self._text_bytes += len(text.encode())
        if self._tokenizer is not None:
            self._texts.append(text)
            if len(self._texts) >= _COUNTED_AT_ONCE:
                self._count_tokens()

    def finish(self) -> ShardInfo:
        """Everything on the disk, read back and summed up; still under its temporary name."""
        self._count_tokens()
        with shard_errors(self.path):
            self._close()
            with open(self._temporary, "rb") as file:
                os.fsync(file.fileno())
            written = ArrayRecordReader(str(self._temporary))
            try:
                whole = written.ok() and written.num_records() == self.records
            finally:
                written.close()
            if not whole:
                raise OSError("the file does not read back whole")
            return ShardInfo(
                name=self.path.name,
                records=self.records,
                bytes=self._temporary.stat().st_size,
                sha256=file_sha256(self._temporary),
                text_bytes=self._text_bytes,
                tokens={self._tokenizer.name: self._tokens} if self._tokenizer else {},
            )

    def publish(self) -> None:
        """Give the finished shard its name."""
        with shard_errors(self.path):
            os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Remove what was not published."""
        # What the close of a file that is thrown away says of it no longer matters.
        with contextlib.suppress(RuntimeError):
            self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()  # only here does the library tell of a failed write

    def _count_tokens(self) -> None:
        if self._tokenizer is not None and self._texts:
            self._tokens += sum(map(len, self._tokenizer.encode_batch(self._texts)))
            self._texts.clear()


@contextlib.contextmanager
def shard_errors(path: Path) -> Iterator[None]:
    """The library raises RuntimeError for a full disk; say which shard and what to do."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"shard {path} could not be written ({error})",
            path=path,
            advice=(
                "free disk space or name a folder you may write to, then run the same command "
                "again. Nothing half-written was left"
            ),
        ) from error
