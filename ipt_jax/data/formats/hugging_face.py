"""Data sets of Hugging Face ``datasets``: saved in a folder, or from the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.arrow_rows import rows_of
from ipt_jax.core.errors import DamagedRecord, UserError, did_you_mean
from ipt_jax.core.fingerprint import digest_of, file_digest
from ipt_jax.data.formats.files import whole
from ipt_jax.data.tasks import HUB, Task


class HuggingFaceRows:
    """The rows of one split of a data set; picklable, threads may share it.

    The data set lies in Arrow files that are mapped into memory, so that rows are read at random
    access; one from the hub is downloaded into the library's cache first. They are given as they
    lie there: an image, say, is not decoded. ``columns`` and ``asked`` as of ``ParquetRows``.
    """

    def __init__(self, task: Task, asked: Sequence[str], columns: set[str] | None) -> None:
        self._asked = tuple(asked)
        self._source, self._split = task.source, task.split
        data = _load(task)
        names = list(data.column_names)
        if columns is not None:
            if task.text_key not in names:
                raise UserError(
                    f"the data set {task.source} has no column `{task.text_key}`: set "
                    f"`tasks.{task.name}.text_key`. {did_you_mean(task.text_key, names)}",
                    key=f"tasks.{task.name}.text_key",
                )
            data = data.select_columns([name for name in names if name in columns])
        self._data = data.with_format("arrow")
        files = data.cache_files
        # A saved folder's own fingerprint is a line in it, whatever its files are by now.
        self.fingerprint = str(data._fingerprint)
        if files and not task.source.startswith(HUB):
            self.fingerprint = digest_of([file_digest(file["filename"]) for file in files])
        self.beside = Path(files[0]["filename"]).parent if files else None

    def __len__(self) -> int:
        return len(self._data)

    def where(self, index: int) -> str:
        """Data set, split and row, from 1, for messages."""
        return f"row {index + 1} of the split {self._split!r} of {self._source}"

    def name(self, index: int) -> str:
        """The id of a row without one: ``name:split:row``."""
        return f"{self.corpus(index)}:{self._split}:{index + 1}"

    def corpus(self, index: int) -> str:
        """The source of a row without one: the data set's name."""
        return self._source.removeprefix(HUB).split("@")[0].rstrip("/").split("/")[-1]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows. Raises UserError where the library cannot read one."""
        wanted = [int(index) for index in indices]
        if not wanted:
            return []
        if min(wanted) < 0:
            raise IndexError(f"there are {len(self)} rows, not {min(wanted)}")
        try:
            rows = rows_of(self._data[wanted], self._asked)
        except (OSError, ValueError) as error:
            raise DamagedRecord(
                f"rows of {self._source} cannot be read ({error}), among them "
                f"{self.where(wanted[0])}",
                record=self.where(wanted[0]),
                advice="save or download the data set again",
            ) from error
        return [whole(row, self.where, index) for index, row in zip(wanted, rows, strict=True)]


def _load(task: Task) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(
            f"{task.source} is read with Hugging Face datasets, which is not installed",
            advice="`pip install 'ipt-jax[sources]'`",
        ) from error
    folder = Path(task.source)
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            data = datasets.load_from_disk(str(folder))
        else:
            name, _, revision = task.source.removeprefix(HUB).partition("@")
            data = datasets.load_dataset(
                name, task.subset, split=task.split, revision=revision or None
            )
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise UserError(
            f"the data set {task.source} (split {task.split!r}, subset {task.subset!r}) cannot be "
            f"loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            key="source",
            advice=f"correct `source`, `split` and `subset` of the task {task.name!r}",
        ) from error
    if isinstance(data, dict):
        if task.split not in data:
            raise UserError(
                f"the data set {task.source} has no split {task.split!r}: set "
                f"`tasks.{task.name}.split`. {did_you_mean(task.split, map(str, data))}",
                key=f"tasks.{task.name}.split",
            )
        data = data[task.split]
    return data
