"""The records of one source's files: of a data set's folder, a file, a saved set or the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from data_gen.corpus import CorpusFile, corpus_sha256, find_files
from data_gen.corpus.dataset_files import DataFile, Files, Located
from data_gen.corpus.hub_names import HUB
from data_gen.corpus.hugging_face import read_hub, read_saved
from data_gen.fine_instructions.query_sources import QuerySource
from ipt_jax.core.errors import UserError, did_you_mean
from ipt_jax.core.fingerprint import file_digest, folder_digest

_SAVED = ("state.json", "dataset_dict.json")  # of Hugging Face `save_to_disk`


@dataclass(frozen=True)
class _File:
    """One file, or a split of a data set."""

    label: str
    """Unique in a run; ids of records without one are made of it."""
    path: Path | str
    """Named in errors."""
    rows: Callable[[], Iterator[Located]]
    """Its records, from the first."""


class QueryFiles:
    """Records of one input, file after file, counted and read in blocks."""

    def __init__(
        self,
        path: str,
        source: QuerySource,
        *,
        root: str = ".",
        patterns: Sequence[str] | None = None,
        limit: int | None = None,
        prefix: str = "",
    ) -> None:
        """`prefix` goes before the names of the files; the others are as in QueryInput.

        Raises UserError: there is no such file or folder.
        """
        self.source = source
        self.counts: list[int] = []
        """Records of each file, at most `limit` together; to be set before `read`."""
        self._patterns, self._limit, self._prefix = patterns, limit, prefix
        self._hub = path if path.startswith(HUB) else ""
        self._path = Path(root).expanduser() / Path(path).expanduser()
        self._files: list[_File] = []
        self._rows: Iterator[tuple[str, Located]] = iter(())
        self._at: int | None = None
        if not self._hub and not self._path.exists():
            raise UserError(
                f"there is no {self._path}: correct the path of `{source.name}` in `sources`.",
                key="sources",
                path=self._path,
            )

    def digest(self, output: str) -> str:
        """Sha256 of the content, of the hub of the commit; what a run writes does not count."""
        if self._hub:
            return corpus_sha256(find_files([self._hub]))
        if self._path.is_dir():
            return folder_digest(self._path, without=output)
        return file_digest(self._path)

    def open(self, stack: ExitStack) -> None:
        """Find the files and look at the first record of each; `stack` removes what is unpacked.

        Raises UserError: no such files, nothing in them, or a file whose first record lacks what
        the source's layouts ask for: file, record and key are named.
        """
        path, source = self._path, self.source
        files: Sequence[CorpusFile | DataFile]
        if self._hub or any((path / name).is_file() for name in _SAVED):
            files = find_files([self._hub or str(path)])
            read: Callable[..., Iterator[Located]] = _corpus_rows
        else:
            read = source.read
            if path.is_dir():
                files = stack.enter_context(Files(path, self._patterns or source.files)).chosen()
            else:
                files = [DataFile(path.name.removesuffix(".gz"), path)]
        for file in files:
            label = file.label if isinstance(file, CorpusFile) else file.name
            self._files.append(_File(self._prefix + label, file.path, partial(read, file)))
        if not any([self._check(file) for file in self._files]):
            raise UserError(
                f"{self._hub or path} holds no record of `{source.name}` ({source.published}): "
                "give its files as their authors publish them.",
                key="sources",
                path=self._hub or path,
            )

    def _check(self, file: _File) -> bool:
        """Whether a file has a record."""
        bad: Located | None = None
        for row in file.rows():
            if row.error:
                bad = bad or row
                continue
            if key := self.source.lacks(row.value):
                keys = list(row.value) if isinstance(row.value, Mapping) else []
                raise UserError(
                    f"{file.path} is no file of `{self.source.name}` ({self.source.published}): "
                    f"its record {row.where} has no `{key}`. {did_you_mean(key, map(str, keys))}",
                    key=key,
                    path=file.path,
                    record=row.where,
                )
            return True
        if bad is not None:
            raise UserError(
                f"{file.path} holds no record that can be read; the first, {bad.where}, "
                f"{bad.error}: replace it, or take it out of `sources`.",
                key="sources",
                path=file.path,
                record=bad.where,
            )
        return False

    def count(self) -> list[int]:
        """Records of each file, at most `limit` together."""
        counts: list[int] = []
        for file in self._files:
            left = None if self._limit is None else self._limit - sum(counts)
            counts.append(sum(1 for _ in islice(file.rows(), left)))
        return counts

    def read(self, first: int, count: int) -> list[tuple[str, Located]]:
        """So many records from the one with the number `first` on, with the place of each: file
        and number within it from 1. Blocks that follow each other are read in one go."""
        if first != self._at:
            self._rows = self._from(first)
        found = list(islice(self._rows, count))
        self._at = first + len(found)
        return found

    def _from(self, first: int) -> Iterator[tuple[str, Located]]:
        for file, count in zip(self._files, self.counts, strict=True):
            if first < count:
                for number, row in islice(enumerate(file.rows(), 1), first, count):
                    yield f"{file.label}:{number}", row
            first = max(0, first - count)


def _corpus_rows(file: CorpusFile) -> Iterator[Located]:
    """The rows of a data set of Hugging Face `datasets`."""
    for raw in (read_hub if file.form == "hub" else read_saved)(file, ("", "")):
        error = "" if raw.fields is not None else f"{raw.reason}: {raw.detail}"
        yield Located(raw.place, raw.fields, error)
