"""A file of the corpus: where it lies, how it is opened, what is said where it cannot be read."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from data_gen.errors.shared import input_error, one_line, optional
from ipt_jax.core.errors import UserError

_BUFFER_BYTES = 1 << 20
FORMS = (
    ".jsonl or .json with an object a line (also .gz, .zst), .txt (also .gz, .zst), .parquet, "
    ".arrayrecord, .warc and .wet (also .gz), a folder of record shards (with manifest.json), a "
    "saved Hugging Face data set, or hf://NAME"
)


@dataclass(frozen=True)
class CorpusFile:
    """A file, folder or data set that holds documents, on this machine or elsewhere."""

    path: str
    """Where it lies, as a person would write it: a local path, a URL or an `hf://` name."""
    form: str
    """`jsonl`, `txt`, `parquet`, `arrayrecord`, `warc`, `wet`, `records`, `saved` or `hub`."""
    packed: str = ""
    """`gz`, `zst` or nothing."""
    label: str = ""
    """Short name, unique in a run: the file's name, after its folders' where several share it."""
    stated: bool = False
    """Its form is that which `#FORM` behind its path states, whatever its ending says."""
    filesystem: Any = field(default=None, compare=False, repr=False)
    """The fsspec filesystem of what does not lie on this machine."""
    key: str = field(default="", compare=False, repr=False)
    """Its path in that filesystem."""

    @property
    def source(self) -> str:
        """What a record without a `source` gets: the file's name up to its first dot; of the hub,
        the data set's name."""
        name = self.label.rpartition("/")[2]
        return name.partition(":")[0] if self.form == "hub" else name.split(".")[0]

    def open(self) -> IO[bytes]:
        """Its bytes as they lie there; can seek."""
        if self.filesystem is None:
            return open(self.path, "rb")
        return self.filesystem.open(self.key, "rb")

    def unpacked(self) -> IO[bytes]:
        """Its bytes, decompressed. Raises UserError where what decompresses is not installed."""
        if self.packed == "zst":
            return _zstd(self)
        if self.packed == "gz":
            return _buffered(gzip.GzipFile(fileobj=self.open()))
        return self.open() if self.filesystem is None else _buffered(self.open())


def _zstd(file: CorpusFile) -> IO[bytes]:
    pyarrow = optional("pyarrow", missing_package(file.path, "pyarrow"))
    if file.filesystem is None:
        stream = pyarrow.input_stream(file.path, compression="zstd")
    else:
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file.open(), "r"), "zstd")
    return _buffered(stream)


def _buffered(stream: Any) -> IO[bytes]:
    """Reads lines in C, which the streams themselves do in Python."""
    return io.BufferedReader(stream, _BUFFER_BYTES)


def missing_package(path: str, package: str, extra: str = "sources") -> UserError:
    """Says which extra of this project brings what reads `path`."""
    return input_error(
        f"{path} is read with {package}, which is not installed: `pip install 'ipt-jax[{extra}]'`.",
        path=path,
    )


@contextlib.contextmanager
def read_errors(file: CorpusFile) -> Iterator[None]:
    """What goes wrong while a file is read, as a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise unreadable(file, error) from error
    except Exception as error:
        # pyarrow and what lies under fsspec raise kinds of their own, which nobody can list.
        foreign = type(error).__module__.startswith(("pyarrow", "datasets"))
        foreign = foreign or file.filesystem is not None or file.form in ("hub", "saved")
        if not foreign:
            raise
        raise unreadable(file, error) from error


def unreadable(file: CorpusFile, error: Exception) -> UserError:
    """Says that a file or data set cannot be read as a whole."""
    said = one_line(error, 200)
    if file.form == "hub":
        return input_error(
            f"{file.path} cannot be read ({said}): correct its name, revision, subset or split, "
            "log in where it asks for that, or save it elsewhere with `save_to_disk` and name "
            "that folder.",
            path=file.path,
        )
    elsewhere = ", or it cannot be reached" if file.filesystem is not None else ""
    return input_error(
        f"{file.path} cannot be read ({said}): the file is damaged or not what its ending "
        f"says{elsewhere}; replace it or take it out of `input`.",
        path=file.path,
    )
