"""Real runs of launch/train.py and launch/convert.py on real text."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import optax
import pytest
import yaml

from ipt_jax.core.errors import RunStopped, UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.core.run_folder import FolderRefused
from ipt_jax.data.pipeline import open_mixture
from ipt_jax.models.config import ModelConfig
from ipt_jax.training.checkpoints import Checkpoints
from ipt_jax.training.hooks import Hook
from ipt_jax.training.loop import train
from ipt_jax.training.metrics import MetricsLog
from ipt_jax.training.optimizer import ExtensionConfig
from ipt_jax.training.step import TrainSetup
from tests.launching import launch, refused
from tests.run_folders import unlisted
from tests.training_runs import (
    VOCABULARY,
    figures,
    finish,
    make_config,
    positions,
    start,
    write_config,
    write_shards,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(make_config(shards, folder))
    return folder


def last_line(folder: Path) -> dict:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_run_learns_and_its_figures_agree(finished):
    found = figures(finished)
    assert list(found) == list(range(1, 25))
    assert found[24] < found[1] - 0.5
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["tokens"] == sum(summary["source_tokens"].values()) == 24 * 512
    # All but the padding after the last token of a row's last segment is learnt.
    assert summary["learnt_tokens"] == last_line(finished)["learnt_tokens"]
    assert 0.9 * 24 * 512 < sum(summary["learnt_tokens"].values()) <= 24 * 512
    assert summary["realised_rates"]["augmented"] == pytest.approx(0.2, abs=0.05)
    assert summary["final_loss"] == found[24]
    last = last_line(finished)
    assert last["source_tokens"] == summary["source_tokens"]
    assert json.loads((finished / "environment.json").read_text())["devices"]
    assert yaml.safe_load((finished / "config.yaml").read_text())["train_tokens"] == 512 * 24
    assert not unlisted(finished)


def test_a_finished_run_is_not_trained_again(shards, finished, tmp_path):
    before = [(finished / name).read_text() for name in ("metrics.jsonl", "summary.json")]
    path = write_config(make_config(shards, finished), tmp_path / "config.yaml")
    again = launch("launch/train.py", "--config", path)
    assert again.code == 0 and str(finished) in again.out, again.err
    after = [(finished / name).read_text() for name in ("metrics.jsonl", "summary.json")]
    assert after == before


class SendSignal(Hook):
    """A signal to this process before step 13: the save at 10 has waited for that at 5."""

    def __init__(self, number: signal.Signals, step: int = 13):
        self.number, self.step = number, step

    def before_step(self, position):
        if position == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_run_again_gives_the_same_figures(shards, finished, tmp_path, capsys, number):
    config = make_config(shards, tmp_path / "run")
    if number == signal.SIGKILL:
        [(code, *_)] = finish(
            [start(write_config(config, tmp_path / "config.yaml"), signal=(number, 13))]
        )
        assert code == -signal.SIGKILL
        assert max(figures(config.run_folder)) == 11  # that of step 12 it had not read
    else:
        with pytest.raises(RunStopped, match="goes on from here") as stopped:
            train(config, hooks=[SendSignal(number)])
        assert stopped.value.code == 128 + number
        assert positions(config.run_folder) == [10, 13]  # the two that are kept
    capsys.readouterr()
    train(config)
    assert "steps 0 →" not in capsys.readouterr().out  # it went on from a checkpoint
    assert figures(config.run_folder) == figures(finished)


def test_a_signal_in_the_last_step_stops_what_would_follow(shards, finished, tmp_path):
    """As in a chain of jobs, which would go on with the next one."""
    config = make_config(shards, tmp_path / "run")
    with pytest.raises(RunStopped, match="goes on from here") as stopped:
        train(config, hooks=[SendSignal(signal.SIGINT, 24)])
    assert stopped.value.code == 128 + signal.SIGINT
    assert figures(config.run_folder) == figures(finished)
    assert train(config)["steps"] == 24


def test_a_steps_figures_are_fetched_before_the_next_step_is_launched(
    shards, tmp_path, monkeypatch
):
    # On a GPU the copy waits behind what was launched before it: else a step's figures come a
    # whole step late, and the next step is launched when the device has run dry.
    seen = []
    step_function, copy, get = (
        TrainSetup.step_function.func,
        jax.copy_to_host_async,
        jax.device_get,
    )

    def launching(setup):
        step = step_function(setup)
        return lambda *given: (seen.append("launch"), step(*given))[1]

    monkeypatch.setattr(TrainSetup, "step_function", functools.cached_property(launching))
    TrainSetup.__dict__["step_function"].__set_name__(TrainSetup, "step_function")
    monkeypatch.setattr(jax, "copy_to_host_async", lambda x: (seen.append("copy"), copy(x))[1])
    monkeypatch.setattr(jax, "device_get", lambda x: (seen.append("read"), get(x))[1])
    train(dataclasses.replace(make_config(shards, tmp_path / "run"), train_tokens=3 * 512))
    assert seen == ["launch", "copy", "launch", "copy", "read", "launch", "copy", "read", "read"]


class StepNorms(Hook):
    """The norm of the weights after every fifth step: as a live evaluation would score them."""

    def __init__(self, fails_at: int = 0):
        self.found: dict[int, float] = {}
        self.seen: list[object] = []
        self.fails_at = fails_at

    def __enter__(self):
        self.seen.append("begun")
        return self

    def after_launch(self, position, state):
        if position == self.fails_at:
            raise ValueError("no score")
        if position % 5 == 0:
            self.found[position] = float(optax.global_norm(state.params))
            assert int(state.position) == position

    def after_save(self, position):
        self.seen.append(position)

    def __exit__(self, *_):
        self.seen.append("ended")


def test_another_hook_sees_the_state_without_changing_the_run(shards, finished, tmp_path):
    hook = StepNorms()
    train(make_config(shards, tmp_path / "run"), hooks=[hook])
    assert list(hook.found) == [5, 10, 15, 20]
    assert len(set(hook.found.values())) == 4 and min(hook.found.values()) > 0
    assert hook.seen == ["begun", 5, 10, 15, 20, 24, "ended"]
    assert figures(tmp_path / "run") == figures(finished)
    with pytest.raises(ValueError, match="no score"):
        train(make_config(shards, tmp_path / "fails"), hooks=[StepNorms(fails_at=7)])
    assert max(positions(tmp_path / "fails")) == 7


def test_weights_go_out_verified_and_training_starts_from_them(shards, finished, tmp_path):
    done = launch("launch/convert.py", "to-hf", "--run", finished, "--verify", "true")
    assert done.code == 0, done.err
    exported = finished / "export"
    result = json.loads((exported / "verification.json").read_text())
    assert 0 < result["maximum_absolute_logit_difference"] <= 1e-4
    ours = tmp_path / "ours"
    done = launch("launch/convert.py", "from-hf", "--folder", exported, "--run", ours)
    assert done.code == 0, done.err
    end = figures(finished)[24]
    for source in (exported, ours, finished):
        folder = tmp_path / f"from_{source.name}"
        train(make_config(shards, folder, init_from=source, train_tokens=512))
        # From scratch it would be log(1024) = 6.9.
        assert figures(folder)[1] == pytest.approx(end, abs=0.3)
    wider = ModelConfig("tiny", {"vocabulary_size": VOCABULARY, "mlp_width": 96})
    with pytest.raises(UserError, match="gives mlp_width as 64, but model.mlp_width is 96"):
        train(make_config(shards, tmp_path / "w", init_from=finished, model=wider))


def test_another_config_in_the_same_folder_is_refused(shards, finished):
    with pytest.raises(FolderRefused) as caught:
        train(make_config(shards, finished, seed=1))
    assert caught.value.differs == ("seed",)


def test_the_best_by_a_metric_that_is_not_there_is_refused_at_once(shards, tmp_path):
    for kept_by in ("accuracy", "learning_rate"):
        config = make_config(shards, tmp_path / "run")
        checkpoints = dataclasses.replace(config.checkpoints, keep_best=1, best_metric=kept_by)
        with pytest.raises(UserError, match="must be one of loss, grad") as refused:
            train(dataclasses.replace(config, checkpoints=checkpoints))
        assert refused.value.key == "checkpoints.best_metric"
    assert not (tmp_path / "run").exists()


def test_where_a_run_goes_on_from_can_be_said(shards, finished, tmp_path):
    with pytest.raises(UserError, match="resume=required.*no good checkpoint"):
        train(make_config(shards, tmp_path / "run", resume="required"))
    with pytest.raises(UserError, match="resume='newest': must be auto, required"):
        train(make_config(shards, tmp_path / "run", resume="newest"))
    with pytest.raises(UserError, match="7"):
        train(make_config(shards, finished, resume="7"))
    shutil.copytree(finished, tmp_path / "copy")
    assert sorted(int(p.name) for p in (tmp_path / "copy/checkpoints").iterdir()) == [20, 24]
    path = write_config(make_config(shards, tmp_path / "copy"), tmp_path / "config.yaml")
    done = launch("launch/train.py", "--config", path, "--resume", "20")
    assert "steps 20 → 24" in done.out, done.err
    assert figures(tmp_path / "copy") == figures(finished)


@pytest.mark.parametrize("broken", [(MetricsLog, "_note"), (Checkpoints, "save")], ids=str)
def test_a_full_disk_ends_a_run_with_what_it_learnt_saved(
    shards, finished, tmp_path, monkeypatch, broken
):
    """Where it can be: something else may have filled it, or the save that failed."""
    owner, name = broken
    does, calls = getattr(owner, name), []

    def once(self, *arguments):
        calls.append(arguments)
        if len(calls) == (7 if name == "_note" else 1):
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
        return does(self, *arguments)

    monkeypatch.setattr(owner, name, once)
    config = make_config(shards, tmp_path / "run")
    with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
        train(config)
    # Of step 7, read after 8 is begun, so 9 hears of it; of the save at 5.
    assert max(positions(tmp_path / "run")) == (9 if name == "_note" else 6)
    assert train(config)["final_loss"] == figures(finished)[24]


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew_only_if_told(
    shards, finished, tmp_path
):
    run = shutil.copytree(finished, tmp_path / "run")
    for position in positions(run):
        (run / "checkpoints" / str(position) / "state" / "_METADATA").write_text("{}")
    for _ in range(2):  # the second start finds them set aside
        with pytest.raises(UserError, match="every checkpoint of this run is damaged.*resume 0"):
            train(make_config(shards, run))
    train(make_config(shards, run, resume="0"))
    assert figures(run) == figures(finished)
    train(make_config(shards, run, resume="0", train_tokens=512 * 24))
    assert (run / "checkpoints" / "superseded" / "24").is_dir()


def test_a_finished_run_is_continued_longer(shards, finished, tmp_path):
    more = ExtensionConfig(512 * 5, "linear", warmup_steps=2, peak_learning_rate=5e-3)
    run = shutil.copytree(finished, tmp_path / "run")
    train(make_config(shards, run, extensions=(more,)))
    train(make_config(shards, tmp_path / "at_once", extensions=(more,)))
    assert len(figures(run)) == 29 and figures(run) == figures(tmp_path / "at_once")
    found = figures(run)
    assert {step: found[step] for step in range(1, 25)} == figures(finished)
    rates = figures(run, "learning_rate")
    assert [rates[step] for step in (25, 26, 27)] == pytest.approx([1e-3, 3e-3, 5e-3], rel=1e-5)
    with pytest.raises(FolderRefused, match="train_tokens.* add to extensions"):
        train(make_config(shards, run, extensions=(more,), train_tokens=512 * 29))
    other = dataclasses.replace(more, schedule="constant")
    for changed in ((), (other,)):
        with pytest.raises(FolderRefused) as told:
            train(make_config(shards, run, extensions=changed))
        assert told.value.differs == ("extensions.0",)
    assert train(make_config(shards, run, extensions=(more, other)))["steps"] == 34


def test_epochs_become_whole_batches(shards, tmp_path):
    config = make_config(shards, tmp_path / "run", train_tokens=1)
    assert isinstance(config.data.mixture, dict)
    natural = {**config.data.mixture, "rates": "natural"}
    data = dataclasses.replace(config.data, mixture=natural)
    summary = train(dataclasses.replace(config, data=data, epochs=0.1))
    tokens = sum(open_mixture(data).epoch_tokens)
    assert summary["steps"] == int(tokens * 0.1) // 512
    with pytest.raises(UserError, match="epochs=0.0001 .* less than one batch"):
        train(dataclasses.replace(config, data=data, epochs=0.0001))
    with pytest.raises(UserError, match=r"epochs=2: .* `rates: natural`"):
        train(dataclasses.replace(config, epochs=2.0))


def test_an_epoch_of_rows_that_are_not_full_is_all_of_its_records(tmp_path):
    with ShardWriter(tmp_path / "raw") as writer:
        for number in range(40):
            writer.write(Record(str(number), "a " * 40, ""))
    mixture = {"tasks": {"raw": {"source": "raw"}}, "rates": "natural", "root": str(tmp_path)}
    config = make_config(tmp_path, tmp_path / "run", epochs=1.0)
    data = dataclasses.replace(config.data, mixture=mixture, packing="best_fit")
    config = dataclasses.replace(config, data=data)
    tokens = sum(open_mixture(data).epoch_tokens)
    assert 32 * 40 < tokens < 64 * 40  # one record a row, and 8 rows a batch
    summary = train(config)
    assert summary["steps"] == 5 and summary["tokens"] == tokens
    assert train(dataclasses.replace(config, run_folder=tmp_path / "b", epochs=0.5))["steps"] == 2


def test_fresh_deletes_runs_but_nothing_else(shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    train(make_config(shards, tmp_path / "run", fresh=True, train_tokens=512))
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 500}, "batch_tokens=500 is no multiple of data.row_tokens=64; 448 or"),
        ({"accumulation_steps": 3}, "accumulation_steps=3 does not divide the 8 rows"),
        ({"train_tokens": 0}, "train_tokens=0"),
        ({"model": ModelConfig("tiny")}, "1024 tokens.*embeds 256"),
        ({"model": ModelConfig("tiny", {"max_positions": 32})}, "longer than the 32 positions"),
        ({"attention_backend": "cudnnn"}, "attention_backend='cudnnn'.*nearest is 'cudnn'"),
    ],
)
def test_impossible_combinations_stop_before_the_run_folder(shards, tmp_path, changes, message):
    with pytest.raises((UserError, ValueError), match=message):
        train(make_config(shards, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_is_refused_with_exit_code_2(shards, tmp_path):
    path = write_config(make_config(shards, tmp_path / "run"), tmp_path / "config.yaml")
    told = refused("launch/train.py", "--config", path, "--mesh.tensor", "3")
    assert told.said.startswith("error: mesh.data") and "mesh.tensor=3" in told.said
    told = refused("launch/train.py", "--config", path, "--optimiser.beta1", "0.8")
    assert "nearest valid key is 'optimizer.beta1'" in told.said
    assert not (tmp_path / "run").exists()
