"""The nearest of many vectors: exactly in small sets, by compressed ones in large sets.

    FOLDER/index.json      what it is made of, how it was chosen and measured; written last
    FOLDER/index.faiss     the index; of a compressed one all but its lists
    FOLDER/lists.ivfdata   the lists of compressed vectors, memory-mapped

A compressed index finds `rescore` times as many candidates as are asked for, and these are compared
by the vectors themselves, which stay in their store: scores are exact cosines, so that a threshold
means the same with every index, and only the choice of candidates is approximate.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from data_gen.embedding.store import other_encoder
from data_gen.errors.shared import one_line, optional
from ipt_jax.core.bounds import Above, AtLeast, AtMost, Config, NotNegative, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write, sync_folder
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import file_sha256
from ipt_jax.core.seeds import generator_of

FORMAT = "ipt-jax-index/1"
MANIFEST, INDEX, LISTS = "index.json", "index.faiss", "lists.ivfdata"
BUILD, TRAINED = "build.json", "trained.faiss"
INDEX_FILES = (MANIFEST, INDEX, LISTS, BUILD, TRAINED, "shard-#.faiss")
"""What an index's folder holds, finished or not, for the marker of a run folder."""
EXACT = "Flat"
# Quantisers whose lists can be merged on disk, from many bytes a vector to few. OPQ before a
# product quantiser takes longer to train than all of these together.
CANDIDATES = (
    "IVF{lists},SQ8",
    "IVF{lists},SQ4",
    "IVF{lists},RaBitQ4",
    "IVF{lists},RaBitQ",
    "IVF{lists},PQ{eighth}",
)
_NEIGHBOURS = 10  # recall@10
_PROBED = 100  # neighbours asked for where speed is measured: a document's candidates
_TRAINED_A_LIST = 40  # vectors, of which FAISS wants 39 for a centroid
_GATHERED = 64  # queries whose candidates are compared at a time
_TIED = 1e-5  # cosines nearer than that are the same neighbour, such as equal descriptions


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """How vectors are searched."""

    exact_vectors: NotNegative = 100_000
    """Sets of up to so many are searched exactly."""
    factory: str = ""
    """FAISS's name of a compressed index with inverted lists (`IVF4096,SQ8`); `{lists}` stands for
    a number of lists that suits the set, `{eighth}` for an eighth of the width. Empty: the fastest
    of `candidates` that reaches `recall` on a sample of the set."""
    candidates: list[str] = field(default_factory=lambda: list(CANDIDATES))
    """Names to choose from, as in `factory`."""
    recall: Annotated[float, Above(0), AtMost(1)] = 0.95
    """Share of the ten nearest that have to be found (recall@10 against exact search)."""
    most_bytes: Positive | None = None
    """Bytes that a vector may take in the index, its number included; null: any."""
    sample_vectors: Annotated[int, AtLeast(256)] = 100_000
    """Vectors on which candidates are measured."""
    train_vectors: Annotated[int, AtLeast(256)] = 1_000_000
    """Most vectors from which an index learns its lists."""
    measure_queries: Annotated[int, AtLeast(8)] = 256
    """Queries with which it is measured."""
    rescore: Positive = 4
    """Candidates of a compressed index for each neighbour that is asked for."""
    vectors_per_shard: Positive = 1_000_000
    """Vectors that are compressed in memory at a time."""
    gpu: Literal["auto", "never"] = "auto"
    """`auto`: GPUs train and search where faiss-gpu is installed and sees one."""


@dataclass(frozen=True)
class Measured:
    """What a factory's index is worth on some vectors."""

    factory: str
    recall: float
    """Recall@10 against exact search, after rescoring."""
    bytes_per_vector: float
    """In the index; the vectors in their store are not counted."""
    queries_per_second: float
    """Of all threads, 100 neighbours each."""
    build_seconds: float
    probes: int
    """Lists that a query looks into."""


def build_index(
    vectors_NE: np.ndarray,
    folder: str | Path,
    fingerprint: str,
    vectors_fingerprint: str,
    config: IndexConfig | None = None,
    *,
    queries_QE: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda said: None,
) -> Index:
    """Index vectors of length 1 by their inner product; goes on behind the shard that was last.

    Args:
      vectors_NE: float16, memory-mapped; stays where it is.
      fingerprint: of the encoder.
      vectors_fingerprint: the same for the same vectors in the same order.
      queries_QE: what will be asked, to measure with; None: some of the vectors themselves.

    Raises:
      UserError: there are no vectors, FAISS is not installed or does not know a factory, none of
        the candidates reaches the recall, or the folder holds an index of other vectors.
    """
    config = config or IndexConfig()
    folder = Path(folder).expanduser()
    if not len(vectors_NE):
        said = f"there are no vectors to index for {folder}: the set is empty."
        raise UserError(said, path=folder)
    if (folder / MANIFEST).is_file():
        index = Index(folder, vectors_NE, fingerprint, gpu=config.gpu)
        if index.manifest["vectors"] != vectors_fingerprint:
            raise UserError(
                f"{folder} is an index of other vectors: make this one in a folder of its own.",
                path=folder,
            )
        return index
    folder.mkdir(parents=True, exist_ok=True)
    build = _Build(vectors_NE, folder, config, seed, queries_QE, progress)
    exact = len(vectors_NE) <= config.exact_vectors and not config.factory
    made = build.exact() if exact else build.compressed(fingerprint, vectors_fingerprint)
    files = [name for name in (INDEX, LISTS) if (folder / name).is_file()]
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "vectors": vectors_fingerprint,
        "count": len(vectors_NE),
        "width": vectors_NE.shape[1],
        "rescore": 1 if exact else config.rescore,
        "faiss": _faiss().__version__,
        **made,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
            for name in files
        },
    }
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    build.clean()
    return Index(folder, vectors_NE, fingerprint, gpu=config.gpu)


class Index:
    """An index of vectors that lie in a store."""

    def __init__(
        self,
        folder: str | Path,
        vectors_NE: np.ndarray,
        fingerprint: str,
        *,
        verify: bool = False,
        gpu: Literal["auto", "never"] = "auto",
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
        faiss = _faiss()
        self._vectors_NE, self._rescore = vectors_NE, manifest["rescore"]
        flags = faiss.IO_FLAG_READ_ONLY
        compressed = LISTS in manifest["files"]
        flags |= faiss.IO_FLAG_ONDISK_SAME_DIR if compressed else faiss.IO_FLAG_MMAP_IFC
        self._index = _read_index(self.folder / INDEX, flags)
        if compressed:
            faiss.extract_index_ivf(self._index).nprobe = manifest["measured"]["probes"]
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
        return _search(self._index, self._vectors_NE, queries_QE, k, self._rescore)


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


def choose_factory(table: Sequence[Measured], config: IndexConfig) -> Measured:
    """The fastest that reaches the recall within the bytes. Raises UserError where none does."""
    within = [m for m in table if m.bytes_per_vector <= (config.most_bytes or np.inf)]
    reached = [m for m in within if m.recall >= config.recall]
    if not reached:
        best = max(within or table, key=lambda measured: measured.recall)
        raise UserError(
            f"index.recall={config.recall}: none of the candidates of at most "
            f"{config.most_bytes or 'any'} bytes a vector reaches it; the nearest is "
            f"{best.factory} with {best.recall:.3f} in {best.bytes_per_vector:.0f} bytes. Lower "
            "`index.recall`, raise `index.most_bytes` or `index.rescore`, or name a `factory`.",
            key="index.recall",
        )
    return max(reached, key=lambda measured: measured.queries_per_second)


def name_factory(factory: str, count: int, width: int) -> str:
    """The factory of so many vectors: about 4 √N lists, a power of two with enough to train on."""
    lists = 1 << max(0, round(np.log2(4 * np.sqrt(count))))
    while lists > 1 and lists * _TRAINED_A_LIST > count:
        lists //= 2
    return factory.replace("{lists}", str(lists)).replace("{eighth}", str(max(1, width // 8)))


class _Build:
    """An index while it is made."""

    def __init__(
        self,
        vectors_NE: np.ndarray,
        folder: Path,
        config: IndexConfig,
        seed: int,
        queries_QE: np.ndarray | None,
        progress: Callable[[str], None],
    ) -> None:
        self._vectors_NE, self._folder, self._config = vectors_NE, folder, config
        self._seed, self._tell = seed, progress
        self._queries_QE = queries_QE

    def exact(self) -> dict[str, Any]:
        started = time.monotonic()
        index = _faiss().IndexFlatIP(self._vectors_NE.shape[1])
        for first in range(0, len(self._vectors_NE), 1 << 16):
            index.add(_float(self._vectors_NE[first : first + (1 << 16)]))
        _write_index(index, self._folder / INDEX)
        seconds = time.monotonic() - started
        queries_QE = self._sample("queries", self._config.measure_queries)
        speed = _speed(lambda: index.search(queries_QE, min(_PROBED, index.ntotal)))
        size = 4.0 * self._vectors_NE.shape[1]
        measured = Measured(EXACT, 1.0, size, speed * len(queries_QE), seconds, 0)
        return {"factory": EXACT, "measured": asdict(measured), "candidates": []}

    def compressed(self, fingerprint: str, vectors_fingerprint: str) -> dict[str, Any]:
        """Choose, train, compress shard by shard, merge on disk, measure."""
        state = {"fingerprint": fingerprint, "vectors": vectors_fingerprint}
        state |= {"config": asdict(self._config), "seed": self._seed}
        begun = self._begun(state)
        if begun is None:
            table, chosen = self._choose()
            begun = {**state, "factory": chosen, "candidates": [asdict(m) for m in table]}
            begun["seconds"] = 0.0
            self._note(begun)
        count, width = self._vectors_NE.shape
        name = name_factory(begun["factory"], count, width)
        trained = self._folder / TRAINED
        if not trained.is_file():
            self._timed(begun, f"training {name}", lambda: self._train(name))
        shards = range(0, count, self._config.vectors_per_shard)
        paths = [self._folder / f"shard-{number:05d}.faiss" for number in range(len(shards))]
        for path, first in zip(paths, shards, strict=True):
            if not path.is_file():
                what = f"vectors from {first:,} of {count:,}"
                self._timed(begun, what, lambda p=path, f=first: self._compress(p, f))
        self._timed(begun, "merging", lambda: self._merge(paths))
        measured = self._measure(name, begun["seconds"])
        # No more than was asked for: the manifest says whether the whole set reaches it.
        reached = measured.recall >= self._config.recall
        return {
            "factory": name,
            "measured": asdict(measured),
            "reached": reached,
            "candidates": begun["candidates"],
        }

    def clean(self) -> None:
        """Take away what only the building needed."""
        for name in (BUILD, TRAINED):
            (self._folder / name).unlink(missing_ok=True)
        for path in self._folder.glob("shard-*.faiss*"):
            path.unlink()

    def _begun(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """What an earlier run of the same settings chose; what one of others left is removed."""
        try:
            before = load_json(self._folder / BUILD)
        except FileNotFoundError:
            before = None
        if before is not None and all(before.get(key) == value for key, value in state.items()):
            return before
        self.clean()
        return None

    def _note(self, state: Mapping[str, Any]) -> None:
        atomic_write(self._folder / BUILD, json.dumps(state, indent=1) + "\n")

    def _timed(self, state: dict[str, Any], what: str, work: Callable[[], None]) -> None:
        self._tell(what)
        started = time.monotonic()
        work()
        state["seconds"] += time.monotonic() - started
        self._note(state)

    def _choose(self) -> tuple[list[Measured], str]:
        config = self._config
        if config.factory:
            return [], config.factory
        sample_NE = self._sample("sample", config.sample_vectors)
        queries_QE = self._asked()
        centroids: dict[int, np.ndarray] = {}
        table = []
        for factory in config.candidates:
            name = name_factory(factory, *sample_NE.shape)
            self._tell(f"measuring {name}")
            started = time.monotonic()
            index = _train(name, sample_NE, centroids, config.gpu)
            index.add(sample_NE)
            seconds = time.monotonic() - started
            table.append(_measure(index, factory, sample_NE, queries_QE, seconds, config))
        return table, choose_factory(table, config).factory

    def _train(self, name: str) -> None:
        sample_NE = self._sample("train", self._config.train_vectors)
        _write_index(_train(name, sample_NE, {}, self._config.gpu), self._folder / TRAINED)

    def _compress(self, path: Path, first: int) -> None:
        index = _read_index(self._folder / TRAINED, 0)
        last = min(first + self._config.vectors_per_shard, len(self._vectors_NE))
        for start in range(first, last, 1 << 16):
            numbers = np.arange(start, min(start + (1 << 16), last))
            index.add_with_ids(_float(self._vectors_NE[start : numbers[-1] + 1]), numbers)
        _write_index(index, path)

    def _merge(self, paths: Sequence[Path]) -> None:
        """Put the lists of all shards into one file; of each shard only pages are in memory."""
        faiss = _faiss()
        index = _read_index(self._folder / TRAINED, 0)
        ivf = faiss.extract_index_ivf(index)
        (self._folder / LISTS).unlink(missing_ok=True)
        # The shards are held until the lists are merged: they own what is pointed to.
        shards = [_read_index(path, faiss.IO_FLAG_MMAP) for path in paths]
        pointers = faiss.InvertedListsPtrVector()
        for shard in shards:
            pointers.push_back(faiss.extract_index_ivf(shard).invlists)
        lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(self._folder / LISTS))
        total = lists.merge_from_multiple(pointers.data(), pointers.size(), False)
        index.ntotal = ivf.ntotal = total
        ivf.replace_invlists(lists, True)
        lists.this.disown()
        _write_index(index, self._folder / INDEX)
        with open(self._folder / LISTS, "rb") as file:
            os.fsync(file.fileno())

    def _measure(self, name: str, seconds: float) -> Measured:
        faiss = _faiss()
        self._tell("measuring the whole")
        flags = faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
        index = _read_index(self._folder / INDEX, flags)
        vectors_NE, queries_QE = self._vectors_NE, self._asked()
        return _measure(index, name, vectors_NE, queries_QE, seconds, self._config)

    def _asked(self) -> np.ndarray:
        most = self._config.measure_queries
        if self._queries_QE is not None and len(self._queries_QE):
            return _float(self._queries_QE[:most])
        return self._sample("queries", most)

    def _sample(self, what: str, most: int) -> np.ndarray:
        """So many vectors, drawn by the seed, float32."""
        count = len(self._vectors_NE)
        if count <= most:
            return _float(self._vectors_NE)
        drawn = generator_of(self._seed, "index", what).choice(count, most, replace=False)
        return _float(self._vectors_NE[np.sort(drawn)])


def _train(name: str, sample_NE: np.ndarray, centroids: dict[int, np.ndarray], gpu: str) -> Any:
    """A trained, empty index; what it learnt of its lists is kept in `centroids` for the next."""
    faiss = _faiss()
    try:
        index = faiss.index_factory(sample_NE.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        ivf = faiss.extract_index_ivf(index)
    except RuntimeError as error:
        raise UserError(
            f"index.factory: FAISS makes no index with inverted lists of {name!r} "
            f"({one_line(error)}): name one such as `IVF{{lists}},SQ8`.",
            key="index.factory",
        ) from error
    plain = isinstance(faiss.downcast_index(index), faiss.IndexIVF)
    if plain and ivf.nlist in centroids:
        ivf.quantizer.add(centroids[ivf.nlist])
    elif gpu == "auto" and _gpus():
        flat = faiss.IndexFlatIP(ivf.d)
        ivf.clustering_index = faiss.index_cpu_to_all_gpus(flat)
    most = max(ivf.nlist * 64, 1 << 16)
    index.train(sample_NE[:: max(1, len(sample_NE) // most)])
    if plain:
        centroids[ivf.nlist] = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    return index


def _measure(
    index: Any,
    factory: str,
    vectors_NE: np.ndarray,
    queries_QE: np.ndarray,
    seconds: float,
    config: IndexConfig,
) -> Measured:
    """Double the probes until the recall is reached; with them, what the index is worth."""
    ivf = _faiss().extract_index_ivf(index)
    count = min(_NEIGHBOURS, len(vectors_NE))
    least_Q = exact_search(vectors_NE, queries_QE, count)[1][:, -1:] - _TIED

    def search(k: int) -> np.ndarray:
        return _search(index, vectors_NE, queries_QE, k, config.rescore)[1]

    probes, recall = 1, 0.0
    while True:
        ivf.nprobe = probes
        recall = float((search(count) >= least_Q).mean())
        if recall >= config.recall or probes >= ivf.nlist:
            break
        probes = min(2 * probes, ivf.nlist)
    speed = _speed(lambda: search(min(_PROBED, len(vectors_NE))))
    size = ivf.code_size + 8.0
    return Measured(factory, recall, size, speed * len(queries_QE), seconds, probes)


def _search(
    index: Any, vectors_NE: np.ndarray, queries_QE: np.ndarray, k: int, rescore: int
) -> tuple[np.ndarray, np.ndarray]:
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


def _speed(work: Callable[[], Any]) -> float:
    """Times a second, after one that warms up."""
    work()
    started, times = time.monotonic(), 0
    while times < 3 or time.monotonic() - started < 0.2:
        work()
        times += 1
    return times / (time.monotonic() - started)


def _placed(index: Any, gpu: str) -> tuple[Any, str]:
    """The index where it is searched: on GPUs where there are any that know its kind."""
    faiss = _faiss()
    kinds = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
    if gpu == "never" or not _gpus() or not isinstance(faiss.downcast_index(index), kinds):
        return index, "cpu"
    return faiss.index_cpu_to_all_gpus(index), "gpu"


def _gpus() -> int:
    return getattr(_faiss(), "get_num_gpus", lambda: 0)()


def _float(vectors_NE: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors_NE, np.float32)


def _faiss() -> Any:
    missing = (
        "the index needs FAISS, which is not installed: `pip install 'ipt-jax[matching]'`, or "
        "faiss-gpu where there are GPUs."
    )
    return optional("faiss", UserError(missing, key="index"))


def _write_index(index: Any, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        _faiss().write_index(index, str(temporary))
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({one_line(error)}): see that the disk has room.", path=path
        ) from error
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _read_index(path: Path, flags: int) -> Any:
    try:
        return _faiss().read_index(str(path), flags)
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
