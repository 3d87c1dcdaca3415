"""Adapters against peft: the same numbers, the same files."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from ipt_jax.core.errors import UserError
from ipt_jax.core.run_folder import FolderRefused
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.hf.adapters import merge_lora, peft_tensors, read_peft, write_peft
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.hf.load import load_hugging_face, read_config, stream_hugging_face
from ipt_jax.hf.verify import logit_difference
from ipt_jax.hf.weights import from_hugging_face
from ipt_jax.models.config import PRESETS, DecoderConfig, Params
from ipt_jax.models.decoder import module_of, new_params
from ipt_jax.models.lora import TARGETS, LoraConfig, new_adapters
from ipt_jax.training.checkpoints import save_params
from ipt_jax.training.convert import (
    FromHuggingFaceConfig,
    ToHuggingFaceConfig,
    from_hugging_face_folder,
    to_hugging_face_folder,
)
from ipt_jax.training.starting_weights import load_initial_params, weights_digest

IDS = np.random.default_rng(0).integers(0, 97, (2, 40)).astype(np.int32)
POSITIONS = np.tile(np.arange(40, dtype=np.int32), (2, 1))
# What the logits are weighed with, so that their sum has a gradient of every adapter.
WEIGHTS = np.random.default_rng(1).standard_normal((2, 40, 97)).astype(np.float32)
FAMILIES = {
    "mistral": (MistralConfig, {"sliding_window": 16}, TARGETS),
    "llama": (LlamaConfig, {"tie_word_embeddings": True}, ("v_proj", "q_proj", "down_proj")),
}


@dataclasses.dataclass(frozen=True)
class Peft:
    """A random model with random adapters, as transformers and peft made and saved it."""

    base: Path
    adapter: Path
    model: torch.nn.Module
    decoder: DecoderConfig


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request, tmp_path_factory):
    make, options, targets = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        make(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, head_dim=10, initializer_range=0.2,
            max_position_embeddings=128, **options,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")  # peft notes where it lay
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=list(targets), task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(folder / "adapter")
    decoder = dataclasses.replace(read_config(folder / "base"), compute_dtype="float32")
    return Peft(folder / "base", folder / "adapter", adapted.eval(), decoder)


def weighed_logits(decoder: DecoderConfig, params, adapters=None, lora=None):
    model = module_of(decoder, jax.tree.map(jnp.asarray, params), adapters, lora)
    logits = model.logits(model(IDS, POSITIONS))
    return jnp.sum(logits * WEIGHTS), logits


def test_logits_and_gradients_are_pefts(theirs):
    lora, adapters = read_peft(theirs.adapter, theirs.decoder)
    assert lora.rank == 3 and lora.scale == pytest.approx(7 / 3)
    params = load_hugging_face(theirs.base, theirs.decoder)
    # Also the gradients of adapters under rematerialisation by name.
    decoder = dataclasses.replace(
        theirs.decoder, remat="names", remat_save=("attention", "gate_up")
    )
    function = jax.value_and_grad(
        lambda adapters: weighed_logits(decoder, params, adapters, lora), has_aux=True
    )
    (_, logits), gradient = jax.jit(function)(adapters)
    expected = theirs.model(torch.from_numpy(IDS).long()).logits
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-4)
    torch.sum(expected * torch.from_numpy(WEIGHTS)).backward()
    their_gradient = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in theirs.model.named_parameters()
        if parameter.grad is not None
    }
    ours = dict(peft_tensors(theirs.decoder, lora, gradient))
    assert ours.keys() == their_gradient.keys()
    for name, tensor in ours.items():
        atol = 1e-4 * np.max(np.abs(their_gradient[name]))
        assert atol > 0
        np.testing.assert_allclose(tensor, their_gradient[name], rtol=0, atol=atol, err_msg=name)
    # The merged weights, without adapters beside them, are the same model.
    taken: list[str] = []

    def counted():
        for name, tensor in stream_hugging_face(theirs.base, theirs.decoder):
            taken.append(name)
            yield name, tensor

    stream = merge_lora(theirs.decoder, lora, adapters, counted())
    assert next(stream)[0] == taken[-1] and len(taken) == 1  # no tensor is read ahead
    whole = dict(merge_lora(theirs.decoder, lora, adapters, counted()))
    alone = from_hugging_face(theirs.decoder, whole.__getitem__)
    plain = jax.jit(lambda params: weighed_logits(theirs.decoder, params)[1])
    logits = plain(alone)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-4)
    assert np.max(np.abs(plain(params) - expected.detach().numpy())) > 0.1


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mistral-7b-v0.1")


def test_the_folder_is_what_peft_writes(theirs, tokenizer, tmp_path):
    lora, adapters = read_peft(theirs.adapter, theirs.decoder)
    ours = write_peft(
        tmp_path / "ours", theirs.decoder, lora, adapters, str(theirs.base), tokenizer
    )
    written, expected = (load_file(f / "adapter_model.safetensors") for f in (ours, theirs.adapter))
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert tensor.tobytes() == expected[name].tobytes(), name
    read, theirs_read = (
        json.loads((f / "adapter_config.json").read_text()) for f in (ours, theirs.adapter)
    )
    # The one key that says how peft began, and not what it has become.
    assert theirs_read.pop("init_lora_weights") is False and read.pop("init_lora_weights") is True
    for config in (read, theirs_read):
        config["target_modules"] = sorted(config["target_modules"])  # peft writes a set
    assert {name: theirs_read[name] for name in read} == read
    # What ours leaves out is peft's default.
    loaded = peft.PeftConfig.from_pretrained(ours)
    for name, value in theirs_read.items():
        if name not in read and name not in ("auto_mapping", "peft_version"):
            assert getattr(loaded, name) == value, name
    again, back = read_peft(ours, theirs.decoder)
    assert again == lora
    jax.tree.map(np.testing.assert_array_equal, back, adapters)


def test_bad_adapter_folders_are_refused_by_name(theirs, tokenizer, tmp_path):
    lora, adapters = read_peft(theirs.adapter, theirs.decoder)
    folder = write_peft(tmp_path / "a", theirs.decoder, lora, adapters, "base", tokenizer)

    def refusal(decoder: DecoderConfig = theirs.decoder, **changes) -> str:
        path = folder / "adapter_config.json"
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | changes))
        with pytest.raises(UserError) as caught:
            read_peft(folder, decoder)
        path.write_text(kept)
        return str(caught.value)

    assert "peft_type='IA3'" in refusal(peft_type="IA3")
    assert "use_dora=True" in refusal(use_dora=True)
    assert "bias='all'" in refusal(bias="all")
    assert "target_modules='.*_proj'" in refusal(target_modules=".*_proj")
    assert "targets.1='lm_head'" in refusal(target_modules=["q_proj", "lm_head"])
    assert "has shape (3, 48)" in refusal(r=4)
    assert "more that the decoder has" in refusal(target_modules=["q_proj"])
    deeper = dataclasses.replace(theirs.decoder, layers=3)
    assert "lacks base_model.model.model.layers.2" in refusal(deeper)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a whole safetensors file" in refusal()
    (folder / "run.json").unlink()  # as somebody else's
    with pytest.raises(FolderRefused, match="no run of ours made it"):
        export_hugging_face(folder, theirs.decoder, {}, tokenizer)
    with pytest.raises(UserError, match="there is no .*adapter_config.json"):
        read_peft(tmp_path, theirs.decoder)


SMALL = dataclasses.replace(PRESETS["tiny"], vocabulary_size=32000)
TEXT = "A base that was never rounded, and words that follow: f(x) = 東京.\n"


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: new_params(SMALL, jax.random.key(0)))
    return jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def write_run(folder: Path, init_from: Path | None, lora: LoraConfig | None, tree: Params) -> Path:
    """A run folder as training leaves it, as far as conversion reads it."""
    settings = {
        "model": {"preset": "tiny", "overrides": {"vocabulary_size": 32000}},
        "data": {"tokenizer": "mistral-7b-v0.1"},
        "init_from": None if init_from is None else str(init_from),
        "adapter": None if lora is None else dataclasses.asdict(lora),
    }
    folder.mkdir(parents=True)
    save_params(folder / "checkpoints", tree)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def random_adapters(lora: LoraConfig) -> Params:
    random = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: new_adapters(SMALL, lora, jax.random.key(0)))
    return jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def verified(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def convert(run: Path, **options):
        config = ToHuggingFaceConfig(run=run, verify=True, verify_text=text, **options)
        return to_hugging_face_folder(config)

    return convert


def test_a_run_with_adapters_is_exported_in_both_forms(tmp_path, params, tokenizer, verified):
    base = export_hugging_face(tmp_path / "base", SMALL, params, tokenizer)
    lora = LoraConfig(rank=4, alpha=8.0, targets=("k_proj", "up_proj"), base_dtype="bfloat16")
    run = write_run(tmp_path / "run", base, lora, random_adapters(lora))
    whole, difference = verified(run)
    assert whole == run / "export" and difference is not None and 0 < difference < 1e-4
    adapter, difference = verified(run, adapter="peft")
    assert adapter == run / "adapter" and difference is not None and 0 < difference < 1e-4
    assert json.loads((run / "adapter" / "verification.json").read_text())["tolerance"] == 1e-4
    # Both are what peft makes of the base that was rounded as the run's was.
    rounded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).float()
    both = peft.PeftModel.from_pretrained(rounded, adapter).merge_and_unload().state_dict()
    exported = load_file(whole / "model.safetensors")
    for name, tensor in both.items():
        np.testing.assert_allclose(exported[name], tensor.numpy(), rtol=0, atol=1e-6)
    # Verification sees adapters that are not the run's.
    other = jax.tree.map(lambda leaf: leaf * 1.5, random_adapters(lora))
    found = logit_difference(
        adapter, SMALL, params, tokenizer, [TEXT], lora=lora, adapters=other, base=base
    )
    assert found > 1e-3


def test_adapters_on_a_run_and_on_a_run_with_adapters(tmp_path, params, tokenizer, verified):
    export_hugging_face(tmp_path / "hf", SMALL, params, tokenizer)
    base = from_hugging_face_folder(FromHuggingFaceConfig(tmp_path / "hf", tmp_path / "base"))
    lora = LoraConfig(rank=2, targets=("o_proj", "gate_proj"))
    first = write_run(tmp_path / "first", base, lora, random_adapters(lora))
    with pytest.raises(UserError, match=r"without an export/ that peft could load"):
        verified(first, adapter="peft")
    second = write_run(tmp_path / "second", first, lora, random_adapters(lora))
    whole, _ = verified(second)
    twice = load_initial_params(second, SMALL)
    jax.tree.map(np.testing.assert_array_equal, twice, load_hugging_face(whole, SMALL))
    changed = twice["blocks"]["output_LHhD"] - params["blocks"]["output_LHhD"]
    once = load_initial_params(first, SMALL)["blocks"]["output_LHhD"]
    np.testing.assert_allclose(
        changed, 2 * (once - params["blocks"]["output_LHhD"]), rtol=0, atol=1e-5
    )
    low = load_initial_params(base, SMALL, "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(low)} == {"bfloat16"}
    before = weights_digest(second)
    assert before == weights_digest(second) != weights_digest(first)
    shutil.rmtree(base / "checkpoints")
    save_params(base / "checkpoints", jax.tree.map(lambda leaf: leaf / 2, params))
    assert weights_digest(second) != before  # over two runs


def test_a_missing_or_unfit_base_is_named(tmp_path, params, tokenizer):
    base = export_hugging_face(tmp_path / "base", SMALL, params, tokenizer)
    lora = LoraConfig(rank=2, targets=("q_proj",))
    run = write_run(tmp_path / "run", base, lora, random_adapters(lora))

    def refusal(run: Path, **options) -> str:
        with pytest.raises(UserError) as caught:
            to_hugging_face_folder(ToHuggingFaceConfig(run=run, **options))
        return str(caught.value)

    assert "valid: 'merged', 'peft'" in refusal(run, adapter="lora")
    moved = base.rename(tmp_path / "moved")
    assert f"{base}, is no Hugging Face folder and no run" in refusal(run)
    to_hugging_face_folder(ToHuggingFaceConfig(run=run, base=moved))
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    message = refusal(run, base=moved, adapter="peft")
    assert "gives norm_epsilon as 1e-06, but the run trained with 1e-05" in message
    # 1e-5 that was once float32, as in configs made from GGUF; and a name for the base.
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 9.999999747378752e-06}))
    adapter, _ = to_hugging_face_folder(
        ToHuggingFaceConfig(run=run, base=moved, adapter="peft", base_name="someone/model")
    )
    named = json.loads((adapter / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "someone/model"
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    narrow = dataclasses.replace(SMALL, mlp_width=32)
    cut = {"gate_up_LD2F": np.s_[..., :32], "down_LFD": np.s_[:, :32]}
    blocks = {name: leaf[cut.get(name, ...)] for name, leaf in params["blocks"].items()}
    export_hugging_face(base, narrow, params | {"blocks": blocks}, tokenizer)
    assert "gives mlp_width as 32" in refusal(run)
    assert "gives mlp_width as 32" in refusal(run, adapter="peft")
    alone = write_run(tmp_path / "alone", None, lora, random_adapters(lora))
    assert "has no init_from" in refusal(alone)
    plain = write_run(tmp_path / "plain", None, None, params)
    assert "has no adapter" in refusal(plain, adapter="peft")
