"""A folder of weights means what it says: mathematics, types, files, tokens."""

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from ipt_jax.core import tokenizers
from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.hf.adapters import read_peft, write_peft
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.hf.load import load_hugging_face, read_config
from ipt_jax.models.config import PRESETS, ModelConfig
from ipt_jax.models.decoder import new_params
from ipt_jax.models.lora import LoraConfig, new_adapters
from ipt_jax.training import convert
from ipt_jax.training.convert import (
    FromHuggingFaceConfig,
    ToHuggingFaceConfig,
    from_hugging_face_folder,
    to_hugging_face_folder,
)
from ipt_jax.training.starting_weights import load_initial_params

TINY = PRESETS["tiny"]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
TEXT = "hello world, hello\n\nworld"
GENERATION = {
    "bos_token_id": 1, "eos_token_id": [4, 5], "pad_token_id": 6, "do_sample": True,
    "temperature": 0.6, "top_p": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A chat model: one token added and another that ends its turns, sentencepiece's file beside.

    Its generation_config.json names both ends, padding and sampling.
    """
    folder = tmp_path_factory.mktemp("source") / "model"
    words = ["<unk>", "<s>", "hello", "world", "</s>", "<|turn|>", "<pad>", ","]
    fast = Fast(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    own = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="<|turn|>", pad_token="<pad>",
        unk_token="<unk>", chat_template="{{ messages }}", split_special_tokens=True,
    )  # fmt: skip
    own.add_tokens(["<tool>"])
    own.save_pretrained(folder.parent / "tokenizer")
    tokenizer = load_tokenizer(str(folder.parent / "tokenizer"))
    export_hugging_face(folder, TINY, new_params(TINY, jax.random.key(0)), tokenizer)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    package, file, install = tokenizers._NAMED["mistral-7b-v0.1"]
    model = tokenizers._package_file(package, file, "mistral-7b-v0.1", install)
    shutil.copy(model, folder / "tokenizer.model")
    return folder


@pytest.fixture
def folder(source, tmp_path):
    return shutil.copytree(source, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` takes one out."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("rope_scaling", {"rope_parameters": LLAMA3}),
        ("window", {"sliding_window": 8}),
        ("norm_epsilon", {"rms_norm_eps": 1e-6}),
        ("tied_embeddings", {"tie_word_embeddings": True}),
    ],
)
def test_another_mathematics_than_the_presets_is_refused(folder, tmp_path, key, changes):
    load_initial_params(folder, TINY)
    edit(folder / "config.json", **changes)
    said = refusal(load_initial_params, folder, TINY)
    assert f"gives {key} as" in said and f"model.overrides.{key}" in said
    if key != "tied_embeddings":  # of a run as of a folder
        run = from_hugging_face_folder(FromHuggingFaceConfig(folder, tmp_path / "run"))
        assert f"gives {key} as" in refusal(load_initial_params, run, TINY)
        load_initial_params(run, read_config(folder))


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("hidden_act='gelu'", {"hidden_act": "gelu"}),
        ("quantization_config is set", {"quantization_config": {"quant_method": "fp8"}}),
        ("sliding_window=4096", {"model_type": "llama", "sliding_window": 4096}),
        ("part of a head", {"partial_rotary_factor": 0.5}),
        ("by layer", {"rope_parameters": {"full_attention": LLAMA3}}),
        ("config.json: rope_type='yarn'", {"rope_parameters": {"rope_type": "yarn"}}),
    ],
)
def test_what_the_decoder_does_not_know_is_refused_by_name(folder, said, changes):
    edit(folder / "config.json", **changes)
    assert said in refusal(read_config, folder)


def test_a_llama_with_a_window_is_refused_before_it_trains():
    with pytest.raises(UserError, match="Llama has no sliding window") as refused:
        ModelConfig("smollm2_135m", {"window": 64}).decoder()
    assert refused.value.key == "model.overrides.window"


def test_keys_that_are_missing_mean_what_transformers_takes(folder):
    edit(folder / "config.json", sliding_window=..., num_key_value_heads=..., head_dim=...)
    edit(folder / "config.json", num_attention_heads=16, hidden_size=128)
    ours, theirs = read_config(folder), AutoConfig.from_pretrained(folder)
    assert (ours.window, ours.kv_heads) == (theirs.sliding_window, theirs.num_key_value_heads)
    assert (ours.window, ours.kv_heads, ours.head_width) == (4096, 8, theirs.head_dim)


def write(folder: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / file, metadata={"format": "pt"})


TYPES = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F64": torch.float64}


@pytest.mark.parametrize("name", TYPES)
def test_other_types_are_refused_by_name(folder, name):
    tensors = load_file(folder / "model.safetensors")
    tensors[UP] = (tensors[UP] * 127).to(TYPES[name])
    write(folder, "model.safetensors", tensors)
    assert f"{UP} is {name}; only float32" in refusal(load_hugging_face, folder, TINY)


def test_an_adapters_types_and_beginnings_are_checked(folder, tmp_path):
    lora = LoraConfig(rank=2, targets=("q_proj",))
    adapters = new_adapters(TINY, lora, jax.random.key(0))
    out = write_peft(tmp_path / "a", TINY, lora, adapters, "base", load_tokenizer(str(folder)))
    read_peft(out, TINY)
    edit(out / "adapter_config.json", init_lora_weights="pissa")
    assert "init_lora_weights='pissa'" in refusal(read_peft, out, TINY)
    edit(out / "adapter_config.json", init_lora_weights=True)
    tensors = load_file(out / "adapter_model.safetensors")
    write(out, "adapter_model.safetensors", {k: v.to(torch.int8) for k, v in tensors.items()})
    assert "lora_A.weight is I8" in refusal(read_peft, out, TINY)


def test_the_index_is_followed_and_nothing_beside_it(folder, tmp_path, capsys):
    whole = load_file(folder / "model.safetensors")
    stale = {name: tensor + 1 for name, tensor in whole.items()}
    expected = load_hugging_face(folder, TINY)
    write(folder, "pytorch_model_old.safetensors", stale)
    np.testing.assert_equal(load_hugging_face(folder, TINY), expected)
    write(folder, "a.safetensors", {name: whole.pop(name) for name in list(whole)[::2]})
    write(folder, "b.safetensors", whole)
    write(folder, "model.safetensors", stale)
    weight_map = {name: "b.safetensors" if name in whole else "a.safetensors" for name in stale}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    capsys.readouterr()
    np.testing.assert_equal(load_hugging_face(folder, TINY), expected)
    assert f"{folder / 'model.safetensors'}: not read" in capsys.readouterr().out
    write(folder, "b.safetensors", whole | {UP: stale[UP]} | load_file(folder / "a.safetensors"))
    assert "is in a.safetensors too" in refusal(load_hugging_face, folder, TINY)
    (folder / "b.safetensors").unlink()
    assert "index.json names b.safetensors" in refusal(load_hugging_face, folder, TINY)


def test_a_tensor_that_would_be_left_out_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    bias = "model.layers.0.self_attn.q_proj.bias"
    write(folder, "model.safetensors", tensors | {bias: torch.ones(32)})
    assert f"no place for {bias} (1 such" in refusal(load_hugging_face, folder, TINY)
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    write(folder, "model.safetensors", tensors | inverse)
    load_hugging_face(folder, TINY)
    tied = dataclasses.replace(TINY, tied_embeddings=True)
    assert f"{HEAD} holds other numbers" in refusal(load_hugging_face, folder, tied)
    write(folder, "model.safetensors", tensors | {HEAD: tensors[EMBEDDING].clone()})
    assert "unembedding_VD" not in load_hugging_face(folder, tied)


@pytest.fixture
def export(folder, tmp_path):
    """from-hf, then to-hf, with verification where there is a text."""

    def converted(text: str | None = None) -> Path:
        run, file = tmp_path / "run", tmp_path / "text.txt"
        if not run.exists():
            from_hugging_face_folder(FromHuggingFaceConfig(folder, run))
        file.write_text(text or "")
        config = ToHuggingFaceConfig(run, verify=text is not None, verify_text=file)
        return to_hugging_face_folder(config)[0]

    return converted


def test_records_without_a_text_verify_nothing(folder, export, tmp_path):
    export()
    (tmp_path / "texts.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    task = {"source": "texts.jsonl"}
    mixture = {"tasks": {"texts": task}, "rates": "natural", "root": str(tmp_path)}
    config["data"]["mixture"] = mixture
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    options = ToHuggingFaceConfig(tmp_path / "run", verify=True)
    assert "the first records of this run: no text" in refusal(to_hugging_face_folder, options)


def test_an_export_has_its_sources_tokens_and_sampling(folder, export, monkeypatch):
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.eos_token, tokenizer.eos_id, tokenizer.vocab_size) == ("<|turn|>", 5, 9)
    umask = os.umask(0o027)
    try:
        out = export(TEXT)
    finally:
        os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(folder)
    for name in ("eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name) is not None
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    generation = GenerationConfig.from_pretrained(out).to_dict()
    assert {key: generation[key] for key in GENERATION} == GENERATION
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [4, 5]
    # What an export loses, verification finds.
    kept = tokenizers._HF_FILES
    monkeypatch.setattr(tokenizers, "_HF_FILES", set(kept) - {"chat_template.jinja"})
    assert "chat_template=None" in refusal(export, TEXT)
    monkeypatch.setattr(tokenizers, "_HF_FILES", kept)
    # Templates beside the first one lie in a folder.
    more = "additional_chat_templates/tool_use.jinja"
    (folder / more).parent.mkdir()
    (folder / more).write_text("{{ tools }}")
    templates = AutoTokenizer.from_pretrained(export(TEXT)).chat_template
    assert templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    monkeypatch.setattr(tokenizers, "_HF_FILES", [name for name in kept if "/" not in name])
    assert "chat_template='{{ messages }}'" in refusal(export, TEXT)
    monkeypatch.setattr(tokenizers, "_HF_FILES", kept)
    # A source without generation_config.json: what its config.json says, as in transformers.
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[5, 4], pad_token_id=6)
    found = json.loads((export() / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["pad_token_id"]) == ([5, 4], 6)
    # One whose texts end otherwise says nothing of this tokenizer's.
    edit(folder / "config.json", eos_token_id=[4])
    found = json.loads((export() / "generation_config.json").read_text())
    assert (found["eos_token_id"], "pad_token_id" in found) == (5, False)


def test_an_export_puts_bos_before_a_text_as_training_did(folder, export, tmp_path):
    export()
    path, plain, parts = tmp_path / "run" / "run.json", ("false", "text"), ("false", "parts")
    marker = json.loads(path.read_text())
    for tasks, without in (
        ({"raw": plain, "more.bos": plain}, True),
        ({"raw": ("null", "text"), "more": plain}, False),
        ({"tuning": parts}, False),  # a prompt that names none is given one
        ({}, False),
        ({"raw": plain, "tuning": parts}, True),
    ):
        prints = marker["fingerprint"] | {f"tasks.{name}.bos": tasks[name][0] for name in tasks}
        prints |= {f"tasks.{name}.encode": tasks[name][1] for name in tasks}
        path.write_text(json.dumps(marker | {"fingerprint": prints}))
        assert convert._without_bos(path.parent) is without
    out = export(TEXT)  # verified: ids and logits are those of training in transformers too
    assert load_tokenizer(str(folder)).encode("hello") == [2]
    assert AutoTokenizer.from_pretrained(out)("hello")["input_ids"] == [2]


def test_ids_that_the_model_has_no_row_for_are_named(folder, export):
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["far"] = TINY.vocabulary_size
    (folder / "tokenizer.json").write_text(json.dumps(words))
    export(TEXT)  # which does not use it
    said = refusal(export, "so far")
    assert "gives the id 256 for the text that begins 'so far'" in said and "256 rows" in said


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("added_tokens.json", {"<tool>": 32000}, "added tokens"),
        ("tokenizer_config.json", {"eos_token": "<|turn|>"}, "eos_token <|turn|>"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "a chat template"),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>"}, "pad_token": None}, None),
    ],
)
def test_more_beside_a_sentencepiece_file_than_it_holds(source, tmp_path, file, content, said):
    shutil.copy(source / "tokenizer.model", tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    if said is None:
        assert load_tokenizer(str(tmp_path)).eos_id == 2
    else:
        assert f"name {said}" in refusal(load_tokenizer, str(tmp_path))
