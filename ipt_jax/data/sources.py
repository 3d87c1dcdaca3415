"""A task's source, whatever its format, as records at random access, and those that are damaged.

A damaged record that the length index already knows of has no place in the plan. One that shows
while rows are made keeps its place, as padding: rows are cut by planned lengths, so that each
process makes its own without asking the others, and a run that goes on finds the rows it had.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.formats.array_record import ArrayRecordRows
from ipt_jax.data.formats.files import CACHE, find_files, format_of
from ipt_jax.data.formats.hugging_face import HuggingFaceRows
from ipt_jax.data.formats.jsonl import JsonlRows
from ipt_jax.data.formats.parquet import ParquetRows
from ipt_jax.data.tasks import Task, preprocessors
from ipt_jax.data.token_shards import TokenSource

_LOG = logging.getLogger(__name__)


class Records(Protocol):
    """Things at random access, with a place each; picklable, threads may share it."""

    @property
    def fingerprint(self) -> str:
        """The same for the same records; what a length index names."""
        ...

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """File and place of a record, for messages."""
        ...


class Source(Records, Protocol):
    """Records of ours."""

    folder: Path
    """Where its indexes are kept."""

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at ``indices``, in that order.

        Raises IndexError outside 0..len-1 and UserError naming the record that is no record.
        """
        ...


class DamageLog:
    """The damaged records of a mixture that this process has met, each once. Picklable."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], str] = {}
        """By name of the task and number of the record: file, place and what is wrong."""
        self.shown = 0
        """How many of them had shown when the batch that was used last was read, and no later."""

    def __len__(self) -> int:
        return len(self.records)

    def add(self, task: str, index: int, what: str) -> None:
        """Count and log a record, if it is not known yet."""
        if (task, index) not in self.records:
            self.records[task, index] = what
            _LOG.warning("damaged record %d of task %r left out: %s", len(self), task, what)


def read_records[T](
    read: Callable[[Sequence[int]], list[T]], source: Source, indices: Sequence[int], skip: bool
) -> list[T | DamagedRecord]:
    """What ``read`` gives for each of ``indices``.

    With ``skip`` a damaged record's place has the error that says what is wrong; without it,
    raises the first, naming file and record and saying how to go on.
    """
    try:
        return list(read(indices))
    except DamagedRecord as error:
        if len(indices) > 1:
            middle = len(indices) // 2
            parts = (indices[:middle], indices[middle:])
            found = [item for part in parts for item in read_records(read, source, part, skip)]
            return found
        where, what = source.where(int(indices[0])), str(error)
        named = DamagedRecord(what, key=error.key, record=where)
        if skip:
            return [named]
        raise DamagedRecord(
            str(named),
            key=error.key,
            record=where,
            advice="to go on without damaged records, set `skip_damaged: true` under `data`",
        ) from error


_FOREIGN_KEYS = {"text_key": "text", "id_key": None, "split": "train", "subset": None}


class ForeignRecords(Records, Protocol):
    """Records of a foreign format as they stand."""

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The fields of each record. Raises UserError naming the one that cannot be read."""
        ...

    def name(self, index: int) -> str:
        """The id of a record that has none of its own: file and place in short."""
        ...

    def corpus(self, index: int) -> str:
        """The ``source`` of a record that has none of its own."""
        ...


class RowSource:
    """The records of a foreign format, or of shards with preprocessors; a ``Source``."""

    def __init__(self, rows: ForeignRecords, task: Task, folder: Path) -> None:
        self.folder = folder
        self._rows, self._task = rows, task
        self._preprocessors = preprocessors(task.preprocessors)
        how = json.dumps([task.text_key, task.preprocessors], sort_keys=True, default=repr)
        self._fingerprint = hashlib.sha256(f"{rows.fingerprint} {how}".encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Of the contents, the key of the text and the preprocessors."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """File and place of a record, for messages."""
        return self._rows.where(index)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at ``indices``, in that order.

        Raises IndexError outside 0..len-1 and UserError naming file, place and key of a record
        that has no text or id, or that a preprocessor refuses.
        """
        rows = zip(indices, self._rows.read(indices), strict=True)
        return [self._record(int(index), fields) for index, fields in rows]

    def _record(self, index: int, row: dict[str, Any]) -> Record:
        task, fields = self._task, dict(row)
        try:
            fields["id"] = self._id(index, fields)
            if task.text_key != "text" and task.text_key in fields:
                fields["text"] = fields.pop(task.text_key)
            for name, preprocess in self._preprocessors:
                try:
                    fields = preprocess(fields)
                except UserError as error:
                    said = f"the preprocessor {name!r} refuses it: {error}"
                    raise UserError(said, key=error.key) from error
            text, source = fields.get("text"), fields.get("source")
            if not isinstance(text, str):
                found = "is missing" if text is None else f"is a {type(text).__name__}"
                raise UserError(
                    f"`{task.text_key}` {found}, not text: it has {sorted(row)}; set "
                    f"`tasks.{task.name}.text_key`",
                    key=f"tasks.{task.name}.text_key",
                )
            text.encode()
            parts, loss = fields.get("parts"), fields.get("loss")
            provenance = fields.get("provenance")
            return Record(
                id=str(fields["id"]),
                text=text,
                source=source if isinstance(source, str) else self._rows.corpus(index),
                parts=_several("parts", parts, str),
                loss=_several("loss", loss, float),
                provenance=provenance if isinstance(provenance, dict) else {},
            )
        except UserError as error:
            raise DamagedRecord(
                f"{str(error).removesuffix('.')}.", key=error.key, record=self.where(index)
            ) from error
        except UnicodeEncodeError as error:
            raise DamagedRecord(
                f"`{task.text_key}` is not valid Unicode ({error.reason} at character "
                f"{error.start})",
                record=self.where(index),
                advice="mend or remove it",
            ) from error

    def _id(self, index: int, fields: dict[str, Any]) -> str:
        key = self._task.id_key or "id"
        given = fields.get(key)
        if given is None and self._task.id_key is None:
            return self._rows.name(index)
        if not isinstance(given, str | int) or isinstance(given, bool):
            found = "is missing" if given is None else f"is a {type(given).__name__}"
            raise UserError(f"`{key}` {found}, not an id: a text or a whole number", key=key)
        return str(given)


def _several[T: (str, float)](key: str, value: Any, kind: type[T]) -> tuple[T, ...] | None:
    """Some formats give a list of one value as that value."""
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    if kind is float and all(isinstance(v, int | float) for v in values):
        return tuple(kind(v) for v in values)
    if not all(isinstance(v, kind) for v in values):
        raise UserError(f"`{key}` is {value!r:.80}, not a list of {kind.__name__}", key=key)
    return tuple(values)


class _RecordRows:
    """Records of our shards as fields, for preprocessors."""

    def __init__(self, source: RecordSource) -> None:
        self._source, self.fingerprint = source, source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def where(self, index: int) -> str:
        return self._source.where(index)

    def name(self, index: int) -> str:
        return self._source.where(index)

    def corpus(self, index: int) -> str:
        return self._source.folder.name

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "id": record.id,
                "text": record.text,
                "source": record.source,
                "parts": record.parts,
                "loss": record.loss,
                "provenance": record.provenance,
            }
            for record in self._source.read(indices)
        ]


def open_source(
    task: Task,
    *,
    verify: bool = True,
    index_folder: str | Path | None = None,
    skip_damaged: bool = False,
) -> Source:
    """Open what ``task.source`` names, in the format it has or the task says.

    Args:
        task: source, format, keys and preprocessors.
        verify: read every file once and compare its sha256 with the manifest, or for a foreign
            file with the one it had when it was indexed.
        index_folder: where the indexes of foreign files are kept; a folder beside them if None.
        skip_damaged: take our shards that are not as their manifest says, with a warning; their
            records are checked one by one when they are read.

    Raises:
        UserError: naming the file that is missing, damaged or of no known format, the package to
            install, or the key of the task that does not fit its format.
    """
    format = task.format or format_of(task)
    if format in ("records", "tokens"):
        for key, default in _FOREIGN_KEYS.items():
            if getattr(task, key) != default:
                why = f"{task.source} holds shards of this project, whose keys are known"
                raise task.refused(key, why, f"leave `{key}` out")
    if format == "tokens":
        return TokenSource(task, load_tokenizer(task.tokenizer), verify, skip_damaged)
    if format == "records":
        shards = RecordSource(task.source, verify, skip_damaged)
        if not task.preprocessors:
            return shards
        return RowSource(_RecordRows(shards), task, shards.folder)
    if format == "huggingface":
        data = HuggingFaceRows(task, _asked(task), _columns(task))
        return RowSource(data, task, _folder(task, index_folder, data.beside))
    if task.subset is not None:
        advice = "leave it out, or set `format: huggingface`"
        raise task.refused("subset", f"{task.source} is {format}", advice)
    files = find_files(task, format)
    folder = _folder(task, index_folder, files[0].parent)
    if format == "jsonl":
        rows: ForeignRecords = JsonlRows(files, folder, verify)
    elif format == "parquet":
        rows = ParquetRows(files, folder, verify, _asked(task), _columns(task))
    else:
        rows = ArrayRecordRows(files, folder, verify)
    return RowSource(rows, task, folder)


def _asked(task: Task) -> tuple[str, str]:
    return task.text_key, task.id_key or "id"


def _columns(task: Task) -> set[str] | None:
    """The columns a task needs, if they are known: preprocessors may take any."""
    if task.preprocessors:
        return None
    return {task.text_key, task.id_key or "id", "source", "parts", "loss"}


def _folder(task: Task, asked: str | Path | None, beside: Path | None) -> Path:
    folder = Path(asked) if asked is not None else beside / CACHE if beside is not None else None
    if folder is None:
        raise UserError(
            f"the data set {task.source} of the task {task.name!r} lies in memory only",
            key="index_folder",
            advice="set `index_folder` to a folder for its index",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} for the indexes of {task.source} cannot be made "
            f"({error.strerror})",
            key="index_folder",
            path=folder,
            advice="set `index_folder` to one that can be written",
        ) from error
    return folder
