"""JSON lines at random access: where each line begins is found once and kept."""

import functools
import gzip
import io
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from ipt_jax.core import json_lines
from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.files import read_parts
from ipt_jax.core.shards import ShardReader
from ipt_jax.data.formats.files import FileRows, content_sha256, fingerprint_of, write_index

_BLOCK = 16 << 20
_BOM = b"\xef\xbb\xbf"
_PACKED = (".gz", ".zst")
_VERSION = 1


class _LineFile:
    """The lines of one file that are not blank; picklable, threads may share it.

    A plain file is read in place, through an index of where its lines begin. A compressed one is
    written once, line by line, into an ArrayRecord file beside the indexes.
    """

    def __init__(self, path: Path, folder: Path, verify: bool) -> None:
        self.path = path
        self.sha256 = content_sha256(path, folder, verify)
        stem = folder / f"lines-{self.sha256[:16]}"
        self._packed = path.suffix in _PACKED
        self._data = stem.with_suffix(".arrayrecord" if self._packed else ".npy")
        told = stem.with_suffix(".json")  # written last: what it tells of is whole
        if not (told.is_file() and self._data.is_file()):
            records, blank = _pack(path, self._data) if self._packed else _find(path, self._data)
            content = {"version": _VERSION, "records": records, "blank_lines": blank}
            write_index(told, json.dumps(content))
        try:
            content = json_lines.load_json(told)
            self._records, self._blank = int(content["records"]), content["blank_lines"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the index {told} is damaged ({error!r})", path=told, advice="delete it"
            ) from error
        self._shards = ShardReader([self._data], [self._records]) if self._packed else None

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        """int64 [2, records], first byte of each line and the one after its last."""
        try:
            bounds = np.load(self._data, mmap_mode="r" if self._records else None)
            if bounds.shape == (2, self._records) and bounds.dtype == np.int64:
                return bounds
            error: object = f"it holds {bounds.dtype} {bounds.shape}"
        except (OSError, ValueError, EOFError) as caught:
            error = caught
        raise UserError(
            f"the index {self._data} is damaged ({error})", path=self._data, advice="delete it"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_bounds"}

    def __len__(self) -> int:
        return self._records

    def number(self, place: int) -> int:
        """Number of a line in the file, from 1, blank ones counted."""
        blank = np.asarray(self._blank, np.int64)
        return place + 1 + int(np.searchsorted(blank - np.arange(len(blank)), place, side="right"))

    def read(self, places: Sequence[int]) -> list[bytes]:
        """The bytes of lines; none of a line that is longer than is read."""
        if self._shards is not None:
            return self._shards.read(places)
        found: list[bytes] = [b""] * len(places)
        bounds = self._bounds[:, list(places)]
        try:
            with open(self.path, "rb") as file:
                for at in np.argsort(bounds[0], kind="stable").tolist():
                    start, end = int(bounds[0, at]), int(bounds[1, at])
                    if end - start <= json_lines.MAX_LINE_BYTES:
                        found[at] = os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read ({error.strerror})", path=self.path, advice="mend it"
            ) from error
        return found


class JsonlRows(FileRows):
    """The JSON objects of one or several files, a line each; blank lines do not count."""

    unit = "line"

    def __init__(self, files: Sequence[Path], folder: Path, verify: bool) -> None:
        self._files = [_LineFile(path, folder, verify) for path in files]
        self._starts = np.cumsum([0, *map(len, self._files)], dtype=np.int64)
        self.fingerprint = fingerprint_of([file.sha256 for file in self._files])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[_LineFile, int]:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._files[file], index - int(self._starts[file])

    def place(self, index: int) -> tuple[Path, int]:
        file, place = self._place(index)
        return file.path, file.number(place)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The objects. Raises UserError naming file and line of one that is none."""
        lines = read_parts(self._starts, indices, lambda n, places: self._files[n].read(places))
        return [self._object(int(i), line) for i, line in zip(indices, lines, strict=True)]

    def _object(self, index: int, line: bytes) -> dict[str, Any]:
        try:
            if not 0 < len(line) <= json_lines.MAX_LINE_BYTES:
                raise ValueError(json_lines.too_long())
            value = json_lines.parse_json(line.removeprefix(_BOM).decode())
            error = f"it is a {type(value).__name__}"
        except UnicodeDecodeError as caught:
            value, error = None, f"not UTF-8 at byte {caught.start} of the line"
        except ValueError as caught:
            value, error = None, str(caught)
        if not isinstance(value, dict):
            raise DamagedRecord(
                f"{self.where(index)} is no JSON object ({error})",
                record=self.where(index),
                advice="mend or remove the line",
            )
        return value


def _find(path: Path, out: Path) -> tuple[int, list[int]]:
    """Write where the lines of a plain file begin and end; how many, and which are blank."""
    starts, ends, blank, line, at, open_at = [], [], [], 0, 0, 0
    rest = b""  # of the last block: a line that is not at its end
    long_at: int | None = None  # where that line begins, if it is too long to be held
    try:
        with open(path, "rb") as file:
            while True:
                block = file.read(_BLOCK)
                data = rest + block
                breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")).astype(np.int64)
                if not block and (rest or long_at is not None):
                    breaks = np.asarray([len(data)], np.int64)  # the last line has no break
                if len(breaks):
                    begins = np.concatenate([[0], breaks[:-1] + 1])
                    first = np.frombuffer(data + b" ", np.uint8)[begins]
                    # A line that begins as an object is not blank; only the others are looked at.
                    odd = np.flatnonzero(first != ord("{")).tolist()
                    if long_at is not None:
                        odd = [i for i in odd if i]
                    empty = [i for i in odd if not data[begins[i] : breaks[i]].strip()]
                    kept = np.delete(np.arange(len(breaks)), empty)
                    begins += at
                    if long_at is not None:
                        begins[0], long_at = long_at, None
                    starts.append(begins[kept])
                    ends.append(at + breaks[kept])
                    blank += [line + i for i in empty]
                    line += len(breaks)
                    open_at = int(breaks[-1]) + 1
                elif long_at is not None or len(data) > json_lines.MAX_LINE_BYTES:
                    long_at = at if long_at is None else long_at
                    open_at = len(data)
                else:
                    open_at = 0
                rest = data[open_at:]
                at += open_at
                if not block:
                    break
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror})", path=path, advice="mend it"
        ) from error
    bounds = np.stack([np.concatenate([np.empty(0, np.int64), *p]) for p in (starts, ends)])
    data_out = io.BytesIO()
    np.save(data_out, bounds, allow_pickle=False)
    write_index(out, data_out.getvalue())
    return bounds.shape[1], blank


def _pack(path: Path, out: Path) -> tuple[int, list[int]]:
    """Write the lines of a compressed file into an ArrayRecord file; as ``_find``."""
    temporary = out.with_name(f"{out.name}.{uuid.uuid4().hex}.tmp")  # hosts may do it at once
    records, blank = 0, []
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:16,zstd:3")
        try:
            for number, line in enumerate(_decompressed(path)):
                if line is None:
                    writer.write(b"")  # no line that is kept is empty: this stands for a long one
                    records += 1
                elif line.strip():
                    writer.write(line.rstrip(b"\r\n"))
                    records += 1
                else:
                    blank.append(number)
        finally:
            writer.close()
        os.replace(temporary, out)
    except RuntimeError as error:
        raise UserError(
            f"the lines of {path} cannot be written to {out} ({error})",
            path=out,
            advice="free disk space, or set `index_folder` to a folder that can be written",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return records, blank


def _decompressed(path: Path) -> Iterator[bytes | None]:
    try:
        with _opened(path) as file:
            yield from json_lines.read_lines(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be decompressed ({error}): it is damaged or not what its ending says",
            path=path,
            advice="copy it again",
        ) from error


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{path} is read with pyarrow, which is not installed",
            path=path,
            advice="`pip install 'ipt-jax[sources]'`, or decompress the file",
        ) from error
    stream = pyarrow.input_stream(str(path), compression="zstd")
    return io.BufferedReader(stream)  # type: ignore[arg-type]
