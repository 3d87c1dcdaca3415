"""The records in a WARC container, damaged ones told and passed over."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from ipt_jax.core.rejection import Rejection

_GZIP = b"\x1f\x8b\x08"
_WARC = b"WARC/"
_SCAN_BYTES = 1 << 20
MOST_BYTES = 256 << 20  # of one record; films and archives are passed over unread
_TELLING = {"warcinfo", "request", "metadata", "revisit"}


@dataclass(frozen=True)
class Captured:
    """A whole record."""

    name: str
    """Its `WARC-Record-ID` without the angle brackets; empty where it has none."""
    kind: str
    """Its `WARC-Type`."""
    headers: dict[str, str]
    """The container's headers, their names in lower case."""
    length_bytes: int
    """Length of its block."""
    block: bytes | None
    """What it holds; None where it is longer than 256 MiB."""

    @property
    def wanted(self) -> bool:
        """Whether it holds content, and does not only tell of the crawl."""
        return self.kind not in _TELLING


class _Watched:
    """A file that remembers what went wrong in it: the library says OSError of a damaged format
    as well as of a failing disk or network, and only the first may be passed over."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        return self._watch(self._content.read, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._watch(self._content.seek, offset, whence)

    def tell(self) -> int:
        return self._watch(self._content.tell)

    def close(self) -> None:
        pass

    def _watch(self, call: Callable[..., Any], *arguments: int) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            self.error = error
            raise


def captures(content: IO[bytes]) -> Iterator[tuple[int, Captured | Rejection]]:
    """Every record with its number from 1, in order; where one is damaged, the next whole one is
    searched for behind it. In a file that was compressed as one piece there is none.

    Raises what the file itself raises where it cannot be read.
    """
    from fastwarc.warc import ArchiveIterator  # pyright: ignore[reportMissingModuleSource]

    file = _Watched(content)
    packed = file.read(len(_GZIP)) == _GZIP
    number, gap = 0, ""
    at: int | None = 0
    while at is not None:
        file.seek(at)
        begun, search_from = False, at + 1
        try:
            for record in ArchiveIterator(file, parse_http=False):
                if gap:
                    number += 1
                    yield number, _damaged(gap)
                begun, gap = True, ""
                number += 1
                found = _read(record, file)
                yield number, found
                search_from = int(record.stream_pos) + 1
                if isinstance(found, Rejection):
                    break  # its length may have hidden others
                if not packed:
                    search_from += found.length_bytes
            else:
                left_over = _left_over(file, search_from - 1, begun) if packed else 0
                if left_over:
                    gap = f"{left_over:,} bytes of a record that was cut short"
                break
        except OSError as error:
            if file.error is not None:
                raise
            detail = f"{error}, behind byte {search_from - 1:,}"
            if begun:
                gap = detail  # perhaps of a record whose start is found now, and fails for itself
            else:
                number, gap = number + 1, ""
                yield number, _damaged(detail)
        at = _next_start(file, search_from, packed)
    if gap:
        yield number + 1, _damaged(gap)


def _read(record: Any, file: _Watched) -> Captured | Rejection:
    name = (record.record_id or "").strip("<>")
    headers = {key.lower(): value for key, value in record.headers.to_dict().items()}
    length = int(record.content_length)
    if not headers.get("content-length", "").strip().isdigit():
        return _damaged("it does not say its length", name)
    kind = headers.get("warc-type", "").strip().lower()
    if length > MOST_BYTES:
        return Captured(name, kind, headers, length, None)
    try:
        block = record.reader.read()
    except OSError as error:
        if file.error is not None:
            raise
        return _damaged(str(error), name)
    if len(block) != length:
        return _damaged(f"cut short: {len(block):,} of its {length:,} bytes", name)
    return Captured(name, kind, headers, length, block)


def _left_over(file: _Watched, start: int, whole: bool) -> int:
    """Bytes behind the compressed piece at `start`, which the library passes over in silence;
    where that piece itself has no end and held no `whole` record, its own."""
    file.seek(start)
    decoder = zlib.decompressobj(wbits=31)
    length = 0
    try:
        while not decoder.eof and (block := file.read(_SCAN_BYTES)):
            length += len(block)
            decoder.decompress(block)
    except zlib.error:
        return 0  # not the start of a piece: the file is one piece of many records
    if not decoder.eof:
        return 0 if whole else length
    return len((decoder.unused_data + file.read(_SCAN_BYTES)).strip(b"\0\r\n"))


def _next_start(file: _Watched, start: int, packed: bool) -> int | None:
    """Where the next record seems to begin, from byte `start` on; None where nothing does."""
    mark = _GZIP if packed else b"\n" + _WARC
    at = start if packed else max(start - 1, 0)
    kept = b""
    file.seek(at)
    while block := file.read(_SCAN_BYTES):
        data = kept + block
        place = data.find(mark)
        while place >= 0:
            found = at + place
            if not packed:
                return found + 1
            if _starts_record(file, found):
                return found
            place = data.find(mark, place + 1)
        kept = data[-len(mark) + 1 :]
        at += len(data) - len(kept)
        file.seek(at + len(kept))
    return None


def _starts_record(file: _Watched, at: int) -> bool:
    file.seek(at)
    try:
        start = zlib.decompressobj(wbits=31).decompress(file.read(4096), len(_WARC))
    except zlib.error:
        return False
    return start == _WARC


def _damaged(detail: str, name: str = "") -> Rejection:
    """A record, or a stretch of the file where one must have been, that cannot be read."""
    return Rejection(name, "", "damaged", detail)
