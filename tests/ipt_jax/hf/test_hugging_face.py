"""Our folders in transformers, transformers' folders in ours."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.hf.load import FolderArray, load_hugging_face, open_hugging_face, read_config
from ipt_jax.hf.verify import logit_difference
from ipt_jax.models.config import PRESETS, DecoderConfig
from ipt_jax.models.decoder import module_of, new_params
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training import state
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.step import TrainSetup

TEXTS = [
    "The sliding window is shorter than this text, so that early words fall out of sight: " * 3,
    "def f(x):\n    return  x ** 2   # spaces, tabs\t and — Unicode: ½ naïve 東京\n",
]
MISTRAL = dataclasses.replace(PRESETS["tiny"], vocabulary_size=32000, window=20)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mistral-7b-v0.1")


@pytest.fixture(scope="module")
def params():
    # Larger than training would start with, so that logits differ from 0 by more than rounding.
    return jax.tree.map(lambda p: np.asarray(p) * 4, new_params(MISTRAL, jax.random.key(1)))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("shard_bytes", [2**32, 2**20])
def test_export_gives_transformers_the_same_logits(tmp_path, tokenizer, params, shard_bytes):
    folder = export_hugging_face(
        tmp_path / "out", MISTRAL, params, tokenizer, shard_bytes=shard_bytes
    )
    difference = logit_difference(folder, MISTRAL, params, tokenizer, TEXTS)
    assert 0 < difference < 1e-4
    assert len(list(folder.glob("*.safetensors"))) == (1 if shard_bytes == 2**32 else 3)
    # And those of a tokenizer that puts no BOS before a text, as GPT-2's kind.
    fast = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(fast | {"post_processor": None}))
    (folder / "tokenizer.model").unlink()
    bare = load_tokenizer(str(folder))
    assert not bare.adds_bos and bare.bos_id == 1
    assert 0 < logit_difference(folder, MISTRAL, params, bare, TEXTS) < 1e-4
    # The comparison sees a difference where there is one: other positions are other logits.
    turned = dataclasses.replace(MISTRAL, rope_theta=5000.0)
    assert logit_difference(folder, turned, params, bare, TEXTS) > 1e-3
    wide = dataclasses.replace(MISTRAL, window=None)
    assert logit_difference(folder, wide, params, bare, TEXTS) > 1e-3


def test_export_import_export_is_byte_identical(tmp_path, tokenizer, params):
    first = export_hugging_face(tmp_path / "a", MISTRAL, params, tokenizer)
    decoder = read_config(first)
    assert dataclasses.replace(decoder, compute_dtype="float32") == MISTRAL
    back = load_hugging_face(first, decoder)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    second = export_hugging_face(tmp_path / "b", decoder, back, tokenizer)
    assert digests(first) == digests(second)


def test_opened_weights_are_read_block_by_block(tmp_path, tokenizer, params, monkeypatch):
    folder = export_hugging_face(tmp_path / "out", MISTRAL, params, tokenizer)
    opened, asked = open_hugging_face(folder, MISTRAL), []
    leaf = opened["blocks"]["gate_up_LD2F"]
    get = leaf._get
    leaf._get = lambda name: asked.append(name) or get(name)
    part = (slice(1, 2), slice(3, 9), slice(None), slice(8))
    np.testing.assert_array_equal(leaf[part], params["blocks"]["gate_up_LD2F"][part])
    assert asked == ["model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    jax.tree.map(np.testing.assert_array_equal, opened, params)
    sizes, take = [], FolderArray.__getitem__
    monkeypatch.setattr(
        FolderArray, "__getitem__", lambda *a: sizes.append(take(*a).nbytes) or take(*a)
    )
    optimizer, schedule = (f(OptimizerConfig(), 1) for f in (make_optimizer, make_schedule))
    setup = TrainSetup(MISTRAL, make_mesh(MeshConfig()), optimizer, schedule, 1)
    for part_bytes in (state.PART_BYTES, 500_000):
        monkeypatch.setattr(state, "PART_BYTES", part_bytes)  # at once, then in several parts
        placed = setup.init_state(0, opened)
        jax.tree.map(np.testing.assert_array_equal, placed.params, params)
    assert max(sizes) == 4 * MISTRAL.vocabulary_size * MISTRAL.width
    assert 400_000 < max(sizes[len(jax.tree.leaves(params)) :]) <= 500_000


def test_bfloat16_export_is_rounded_weights(tmp_path, tokenizer, params):
    folder = export_hugging_face(tmp_path / "out", MISTRAL, params, tokenizer, dtype="bfloat16")
    back = load_hugging_face(folder, MISTRAL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), back, params)
    size_bytes = (folder / "model.safetensors").stat().st_size
    assert 0 < size_bytes - 2 * MISTRAL.parameter_count() < 10_000  # the rest is the header


def test_a_llama_with_scaled_rotary_and_tied_embeddings_is_read(tmp_path):
    scaling = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
            rope_parameters=scaling, tie_word_embeddings=True, initializer_range=0.2,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    decoder = dataclasses.replace(read_config(tmp_path), compute_dtype="float32")
    assert decoder.tied_embeddings and decoder.rope_scaling is not None
    model = module_of(
        decoder, jax.tree.map(jax.numpy.asarray, load_hugging_face(tmp_path, decoder))
    )
    ids = np.random.default_rng(0).integers(0, 97, (2, 200)).astype(np.int32)
    positions = np.tile(np.arange(200, dtype=np.int32), (2, 1))
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(model.logits(model(ids, positions)), expected, atol=1e-4)


def test_a_failed_check_publishes_nothing(tmp_path, tokenizer, params):
    def refuse(folder: Path) -> None:
        assert (folder / "model.safetensors").exists()
        raise UserError("differs")

    with pytest.raises(UserError, match="differs"):
        export_hugging_face(tmp_path / "out", MISTRAL, params, tokenizer, check=refuse)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json", "run.lock"}


def refusal(folder: Path, config: DecoderConfig | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_hugging_face(folder, config or read_config(folder))
    return str(caught.value)


def test_bad_folders_are_refused_by_name(tmp_path, tokenizer, params):
    assert "config.json" in refusal(tmp_path)
    folder = export_hugging_face(tmp_path / "out", MISTRAL, params, tokenizer)
    longer = dataclasses.replace(MISTRAL, layers=3)
    assert "model.layers.2.input_layernorm.weight" in refusal(folder, longer)
    wider = dataclasses.replace(MISTRAL, mlp_width=72)
    assert "gate_proj.weight has shape (64, 32)" in refusal(folder, wider)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: not a whole safetensors file" in refusal(folder)
    weights.rename(folder / "pytorch_model.bin")
    assert "safetensors only" in refusal(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "'gpt2'" in refusal(folder)
