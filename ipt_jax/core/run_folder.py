"""Whose is this folder, and what of it can go on? One answer for every command.

A run marks its folder with `run.json`: its kind, the fingerprint of what it is made from, and the
names of what it makes there. It holds `run.lock` while it works; the system lets go of that lock
when the process ends, however it ends. Nothing is deleted or overwritten that the marker does not
list, and the marker holds no path of its own folder, which may be moved or renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Self

from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import load_json

MARKER_NAME, LOCK_NAME = "run.json", "run.lock"
RUN_FILES = ("config.yaml", "environment.json")  # how it ran; of nearly every kind of run
FORMAT = "ipt-jax-run/1"
Reason = Literal["locked", "no_locks", "not_a_folder", "another_kind", "differs", "not_ours"]
State = Literal["new", "unfinished", "finished", "clearing"]
_SHOWN_CHARACTERS = 40  # of a value; what is longer, or a digest, says nothing to a person
_TEMPORARY = re.compile(r"(\.[0-9-]+)?\.tmp$")
_HELD: weakref.WeakSet[IO[str]] = weakref.WeakSet()


class FolderRefused(UserError):
    """A folder that this run may not use; nothing in it was changed."""

    reason: Reason

    def __init__(self, path: Path, reason: Reason, why: str, differs: Sequence[str] = ()):
        super().__init__(f"{path}: {why}")
        self.path, self.reason, self.differs = path, reason, tuple(differs)

    def __reduce__(self) -> tuple[Any, ...]:
        why = str(self).removeprefix(f"{self.path}: ")
        return FolderRefused, (self.path, self.reason, why, self.differs)


@dataclass(frozen=True)
class _Marker:
    kind: str
    state: State
    fingerprint: dict[str, str]
    owns: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


class RunFolder:
    """A folder that this process holds; use as a context manager, or `close` it.

    Names of what a run makes are patterns below the folder, a component at a time: `*` stands for
    any characters and `#` for digits (`shards/raw/part-#.arrayrecord`); one that ends with a slash
    is a whole tree (`checkpoints/#/`).
    """

    def __init__(self, path: Path, lock: IO[str], marker: _Marker):
        self.path, self._lock, self._marker = path, lock, marker

    @classmethod
    def open(
        cls,
        path: str | Path,
        kind: str,
        fingerprint: Mapping[str, str],
        *,
        owns: Sequence[str],
        folders: Sequence[str] = (),
        alone: bool = False,
        fresh: bool | None = False,
        defaults: Mapping[str, str] | None = None,
        free: Sequence[str] = (),
        legacy: Callable[[Path], Mapping[str, str] | None] | None = None,
    ) -> RunFolder:
        """Hold `path`, made where it is missing, for a run of `kind`.

        Args:
          fingerprint: What the run's files depend on, by name: a refusal names what differs.
          owns: Names of what the run makes there.
          folders: Names of run folders within it, with markers of their own, that `fresh` clears.
          alone: Refuse a folder without a marker that holds anything at all.
          fresh: Delete what an earlier run of this kind made; everything else stays. None: the
            command has no such option.
          defaults: Values of names that runs made before those names did not write down.
          free: Names, with all below them, that may change: those of paths whose content has a name
            of its own. They stay as the run began; one without a marker is compared by them.
          legacy: The fingerprint of a run made before there were markers (its names are compared
            as far as both have them); None where the folder holds none.

        Raises:
          FolderRefused: another process holds it, it cannot be locked, it is no folder, belongs to
            a run of another kind or fingerprint, or holds files where this run would write.
        """
        path = Path(path).expanduser()
        if _read(path) is None and (legacy is None or legacy(path) is None):
            # Before a lock file is made there.
            _refuse_strangers(path, ("*", "*/") if alone else owns)
        lock = _lock(path)
        try:
            known, marker = defaults or {}, _read(path)
            if marker is None and legacy is not None and (old := legacy(path)) is not None:
                common = {k: v for k, v in {**known, **old}.items() if k in fingerprint}
                prints = {**fingerprint, **common}
                marker = _Marker(kind, "unfinished", prints, tuple(owns), tuple(folders))
                free = ()
            run = cls(path, lock, marker or _Marker(kind, "new", {}))
            run._claim(kind, {**fingerprint}, owns, folders, fresh, known, free)
        except BaseException:
            lock.close()
            raise
        return run

    @property
    def finished(self) -> bool:
        """Whether a run of this very fingerprint came to its end here."""
        return self._marker.state == "finished"

    @property
    def owns(self) -> tuple[str, ...]:
        """Names of what the run makes."""
        return self._marker.owns

    def begin(self) -> None:
        """The folder is no longer finished: call it before the first file is written."""
        if self.finished:
            self._write(replace(self._marker, state="unfinished"))

    def finish(self) -> None:
        """Everything is there."""
        self._write(replace(self._marker, state="finished"))

    def own(self, *names: str) -> None:
        """Add to what the run makes, before it is made.

        Raises:
          FolderRefused: there is such a file, and it is not the run's.
        """
        added = tuple(name for name in names if name not in self._marker.owns)
        _refuse_strangers(self.path, added)
        if added:
            self._write(replace(self._marker, owns=self._marker.owns + added))

    def remove(self, *names: str) -> None:
        """Delete what the run made under those of its names that are given."""
        unknown = set(names) - set(self.owns)
        if unknown:
            raise ValueError(f"the marker does not list {sorted(unknown)}")
        _remove(self.path, names)

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(
        self,
        kind: str,
        fingerprint: dict[str, str],
        owns: Sequence[str],
        folders: Sequence[str],
        fresh: bool | None,
        defaults: Mapping[str, str],
        free: Sequence[str],
    ) -> None:
        marker = self._marker
        if marker.kind != kind:
            raise FolderRefused(
                self.path,
                "another_kind",
                f"holds a run of the kind {marker.kind}, not {kind}; choose another folder.",
            )
        if marker.state == "clearing" or (fresh and marker.state != "new"):
            _clear(self.path, marker)
            marker = _Marker(kind, "new", fingerprint)
        before = {**{k: v for k, v in defaults.items() if k in fingerprint}, **marker.fingerprint}
        names = before.keys() | fingerprint.keys()
        bound = [n for n in names if not any(n == one or n.startswith(f"{one}.") for one in free)]
        differs = sorted(name for name in bound if before.get(name) != fingerprint.get(name))
        # A run that ended before it made anything is no one's.
        made = [name for name in marker.owns if name not in RUN_FILES]
        if marker.state != "new" and differs and any(_matching(self.path, made)):
            what = ", ".join(_change(n, before.get(n), fingerprint.get(n)) for n in differs)
            raise FolderRefused(
                self.path,
                "differs",
                f"holds a run that was made from something else: {what}. Choose another folder"
                + (", or give --fresh to delete what that run made." if fresh is not None else "."),
                differs,
            )
        added = tuple(name for name in owns if name not in marker.owns)
        _refuse_strangers(self.path, added)
        state = "unfinished" if marker.state == "new" or differs else marker.state
        if marker.state != "new" and not differs:
            as_begun = {k: v for k, v in marker.fingerprint.items() if k not in bound}
            fingerprint = {k: v for k, v in fingerprint.items() if k in bound} | as_begun
        more = tuple(name for name in folders if name not in marker.folders)
        self._write(_Marker(kind, state, fingerprint, marker.owns + added, marker.folders + more))

    def _write(self, marker: _Marker) -> None:
        self._marker = marker
        if marker != _read(self.path):
            _write(self.path, marker)


def fingerprint_of(path: Path) -> dict[str, str] | None:
    """What the run in a folder was made from; None of a folder without a marker."""
    marker = _read(path)
    return None if marker is None else marker.fingerprint


def print_of(value: Any) -> str:
    """A setting as text for a fingerprint."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def prints_of(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as a flat fingerprint, by dotted key."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= prints_of(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = print_of(value)
    return flat


def _change(name: str, before: str | None, now: str | None) -> str:
    known = [value for value in (before, now) if value is not None]
    if all(len(value) <= _SHOWN_CHARACTERS for value in known):
        return f"{name} (then {before or 'not given'}, now {now or 'not given'})"
    return name


def _read(path: Path) -> _Marker | None:
    file = path / MARKER_NAME
    try:
        content = load_json(file)
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        marker = _Marker(**content)
        return replace(marker, owns=tuple(marker.owns), folders=tuple(marker.folders))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise _no_folder(path) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FolderRefused(
            path,
            "not_ours",
            f"{MARKER_NAME} in it is no marker of a run ({error}); choose another folder, or move "
            "that file away if it is not yours.",
        ) from error


def _write(path: Path, marker: _Marker) -> None:
    content = {"format": FORMAT, **asdict(marker)}
    atomic_write(path / MARKER_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _no_folder(path: Path) -> FolderRefused:
    return FolderRefused(
        path, "not_a_folder", "a file is in the place of the folder; choose another folder."
    )


def _lock(path: Path) -> IO[str]:
    """The open lock file: held until it is closed or the process ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _no_folder(path) from error
    while True:
        file = open(path / LOCK_NAME, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path / LOCK_NAME)):
                break
        except FileNotFoundError:
            pass  # whoever held it deleted it with the folder: it is made again
        except OSError as error:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise FolderRefused(
                    path,
                    "no_locks",
                    f"its file system does not lock files ({error.strerror}), so that a second run "
                    "could not be kept out; choose a folder on another one, or mount it with "
                    "locks (NFS: without `nolock`; Lustre: `-o flock`).",
                ) from error
            raise FolderRefused(
                path,
                "locked",
                f"another run is writing to it ({holder or 'it does not say which'}); wait for its "
                "end or choose another folder.",
            ) from error
        file.close()
    _HELD.add(file)
    with contextlib.suppress(OSError):  # only told to who is refused; a full disk may be cleared
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _let_go() -> None:
    """In a forked child: it may outlive the run, and must not hold the folder then."""
    for file in list(_HELD):
        file.close()


os.register_at_fork(after_in_child=_let_go)


def _clear(path: Path, marker: _Marker) -> None:
    """Delete what the run made, in the run folders within it too; all are held before any."""
    inner = list(_inner(path, marker))
    with contextlib.ExitStack() as stack:
        for folder, _ in inner:
            stack.enter_context(_lock(folder))
        for folder, found in [(path, marker), *inner]:
            _write(folder, replace(found, state="clearing"))
        for folder, found in reversed(inner):
            _remove(folder, (*found.owns, LOCK_NAME, MARKER_NAME))
            _remove_empty(folder)
        _remove(path, marker.owns)


def _inner(path: Path, marker: _Marker) -> Iterator[tuple[Path, _Marker]]:
    for name in marker.folders:
        for folder in sorted(path.glob(name)):
            if not folder.is_dir() or not any(folder.iterdir()):
                continue
            if (found := _read(folder)) is None:
                raise FolderRefused(
                    folder,
                    "not_ours",
                    f"has no {MARKER_NAME}, so that it is not known what a run made there (an "
                    "earlier version wrote none); move it away or delete it yourself.",
                )
            yield folder, found
            yield from _inner(folder, found)


def _refuse_strangers(path: Path, names: Sequence[str]) -> None:
    for found in _matching(path, names):
        files = [found] if not found.is_dir() or found.is_symlink() else _files(found)
        for file in files:
            if file == path / LOCK_NAME:  # of a start that was killed before it wrote the marker
                continue
            raise FolderRefused(
                path,
                "not_ours",
                f"{file.relative_to(path)} is there, and no run of ours made it (there is no "
                f"{MARKER_NAME} that lists it); choose another folder, or move that file away.",
            )


def _files(folder: Path) -> Iterator[Path]:
    return (Path(at) / name for at, _, files in os.walk(folder) for name in files)


def _matching(path: Path, names: Sequence[str]) -> Iterator[Path]:
    """Files, links and whole trees below `path` with these names; temporary ones of theirs too."""
    whole = [tuple(name.split("/")[:-1]) for name in names if name.endswith("/")]
    single = [tuple(name.split("/")) for name in names if not name.endswith("/")]
    deep = {name[:n] for name in [*whole, *single] for n in range(1, len(name))}

    def fits(parts: tuple[str, ...], patterns: Iterable[tuple[str, ...]]) -> bool:
        return any(
            len(parts) == len(pattern) and all(map(_fits, parts, pattern)) for pattern in patterns
        )

    def below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            parts = (*above, entry.name)
            # Through links too: `checkpoints` may be one to a larger disk.
            if entry.is_dir():
                if fits(parts, whole):
                    yield Path(entry.path)
                elif fits(parts, deep):
                    yield from below(Path(entry.path), parts)
            elif fits((*above, _TEMPORARY.sub("", entry.name)), single):
                yield Path(entry.path)

    yield from below(path, ())


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\#", "[0-9]+"), re.DOTALL)


def _fits(part: str, pattern: str) -> bool:
    return _expression(pattern).fullmatch(part) is not None


def _remove(path: Path, names: Iterable[str]) -> None:
    parents: set[Path] = set()
    for found in list(_matching(path, tuple(names))):
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink()
        parents |= {parent for parent in found.parents if path in parent.parents}
    for parent in sorted(parents, key=lambda one: len(one.parts), reverse=True):
        _remove_empty(parent)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it holds something, which stays
        folder.rmdir()
