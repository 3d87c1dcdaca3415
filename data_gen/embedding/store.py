"""Vectors of many texts on disk: written a block at a time, each once, and read as one array.

    FOLDER/store.json     what the vectors are, and how many texts are written
    FOLDER/vectors.f16    float16 [N, C + 1, E], row by row
    FOLDER/ids.jsonl      the id of each text, a line each
    FOLDER/ids.ends       int64 [N]: where each of those lines ends, in bytes

A block is appended and synced before `store.json` counts it: what a killed run left behind that is
cut off, and the block is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from data_gen.embedding.embedder import Embedder
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write, naming
from ipt_jax.core.json_lines import load_json, parse_json

FORMAT = "ipt-jax-vectors/1"
HEADER, VECTORS, IDS, ENDS = "store.json", "vectors.f16", "ids.jsonl", "ids.ends"
STORE_FILES = (HEADER, VECTORS, IDS, ENDS)
"""What a store's folder holds, for the marker of a run folder."""
_END = np.dtype("<i8")
_HALF = np.dtype("<f2")


class Texts(Protocol):
    """Texts with their ids at random access."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int], /) -> Sequence[tuple[str, str]]:
        """Id and text of each of these."""
        ...


@dataclass(frozen=True)
class StoreHeader:
    """What the vectors of a store are."""

    fingerprint: str
    """Of the encoder."""
    settings: str
    """How its texts were cut off and pooled."""
    texts: str
    """Fingerprint of the texts."""
    count: int
    """N when it is whole."""
    vectors: int
    """C + 1."""
    width: int
    """E."""
    rows: int = 0
    """Texts written."""
    id_bytes: int = 0
    """Length of ids.jsonl."""

    @property
    def row_bytes(self) -> int:
        return self.vectors * self.width * _HALF.itemsize

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            VECTORS: self.rows * self.row_bytes,
            IDS: self.id_bytes,
            ENDS: self.rows * _END.itemsize,
        }

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, **asdict(self)}
        atomic_write(folder / HEADER, json.dumps(content, indent=1) + "\n")


class VectorStore:
    """A whole store: its vectors, memory-mapped, and the ids of their texts."""

    def __init__(self, folder: str | Path, fingerprint: str | None = None) -> None:
        """
        Args:
          folder: where `write_vectors` made it.
          fingerprint: the encoder that its vectors are compared with; None: nothing is.

        Raises:
          UserError: there is no store, it is of another encoder or not whole, or a file is short.
        """
        self.folder = Path(folder).expanduser()
        self.header = header = _read_header(self.folder)
        if fingerprint is not None and fingerprint != header.fingerprint:
            raise other_encoder(self.folder, header.fingerprint, fingerprint)
        if header.rows < header.count:
            raise UserError(
                f"{self.folder} holds the vectors of {header.rows:,} of {header.count:,} texts: "
                "run the command that makes it again, it goes on there.",
                path=self.folder,
            )
        for name, size in header.sizes().items():
            _check_size(self.folder / name, size, "exactly")
        shape = (header.rows, header.vectors, header.width)
        self.vectors = _mapped(self.folder / VECTORS, _HALF, shape)
        """float16 [N, C + 1, E], read-only."""
        self.ids = StoredIds(self.folder, header)
        """Of the texts, in order."""


class StoredIds(Sequence[str]):
    """The ids of a store, read when they are asked for."""

    def __init__(self, folder: Path, header: StoreHeader) -> None:
        self._ends = _mapped(folder / ENDS, _END, (header.rows,))
        self._lines = _mapped(folder / IDS, np.dtype(np.uint8), (header.id_bytes,))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self)
        first = int(self._ends[row - 1]) if row else 0
        return parse_json(self._lines[first : int(self._ends[row])].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


def write_vectors(
    folder: str | Path,
    texts: Texts,
    embedder: Embedder,
    texts_fingerprint: str,
    *,
    rows_per_block: int = 1024,
    progress: Callable[[int], None] = lambda rows: None,
) -> VectorStore:
    """Embed all texts into `folder`; one that a killed run began goes on behind its last block.

    Args:
      texts_fingerprint: the same for the same texts in the same order.
      rows_per_block: texts embedded and written at a time.
      progress: told how many texts are written, after each block.

    Raises:
      UserError: the folder holds vectors of another encoder, way of pooling or texts; a file is
        shorter than `store.json` says; a text's vectors are no numbers.
    """
    folder = Path(folder).expanduser()
    header = StoreHeader(
        embedder.fingerprint,
        embedder.settings,
        texts_fingerprint,
        len(texts),
        embedder.chunks + 1,
        embedder.width,
    )
    header = _begin(folder, header)
    with (
        open(folder / VECTORS, "r+b") as vectors,
        open(folder / IDS, "r+b") as ids,
        open(folder / ENDS, "r+b") as ends,
    ):
        for file, size in zip((vectors, ids, ends), header.sizes().values(), strict=True):
            file.truncate(size)
            file.seek(size)
        while header.rows < header.count:
            last = min(header.rows + rows_per_block, header.count)
            block = texts.read(range(header.rows, last))
            found_NCE = embedder.embed([text for _, text in block])
            check_vectors(found_NCE, [name for name, _ in block])
            lines = [f"{json.dumps(name)}\n".encode() for name, _ in block]
            own = header.id_bytes + np.cumsum([len(line) for line in lines], dtype=_END)
            for file, data in (
                (vectors, np.ascontiguousarray(found_NCE, _HALF).tobytes()),
                (ids, b"".join(lines)),
                (ends, own.tobytes()),
            ):
                with naming(file.name):
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            header = replace(header, rows=last, id_bytes=int(own[-1]))
            header.write(folder)
            progress(header.rows)
    return VectorStore(folder)


def check_vectors(found_NCE: np.ndarray, ids: Sequence[str]) -> None:
    """Raise UserError with the id of the first text that has a vector that is no number."""
    bad = ~np.isfinite(found_NCE).all((1, 2))
    if bad.any():
        name = ids[int(bad.argmax())]
        raise UserError(
            f"the encoder gives the text {name!r} a vector that is no number ({int(bad.sum()):,} "
            f"of {len(ids):,} texts in this block): take such texts out, or look whether the model "
            "is whole and its `encoder.dtype` wide enough.",
            key="encoder.model",
            record=name,
        )


def other_encoder(path: Path, here: str, wanted: str) -> UserError:
    """The refusal of vectors that another encoder made: the cosines would say nothing."""
    return UserError(
        f"{path} is of the encoder {here}, and this run's is {wanted}: name the one that it was "
        "made with in `encoder.model`, or make it again in a folder of its own.",
        key="encoder.model",
        path=path,
    )


def _begin(folder: Path, wanted: StoreHeader) -> StoreHeader:
    """The header of what is there, which has to be as wanted; files are made where none are."""
    if not (folder / HEADER).is_file():
        if strangers := [name for name in STORE_FILES if (folder / name).exists()]:
            raise UserError(
                f"{folder} holds {strangers[0]} and no {HEADER}: it is no store of vectors that "
                "was begun here. Take that file away, or name another folder.",
                path=folder / strangers[0],
            )
        folder.mkdir(parents=True, exist_ok=True)
        wanted.write(folder)
    here = _read_header(folder)
    if here.fingerprint != wanted.fingerprint:
        raise other_encoder(folder, here.fingerprint, wanted.fingerprint)
    if replace(here, rows=0, id_bytes=0) != wanted:
        differs = [key for key, value in asdict(wanted).items() if asdict(here)[key] != value]
        keys = [key for key in differs if key not in ("rows", "id_bytes")]
        said = ", ".join(f"{key} {asdict(here)[key]} (now {asdict(wanted)[key]})" for key in keys)
        raise UserError(
            f"{folder} holds vectors of other texts or settings: {said}. Name another folder.",
            key=keys[0],
            path=folder,
        )
    for name, size in here.sizes().items():
        if here.rows == 0:
            (folder / name).touch()
        _check_size(folder / name, size, "at least")
    return here


def _read_header(folder: Path) -> StoreHeader:
    path = folder / HEADER
    try:
        content = load_json(path)
        if content.pop("format") != FORMAT:
            raise ValueError("of another format")
        return StoreHeader(**content)
    except FileNotFoundError as error:
        said = f"there is no store of vectors in {folder}: correct the path, or make it."
        raise UserError(said, path=folder) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        said = f"{path} cannot be read ({error}): make the store again in another folder."
        raise UserError(said, path=path) from error


def _check_size(path: Path, size: int, how: str) -> None:
    found = path.stat().st_size if path.is_file() else 0
    if found < size or (how == "exactly" and found != size):
        raise UserError(
            f"{path} has {found:,} bytes, and {HEADER} beside it tells of {size:,}: it was cut "
            "short or changed. Bring the file back, or delete the folder and make it again.",
            path=path,
        )


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)
