"""What `auto` takes on a machine: tried in processes of their own, remembered, never fatal."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import pytest

from ipt_jax.attention import self_test
from ipt_jax.attention.backends import Choice
from ipt_jax.attention.self_test import Tried, choose_by_test, distance_to_reference
from ipt_jax.attention.spec import AttentionSpec
from ipt_jax.chips.devices import Target
from ipt_jax.models.config import ModelConfig
from ipt_jax.models.sharding import MeshConfig
from ipt_jax.training import startup as chosen
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.processes import ProcessesConfig

CPU = Target("cpu", "cpu")
ASKED = Tried(AttentionSpec(segments=True), "bfloat16", 64, 1)
H200 = {"platform": "gpu", "kind": "NVIDIA H200", "capability": "9.0", "cores": 132}


class Machine:
    """Answers in the place of the processes, and what it was asked."""

    def __init__(self, device: dict = H200, **answers: dict):
        self.device, self.answers, self.asked = device, answers, []

    def __call__(self, arguments, seconds):
        self.asked.append(arguments[:2])
        return self.device if arguments[0] == "device" else self.answers[arguments[1]]

    def choose(self, cache: Path | None = None, asked: Tried = ASKED):
        return choose_by_test(asked, 2048, cache, ask=self)[1]


def test_the_first_that_agrees_is_taken_and_the_others_are_told_why():
    machine = Machine(
        pallas_hopper={"failed": "its process ended with -11: Segmentation fault"},
        cudnn_packed={"distance": 0.4},
        pallas={"distance": 0.003},
    )
    choice = machine.choose()
    assert choice.name == "pallas"
    assert choice.passed_over == (
        ("pallas_hopper", "its process ended with -11: Segmentation fault"),
        ("cudnn_packed", "is off by 0.4 of the reference's size"),
    )
    # Numbers that are none are not close to anything.
    machine = Machine(pallas_hopper={"distance": float("nan")}, cudnn_packed={"distance": 0.001})
    assert machine.choose().name == "cudnn_packed"


def test_what_cannot_do_it_is_not_tried():
    machine = Machine(cudnn_packed={"distance": 0.001})
    choice = machine.choose(asked=Tried(AttentionSpec(segments=True), "bfloat16", 72, 1))
    assert choice.name == "cudnn_packed" and "not 72" in dict(choice.passed_over)["pallas_hopper"]
    assert [tried[1] for tried in machine.asked[1:]] == ["cudnn_packed"]


def test_a_choice_is_kept_for_the_same_device_and_versions_alone(tmp_path):
    good = {"pallas_hopper": {"distance": 0.001}}
    for expected, device in ((2, H200), (1, H200), (2, {**H200, "driver": "581"})):
        machine = Machine(device, **good)
        assert machine.choose(tmp_path).name == "pallas_hopper"
        assert len(machine.asked) == expected  # the device, and the candidate where it is new
    machine = Machine(**good)
    machine.choose(tmp_path, Tried(AttentionSpec(segments=True), "bfloat16", 128, 1))
    assert len(machine.asked) == 2
    (kept, *_) = tmp_path.glob("*.json")
    for file in tmp_path.glob("*.json"):
        file.write_bytes(kept.read_bytes()[:7])  # cut short: tried again
    machine = Machine(**good)
    assert machine.choose(tmp_path).name == "pallas_hopper" and len(machine.asked) == 2


def test_that_nothing_worked_is_not_kept(tmp_path):
    full = {"failed": "gave no answer: its process ended with 1: no memory"}
    broken = Machine(pallas_hopper=full, cudnn_packed=full, pallas=full)
    assert broken.choose(tmp_path).name == "reference"
    machine = Machine(pallas_hopper={"distance": 0.001})
    assert machine.choose(tmp_path).name == "pallas_hopper"


def test_a_device_that_does_not_start_leaves_the_reference():
    choice = Machine({"failed": "gave no answer within 180 s"}).choose()
    assert choice.name == "reference" and "no answer" in str(choice)


def test_a_process_that_hangs_or_dies_is_a_reason(monkeypatch):
    begin = self_test._in_a_process(["device"], 0.05)
    assert begin == {"failed": "gave no answer within 0.05 s"}
    monkeypatch.setattr(self_test, "__name__", "no_such_module_at_all")
    said = self_test._in_a_process(["device"], 60)["failed"]
    assert "ended with 1" in said and "no_such_module_at_all" in said


def test_the_real_process_tells_the_device_and_the_distance():
    asked = Tried(AttentionSpec(segments=True, window=4096), "float32", 16, 2)
    run = [sys.executable, "-m", "ipt_jax.attention.self_test"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for arguments in (["device"], ["try", "pallas_interpret", json.dumps(asdict(asked))]):
        done = subprocess.run(
            [*run, *arguments], capture_output=True, text=True, env=environment, timeout=300
        )
        said = json.loads(done.stdout.splitlines()[-1])
        if arguments == ["device"]:
            assert said["platform"] == "cpu" and said["packages"]["jax"] == jax.__version__
        else:
            assert 0 < said["distance"] < 1e-5


def test_a_wrong_kernel_is_far_from_the_reference(monkeypatch):
    from ipt_jax.attention import backends

    right = backends.BACKENDS["reference"]

    def wrong(q, k, v, spec, ids, ranges):
        # Segments forgotten: the classic fault of a packed kernel.
        from ipt_jax.attention.spec import key_ranges

        return right(q, k, v, spec, ids, key_ranges(AttentionSpec(), None, q.shape[1]))

    monkeypatch.setitem(backends.BACKENDS, "pallas_interpret", wrong)
    asked = Tried(AttentionSpec(segments=True), "float32", 8, 1)
    assert distance_to_reference("pallas_interpret", asked) > 10 * self_test.ALLOWED


def test_training_takes_the_tested_backend_where_there_is_a_gpu(tmp_path, monkeypatch, capsys):
    calls = []

    def answer(asked, row_tokens, cache):
        calls.append((asked, row_tokens, cache))
        return choose_by_test(asked, row_tokens, None, ask=Machine(pallas_hopper={"distance": 0.0}))

    monkeypatch.setattr(chosen, "choose_by_test", answer)
    config = TrainConfig(compilation_cache=tmp_path)
    assert chosen.with_tested_attention(config, tmp_path / "none") is config  # a CPU
    monkeypatch.setattr(chosen, "why_no_gpu", lambda *_: None)
    named = TrainConfig(attention_backend="reference")
    assert chosen.with_tested_attention(named) is named and not calls
    assert chosen.with_tested_attention(config) is config and not calls  # float32: no choice
    half = dataclasses.replace(config, model=ModelConfig("ipt_1_3b"))
    assert chosen.with_tested_attention(half) is half and not calls  # JAX has its devices already
    monkeypatch.setattr(chosen.xla_bridge, "backends_are_initialized", lambda: False)
    assert chosen.with_tested_attention(half).attention_backend == "pallas_hopper"
    assert capsys.readouterr().out == "attention on NVIDIA H200: pallas_hopper\n"
    ((asked, row_tokens, cache),) = calls
    assert (asked.head_width, asked.group, asked.dtype) == (64, 4, "bfloat16")
    assert asked.spec.segments and row_tokens == 2048 and cache == tmp_path / "attention"
    monkeypatch.setattr(chosen, "choose_by_test", lambda *_: (CPU, Choice("reference")))
    chosen.with_tested_attention(half)
    assert "warning: the reference computes every block" in capsys.readouterr().out


def test_on_a_tpu_nothing_is_tried_that_could_not_start_or_would_not_do(monkeypatch):
    calls = []
    monkeypatch.setattr(chosen, "has_tpu", lambda *_: True)
    monkeypatch.setattr(chosen.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(
        chosen, "choose_by_test", lambda *a: (calls.append(a), (CPU, Choice("splash")))[1]
    )
    config = TrainConfig(model=ModelConfig("ipt_500m"))
    assert chosen.with_tested_attention(config).attention_backend == "splash" and len(calls) == 1
    several = ProcessesConfig(coordinator="auto")
    for other in ({"processes": several}, {"mesh": MeshConfig(context=2)}):
        changed = dataclasses.replace(config, **other)
        assert chosen.with_tested_attention(changed) is changed and len(calls) == 1


@pytest.mark.gpu
def test_on_this_gpu_a_fused_backend_agrees(tmp_path):
    target, choice = choose_by_test(ASKED, 2048, tmp_path)
    assert target.platform == "gpu" and choice.name != "reference", choice
