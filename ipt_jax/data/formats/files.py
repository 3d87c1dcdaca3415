"""Which files a task's source names, their format, and what their bytes were."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import DamagedRecord, UserError, did_you_mean
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import (
    TOKENS_FORMAT,
    Manifest,
    atomic_write,
    file_sha256,
    manifest_format,
)
from ipt_jax.data.tasks import FORMATS, HUB, Task

CACHE = "ipt_jax_cache"  # the folder beside foreign files that their indexes are kept in
_ENDINGS = {
    "jsonl": re.compile(r"\.jsonl(\.gz|\.zst)?$"),
    "parquet": re.compile(r"\.parquet$"),
    "arrayrecord": re.compile(r"\.array_?record(-\d{5}-of-\d{5})?$"),
}
# Our own shards: without a manifest they are not finished, and no foreign files.
_OURS = re.compile(r"part-\d{5,}\.arrayrecord")
_NUMBERED = re.compile(r"(?P<set>.+?)-(?P<number>\d{5})-of-(?P<total>\d{5})(?=[-.]|$)")
_SPLITS = {"train", "test", "validation", "valid", "val", "dev"}


def format_of(task: Task) -> str:
    """The format of a source, told from its manifest or file names.

    Raises UserError where there is nothing, or files of no or of several formats.
    """
    if task.source.startswith(HUB):
        return "huggingface"
    path = Path(task.source)
    if path.is_dir():
        kind = manifest_format(path)
        if kind is not None:
            return "tokens" if kind == TOKENS_FORMAT else "records"
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return "huggingface"
        names = os.listdir(path)
    else:
        names = [p.name for p in _matches(task.source)]
    kinds = sorted({_format_of_name(name) for name in names} - {""})
    if len(kinds) > 1:
        raise UserError(
            f"{path} holds files of several formats ({', '.join(kinds)})",
            key=f"tasks.{task.name}.format",
            path=path,
            advice=f"set `tasks.{task.name}.format`, or name a pattern of files",
        )
    if not kinds:
        if path.is_dir() or not names:
            Manifest.load(path)  # says that there is none
        raise UserError(
            f"the format of {path} is not told by its name: set `tasks.{task.name}.format`. "
            f"{did_you_mean(path.suffix.lstrip('.'), FORMATS)}",
            key=f"tasks.{task.name}.format",
            path=path,
        )
    return kinds[0]


def _matches(source: str) -> list[Path]:
    """The file, or the files that a pattern names, but for our own indexes; sorted."""
    if Path(source).is_file():
        return [Path(source)]
    found = sorted(Path(path) for path in glob.glob(source, recursive=True))
    return [path for path in found if path.is_file() and CACHE not in path.parts]


def _format_of_name(name: str) -> str:
    if _OURS.fullmatch(name):
        return ""
    return next((kind for kind, ending in _ENDINGS.items() if ending.search(name)), "")


def find_files(task: Task, format: str) -> list[Path]:
    """The files of a source that is a file, a pattern or a folder, in the order of their names.

    Of a folder whose files are numbered in sets, as ``c4-train.array_record-00000-of-00008``, the
    set of the task's split, which must be whole. Raises UserError for what is missing.
    """
    path = Path(task.source)
    if not path.is_dir():
        if not (found := _matches(task.source)):
            raise UserError(
                f"{task.source} names no file",
                key=f"tasks.{task.name}.source",
                advice=f"correct `tasks.{task.name}.source`",
            )
        if task.split != "train":
            why = f"{task.source} names the files themselves"
            raise task.refused("split", why, "leave `split` out")
        return found
    found = [p for p in sorted(path.iterdir()) if p.is_file() and _ENDINGS[format].search(p.name)]
    if not found:
        raise UserError(
            f"the folder {path} holds no {format} file",
            path=path,
            advice="correct the source or format",
        )
    return _of_split(task, found)


def _of_split(task: Task, files: Sequence[Path]) -> list[Path]:
    numbered = [match for p in files if (match := _NUMBERED.match(p.name))]
    if len(numbered) != len(files):
        named = sorted({p.name.split(".")[0] for p in files} & _SPLITS)
        if numbered or len(named) > 1 or (task.split != "train" and named != [task.split]):
            raise UserError(
                f"{files[0].parent} holds {', '.join(p.name for p in files[:4])}: which of them "
                f"are the split {task.split!r} is not clear",
                key=f"tasks.{task.name}.source",
                path=files[0].parent,
                advice=f"name a file or a pattern in `tasks.{task.name}.source`",
            )
        return list(files)
    sets = sorted({match["set"] for match in numbered})
    wanted = [name for name in sets if re.fullmatch(rf"(.+-)?{re.escape(task.split)}(\..*)?", name)]
    if len(sets) == 1 and task.split == "train":
        wanted = sets
    if len(wanted) != 1:
        raise UserError(
            f"{files[0].parent} holds the sets {', '.join(sets)}, and {len(wanted)} of them are "
            f"the split {task.split!r}",
            key=f"tasks.{task.name}.split",
            path=files[0].parent,
            advice=f"set `tasks.{task.name}.split`, or name a pattern of files",
        )
    chosen = [(m, p) for m, p in zip(numbered, files, strict=True) if m["set"] == wanted[0]]
    total = int(chosen[0][0]["total"])
    missing = sorted(set(range(total)) - {int(match["number"]) for match, _ in chosen})
    if missing or len(chosen) != total:
        raise UserError(
            f"{files[0].parent} holds {len(chosen)} of the {total} files of {wanted[0]!r} "
            f"(missing: {', '.join(f'{n:05d}' for n in missing[:5])})",
            path=files[0].parent,
            advice="copy them all, or name a pattern of files",
        )
    return [p for _, p in chosen]


def content_sha256(path: Path, folder: Path, verify: bool) -> str:
    """Of a file's bytes, kept in ``folder`` by the file's path, size and time.

    With ``verify`` it is computed anew and compared. Raises UserError where the bytes are not what
    they were though size and time are.
    """
    kept = folder
    try:
        status = path.stat()
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        kept = folder / f"file-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if kept.is_file():
            before = str(load_json(kept)["sha256"])
            if verify and file_sha256(path) != before:
                raise UserError(
                    f"{path} has other bytes than when it was indexed, but the same size and time: "
                    "it is damaged",
                    path=path,
                    advice=f"copy it again, or delete {kept} if it is as it should be",
                )
            return before
        sha256 = file_sha256(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror})", path=path, advice="mend or replace it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{kept} is damaged ({error!r})", path=kept, advice="delete it") from error
    write_index(kept, json.dumps({"file": path.name, "sha256": sha256}))
    return sha256


def write_index(path: Path, data: bytes | str) -> None:
    """Write an index of a foreign file. Raises UserError naming it where it cannot be."""
    try:
        atomic_write(path, data)
    except OSError as error:
        raise UserError(
            f"the index {path} cannot be written ({error.strerror})",
            path=path,
            advice="free disk space, or set `index_folder` to a folder that can be written",
        ) from error


class FileRows:
    """Records of files that are named by their place: what the formats of foreign files share."""

    unit: str
    """What a record is called in messages: line, row."""

    def place(self, index: int) -> tuple[Path, int]:
        """File of a record, and its number there for messages."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """File and place of a record, for messages."""
        path, number = self.place(index)
        return f"{self.unit} {number} of {path}"

    def name(self, index: int) -> str:
        """The id of a record without one: ``file:number``."""
        path, number = self.place(index)
        return f"{path.name}:{number}"

    def corpus(self, index: int) -> str:
        """The source of a record without one: its file's name up to the first dot."""
        return self.place(index)[0].name.split(".")[0]


def whole(row: dict[str, Any] | str, where: Callable[[int], str], index: int) -> dict[str, Any]:
    """The fields of a row. Raises DamagedRecord, naming it, where it is what is wrong with it."""
    if isinstance(row, str):
        raise DamagedRecord(row, record=where(index), advice="mend or remove it")
    return row


def fingerprint_of(sums: Sequence[str]) -> str:
    """One fingerprint of several files, in order."""
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()
