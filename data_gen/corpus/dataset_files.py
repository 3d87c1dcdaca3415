"""The files of a data set in its official layout, and the records in them."""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, Self, cast
from xml.etree import ElementTree

from ipt_jax.core import json_lines
from ipt_jax.core.arrow_rows import rows_of
from ipt_jax.core.errors import UserError

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
# Fields of these sets are whole articles; the csv module's own limit is 131,072 characters.
csv.field_size_limit(1 << 27)
# What a file that is damaged, or is none of its kind, makes its readers raise.
UNREADABLE = (OSError, EOFError, ValueError, csv.Error, zlib.error, ElementTree.ParseError)
# What a record that is not as its layout promises makes its adapter raise.
MALFORMED = (KeyError, TypeError, IndexError, ValueError, AttributeError)


@dataclass(frozen=True)
class Located:
    """A record and where it stands, or why it could not be read."""

    where: str
    """File, and line or place within it."""
    value: Any = None
    """The record as the file holds it."""
    error: str = ""
    """What is wrong with it; empty for a record that was read."""


@dataclass(frozen=True)
class DataFile:
    """One file, decompressed as it is read."""

    name: str
    """Path within the data set, without .gz."""
    path: Path
    """Where it lies now."""
    part: str = ""
    """The split that is wanted of it: `train` where the pattern was `name#train`."""

    def open(self) -> IO[bytes]:
        """Its bytes, decompressed as they are read."""
        return (
            cast(IO[bytes], gzip.open(self.path))
            if self.path.suffix == ".gz"
            else open(self.path, "rb")
        )

    def text(self) -> str:
        """Its content; a byte order mark is dropped. Raises OSError or EOFError, and ValueError
        where it is not UTF-8, or damaged."""
        try:
            with self.open() as file:
                return file.read().decode("utf-8-sig")
        except zlib.error as error:
            raise ValueError(str(error)) from error

    def json(self) -> Any:
        """Its content as JSON. Raises one of UNREADABLE."""
        return json_lines.parse_json(self.text())

    def rows(self, header: Sequence[str] | None = None) -> Iterator[Located]:
        """Records of JSON lines, a JSON list, CSV, TSV (by the file's ending) or parquet.

        `header` names the columns of a table without a line of names.
        """
        kind = Path(self.name).suffix.lower()
        try:
            if kind == ".parquet":
                yield from self._parquet()
            elif kind in (".csv", ".tsv"):
                yield from self._table("\t" if kind == ".tsv" else ",", header)
            else:
                yield from self._json_rows()
        except UNREADABLE as error:
            yield unreadable(self, error)

    def _parquet(self) -> Iterator[Located]:
        import pyarrow.parquet

        place = 0
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches():
                for row in rows_of(batch, ()):
                    error = row if isinstance(row, str) else ""
                    yield Located(f"{self.name}[{place}]", None if error else row, error)
                    place += 1

    def _table(self, delimiter: str, header: Sequence[str] | None) -> Iterator[Located]:
        lines = io.StringIO(self.text(), newline="")
        for row in csv.DictReader(lines, header, delimiter=delimiter):
            yield Located(f"{self.name}:{row.get('id') or place_of(row)}", row)

    def _json_rows(self) -> Iterator[Located]:
        with self.open() as file:
            if file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                for place, value in enumerate(self.json()):
                    yield Located(f"{self.name}[{place}]", value)
                return
            file.seek(0)
            for number, line in enumerate(json_lines.read_lines(file), start=1):
                where = f"{self.name}:{number}"
                if line is None:
                    yield Located(where, error=json_lines.too_long())
                elif line.strip():
                    try:
                        value = json_lines.parse_json(line.decode("utf-8-sig"))
                    except UnicodeDecodeError as error:
                        yield Located(where, error=f"cannot be read: {error}")
                    except ValueError as error:
                        yield Located(where, error=f"is not JSON: {error}")
                    else:
                        yield Located(where, value)


def place_of(row: dict[Any, Any]) -> str:
    """A short name for a table's row that has no id."""
    return next((str(value)[:40] for value in row.values() if value), "empty row")


class Files:
    """The files of a data set's folder; archives in it are read as if they were unpacked.

    Use it in a `with` block: unpacked archives are removed at its end.
    """

    def __init__(self, folder: str | Path, patterns: Sequence[str]) -> None:
        self._root, self._patterns = Path(folder), tuple(patterns)
        self._unpacked = tempfile.TemporaryDirectory(prefix="data-set-")
        self._all: list[DataFile] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unpacked.cleanup()

    def chosen(self) -> list[DataFile]:
        """The files of the patterns that the set was opened with.

        Raises UserError where there are none.
        """
        found = self.find(*self._patterns)
        if not found:
            raise UserError(
                f"{self._root} holds no file {' or '.join(self._patterns)}: give the data set's "
                "folder as its authors publish it, or name its files in `files`.",
                key="files",
                path=self._root,
            )
        return found

    def check(self) -> None:
        """Raises UserError as `chosen` does; archives are unpacked only where no file outside them
        is one of the patterns'."""
        if not _matching(self._walk(self._folder(), "", archives=False), self._patterns):
            self.chosen()

    def find(self, *patterns: str) -> list[DataFile]:
        """Files whose path in the set ends like one of the patterns, sorted by name.

        `name#split` finds a file of several splits, of which its reader keeps the one.
        """
        return _matching(self._files(), patterns)

    def at(self, name: str) -> DataFile | None:
        """The file of this very path in the set."""
        return next((file for file in self._files() if file.name == name), None)

    def _folder(self) -> Path:
        if not self._root.is_dir():
            raise UserError(
                f"there is no folder {self._root}: give that of the data set.", path=self._root
            )
        return self._root

    def _files(self) -> list[DataFile]:
        if self._all is None:
            self._all = sorted(self._walk(self._folder(), ""), key=lambda file: file.name)
        return self._all

    def _walk(self, folder: Path, prefix: str, archives: bool = True) -> Iterator[DataFile]:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            name = prefix + path.relative_to(folder).as_posix()
            if name.endswith(_ARCHIVES):
                if archives:
                    yield from self._walk(self._unpack(path), f"{name}/")
            else:
                yield DataFile(name.removesuffix(".gz"), path)

    def _unpack(self, archive: Path) -> Path:
        target = Path(tempfile.mkdtemp(dir=self._unpacked.name))
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(target)
            else:
                with tarfile.open(archive) as packed:
                    packed.extractall(target, filter="data")
        # zipfile raises a RuntimeError where an archive has a password, as ReClor's has.
        except (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise UserError(
                f"the archive {archive} cannot be unpacked ({error}): unpack it yourself and take "
                "the archive away, or download it again.",
                path=archive,
            ) from error
        return target


def _matching(files: Iterable[DataFile], patterns: Sequence[str]) -> list[DataFile]:
    wanted = [pattern.partition("#")[::2] for pattern in patterns]
    found = [
        replace(file, part=part)
        for file in files
        for name, part in wanted
        if fnmatch(f"/{file.name}", f"*/{name}")
    ]
    return list(dict.fromkeys(found))


Records = Callable[[Files], Iterator[Located]]
"""Reads the chosen files of a data set, one record at a time."""


def unreadable(file: DataFile, error: Exception) -> Located:
    """A file that cannot be read is one record that could not be."""
    return Located(file.name, error=f"cannot be read: {error}")


def unquoted_rows(file: DataFile) -> Iterator[Located]:
    """The cells of each line of a table of tabs in which a quote is a character like others."""
    try:
        text = file.text()
    except UNREADABLE as error:
        yield unreadable(file, error)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Located(f"{file.name}:{number}", line.removesuffix("\r").split("\t"))


def by_file(
    read: Callable[[Files, DataFile], Iterable[Located]],
) -> Records:
    """Reads each of the chosen files by `read`."""

    @functools.wraps(read)
    def records(files: Files) -> Iterator[Located]:
        for file in files.chosen():
            try:
                yield from read(files, file)
            except UNREADABLE as error:
                yield unreadable(file, error)

    return records


@by_file
def rows(files: Files, file: DataFile) -> Iterable[Located]:
    """Every record of the chosen files, by their endings."""
    return file.rows()


def converted(lines: Iterable[Located], make: Callable[[Any], Any]) -> Iterator[Located]:
    """The record that `make` makes of each line's value; where it makes none, there is none, and
    what it raises a ValueError for could not be read."""
    for line in lines:
        try:
            record = None if line.error else make(line.value)
        except ValueError as error:
            yield Located(line.where, error=str(error))
            continue
        if line.error or record is not None:
            yield Located(line.where, record, line.error)
