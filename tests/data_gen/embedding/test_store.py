"""Stores of vectors: every block once, whatever happens, and nothing mixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_gen.embedding.embedder import HashedWords
from data_gen.embedding.store import HEADER, STORE_FILES, VectorStore, write_vectors
from ipt_jax.core.errors import UserError


class Lines:
    """Texts in memory; reading past `until` is where the machine goes off."""

    def __init__(self, texts: Sequence[str], until: int | None = None) -> None:
        self.texts, self.until = texts, until
        self.read_rows = list[int]()

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, numbers: Sequence[int], /) -> list[tuple[str, str]]:
        if self.until is not None and max(numbers) >= self.until:
            raise KeyboardInterrupt
        self.read_rows += numbers
        return [(f"ü{number}\n", self.texts[number]) for number in numbers]


TEXTS = [f"word{n} word{n % 7} and more" for n in range(50)]
EMBEDDER = HashedWords(width=16, chunks=2)


def made(folder: Path, texts: Lines, embedder=EMBEDDER, name: str = "texts") -> VectorStore:
    return write_vectors(folder, texts, embedder, name, rows_per_block=8)


def test_a_killed_run_goes_on_behind_its_last_block(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", Lines(TEXTS))
    assert whole.vectors.shape == (50, 3, 16) and not whole.vectors.flags.writeable
    np.testing.assert_array_equal(whole.vectors, EMBEDDER.embed(TEXTS))
    assert list(whole.ids) == [f"ü{n}\n" for n in range(50)] and whole.ids[-1] == "ü49\n"
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        made(killed, Lines(TEXTS, until=20))
    with pytest.raises(UserError) as refused:
        VectorStore(killed)
    assert refused.value.path == killed
    for name in STORE_FILES[1:]:  # half a block that no header counts
        with open(killed / name, "ab") as file:
            file.write(b"half" * 1000)
    again = Lines(TEXTS)
    made(killed, again)
    assert again.read_rows == list(range(16, 50))
    for name in STORE_FILES:
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    finished = Lines(TEXTS)
    made(killed, finished)
    assert finished.read_rows == []


def test_vectors_of_another_encoder_or_other_texts_are_refused(tmp_path: Path) -> None:
    made(tmp_path, Lines(TEXTS))
    other = HashedWords(width=32, chunks=2)
    for refuse in (
        lambda: made(tmp_path, Lines(TEXTS), other),
        lambda: VectorStore(tmp_path, other.fingerprint),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        assert (refused.value.key, refused.value.path) == ("encoder.model", tmp_path)
        assert other.fingerprint in str(refused.value)
        assert EMBEDDER.fingerprint in str(refused.value)
    for key, arguments in (
        ("settings", (Lines(TEXTS), HashedWords(16, 2, sigma=0.2))),
        ("texts", (Lines(TEXTS), EMBEDDER, "others")),
        ("count", (Lines(TEXTS[:9]),)),
    ):
        with pytest.raises(UserError) as refused:
            made(tmp_path, *arguments)
        assert (refused.value.key, refused.value.path) == (key, tmp_path)


@pytest.mark.parametrize("name", STORE_FILES[1:])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    made(tmp_path, Lines(TEXTS))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-3])
    for refuse in (lambda: VectorStore(tmp_path), lambda: made(tmp_path, Lines(TEXTS))):
        with pytest.raises(UserError) as refused:
            refuse()
        assert refused.value.path == tmp_path / name


def test_a_text_without_a_vector_is_named_and_its_block_not_written(tmp_path: Path) -> None:
    texts = [*TEXTS[:11], "!!!", *TEXTS[12:]]
    with pytest.raises(UserError) as refused:
        made(tmp_path, Lines(texts))
    assert refused.value.record == "ü11\n"
    assert json.loads((tmp_path / HEADER).read_text())["rows"] == 8


def test_files_without_a_header_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vectors.f16").write_bytes(b"mine")
    with pytest.raises(UserError) as refused:
        made(tmp_path, Lines(TEXTS))
    assert refused.value.path == tmp_path / "vectors.f16"
    assert (tmp_path / "vectors.f16").read_bytes() == b"mine"
    with pytest.raises(UserError):
        VectorStore(tmp_path / "none")
    assert len(made(tmp_path / "empty", Lines([])).ids) == 0
