"""Saving, keeping, choosing and reading checkpoints; damage and kills are in tests/faults."""

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import SingleDeviceSharding
from safetensors import safe_open

from ipt_jax.core.errors import UserError
from ipt_jax.models.config import PRESETS
from ipt_jax.models.decoder import new_params
from ipt_jax.training.checkpoints import (
    CheckpointConfig,
    Checkpoints,
    load_params,
    save_params,
)
from ipt_jax.training.integrity import find_corruption, write_list

ROOT = Path(__file__).parents[3]


def make_state(number: int = 0) -> Any:
    """A tree with what train states have in it: stacked arrays, scalars, keys, empty nodes."""
    return {
        "params": {
            "blocks": {"weight_LDF": jnp.arange(4 * 8 * 6, dtype=jnp.float32).reshape(4, 8, 6)},
            "embedding_VD": jnp.full((16, 8), number, jnp.bfloat16),
        },
        "frozen": {},
        "optimizer": ((), {"count": jnp.int32(number)}),
        "key": jax.random.key(number),
    }


def abstract(state: Any) -> Any:
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)


ABSTRACT = abstract(make_state())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fill(folder: Path, positions: range, **settings: Any) -> None:
    with Checkpoints(folder, CheckpointConfig(**{"keep": 100, **settings})) as checkpoints:
        for position in positions:
            checkpoints.save(position, make_state(position), {"at": position})


def newest(folder: Path, position: int | None = None, tree: Any = ABSTRACT) -> int | None:
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore_newest(tree, position)
    if restored is None:
        return None
    assert restored.progress == {"at": restored.position}
    assert int(restored.state["optimizer"][1]["count"]) == restored.position
    return restored.position


def test_what_comes_back_is_the_state_of_the_moment_although_training_went_on(tmp_path):
    change = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    state = {"params": jnp.arange(3_000_000, dtype=jnp.float32), "step": jnp.int32(7)}
    expected = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, state, {"tokens": 3})
        for _ in range(5):
            state = change(state)  # donated: the saved buffers are free to be overwritten
        jax.block_until_ready(state)
        checkpoints.save(7, state, {"tokens": 4})  # saved already
        restored = checkpoints.restore_newest(abstract(state))
    assert restored is not None and restored.progress == {"tokens": 3}
    jax.tree.map(np.testing.assert_array_equal, restored.state, expected)


def test_keys_bfloat16_and_empty_nodes_come_back(tmp_path):
    state = make_state(3)
    fill(tmp_path, range(3, 4))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore_newest(ABSTRACT)
    assert restored is not None
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    np.testing.assert_array_equal(
        jax.random.key_data(restored.state["key"]), jax.random.key_data(state["key"])
    )
    embedding = restored.state["params"]["embedding_VD"]
    assert embedding.dtype == jnp.bfloat16 and (embedding == 3).all()


def test_every_file_is_listed(tmp_path):
    fill(tmp_path, range(1, 2))
    folder = tmp_path / "1"
    listed = json.loads((folder / "checksums.json").read_text())["files"]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert listed.keys() == files - {"checksums.json"}


def test_the_newest_are_kept(tmp_path):
    fill(tmp_path, range(1, 6), keep=2)
    assert names(tmp_path) == {"4", "5"}


@pytest.mark.parametrize(("mode", "best", "kept"), [("min", 2, "2 4 5 6"), ("max", 4, "3 4 5 6")])
def test_the_best_by_a_metric_are_kept_besides(tmp_path, mode, best, kept):
    losses = {1: float("nan"), 2: 1.0, 3: 3.0, 4: 3.0, 5: None, 6: None}
    config = CheckpointConfig(keep=2, keep_best=2, best_metric="held_out", best_mode=mode)
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.best() is None
        for position, loss in losses.items():
            metrics = None if loss is None else {"held_out": loss, "loss": 0.0}
            checkpoints.save(position, make_state(), {}, metrics)
            checkpoints.wait()
            assert position > 1 or checkpoints.best() is None
        assert names(tmp_path) == set(kept.split())
        assert checkpoints.best() == best  # of two that are equal the newer
        with pytest.raises(UserError, match="best_metric='held_out': there is no .*there are loss"):
            checkpoints.save(7, make_state(), {}, {"loss": 1.0})


def test_nothing_there_is_no_error(tmp_path):
    assert newest(tmp_path / "checkpoints") is None


def test_a_config_that_does_not_fit_is_an_error_that_names_the_arrays(tmp_path):
    fill(tmp_path, range(1, 3))
    for path, leaf, message in (
        (("params", "embedding_VD"), jnp.zeros((9, 8), jnp.bfloat16), r"bfloat16\[16, 8\] in it"),
        (("params", "embedding_VD"), jnp.zeros((16, 8)), r"and float32\[16, 8\] here"),
        (("frozen", "base"), jnp.zeros(2), r"frozen.base is absent in it"),
    ):
        other = make_state()
        other[path[0]][path[1]] = leaf
        with pytest.raises(UserError, match=f"does not fit the config.*{message}"):
            newest(tmp_path, tree=abstract(other))
    assert names(tmp_path) == {"1", "2"}  # it is no damage


def test_going_back_puts_what_is_newer_out_of_the_way(tmp_path, capsys):
    fill(tmp_path, range(1, 5))
    with pytest.raises(UserError, match=r"no whole checkpoint 9; there are: 1, 2, 3, 4\."):
        newest(tmp_path, 9)
    assert newest(tmp_path, 2) == 2
    assert names(tmp_path) == {"1", "2", "superseded"}
    assert names(tmp_path / "superseded") == {"3", "4"}
    assert f"{tmp_path / '3'}: newer than 2" in capsys.readouterr().out
    fill(tmp_path, range(3, 4))
    assert newest(tmp_path) == 3
    assert newest(tmp_path, 2) == 2
    assert names(tmp_path / "superseded") == {"3", "3-2", "4"}


def test_unfinished_saves_are_set_aside_and_deletions_finished(tmp_path, capsys):
    fill(tmp_path, range(1, 2))
    unfinished = ("2.committing.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp")
    for name in (*unfinished, "0.deleting"):
        (tmp_path / name / "state").mkdir(parents=True)
    assert newest(tmp_path) == 1
    said = capsys.readouterr().out
    assert all(f"{tmp_path / n}: the run was stopped while writing it" in said for n in unfinished)
    assert names(tmp_path) == {"1", "damaged"}
    assert names(tmp_path / "damaged") == {"2-unfinished", "3-unfinished"}


def test_killed_between_the_last_file_and_the_list(tmp_path, capsys):
    fill(tmp_path, range(1, 3))
    (tmp_path / "2" / "checksums.json").unlink()
    (tmp_path / "2").rename(tmp_path / "2.committing")
    assert newest(tmp_path) == 2
    assert f"{tmp_path / '2.committing'}: whole" in capsys.readouterr().out
    assert find_corruption(tmp_path / "2") is None


def test_without_a_list_a_checkpoint_is_the_last_resort(tmp_path, capsys):
    fill(tmp_path, range(1, 3))
    for position in ("1", "2"):
        (tmp_path / position / "checksums.json").unlink()
    assert newest(tmp_path) == 2  # there is no better one, so nothing is lost
    assert "has no list of checksums, so it is taken unchecked" in capsys.readouterr().out
    assert find_corruption(tmp_path / "2") is None  # it has been read as a whole, and has one now
    (tmp_path / "2" / "checksums.json").unlink()
    write_list(tmp_path / "1")
    assert newest(tmp_path) == 1
    assert names(tmp_path / "damaged") == {"2-no-list"}


# Orbax gives up on the first array that fails, while others still answer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_read_is_set_aside_although_no_list_says_so(tmp_path, capsys):
    fill(tmp_path, range(1, 3))
    for position in ("1", "2"):
        (tmp_path / position / "checksums.json").unlink()
    (tmp_path / "2" / "state" / "manifest.ocdbt").write_bytes(b"no such thing")
    assert newest(tmp_path) == 1
    assert f"{tmp_path / '2'}: cannot be read" in capsys.readouterr().out
    assert names(tmp_path / "damaged") == {"2-unreadable"}


@pytest.mark.parametrize(
    ("content", "slug"),
    [(b"", "bad-list"), (b"[]", "bad-list"), (b'{"files": {}}', "bad-list"), (None, "no-list")],
)
def test_a_damaged_list_is_damage(tmp_path, content, slug):
    (tmp_path / "file").write_text("text")
    write_list(tmp_path)
    assert find_corruption(tmp_path) is None
    if content is None:
        (tmp_path / "checksums.json").unlink()
    else:
        (tmp_path / "checksums.json").write_bytes(content)
    damage = find_corruption(tmp_path)
    assert damage is not None and damage.slug == slug


def test_a_checkpoint_larger_than_the_disk_is_refused(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        huge = {"params": jax.ShapeDtypeStruct((10**9, 10**6), jnp.float32)}
        with pytest.raises(UserError, match=r"takes up to 4,000,000,000 MB, but the disk has"):
            checkpoints.check_room(huge)


def bytes_read() -> int:
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in found for value in metric["values"])


def test_params_are_read_as_far_as_they_are_asked_for(tmp_path):
    weight = np.random.default_rng(0).standard_normal((16, 256, 2, 128)).astype(np.float32)
    norm = np.ones((16, 8), ml_dtypes.bfloat16)
    save_params(tmp_path, {"blocks": {"gate_up_LD2F": weight, "norm_LD": norm}})
    params, position = load_params(tmp_path)
    lazy = params["blocks"]["gate_up_LD2F"]
    assert position == 0 and (lazy.shape, lazy.dtype) == (weight.shape, weight.dtype)
    assert (lazy.ndim, lazy.size, len(lazy)) == (weight.ndim, weight.size, 16)
    before = bytes_read()
    np.testing.assert_array_equal(lazy[5], weight[5])
    assert weight[5].nbytes <= bytes_read() - before < 1.5 * weight[5].nbytes
    np.testing.assert_array_equal(lazy[3, 7:9], weight[3, 7:9])
    np.testing.assert_array_equal(np.asarray(lazy), weight)
    np.testing.assert_array_equal(jnp.asarray(lazy), weight)
    read = np.asarray(params["blocks"]["norm_LD"])
    assert read.dtype == norm.dtype and (read == norm).all()


def test_params_of_a_position_and_of_the_newest_that_is_whole(tmp_path, capsys):
    with pytest.raises(UserError, match="no such folder"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no finished checkpoint"):
        load_params(tmp_path)
    fill(tmp_path, range(1, 4))
    (tmp_path / "4.committing.orbax-checkpoint-tmp").mkdir()  # a run that is saving just now
    (tmp_path / "3" / "state" / "_METADATA").write_text("{}")
    params, position = load_params(tmp_path)
    assert position == 2 and (np.asarray(params["embedding_VD"]) == 2).all()
    assert f"{tmp_path / '3' / 'state' / '_METADATA'} has 2 bytes" in capsys.readouterr().out
    assert load_params(tmp_path, 1)[1] == 1
    with pytest.raises(UserError, match="no whole checkpoint 3; there are: 1, 2, 3"):
        load_params(tmp_path, 3)
    del params
    gc.collect()  # of the refusals, whose frames are a circle
    assert names(tmp_path) == {"1", "2", "3", "4.committing.orbax-checkpoint-tmp"}


def delete(folder: Path, position: int) -> None:
    """As a run that rotates its checkpoints."""
    (folder / str(position)).rename(folder / f"{position}.deleting")
    shutil.rmtree(folder / f"{position}.deleting")


@pytest.mark.parametrize("linked", [True, False])
def test_a_checkpoint_that_is_deleted_while_it_is_read(tmp_path, monkeypatch, linked):
    for name, number in (("run", 0), ("later", 1)):
        save_params(tmp_path / name, {"weight_DF": np.full((64, 4096), number, np.float32)})
    folder, later, link = tmp_path / "run", tmp_path / "later" / "0", os.link

    def rotating(source: str, target: str) -> None:
        if not linked:
            raise PermissionError(source)
        link(source, target)
        if later.exists():  # the run saves anew and deletes what is being linked
            later.rename(folder / "1")
            delete(folder, 0)

    monkeypatch.setattr(os, "link", rotating)
    params, position = load_params(folder)
    assert position == int(linked)
    delete(folder, position)
    if linked:
        assert (np.asarray(params["weight_DF"]) == 1).all()
    else:
        with pytest.raises(UserError, match=r"0/state: params.weight_DF.*checkpoints.keep"):
            np.asarray(params["weight_DF"])
    del params
    gc.collect()
    assert not any(folder.iterdir())


CONVERT = """
import json, re, sys
from pathlib import Path
from ipt_jax.training import convert
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.models.config import DecoderConfig
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.training.checkpoints import load_params

def memory(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+) kB", status)[1]) * 1024

def peak(convert):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    idle = memory("VmRSS")
    convert()
    return memory("VmHWM") - idle

def export():
    params, _ = load_params(folder / "checkpoints")
    export_hugging_face(folder / "out", decoder, params, tokenizer, shard_bytes=32_000_000)

def convert_back():
    convert.from_hugging_face_folder(
        convert.FromHuggingFaceConfig(folder / "out", folder / "run")
    )

folder, decoder = Path(sys.argv[1]), DecoderConfig(**json.loads(sys.argv[2]))
tokenizer = load_tokenizer("mistral-7b-v0.1")
print(json.dumps([peak(export), peak(convert_back)]))
"""


def test_conversion_needs_memory_for_a_part_and_not_for_the_model(tmp_path):
    decoder = dataclasses.replace(
        PRESETS["tiny"], width=512, mlp_width=1024, layers=32, heads=8, kv_heads=4, head_width=64
    )
    random = np.random.default_rng(0).standard_normal(10_007).astype(np.float32)
    shapes = jax.eval_shape(lambda: new_params(decoder, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.resize(random, leaf.shape), shapes)
    model_bytes = 4 * decoder.parameter_count()
    assert model_bytes > 300e6
    save_params(tmp_path / "checkpoints", params)
    config = json.dumps(dataclasses.asdict(decoder))
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, tmp_path, config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    exported, converted = json.loads(done.stdout.splitlines()[-1])
    # A shard or part, and what neither the model's size nor the part's changes: 50 to 70 MB.
    assert exported < 32e6 + 90e6
    assert converted < 32e6 + 90e6
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    name = "model.layers.31.mlp.down_proj.weight"
    with safe_open(tmp_path / "out" / index["weight_map"][name], framework="numpy") as shard:
        np.testing.assert_array_equal(shard.get_tensor(name), params["blocks"]["down_LFD"][31].T)
    back, _ = load_params(tmp_path / "run" / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, back), params)
