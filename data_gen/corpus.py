"""Every input form of a corpus to Documents; what is no document comes out with its reason."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipt_jax.errors import UserError
from ipt_jax.records import MANIFEST_NAME, RecordSource

MAX_CHARACTERS = 1_000_000
_FORMS = ".jsonl, .jsonl.gz, .txt, .parquet, or a folder of record shards (with manifest.json)"


@dataclass(frozen=True)
class Document:
    """One raw text."""

    id: str
    """Given by the corpus, else `file:line`; unique in a run."""
    text: str
    """Never empty, no NUL character."""
    source: str
    """The record's own `source`, else the file's name without its ending."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the record."""


@dataclass(frozen=True)
class RejectedDocument:
    """What stood in the corpus and is no document."""

    id: str
    """As far as it is known; else `file:line`."""
    where: str
    """File and line or row."""
    reason: str
    """`undecodable`, `not_json`, `no_text`, `empty`, `nul_character`, `duplicate_id`,
    `too_long`, `bad_id`."""
    detail: str
    """For a person."""


@dataclass(frozen=True)
class _Raw:
    """A record before it is checked: `fields` where it could be read, else why not."""

    place: str
    fields: Mapping[str, Any] | None = None
    reason: str = ""
    detail: str = ""


def find_files(paths: Sequence[str]) -> list[Path]:
    """Files that `paths` (files, folders of shards, glob patterns) name, patterns sorted.

    Raises UserError for a path that does not exist and a pattern that matches nothing.
    """
    if not paths:
        raise UserError("no corpus is given: name at least one file or pattern in `input`.")
    found: list[Path] = []
    for path in paths:
        expanded = os.path.expanduser(path)
        if glob.has_magic(expanded) and not os.path.exists(expanded):
            matches = sorted(Path(match) for match in glob.glob(expanded, recursive=True))
            if not matches:
                raise UserError(
                    f"the pattern '{path}' in `input` matches no file: correct the pattern."
                )
            found += matches
        elif os.path.exists(expanded):
            found.append(Path(expanded))
        else:
            raise UserError(
                f"the corpus '{path}' does not exist: correct `input` (seen from "
                f"{os.getcwd()}), or put the file there."
            )
    return list(dict.fromkeys(found))


def corpus_sha256(files: Sequence[Path]) -> str:
    """Checksum over names and bytes of the corpus files, in order."""
    digest = hashlib.sha256()
    for path in files:
        parts = [path / MANIFEST_NAME] if path.is_dir() else [path]  # a manifest has checksums
        for part in parts:
            digest.update(f"{path.name}\n".encode())
            try:
                with open(part, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except (FileNotFoundError, IsADirectoryError) as error:
                raise _unknown_form(path) from error
            except OSError as error:
                raise _unreadable(path, error) from error
    return digest.hexdigest()


def read_corpus(
    paths: Sequence[str],
    *,
    text_field: str = "text",
    id_field: str = "id",
    max_characters: int = MAX_CHARACTERS,
    limit: int | None = None,
) -> Iterator[Document | RejectedDocument]:
    """Every document of the corpus in order, or in its place what was wrong with it.

    `limit` ends the corpus after that many records, rejected ones counted too.

    Raises:
      UserError: a path is missing, a file's form is unknown, a file cannot be read as a whole,
        or the corpus holds no record at all.
    """
    seen: set[bytes] = set()
    count = 0
    for path in find_files(paths):
        for raw in _reader_of(path)(path):
            if limit is not None and count >= limit:
                return
            count += 1
            yield _checked(raw, path, text_field, id_field, max_characters, seen)
    if not count:
        names = ", ".join(paths)
        raise UserError(f"the corpus is empty ({names}): give files that hold documents.")


def _checked(
    raw: _Raw, path: Path, text_field: str, id_field: str, max_characters: int, seen: set[bytes]
) -> Document | RejectedDocument:
    if raw.fields is None:
        return RejectedDocument(raw.place, raw.place, raw.reason, raw.detail)
    fields = dict(raw.fields)
    text, given = fields.pop(text_field, None), fields.pop(id_field, None)
    if given is not None and not isinstance(given, str | int):
        return RejectedDocument(
            raw.place, raw.place, "bad_id", f"'{id_field}' is a {type(given).__name__}"
        )
    name = raw.place if given in (None, "") else str(given)

    def reject(reason: str, detail: str) -> RejectedDocument:
        return RejectedDocument(name, raw.place, reason, detail)

    if not isinstance(text, str):
        kind = "missing" if text is None else f"a {type(text).__name__}"
        return reject("no_text", f"the field '{text_field}' is {kind}")
    if not text.strip():
        return reject("empty", f"the field '{text_field}' holds no text")
    if "\0" in text:
        return reject("nul_character", f"NUL at character {text.index(chr(0))}")
    if len(text) > max_characters:
        return reject("too_long", f"{len(text):,} characters; at most {max_characters:,}")
    try:
        key = hashlib.blake2b(name.encode(), digest_size=16).digest()
        text.encode()
    except UnicodeEncodeError as error:
        return reject("undecodable", f"half a surrogate pair at character {error.start}")
    if key in seen:
        return reject("duplicate_id", f"the id '{name}' came before")
    seen.add(key)
    source = fields.pop("source", None)
    if not isinstance(source, str) or not source:
        source = path.name.split(".")[0]
    return Document(name, text, source, fields)


def _reader_of(path: Path) -> Callable[[Path], Iterator[_Raw]]:
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return _read_shards
        raise _unknown_form(path)
    for ending, reader in _READERS.items():
        if path.name.endswith(ending):
            return reader
    raise _unknown_form(path)


def _read_jsonl(path: Path) -> Iterator[_Raw]:
    unpack = gzip.open if path.name.endswith(".gz") else open
    good = bad = 0
    first_bad = ""
    try:
        with unpack(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                raw = _read_line(line, f"{path.name}:{number}")
                good, bad = good + (raw.fields is not None), bad + (raw.fields is None)
                first_bad = first_bad or raw.detail
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if bad and not good:
        raise UserError(
            f"{path}: none of its {bad} lines is a JSON object in UTF-8 (the first: {first_bad}). "
            "Give a file with one JSON object a line."
        )


def _read_line(line: bytes, place: str) -> _Raw:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _Raw(place, None, "undecodable", f"not UTF-8 at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return _Raw(place, None, "not_json", str(error)[:200])
    if not isinstance(fields, dict):
        return _Raw(place, None, "not_json", f"a {type(fields).__name__}, not an object")
    return _Raw(place, fields)


def _read_txt(path: Path) -> Iterator[_Raw]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, for example with "
            f"`iconv -f latin1 -t utf-8`."
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    yield _Raw(path.name, {"text": text, "source": path.parent.name or path.stem})


def _read_parquet(path: Path) -> Iterator[_Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        row = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    row += 1
                    yield _Raw(f"{path.name}:{row}", fields)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _read_shards(path: Path) -> Iterator[_Raw]:
    source = RecordSource(path)
    for start in range(0, len(source), 256):
        records = source.read(range(start, min(start + 256, len(source))))
        for place, record in enumerate(records, start):
            fields = {"id": record.id, "text": record.text, "source": record.source}
            yield _Raw(source.where(place), {**fields, "provenance": dict(record.provenance)})


_READERS: dict[str, Callable[[Path], Iterator[_Raw]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}


def _unknown_form(path: Path) -> UserError:
    return UserError(f"{path}: not a form of corpus that can be read; give {_FORMS}.")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
        "the file is damaged or not what its ending says; replace it or take it out of `input`."
    )
