"""A published model, imported from its real weights, computes and learns."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.pipeline import batches, open_mixture
from ipt_jax.hf.load import load_hugging_face, read_config
from ipt_jax.models.config import PRESETS, ModelConfig
from ipt_jax.models.decoder import module_of
from ipt_jax.models.lora import LoraConfig, adapter_count
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training.loop import train
from ipt_jax.training.optimizer import OptimizerConfig
from ipt_jax.training.step import make_setup
from tests.training_runs import CORPUS, figures, make_config

FLOAT32 = {"compute_dtype": "float32"}


@pytest.fixture(scope="module")
def documents():
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()[:6]]


@pytest.fixture(scope="module")
def config(smollm2, documents, tmp_path_factory):
    """Four batches of 2 rows of 64 tokens out of so short a document that loss must fall."""
    shards = tmp_path_factory.mktemp("shards")
    with ShardWriter(shards / "raw") as writer:
        writer.write(Record("0", documents[0]["text"][:600], ""))
    mixture = {"tasks": {"raw": {"source": "raw"}}, "root": str(shards)}
    return make_config(
        shards,
        tmp_path_factory.mktemp("run") / "run",
        model=ModelConfig("smollm2_135m", FLOAT32),
        data=DataConfig(mixture=mixture, tokenizer=str(smollm2), row_tokens=64),
        init_from=smollm2,
        batch_tokens=2 * 64,
        train_tokens=2 * 64 * 4,
    )


def test_the_preset_is_the_published_shape(smollm2):
    read = read_config(smollm2)
    # GGUF holds it as float32.
    read = dataclasses.replace(read, norm_epsilon=round(read.norm_epsilon, 9))
    assert dataclasses.replace(read, compute_dtype="bfloat16") == PRESETS["smollm2_135m"]


def test_logits_of_512_tokens_are_those_of_transformers(smollm2, documents):
    text = "\n\n".join(document["text"] for document in documents)
    ids_BT = np.asarray([load_tokenizer(str(smollm2)).encode(text, bos=True)[:512]], np.int32)
    assert ids_BT.shape == (1, 512)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids_BT).long()).logits.numpy()
    decoder = dataclasses.replace(read_config(smollm2), compute_dtype="float32")
    positions_BT = np.arange(512, dtype=np.int32)[None]

    @jax.jit  # weights are an argument: as constants XLA would compute with them for minutes
    def logits(params):
        model = module_of(decoder, params)
        return model.logits(model(ids_BT, positions_BT))

    got = np.asarray(logits(jax.tree.map(jnp.asarray, load_hugging_face(smollm2, decoder))))
    assert np.max(np.abs(got - expected)) <= 1e-3 * np.max(np.abs(expected))
    assert np.max(np.abs(expected)) > 10  # and there is something to compare


def test_it_goes_on_training_with_a_falling_loss(smollm2, config):
    settings = OptimizerConfig(peak_learning_rate=1e-4, warmup_steps=0, schedule="constant")
    config = dataclasses.replace(config, optimizer=settings)
    mixture = open_mixture(config.data)
    setup = make_setup(config, make_mesh(MeshConfig()), 1)
    state = setup.init_state(0, load_hugging_face(smollm2, setup.decoder))
    losses = []
    for batch in batches(mixture, rows_per_batch=2, total_batches=3):
        state, metrics = setup.step_function(state, dict(batch))
        losses.append(float(metrics["loss"]))
    assert losses[0] < 5  # from scratch it would be log(49152) = 10.8
    assert losses[-1] < losses[0] - 0.5


def test_adapters_train_it_on_two_cores(config):
    lora = LoraConfig(rank=8, alpha=16.0, base_dtype="bfloat16")
    settings = OptimizerConfig(peak_learning_rate=2e-3, warmup_steps=0, schedule="constant")
    train(dataclasses.replace(config, adapter=lora, optimizer=settings))
    losses = list(figures(config.run_folder).values())
    assert losses[0] < 5 and losses[-1] < losses[0] - 0.3
    [saved] = (config.run_folder / "checkpoints").glob("4")
    size_bytes = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    # The adapters and their two moments in float32, and not the 135 million frozen weights.
    assert size_bytes < 1.2 * 12 * adapter_count(PRESETS["smollm2_135m"], lora) < 100e6
