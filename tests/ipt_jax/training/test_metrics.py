"""Figures as they are written, read back by what will read them."""

import importlib
import json
import math
import os
import pty
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from ipt_jax.chips.devices import DEVICES
from ipt_jax.core.errors import UserError
from ipt_jax.training.metrics import MetricsConfig, MetricsLog
from ipt_jax.training.watchdog import Phases

ROOT = Path(__file__).parents[3]


def new_log(folder: Path, **changes) -> MetricsLog:
    folder.mkdir(exist_ok=True)
    settings = {
        "sources": ("raw", "augmented"),
        "steps": 100,
        "first_position": 0,
        "config": MetricsConfig(every_steps=1, tensorboard=False),
        "progress": {},
        "phases": Phases("other"),
        "flops": (6e9, 7e9),
        "devices": 8,
        "device": None,
        "write": True,
    }
    return MetricsLog(folder, **{**settings, **changes})


def step(position: int, loss: float | None = None, skipped_total: int = 0, **changes) -> dict:
    values = {
        "loss": jnp.float32(10 / position if loss is None else loss),
        "gradient_norm": jnp.float32(position),
        "learning_rate": jnp.float32(1e-3),
        "weight": jnp.float32(20),
        "source_tokens": jnp.array([20, 5], jnp.int32),
        "learnt_tokens": jnp.array([4, 0], jnp.int32),
        "skipped": jnp.array(False),
        "skipped_total": jnp.int32(skipped_total),
        "skipped_in_a_row": jnp.int32(0),
    }
    return {**values, **changes}


def lines(folder: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_line_holds_every_figure(tmp_path):
    phases = Phases("other")
    with new_log(tmp_path, phases=phases, device=DEVICES["h100"]) as log:
        log.after_step(1, step(1))
        with phases("data"):
            time.sleep(0.2)
            with phases("checkpoint"):
                time.sleep(0.1)
        with phases("compiling"):
            time.sleep(0.05)
        log.after_step(2, step(2))
    line = lines(tmp_path)[1]
    assert set(line) == {
        *("step", "tokens", "loss", "learning_rate", "gradient_norm", "skipped", "seconds"),
        *("tokens_per_second", "tokens_per_second_per_device", "mfu_causal", "mfu_full"),
        *("share_data", "share_checkpoint", "share_compile", "source_tokens"),
        "learnt_tokens",
    }
    assert (line["step"], line["tokens"], line["loss"]) == (2, 50, 5.0)
    assert line["source_tokens"] == {"raw": 40, "augmented": 10}
    assert line["learnt_tokens"] == {"raw": 8, "augmented": 0}
    # Rates and shares are of the time since the line before, in which 25 tokens went through.
    passed = 25 / line["tokens_per_second"]
    assert passed >= 0.35
    for name, key, least in (
        ("data", "share_data", 0.2),
        ("checkpoint", "share_checkpoint", 0.1),
        ("compiling", "share_compile", 0.05),
    ):
        assert phases.seconds[name] >= least
        assert line[key] == pytest.approx(phases.seconds[name] / passed, rel=0.01)
    assert line["tokens_per_second_per_device"] == pytest.approx(25 / passed / 8, abs=0.1)


def test_mfu_is_of_the_whole_mesh_and_only_of_a_known_device(tmp_path):
    flops = (6e15, 9e15)
    with new_log(tmp_path / "known", device=DEVICES["h100"], flops=flops) as log:
        log.after_step(1, step(1))
    line = lines(tmp_path / "known")[0]
    causal = line["tokens_per_second"] * 6e15 / (8 * 989e12)
    assert line["mfu_causal"] == pytest.approx(causal, rel=1e-3)
    assert line["mfu_full"] == pytest.approx(causal * 1.5, rel=1e-3)
    with new_log(tmp_path / "unknown", flops=flops) as log:
        log.after_step(1, step(1))
    assert not [key for key in lines(tmp_path / "unknown")[0] if "mfu" in key]


def test_lines_come_when_due_and_rates_are_of_the_time_between(tmp_path):
    config = MetricsConfig(every_steps=4, tensorboard=False)
    with new_log(tmp_path, steps=10, config=config, first_position=0) as log:
        for position in range(1, 11):
            log.after_step(position, step(position))
    assert [line["step"] for line in lines(tmp_path)] == [1, 4, 8, 10]
    assert [line["tokens"] for line in lines(tmp_path)] == [25, 100, 200, 250]
    seconds = [line["seconds"] for line in lines(tmp_path)]
    assert seconds == sorted(seconds) and log.seconds >= seconds[-1] - 1e-3


def test_totals_do_not_overflow(tmp_path):
    many = jnp.array([2**31 - 1, 2**31 - 1], jnp.int32)
    with new_log(tmp_path) as log:
        for position in (1, 2, 3):
            log.after_step(position, step(position, source_tokens=many))
    assert log.tokens == 6 * (2**31 - 1) == lines(tmp_path)[-1]["tokens"]


def test_what_is_not_finite_is_null_and_not_in_the_mean(tmp_path, capsys):
    with new_log(tmp_path, config=MetricsConfig(every_steps=1)) as log:
        assert log.mean_since_save() == {}
        log.after_step(1, step(1, 4.0))
        for position, loss in ((2, math.nan), (3, math.inf)):
            bad = {"skipped": jnp.array(True), "gradient_norm": jnp.float32(math.nan)}
            log.after_step(position, step(position, loss, position - 1, **bad))
        log.after_step(4, step(4, 2.0, 2))
        assert log.mean_since_save() == {"loss": 3.0, "gradient_norm": 2.5}
        log.after_save(4)
        assert log.mean_since_save() == {}
        log.after_step(5, step(5, 1.5, 2))
        assert log.mean_since_save() == {"loss": 1.5, "gradient_norm": 5.0}
    assert [line["loss"] for line in lines(tmp_path)] == [4.0, None, None, 2.0, 1.5]
    assert [line["gradient_norm"] for line in lines(tmp_path)] == [1, None, None, 4, 5]
    assert [line["skipped"] for line in lines(tmp_path)] == [0, 1, 2, 2, 2]
    assert "loss not finite" in capsys.readouterr().out
    assert list(scalars(tmp_path, "loss")) == [1, 4, 5]


def test_a_restart_goes_on_from_the_checkpoint(tmp_path):
    with new_log(tmp_path) as log:
        for position in range(1, 4):
            log.after_step(position, step(position))
        kept = json.loads(json.dumps(log.progress()))
        for position in range(4, 7):
            log.after_step(position, step(position))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "tok')  # a kill cut it short
    before = path.read_text()
    with new_log(tmp_path, first_position=3, progress=kept) as again:
        assert again.last["step"] == 3
        assert (again.tokens, again.seconds) == (75, kept["seconds"])
        for position in range(4, 8):
            again.after_step(position, step(position))
    assert [(line["step"], line["tokens"]) for line in lines(tmp_path)] == [
        (position, 25 * position) for position in range(1, 8)
    ]
    assert path.read_text().splitlines()[:3] == before.splitlines()[:3]
    assert lines(tmp_path)[3]["seconds"] >= lines(tmp_path)[2]["seconds"]


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    config = MetricsConfig(every_steps=1)
    with new_log(tmp_path, steps=2, config=config) as log:
        log.after_step(1, step(1))
        log.after_step(2, step(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    progress = log.progress()
    with new_log(tmp_path, steps=2, config=config, first_position=2, progress=progress) as again:
        pass
    assert again.last == lines(tmp_path)[-1] and again.tokens == 50
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().out == ""


def test_other_processes_count_and_write_nothing(tmp_path, capsys):
    config = MetricsConfig(every_steps=1, wandb_project="none", wandb_mode="offline")
    with new_log(tmp_path, write=False, config=config) as log:
        log.after_step(1, step(1))
        log.after_step(2, step(2))
    assert log.tokens == 50 and log.last["step"] == 2
    assert log.mean_since_save() == {"loss": 7.5, "gradient_norm": 1.5}
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
    # Nor do they mend the file that the first process may be writing to.
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n{"st')
    with new_log(tmp_path, write=False, first_position=3):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 9}\n{"st'


def test_a_log_file_gets_plain_lines(tmp_path, capsys):
    config = MetricsConfig(every_steps=2, tensorboard=False)
    with new_log(tmp_path, steps=5, config=config, device=DEVICES["h200"]) as log:
        for position in range(1, 6):
            log.after_step(position, step(position, skipped_total=position // 5))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in said] == [
        f"step {n} of 5" for n in (1, 2, 4, 5)
    ]  # fmt: skip
    assert "loss 2.500" in said[2] and "tokens/s" in said[2] and "MFU" in said[2]
    assert "left" not in said[0] and said[3].endswith("1 skipped · 0:00:00 left")
    assert not [line for line in said if "\x1b" in line or "\r" in line]


ON_A_TERMINAL = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_metrics import MetricsConfig, new_log, step
config = MetricsConfig(every_steps=2)
with new_log(Path({folder!r}), steps=5, config=config) as log:
    for position in range(1, 6):
        log.after_step(position, step(position))
heavy = {{"torch", "tensorflow", "transformers", "wandb", "tensorboard"}} & set(sys.modules)
print("loaded:", sorted(heavy))
"""


def test_a_terminal_gets_a_bar_and_nothing_heavy_is_loaded(tmp_path):
    code = ON_A_TERMINAL.format(here=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "JAX_PLATFORMS": "cpu"},
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        said += piece
    os.close(ours)
    assert process.wait(timeout=600) == 0, process.stderr and process.stderr.read()
    text = said.decode()
    assert "\x1b[" in text and "5/5" in text and "tokens/s" in text
    assert "step 1 of 5" not in text
    assert "loaded: []" in text


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """A curve as TensorBoard itself shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    events = reader.Scalars(tag)
    assert len({event.step for event in events}) == len(events), "a step is shown twice"
    return {event.step: event.value for event in events}


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    config = MetricsConfig(every_steps=1)
    with new_log(tmp_path, config=config, device=DEVICES["h100"]) as log:
        for position in range(1, 6):
            log.after_step(position, step(position))
        kept = log.progress()
        for position in range(6, 11):
            log.after_step(position, step(position, loss=99.0))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-11])  # a kill cut the last event short
    with new_log(tmp_path, config=config, first_position=5, progress=kept) as log:
        for position in range(6, 9):
            log.after_step(position, step(position))
    assert scalars(tmp_path, "loss") == pytest.approx({n: 10 / n for n in range(1, 9)})
    assert scalars(tmp_path, "tokens")[8] == 200
    assert scalars(tmp_path, "source_tokens/raw")[8] == 160
    assert scalars(tmp_path, "source_share/raw") == pytest.approx(dict.fromkeys(range(1, 9), 0.8))
    assert set(scalars(tmp_path, "mfu_full")) == set(range(1, 6))


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    config = MetricsConfig(every_steps=1)
    for loss in (99.0, 2.0):
        with new_log(tmp_path, config=config) as log:
            log.after_step(1, step(1, loss=loss))
    assert scalars(tmp_path, "loss") == {1: 2.0}
    assert [line["loss"] for line in lines(tmp_path)] == [2.0]


def test_wandb_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    MetricsConfig().check()
    with pytest.raises(UserError, match=r"pip install 'ipt-jax\[wandb\]'"):
        MetricsConfig(wandb_project="project").check()


def wandb_steps(folder: Path) -> list[dict[int, float]]:
    """Step -> loss of each start, read from what `wandb sync` would upload."""
    Record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        steps = {}
        for data in leveldb_records(path.read_bytes(), header=7):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {".".join(i.nested_key) or i.key: i for i in record.history.item}
                steps[record.history.step.num] = float(items["loss"].value_json)
        found.append(steps)
    return found


def leveldb_records(data: bytes, header: int) -> Iterator[bytes]:
    """LevelDB's log format: pieces of (crc, length, kind) that never cross 32 KiB blocks."""
    at, whole = header, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def test_wandb_offline_is_one_run_for_all_starts(tmp_path):
    pytest.importorskip("wandb", reason="the optional extra wandb is not installed")
    config = MetricsConfig(
        every_steps=1, tensorboard=False, wandb_project="project", wandb_mode="offline"
    )
    config.check()
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    with new_log(tmp_path, config=config) as log:
        log.after_step(1, step(1))
        log.after_step(2, step(2))
    time.sleep(1.1)  # wandb's folders carry seconds in their names
    with new_log(tmp_path, config=config, first_position=1, progress={}) as log:
        log.after_step(2, step(2))
        log.after_step(3, step(3))
    (name,) = {path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")}
    assert name == f"run-{(tmp_path / 'wandb_run_id.txt').read_text().strip()}.wandb"
    patience = time.monotonic() + 200  # wandb's own process may still be writing
    while len(wandb_steps(tmp_path)[-1]) < 2 and time.monotonic() < patience:
        time.sleep(0.1)
    assert wandb_steps(tmp_path) == [{1: 10, 2: 5}, {2: 5, 3: pytest.approx(10 / 3)}]


def test_wandb_without_a_login_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the optional extra wandb is not installed")
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = MetricsConfig(wandb_project="project", tensorboard=False)
    with pytest.raises(UserError, match=r"wandb_project='project'.*wandb login.*offline"):
        new_log(tmp_path, config=config).__enter__()
