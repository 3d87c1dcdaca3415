"""Making an index: chosen by measurement, compressed shard by shard, merged on disk."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_gen.embedding.index import (
    FORMAT,
    INDEX,
    LISTS,
    MANIFEST,
    Gpu,
    Index,
    as_float,
    count_gpus,
    exact_search,
    faiss_library,
    map_index,
    read_index,
    rescored_search,
)
from data_gen.errors.shared import one_line
from ipt_jax.core.bounds import Above, AtLeast, AtMost, Config, NotNegative, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write, sync_folder
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import file_sha256
from ipt_jax.core.seeds import generator_of

BUILD, TRAINED = "build.json", "trained.faiss"
INDEX_FILES = (MANIFEST, INDEX, LISTS, BUILD, TRAINED, "shard-#.faiss")
"""What an index's folder holds, finished or not, for the marker of a run folder."""
EXACT = "Flat"
# From many bytes a vector to few: E, E / 2, E / 8 and E / 16. OPQ before a product quantiser takes
# longer to train than all of these together.
CANDIDATES = (
    "IVF{lists},SQ8",
    "IVF{lists},SQ4",
    "IVF{lists},PQ{quarter}x4fs",
    "IVF{lists},RaBitQfs",
    "IVF{lists},PQ{eighth}x4fs",
)
_LEAST_FAST = 8  # subquantisers: of fast scans with fewer FAISS 1.15 writes past its memory
_TOO_FAST = re.compile(r"PQ[1-7]x4fs")
_NEIGHBOURS = 10  # recall@10
_PROBED = 100  # neighbours asked for where speed is measured: a document's candidates
_TRAINED_A_LIST = 40  # vectors, of which FAISS wants 39 for a centroid
_TIED = 1e-5  # cosines nearer than that are the same neighbour, such as equal descriptions


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """How vectors are searched."""

    exact_vectors: NotNegative = 100_000
    """Sets of up to so many are searched exactly."""
    factory: str = ""
    """FAISS's name of a compressed index with inverted lists (`IVF4096,SQ8`); `{lists}` stands for
    a number of lists that suits the set, `{quarter}` and `{eighth}` for a part of the width. Empty:
    the fastest of `candidates` that reaches `recall` on a sample of the set."""
    candidates: list[str] = field(default_factory=lambda: list(CANDIDATES))
    """Names to choose from, as in `factory`."""
    recall: Annotated[float, Above(0), AtMost(1)] = 0.99
    """Share of the ten nearest that have to be found (recall@10 against exact search)."""
    most_bytes: Positive | None = None
    """Bytes that a vector may take in the index, its number included; null: any."""
    sample_vectors: Annotated[int, AtLeast(256)] = 100_000
    """Vectors on which candidates are measured."""
    train_vectors: Annotated[int, AtLeast(256)] = 1_000_000
    """Most vectors from which an index learns its lists."""
    measure_queries: Annotated[int, AtLeast(8)] = 256
    """Queries with which it is measured."""
    rescore: Positive = 8
    """Candidates of a compressed index for each neighbour that is asked for."""
    vectors_per_shard: Positive = 1_000_000
    """Vectors that are compressed in memory at a time."""
    gpu: Gpu = "auto"
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
        _clean(folder)
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
        "faiss": faiss_library().__version__,
        **made,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
            for name in files
        },
    }
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    _clean(folder)
    return Index(folder, vectors_NE, fingerprint, gpu=config.gpu)


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
    quarter, eighth = (_divisor(width, max(_LEAST_FAST, width // part)) for part in (4, 8))
    for part, size in (("{lists}", lists), ("{quarter}", quarter), ("{eighth}", eighth)):
        factory = factory.replace(part, str(size))
    return factory


def _clean(folder: Path) -> None:
    """Take away what only the building needed."""
    for name in (BUILD, TRAINED):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("shard-*.faiss*"):
        path.unlink()


def _divisor(width: int, most: int) -> int:
    """The largest part of a vector, of at most so many, that divides it."""
    return next(part for part in range(min(most, width), 0, -1) if width % part == 0)


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
        self._given_QE = queries_QE

    def exact(self) -> dict[str, Any]:
        started = time.monotonic()
        (self._folder / LISTS).unlink(missing_ok=True)  # of a compressed one that was begun
        index = faiss_library().IndexFlatIP(self._vectors_NE.shape[1])
        for first in range(0, len(self._vectors_NE), 1 << 16):
            index.add(as_float(self._vectors_NE[first : first + (1 << 16)]))
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
            "measured_with": "vectors of the set" if self._own else "given queries",
            "reached": reached,
            "candidates": begun["candidates"],
        }

    def _begun(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """What an earlier run of the same settings chose; what one of others left is removed."""
        try:
            before = load_json(self._folder / BUILD)
        except FileNotFoundError:
            before = None
        if before is not None and all(before.get(key) == value for key, value in state.items()):
            return before
        _clean(self._folder)
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
        queries_QE, own = self._asked(), self._own
        centroids: dict[int, np.ndarray] = {}
        table = []
        for factory in config.candidates:
            name = name_factory(factory, *sample_NE.shape)
            self._tell(f"measuring {name}")
            started = time.monotonic()
            index = train_index(name, sample_NE, centroids, config.gpu)
            index.add(sample_NE)
            seconds = time.monotonic() - started
            table.append(measure_index(index, factory, sample_NE, queries_QE, own, seconds, config))
        return table, choose_factory(table, config).factory

    def _train(self, name: str) -> None:
        sample_NE = self._sample("train", self._config.train_vectors)
        _write_index(train_index(name, sample_NE, {}, self._config.gpu), self._folder / TRAINED)

    def _compress(self, path: Path, first: int) -> None:
        index = read_index(self._folder / TRAINED, 0)
        last = min(first + self._config.vectors_per_shard, len(self._vectors_NE))
        for start in range(first, last, 1 << 16):
            numbers = np.arange(start, min(start + (1 << 16), last))
            index.add_with_ids(as_float(self._vectors_NE[start : numbers[-1] + 1]), numbers)
        _write_index(index, path)

    def _merge(self, paths: Sequence[Path]) -> None:
        """Make one index of the shards.

        Lists are put into one file, and of a shard only pages are in memory. Those of the kinds for
        fast scans (`fs`) cannot lie there: they are joined in memory, some dozens of bytes a
        vector, and mapped as a whole when they are read.
        """
        faiss = faiss_library()
        index = read_index(self._folder / TRAINED, 0)
        ivf = faiss.extract_index_ivf(index)
        (self._folder / LISTS).unlink(missing_ok=True)
        if isinstance(faiss.downcast_InvertedLists(ivf.invlists), faiss.ArrayInvertedLists):
            # The shards are held until the lists are merged: they own what is pointed to.
            shards = [read_index(path, faiss.IO_FLAG_MMAP) for path in paths]
            pointers = faiss.InvertedListsPtrVector()
            for shard in shards:
                pointers.push_back(faiss.extract_index_ivf(shard).invlists)
            lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(self._folder / LISTS))
            total = lists.merge_from_multiple(pointers.data(), pointers.size(), False)
            index.ntotal = ivf.ntotal = total
            ivf.replace_invlists(lists, True)
            lists.this.disown()
            with open(self._folder / LISTS, "rb") as file:
                os.fsync(file.fileno())
        else:
            for path in paths:
                index.merge_from(read_index(path, 0), 0)
        _write_index(index, self._folder / INDEX)

    def _measure(self, name: str, seconds: float) -> Measured:
        self._tell("measuring the whole")
        files = [path for path in (self._folder / INDEX, self._folder / LISTS) if path.is_file()]
        index = map_index(self._folder)
        vectors_NE, queries_QE = self._vectors_NE, self._asked()
        found = measure_index(index, name, vectors_NE, queries_QE, self._own, seconds, self._config)
        size = sum(path.stat().st_size for path in files) / len(vectors_NE)
        return replace(found, bytes_per_vector=size)

    @property
    def _own(self) -> bool:
        """Whether the queries are some of the vectors."""
        return self._given_QE is None

    def _asked(self) -> np.ndarray:
        most = self._config.measure_queries
        given_QE = self._given_QE
        return self._sample("queries", most) if given_QE is None else as_float(given_QE[:most])

    def _sample(self, what: str, most: int) -> np.ndarray:
        """So many vectors, drawn by the seed, float32."""
        count = len(self._vectors_NE)
        if count <= most:
            return as_float(self._vectors_NE)
        drawn = generator_of(self._seed, "index", what).choice(count, most, replace=False)
        return as_float(self._vectors_NE[np.sort(drawn)])


def train_index(
    name: str, sample_NE: np.ndarray, centroids: dict[int, np.ndarray], gpu: str
) -> Any:
    """A trained, empty index; what it learnt of its lists is kept in `centroids` for the next."""
    faiss = faiss_library()
    if _TOO_FAST.search(name):
        said = f"index.factory={name!r}: a fast scan needs at least {_LEAST_FAST} subquantisers."
        raise UserError(said, key="index.factory")
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
    elif gpu == "auto" and count_gpus():
        on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))  # held while it trains
        ivf.clustering_index = on_gpus
    most = max(ivf.nlist * 64, 1 << 16)
    index.train(sample_NE[:: max(1, len(sample_NE) // most)])
    if plain:
        centroids[ivf.nlist] = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    return index


def measure_index(
    index: Any,
    factory: str,
    vectors_NE: np.ndarray,
    queries_QE: np.ndarray,
    own: bool,
    seconds: float,
    config: IndexConfig,
) -> Measured:
    """Double the probes until the recall is reached; with them, what the index is worth.

    `own`: the queries are some of the vectors; that each finds itself says nothing.
    """
    ivf = faiss_library().extract_index_ivf(index)
    count = min(_NEIGHBOURS + own, len(vectors_NE))
    least_Q1 = exact_search(vectors_NE, queries_QE, count)[1][:, -1:] - _TIED

    def search(k: int) -> np.ndarray:
        return rescored_search(index, vectors_NE, queries_QE, k, config.rescore)[1]

    probes, recall = 1, 0.0
    while True:
        ivf.nprobe = probes
        recall = float((search(count)[:, int(own) :] >= least_Q1).mean())
        if recall >= config.recall or probes >= ivf.nlist:
            break
        probes = min(2 * probes, ivf.nlist)
    speed = _speed(lambda: search(min(_PROBED, len(vectors_NE))))
    size = ivf.code_size + 8.0
    return Measured(factory, recall, size, speed * len(queries_QE), seconds, probes)


def _speed(work: Callable[[], Any]) -> float:
    """Times a second, after one that warms up."""
    work()
    started, times = time.monotonic(), 0
    while times < 3 or time.monotonic() - started < 0.2:
        work()
        times += 1
    return times / (time.monotonic() - started)


def _write_index(index: Any, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        faiss_library().write_index(index, str(temporary))
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({one_line(error)}): see that the disk has room.", path=path
        ) from error
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
