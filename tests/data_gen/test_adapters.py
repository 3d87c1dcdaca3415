"""LoRA adapters on a base model: against peft, and what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data_gen.engines import (
    EngineConfig,
    Request,
    SamplingParams,
    identify_engine,
    open_engine,
    resolve_model,
    serving,
)
from data_gen.engines import adapter as adapters
from data_gen.engines.adapter import CONFIG_FILE, PACKAGED, WEIGHTS_FILE, PackagedAdapter
from data_gen.engines.vllm import InstalledVllm
from ipt_jax.core.errors import UserError
from tests.data_gen.tiny_model import END_ID, TEXTS, write_base

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
A = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@dataclass(frozen=True)
class Tuned:
    """A random base, a random adapter as peft saved it, and a config that names both."""

    base: Path
    adapter: Path
    config: EngineConfig

    def merged_by_peft(self) -> Any:
        """In float32."""
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        adapted: Any = peft.PeftModel.from_pretrained(base, self.adapter)
        return adapted.merge_and_unload().eval()


def write_adapter(folder: Path, base: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    lora = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=PROJECTIONS, task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.get_peft_model(model, lora).save_pretrained(str(folder))
    return folder


def made(folder: Path, dtype: torch.dtype, shard_size: str) -> Tuned:
    write_base(folder / "base", dtype, shard_size)
    adapter = write_adapter(folder / "tuned", folder / "base")
    # PEFT's default says so before tuning; what is saved after loading says nothing of it.
    edit_config(adapter, init_lora_weights=True)
    config = EngineConfig(
        model=str(folder / "base"), adapter=str(adapter), cache_folder=str(folder / "cache")
    )
    return Tuned(folder / "base", adapter, config)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Weights in bfloat16, in one file."""
    return made(tmp_path_factory.mktemp("single"), torch.bfloat16, "1GB")


@pytest.fixture
def tuned(single: Tuned, tmp_path: Path) -> Tuned:
    """A copy that a test may damage, with a cache of its own."""
    shutil.copytree(single.base, tmp_path / "base")
    shutil.copytree(single.adapter, tmp_path / "tuned")
    config = EngineConfig(
        model=str(tmp_path / "base"),
        adapter=str(tmp_path / "tuned"),
        cache_folder=str(tmp_path / "cache"),
    )
    return Tuned(tmp_path / "base", tmp_path / "tuned", config)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def in_cache(config: EngineConfig) -> list[Path]:
    return sorted(Path(config.cache_folder).glob("merged/*"))


@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_pefts_rounded_once(
    tmp_path: Path, dtype: torch.dtype, shard_size: str
) -> None:
    tuned = made(tmp_path, dtype, shard_size)
    folder = resolve_model(tuned.config).folder
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == sorted(path.name for path in tuned.base.glob("*.safetensors"))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # the umask's, for all
    assert (len(files) > 1) == (shard_size == "40KB")
    ours = {k: v for name in files for k, v in load_file(folder / name).items()}
    expected = tuned.merged_by_peft().state_dict()
    before = {k: v for name in files for k, v in load_file(tuned.base / name).items()}
    assert ours.keys() == before.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == dtype and torch.equal(tensor, expected[name].to(dtype)), name
        adapted = any(projection in name for projection in PROJECTIONS)
        assert torch.equal(tensor, before[name]) != adapted, name
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (tuned.base / name).read_bytes()


def test_greedy_text_and_logprobs_are_those_of_pefts_model(single: Tuned) -> None:
    """In float32, with weights rounded to bfloat16 as the engine holds them."""
    engine: Any = open_engine(single.config)
    engine._model.float()
    reference = single.merged_by_peft()
    for weight in reference.parameters():
        weight.data = weight.data.bfloat16().float()
    plain: Any = open_engine(replace(single.config, adapter=""))
    plain._model.float()
    how = SamplingParams(max_tokens=12, logprobs=3)
    requests = [Request(text, text, how) for text in TEXTS]
    without = {c.request_id: c.text for c in plain.generate(requests)}
    for completion in engine.generate(requests):
        ids = engine.tokenizer(completion.request_id, return_tensors="pt")["input_ids"]
        prompt_tokens = ids.shape[1]
        with torch.no_grad():
            whole = reference.generate(ids, max_new_tokens=12, do_sample=False)
            scores = reference(whole).logits[0].log_softmax(-1)
        written = whole[0, prompt_tokens:]
        assert completion.text == engine.tokenizer.decode(written[written != END_ID])
        assert completion.text != without[completion.request_id]
        assert completion.logprobs is not None and len(completion.logprobs) == len(written)
        for step, place in enumerate(completion.logprobs):
            row = scores[prompt_tokens - 1 + step].topk(3).values
            np.testing.assert_allclose([value for _, value in place.likeliest], row, atol=1e-4)


def test_a_copy_is_merged_once_and_appears_whole(tuned: Tuned, monkeypatch: Any) -> None:
    folder = resolve_model(tuned.config).folder
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert in_cache(tuned.config) == [folder]
    assert resolve_model(tuned.config).folder == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    shutil.rmtree(folder)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapters.shutil, "copyfile", fail)  # after the weights are written
        with pytest.raises(KeyboardInterrupt):
            resolve_model(tuned.config)
    assert in_cache(tuned.config) == []
    assert resolve_model(tuned.config).folder == folder


def test_identity_tells_adapters_apart(tuned: Tuned) -> None:
    base = identify_engine(replace(tuned.config, adapter=""))
    first = identify_engine(tuned.config)
    assert (first.model, base.model) == ("base+tuned", "base")
    assert first.revision.startswith(f"{base.revision}+") and len(first.revision) == 25
    engine = open_engine(tuned.config)
    assert (engine.model, engine.revision) == (first.model, first.revision)
    # Where the base lay when it was tuned is of no account; every number is.
    edit_config(tuned.adapter, base_model_name_or_path="/elsewhere", lora_dropout=0.5)
    assert identify_engine(tuned.config) == first
    edit_config(tuned.adapter, lora_alpha=7)
    second = identify_engine(tuned.config)
    edit_weights(tuned.adapter, lambda tensors: tensors[B].mul_(1.5))
    third = identify_engine(tuned.config)
    assert len({first.revision, second.revision, third.revision}) == 3
    assert len(in_cache(tuned.config)) == 3


CHANGES: dict[str, Any] = {
    "use_rslora": True,
    "use_dora": True,
    "lora_bias": True,
    "fan_in_fan_out": True,
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 8},
    "modules_to_save": ["lm_head"],
    "layers_to_transform": [0],
    "exclude_modules": ["q_proj"],
    "bias": "all",
    "init_lora_weights": "pissa",
    "an_option_of_tomorrow": {"on": 1},
    "r": 0,
    "lora_alpha": "6",
    "target_modules": "all-linear",
    "peft_type": "LOHA",
}


@pytest.mark.parametrize("key", CHANGES)
def test_options_beside_plain_lora_are_named(tuned: Tuned, key: str) -> None:
    edit_config(tuned.adapter, **{key: CHANGES[key]})
    said = rf"{tuned.adapter}/{CONFIG_FILE}: {key}="
    for ask in (identify_engine, open_engine):
        with pytest.raises(UserError, match=said):
            ask(tuned.config)
    assert in_cache(tuned.config) == []


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A.replace("up_proj", "side_proj")] = tensors[A].clone()


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop(B), rf"lacks {B} \(1 in all\)"),
    "unknown": (renamed, r"holds \S+side_proj.lora_A.weight \(1 in all\)"),
    "rank": (lambda t: t.update({A: t[A][:3].clone()}), rf"{A} has shape \(3, 32\).*\(4, 32\)"),
    "wide": (lambda t: t.update({B: torch.ones(49, 4)}), rf"{B} has shape \(49, 4\).*\(48, 4\)"),
    "infinite": (lambda t: t[A].fill_(torch.inf), rf"{A} \(torch.float32\) holds values that"),
    "integer": (lambda t: t.update({A: t[A].int()}), rf"{A} \(torch.int32\) holds values that"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_tensors_that_do_not_fit_are_named(tuned: Tuned, case: str) -> None:
    change, said = WEIGHTS[case]
    edit_weights(tuned.adapter, change)
    with pytest.raises(UserError, match=f"{tuned.adapter}/{WEIGHTS_FILE}: {said}"):
        identify_engine(tuned.config)
    assert in_cache(tuned.config) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (CONFIG_FILE, None, "cannot be read .No such file"),
        (CONFIG_FILE, b"{", "not valid JSON"),
        (CONFIG_FILE, b"[]", r"peft_type=\[\]"),
        (WEIGHTS_FILE, None, "not there"),
        (WEIGHTS_FILE, b"cut short", "not a whole safetensors file"),
    ],
)
def test_a_damaged_folder_is_named(
    tuned: Tuned, name: str, content: bytes | None, said: str
) -> None:
    (tuned.adapter / name).unlink()
    if content is not None:
        (tuned.adapter / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{tuned.adapter}/{name}: {said}"):
        identify_engine(tuned.config)
    assert in_cache(tuned.config) == []


def test_a_base_that_does_not_fit_is_named(tuned: Tuned, tmp_path: Path) -> None:
    write_base(tmp_path / "deep", layers=3)
    with pytest.raises(UserError, match=rf"lacks \S+layers.2\S+ \(14 in all\).*{tmp_path}/deep"):
        resolve_model(replace(tuned.config, model=str(tmp_path / "deep")))
    write_base(tmp_path / "flat", layers=1)
    with pytest.raises(UserError, match=r"holds \S+layers.1\S+ \(14 in all\).*engine.model"):
        resolve_model(replace(tuned.config, model=str(tmp_path / "flat")))
    edit_config(tuned.adapter, target_modules=["proj"])
    with pytest.raises(UserError, match=r"holds \S+ \(28 in all\)"):  # no end of a name: `.proj`
        resolve_model(tuned.config)
    edit_config(tuned.adapter, target_modules=PROJECTIONS)
    weights = tuned.base / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, weights)
    with pytest.raises(UserError, match=f"{name} is torch.float8_e4m3fn.*before it was quantised"):
        resolve_model(tuned.config)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"model in {tuned.base} .*files are whole"):
        resolve_model(tuned.config)
    weights.unlink()
    index = {"weight_map": {name: "model-2.safetensors"}}
    (tuned.base / "model.safetensors.index.json").write_text(json.dumps(index))
    (tuned.base / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"index.json names model-2.safetensors"):
        resolve_model(tuned.config)
    for name in ("model.safetensors", "model-2.safetensors"):
        (tuned.base / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"model.safetensors: the index beside it names other"):
        resolve_model(tuned.config)
    assert in_cache(tuned.config) == []


def test_a_full_disk_is_foreseen(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(adapters.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match=r"0.0 GB free.*`engine.cache_folder`"):
        resolve_model(tuned.config)
    assert in_cache(tuned.config) == []


def test_a_short_name_stands_for_a_folder_and_its_base(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", PackagedAdapter(tuned.adapter, tuned.config.model))
    named = replace(tuned.config, adapter="tiny")
    identity = identify_engine(named)
    assert identity.model == "base+tiny"
    assert identity.revision == identify_engine(tuned.config).revision
    with pytest.raises(UserError, match=rf"'tiny' was tuned on the model '{tuned.base}'.*'none'"):
        identify_engine(replace(named, model="none"))
    with pytest.raises(UserError, match=r"no folder \S+/small. Give.*smollm2-135m-synthesizer"):
        identify_engine(replace(tuned.config, adapter="small"))


def test_vllm_gets_the_merged_copy(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without vllm: what the engine would be opened with."""
    opened: list[tuple[Any, ...]] = []

    class Engine:
        def __init__(self, folder: Path, *_: Any, **__: Any) -> None:
            opened.append((folder, self))

    monkeypatch.setattr("data_gen.engines.vllm.check_vllm", lambda: InstalledVllm(False, "0.32.0"))
    monkeypatch.setattr("data_gen.engines.vllm.VllmEngine", Engine)
    config = replace(tuned.config, name="vllm")
    engine = open_engine(config)
    assert opened == [(resolve_model(config).folder, engine)]
    assert opened[0][0].parent == Path(config.cache_folder) / "merged"
    identity = identify_engine(config)
    assert (engine.model, engine.revision) == (identity.model, identity.revision)
    assert identity.model == "base+tuned" and identity.version == "0.32.0"


def test_vllms_server_serves_the_merged_copy_by_both_names(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(serving, "check_vllm", lambda: InstalledVllm(False, "0.32.0"))
    monkeypatch.setattr(
        serving, "RunningServer", lambda command, **how: started.append((command, how["name"]))
    )
    config = serving.ServeConfig(
        model=tuned.config.model,
        adapter=tuned.config.adapter,
        cache_folder=tuned.config.cache_folder,
        port=8123,
    )
    serving.start_vllm(config)
    serving.start_vllm(replace(config, name="mine"))
    (command, name), (_, mine) = started
    assert command[command.index("serve") + 1] == str(resolve_model(tuned.config).folder)
    assert command[command.index("--served-model-name") + 1] == name == "base+tuned"
    assert mine == "mine"
