"""The benchmark of data: contenders do the same work, and ratios are of pairs."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def tools():
    sys.path.insert(0, str(ROOT / "tools"))
    yield
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def texts(tools) -> list[str]:
    from bench_data import read_texts

    found = read_texts([], 0.15)
    assert 150_000 < sum(len(text.encode()) for text in found) < 160_000
    return found


def test_every_contender_makes_the_same_rows(texts, tmp_path):
    import data_peers as peers

    corpus = peers.Corpus(texts, tmp_path)
    made = corpus.ours()
    row = peers.T * peers.B
    assert made == corpus.ours_from_token_shards() and made % row == 0
    for peer in (corpus.bare_grain, corpus.hugging_face, corpus.index):
        # What does not fill a batch, or is lost where examples are joined in pieces.
        assert 0 <= corpus.index() - peer() < row
        assert peer() >= made - row


def test_packers_get_the_same_examples():
    from bench_data import packing

    table = packing(rounds=1, tokens=100_000)
    assert list(table) == [
        "Grain first fit", "Grain best fit", "Grain concatenate", "ours, best_fit",
        "ours, concatenate",
    ]  # fmt: skip
    assert table["Grain first fit"]["to Grain first fit"] == [1.0, 1.0, 1.0]
    assert 0.9 < table["Grain best fit"]["fill"] <= table["ours, best_fit"]["fill"] <= 1


def test_shards_and_tokenizers_are_compared_pair_by_pair(texts, tmp_path, capsys, monkeypatch):
    import bench_data

    monkeypatch.setattr("data_peers.OPTIONS", ("group_size:1,uncompressed", "group_size:16,zstd:3"))
    table = bench_data.shards(texts, tmp_path, rounds=2)
    low, median, high = table["ours, writer"]["to bare writer"]
    assert 0 < low <= median <= high
    plain, zipped = (table[options]["megabytes"] for options in list(table)[-2:])
    assert zipped < 0.7 * plain
    mistral = bench_data.tokens(texts, rounds=1)["mistral, ours"]
    assert mistral["bytes_per_second"] > 0 and len(mistral["to mistral, bare library"]) == 3
