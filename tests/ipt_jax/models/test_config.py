"""Presets say what the papers say."""

import pytest

from ipt_jax.errors import UserError
from ipt_jax.models.config import PRESETS, ModelConfig

# Instruction Pre-Training Table 14 for ipt_*; the published models' counts for the others.
PARAMETERS = {
    "ipt_500m": 567_854_592,
    "ipt_1_3b": 1_347_504_128,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "smollm2_135m": 134_515_008,
    "quickstart": 14_649_792,
    "tiny": 34_976,
}


def test_every_preset_has_its_stated_parameter_count():
    assert {name: preset.parameter_count() for name, preset in PRESETS.items()} == PARAMETERS


def test_flops_by_hand():
    # 6 FLOPs a matrix parameter (embedding rows are looked up, not multiplied), and for scores
    # and values 12 · L · H · h · T, half of it where causality halves the scores.
    tiny = PRESETS["tiny"]
    matrices = tiny.parameter_count() - 256 * 32
    assert tiny.flops_per_token(64, causal=False) == 6 * matrices + 12 * 2 * 4 * 8 * 64
    assert tiny.flops_per_token(64) == 6 * matrices + 6 * 2 * 4 * 8 * 64


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="'ipt_500m'"):
        ModelConfig(preset="ipt_500").decoder()
    with pytest.raises(UserError, match="'layers'"):
        ModelConfig(overrides={"layer": 3}).decoder()
    with pytest.raises(UserError, match="allowed are float32, bfloat16"):
        ModelConfig(overrides={"compute_dtype": "float16"}).decoder()


def test_overrides_change_the_preset():
    decoder = ModelConfig("tiny", {"layers": 3, "rope_scaling": {"factor": 4.0}}).decoder()
    assert decoder.layers == 3
    assert decoder.rope_scaling is not None and decoder.rope_scaling.factor == 4.0
