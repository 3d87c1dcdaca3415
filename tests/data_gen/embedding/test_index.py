"""Indexes of vectors: exact scores, merged shards, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_gen.embedding import build_index as builder
from data_gen.embedding.build_index import (
    CANDIDATES,
    IndexConfig,
    Measured,
    build_index,
    choose_factory,
    name_factory,
)
from data_gen.embedding.index import Index, exact_search
from ipt_jax.core.errors import UserError

faiss = pytest.importorskip("faiss", reason="ipt-jax[matching]")
WIDTH = 32
SMALL: dict[str, Any] = {
    "exact_vectors": 100,
    "candidates": ["IVF{lists},SQ8"],
    "sample_vectors": 1500,
    "measure_queries": 32,
    "vectors_per_shard": 700,
    "gpu": "never",
}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Of 60 subjects, as texts have; the last one is there twice."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(60, WIDTH))
    found = centres[generator.integers(60, size=2400)] + generator.normal(size=(2400, WIDTH))
    found[-1] = found[-2]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def built(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    build_index(vectors, folder, "encoder-a", "texts", IndexConfig(**SMALL))
    return folder


def by_definition(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    cosines = queries.astype(np.float32) @ vectors.astype(np.float32).T
    return -np.sort(-cosines, axis=1)[:, :k]


def test_small_sets_are_searched_exactly(vectors: np.ndarray, tmp_path: Path) -> None:
    index = build_index(vectors[:90], tmp_path, "a", "texts", IndexConfig(**SMALL))
    rows, scores = index.search(vectors[:5], 100)
    assert index.manifest["factory"] == "Flat" and len(index) == 90
    assert (rows[:, 0] == np.arange(5)).all() and (rows[:, 90:] == -1).all()
    expected = by_definition(vectors[:90], vectors[:5], 90)
    np.testing.assert_allclose(scores[:, :90], expected, atol=1e-5)
    assert np.isneginf(scores[:, 90:]).all()
    for wrong in (vectors[:2, :5], np.full((1, WIDTH), np.nan)):
        with pytest.raises(ValueError, match="queries"):
            index.search(wrong, 3)


def test_a_compressed_index_finds_what_it_promises_with_exact_scores(
    vectors: np.ndarray, built: Path
) -> None:
    index = Index(built, vectors, "encoder-a", verify=True, gpu="never")
    manifest, measured = index.manifest, index.manifest["measured"]
    assert measured["recall"] >= 0.99 and manifest["reached"]
    assert {"bytes_per_vector", "queries_per_second", "build_seconds"} <= measured.keys()
    assert [c["factory"] for c in manifest["candidates"]] == SMALL["candidates"]
    assert sorted(path.name for path in built.iterdir()) == sorted(
        ["index.faiss", "index.json", "lists.ivfdata"]
    )
    rows, scores = index.search(vectors[::100], 10)
    assert rows[:, 0].tolist() == list(range(0, 2400, 100)) and len(set(rows[0])) == 10
    expected = by_definition(vectors, vectors[::100], 10)
    assert (scores >= expected[:, -1:] - 1e-5).mean() >= 0.95
    cosines = np.einsum("QE,QKE->QK", vectors[::100].astype(np.float32), vectors[rows])
    np.testing.assert_allclose(scores, cosines, atol=1e-3)
    assert (np.diff(scores) <= 0).all()
    assert index.search(vectors[-1:], 2)[0].tolist() == [[2398, 2399]]
    exact = exact_search(vectors, vectors[::100], 10, block=501)[1]
    np.testing.assert_allclose(exact, expected, atol=1e-5)


def test_a_killed_build_goes_on_behind_its_last_shard(
    vectors: np.ndarray, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IndexConfig(**SMALL)
    write, written = builder._write_index, list[str]()

    def until_the_second(index: Any, path: Path) -> None:
        if path.name == "shard-00001.faiss" and not written.count("trained.faiss") > 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write(index, path)

    monkeypatch.setattr(builder, "_write_index", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        build_index(vectors, tmp_path, "encoder-a", "texts", config)
    with pytest.raises(UserError) as refused:
        Index(tmp_path, vectors, "encoder-a")
    assert refused.value.path == tmp_path
    monkeypatch.setattr(builder, "_write_index", lambda i, p: (written.append(p.name), write(i, p)))
    build_index(vectors, tmp_path, "encoder-a", "texts", config)
    shards = [f"shard-0000{n}.faiss" for n in range(4)]
    assert written == ["trained.faiss", *shards, "index.faiss"]
    mine, other = (Index(folder, vectors, "encoder-a") for folder in (tmp_path, built))
    np.testing.assert_array_equal(mine.search(vectors[:9], 5)[0], other.search(vectors[:9], 5)[0])


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_every_candidate_can_be_built_in_shards(
    vectors: np.ndarray, tmp_path: Path, candidate: str
) -> None:
    config = IndexConfig(**{**SMALL, "factory": candidate, "recall": 0.8, "rescore": 10})
    index = build_index(vectors, tmp_path, "a", "texts", config, queries_QE=vectors[:20])
    rows, scores = index.search(vectors[::50], 10)
    least = by_definition(vectors, vectors[::50], 10)[:, -1:] - 1e-5
    assert (scores >= least).mean() > 0.7 and (rows[:, 0] == np.arange(0, 2400, 50)).mean() > 0.9
    assert (tmp_path / "lists.ivfdata").exists() == (not candidate.endswith("fs"))
    size = sum((tmp_path / name).stat().st_size for name in index.manifest["files"])
    assert index.manifest["measured"]["bytes_per_vector"] == size / 2400


@pytest.mark.parametrize("name", ["index.faiss", "lists.ivfdata"])
def test_a_file_cut_short_is_refused(
    vectors: np.ndarray, built: Path, tmp_path: Path, name: str
) -> None:
    for path in built.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:-1] if path.name == name else data)
    with pytest.raises(UserError) as refused:
        Index(tmp_path, vectors, "encoder-a")
    assert refused.value.path == tmp_path / name
    changed = bytearray((built / name).read_bytes())
    changed[-1] ^= 1
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(UserError) as refused:
        Index(tmp_path, vectors, "encoder-a", verify=True)
    assert refused.value.path == tmp_path / name


def test_an_index_of_others_is_refused(vectors: np.ndarray, built: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Index(built, vectors, "encoder-b")
    assert refused.value.key == "encoder.model"
    assert "encoder-a" in str(refused.value) and "encoder-b" in str(refused.value)
    for refuse in (
        lambda: Index(built, vectors[:-1], "encoder-a"),
        lambda: build_index(vectors, built, "encoder-a", "other texts", IndexConfig(**SMALL)),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        assert refused.value.path == built
    with pytest.raises(UserError) as refused:
        build_index(vectors[:0], tmp_path, "encoder-a", "texts", IndexConfig(**SMALL))
    assert refused.value.path == tmp_path
    for factory in ("HNSW32", "IVF8,PQ4x4fs"):
        with pytest.raises(UserError) as refused:
            config = IndexConfig(**SMALL, factory=factory)
            build_index(vectors, tmp_path, "encoder-a", "texts", config)
        assert refused.value.key == "index.factory"
    (tmp_path / "index.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError) as refused:
        Index(tmp_path, vectors, "encoder-a")
    assert refused.value.path == tmp_path / "index.json"


def test_the_fastest_that_is_good_and_small_enough_is_chosen() -> None:
    table = [
        Measured("a", 0.99, 1032, 900, 1, 4),
        Measured("b", 0.96, 520, 800, 1, 8),
        Measured("c", 0.97, 140, 500, 1, 16),
        Measured("d", 0.80, 140, 9000, 1, 16),
    ]
    assert choose_factory(table, IndexConfig()).factory == "a"
    assert choose_factory(table, IndexConfig(recall=0.95, most_bytes=600)).factory == "b"
    assert choose_factory(table, IndexConfig(recall=0.95, most_bytes=200)).factory == "c"
    with pytest.raises(UserError) as refused:
        choose_factory(table, IndexConfig(recall=0.98, most_bytes=600))
    assert refused.value.key == "index.recall"
    assert name_factory("IVF{lists},PQ{eighth}", 18_000_000, 1024) == "IVF16384,PQ128"
    assert name_factory("IVF{lists},SQ8", 50, 16) == "IVF1,SQ8"
    assert name_factory("PQ{quarter},PQ{eighth}", 50, 300) == "PQ75,PQ30"  # both divide 300
