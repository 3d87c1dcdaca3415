"""Presets say what the papers say."""

import math

import jax
import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.models.config import PRESETS, ModelConfig
from ipt_jax.models.decoder import new_params

# Instruction Pre-Training Table 14 for ipt_*; our own shapes for fi_*, near the sizes that
# FineInstructions names; the published models' counts for the others.
PARAMETERS = {
    "ipt_500m": 567_854_592,
    "ipt_1_3b": 1_347_504_128,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "fi_300m": 298_347_520,
    "fi_1_8b": 1_809_946_624,
    "fi_7b": 7_526_944_768,
    "smollm2_135m": 134_515_008,
    "quickstart": 14_649_792,
    "tiny": 34_976,
}


def test_every_preset_has_its_stated_parameter_count():
    assert {name: preset.parameter_count() for name, preset in PRESETS.items()} == PARAMETERS


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same_parameters(name):
    """Its own model of the same sizes, without weights; and the arrays that we would train."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

    p = PRESETS[name]
    sizes = {
        "vocab_size": p.vocabulary_size,
        "hidden_size": p.width,
        "intermediate_size": p.mlp_width,
        "num_hidden_layers": p.layers,
        "num_attention_heads": p.heads,
        "num_key_value_heads": p.kv_heads,
        "head_dim": p.head_width,
        "tie_word_embeddings": p.tied_embeddings,
    }
    theirs = {"llama": LlamaConfig, "mistral": MistralConfig}[p.family](**sizes)
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(theirs).num_parameters() == PARAMETERS[name]
    ours = jax.eval_shape(lambda: new_params(p, jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours)) == PARAMETERS[name]


def test_the_fine_instructions_shapes_are_near_the_named_sizes_and_split_by_eight():
    # By hand: L · (4 · D² attention + 3 · D · F MLP + 2 · D norms) + tables · V · D + D.
    by_hand = {
        "fi_300m": 13 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024) + 128256 * 1024 + 1024,
        "fi_1_8b": 25 * (4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048) + 2 * 128256 * 2048 + 2048,
        "fi_7b": 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 128256 * 4096 + 4096,
    }
    named = {"fi_300m": 300e6, "fi_1_8b": 1.8e9, "fi_7b": 7e9}
    for name, count in by_hand.items():
        preset = PRESETS[name]
        assert preset.parameter_count() == count == pytest.approx(named[name], rel=0.08)
        assert preset.mlp_width == 256 * math.ceil(preset.width * 8 / 3 / 256)  # Lingua's rule
        assert preset.heads * preset.head_width == preset.width
        assert preset.head_width == 128 and preset.vocabulary_size == 128256
        split = (preset.vocabulary_size, preset.kv_heads, preset.heads, preset.mlp_width)
        assert not any(size % 8 for size in split)


def test_flops_by_hand():
    # 6 FLOPs a matrix parameter (embedding rows are looked up, not multiplied), and for scores
    # and values 12 · L · H · h · T, half of it where causality halves the scores.
    tiny = PRESETS["tiny"]
    matrices = tiny.parameter_count() - 256 * 32
    assert tiny.flops_per_token(64, causal=False) == 6 * matrices + 12 * 2 * 4 * 8 * 64
    assert tiny.flops_per_token(64) == 6 * matrices + 6 * 2 * 4 * 8 * 64


def test_unknown_names_are_answered_with_the_nearest():
    for overrides, key, nearest in (
        ({"layer": 3}, "layer", "layers"),
        ({"compute_dtype": "float16"}, "compute_dtype", "bfloat16"),
        ({"rope_scaling": {"factr": 4.0}}, "rope_scaling.factr", "factor"),
    ):
        with pytest.raises(UserError, match=f"The nearest is '{nearest}'") as refused:
            ModelConfig(overrides=overrides).decoder()
        assert refused.value.key == f"model.overrides.{key}"


def test_overrides_change_the_preset():
    decoder = ModelConfig("tiny", {"layers": 3, "rope_scaling": {"factor": 4.0}}).decoder()
    assert decoder.layers == 3
    assert decoder.rope_scaling is not None and decoder.rope_scaling.factor == 4.0
