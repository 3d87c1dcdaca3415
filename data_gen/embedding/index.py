"""The nearest of many vectors: exactly in small sets, by compressed ones in large sets.

    FOLDER/index.json      what it is made of, how it was chosen and measured; written last
    FOLDER/index.faiss     the index, memory-mapped
    FOLDER/lists.ivfdata   of some compressed ones: their lists, memory-mapped

A compressed index finds `rescore` times as many candidates as are asked for, and these are compared
by the vectors themselves, which stay in their store: scores are exact cosines, so that a threshold
means the same with every index, and only the choice of candidates is approximate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_gen.embedding.store import other_encoder
from data_gen.errors.shared import one_line, optional
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import file_sha256

FORMAT = "ipt-jax-index/1"
MANIFEST, INDEX, LISTS = "index.json", "index.faiss", "lists.ivfdata"
Gpu = Literal["auto", "never"]
_GATHERED = 64  # queries whose candidates are compared at a time


class Index:
    """An index of vectors that lie in a store."""

    def __init__(
        self,
        folder: str | Path,
        vectors_NE: np.ndarray,
        fingerprint: str,
        *,
        verify: bool = False,
        gpu: Gpu = "auto",
    ) -> None:
        """
        Args:
          folder: where `build_index` made it.
          vectors_NE: the vectors that it was made of.
          fingerprint: the encoder of the queries.
          verify: read every byte and compare checksums; without, only sizes.

        Raises:
          UserError: there is no index, it is of another encoder or other vectors, or a file of it
            is cut short or changed.
        """
        self.folder = Path(folder).expanduser()
        self.manifest = manifest = _read_manifest(self.folder)
        if manifest["fingerprint"] != fingerprint:
            raise other_encoder(self.folder, manifest["fingerprint"], fingerprint)
        shape = (manifest["count"], manifest["width"])
        if shape != vectors_NE.shape:
            raise UserError(
                f"{self.folder} is an index of {shape[0]:,} vectors of width {shape[1]}, and these "
                f"are {vectors_NE.shape[0]:,} of {vectors_NE.shape[1]}: make the index again.",
                path=self.folder,
            )
        _check_files(self.folder, manifest["files"], verify)
        self._vectors_NE, self._rescore = vectors_NE, manifest["rescore"]
        self._index = map_index(self.folder)
        if probes := manifest["measured"]["probes"]:
            faiss_library().extract_index_ivf(self._index).nprobe = probes
        self._index, self.device = _placed(self._index, gpu)

    def __len__(self) -> int:
        return int(self.manifest["count"])

    def search(self, queries_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest vectors of each query, the nearest first.

        Args:
          queries_QE: of length 1, of the encoder that the index is of.

        Returns:
          Rows int64 [Q, k], -1 where there are no more, and their cosines float32 [Q, k].

        Raises:
          ValueError: queries of another width, or with a NaN.
        """
        queries_QE = np.ascontiguousarray(queries_QE, np.float32)
        if queries_QE.ndim != 2 or queries_QE.shape[1] != self.manifest["width"]:
            wanted = self.manifest["width"]
            raise ValueError(f"queries are {queries_QE.shape}, the index is of width {wanted}")
        if not np.isfinite(queries_QE).all():
            bad = np.flatnonzero(~np.isfinite(queries_QE).all(1)).tolist()
            raise ValueError(f"the queries {bad[:8]} hold what is no number")
        return rescored_search(self._index, self._vectors_NE, queries_QE, k, self._rescore)


def exact_search(
    vectors_NE: np.ndarray, queries_QE: np.ndarray, k: int, block: int = 1 << 16
) -> tuple[np.ndarray, np.ndarray]:
    """As `Index.search`, by all vectors, of which a block is in memory at a time."""
    queries_QE = queries_QE.astype(np.float32)
    rows_QK = np.full((len(queries_QE), k), -1, np.int64)
    scores_QK = np.full((len(queries_QE), k), -np.inf, np.float32)
    for first in range(0, len(vectors_NE), block):
        part_NE = vectors_NE[first : first + block].astype(np.float32)
        own_QN = queries_QE @ part_NE.T
        numbers_QN = np.broadcast_to(np.arange(first, first + len(part_NE)), own_QN.shape)
        all_rows = np.concatenate([rows_QK, numbers_QN], 1)
        rows_QK, scores_QK = _best(all_rows, np.concatenate([scores_QK, own_QN], 1), k)
    return rows_QK, scores_QK


def rescored_search(
    index: Any, vectors_NE: np.ndarray, queries_QE: np.ndarray, k: int, rescore: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `Index.search`, of FAISS's index; `rescore` of 1: its own scores are exact."""
    if rescore == 1:
        scores_QK, rows_QK = index.search(queries_QE, k)
        return rows_QK, np.where(rows_QK < 0, -np.inf, scores_QK)
    found = [np.empty((0, k), np.int64)], [np.empty((0, k), np.float32)]
    for first in range(0, len(queries_QE), _GATHERED):
        part_QE = queries_QE[first : first + _GATHERED]
        _, rows_QK = index.search(part_QE, k * rescore)
        # Each row is read once, in the order in which they lie.
        rows_N, places = np.unique(rows_QK, return_inverse=True)
        read_NE = vectors_NE[np.maximum(rows_N, 0)].astype(np.float32)
        scores_QN = part_QE @ read_NE.T
        scores_QK = np.take_along_axis(scores_QN, places.reshape(rows_QK.shape), 1)
        rows_QK, scores_QK = _best(rows_QK, np.where(rows_QK < 0, -np.inf, scores_QK), k)
        found[0].append(rows_QK)
        found[1].append(scores_QK)
    return np.concatenate(found[0]), np.concatenate(found[1])


def _best(rows_QN: np.ndarray, scores_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest scores of each row, the highest first; of equal ones the first row first."""
    if scores_QN.shape[1] > k:
        kept = np.argpartition(-scores_QN, k - 1, 1)[:, :k]
        rows_QN = np.take_along_axis(rows_QN, kept, 1)
        scores_QN = np.take_along_axis(scores_QN, kept, 1)
    order = np.lexsort((rows_QN, -scores_QN), axis=1)
    return np.take_along_axis(rows_QN, order, 1), np.take_along_axis(scores_QN, order, 1)


def _placed(index: Any, gpu: str) -> tuple[Any, str]:
    """The index where it is searched: on GPUs where there are any that know its kind."""
    faiss = faiss_library()
    kinds = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
    if gpu == "never" or not count_gpus() or not isinstance(faiss.downcast_index(index), kinds):
        return index, "cpu"
    return faiss.index_cpu_to_all_gpus(index), "gpu"


def count_gpus() -> int:
    return getattr(faiss_library(), "get_num_gpus", lambda: 0)()


def as_float(vectors_NE: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors_NE, np.float32)


def faiss_library() -> Any:
    missing = (
        "the index needs FAISS, which is not installed: `pip install 'ipt-jax[matching]'`, or "
        "faiss-gpu where there are GPUs."
    )
    return optional("faiss", UserError(missing, key="index"))


def map_index(folder: Path) -> Any:
    """The index in a folder, memory-mapped. Raises UserError naming the file."""
    faiss = faiss_library()
    lists = (folder / LISTS).is_file()
    how = faiss.IO_FLAG_ONDISK_SAME_DIR if lists else faiss.IO_FLAG_MMAP_IFC
    return read_index(folder / INDEX, faiss.IO_FLAG_READ_ONLY | how)


def read_index(path: Path, flags: int) -> Any:
    try:
        return faiss_library().read_index(str(path), flags)
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be read as an index ({one_line(error)}): delete its folder and make "
            "the index again.",
            path=path,
        ) from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = load_json(path)
        if content["format"] != FORMAT:
            raise ValueError("of another format")
        return content
    except FileNotFoundError as error:
        said = f"there is no finished index in {folder}: correct the path, or make it."
        raise UserError(said, path=folder) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        said = f"{path} cannot be read ({one_line(error)}): make the index again."
        raise UserError(said, path=path) from error


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]], verify: bool) -> None:
    for name, told in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != told["bytes"] or (verify and file_sha256(path) != told["sha256"]):
            raise UserError(
                f"{path} has {size:,} bytes, and {MANIFEST} beside it tells of {told['bytes']:,} "
                "with another checksum: it was cut short or changed. Bring the file back, or "
                f"delete {folder} and make the index again.",
                path=path,
            )
