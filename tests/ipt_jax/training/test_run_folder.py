"""Run folders of trainings: reopened by the same training, also after the code has learnt more."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from ipt_jax.core.run_folder import FolderRefused
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.run_folder import open_run_folder
from ipt_jax.training.step_lines import drop_later_lines


def opened(config: TrainConfig) -> Path:
    with open_run_folder(config, make_mesh(MeshConfig())) as folder:
        return folder


@pytest.mark.parametrize("marked", [True, False])
def test_keys_newer_than_the_run_have_their_defaults(tmp_path: Path, marked: bool) -> None:
    config = TrainConfig(run_folder=tmp_path / "run")
    folder = opened(config)
    marker, saved = folder / "run.json", folder / "config.yaml"
    content, settings = json.loads(marker.read_text()), yaml.safe_load(saved.read_text())
    del content["fingerprint"]["data.packing"], content["fingerprint"]["epochs"]
    del settings["data"]["packing"], settings["epochs"]
    marker.write_text(json.dumps(content))
    saved.write_text(yaml.safe_dump(settings))
    if not marked:  # as an earlier version left it
        marker.unlink()

    def packed(packing: str, skip: bool) -> TrainConfig:
        data = dataclasses.replace(config.data, packing=packing, skip_damaged=skip)  # type: ignore[arg-type]
        return dataclasses.replace(config, data=data)

    with pytest.raises(FolderRefused) as caught:
        opened(packed("best_fit", False))
    assert caught.value.differs == ("data.packing",)
    opened(packed("concatenate", True))  # may change: damage shows on the way


def test_a_folder_with_a_config_of_someone_elses_is_no_training(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: theirs\n")
    for fresh in (False, True):
        with pytest.raises(FolderRefused, match=r"config\.yaml is there"):
            opened(TrainConfig(run_folder=tmp_path, fresh=fresh))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_lines_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in range(1, 6)]
    # Cut by a power cut, and by a kill.
    before = "\n".join([*lines[:3], "\0\0", '{"step"', *lines[3:], '{"step": 6'])
    path.write_text(before)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            drop_later_lines(path, 4)
    assert path.read_text() == before
    assert drop_later_lines(path, 4) == [{"step": step} for step in range(1, 5)]
    assert path.read_text().splitlines() == lines[:4]
    assert "2 line(s) are damaged" in capsys.readouterr().out
