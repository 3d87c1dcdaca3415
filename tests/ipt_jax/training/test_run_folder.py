"""Run folders: reopened by the same training, also after the code has learnt new settings."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from ipt_jax.errors import UserError
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.run_folder import open_run_folder


def test_keys_newer_than_the_run_have_their_defaults(tmp_path: Path) -> None:
    config, mesh = TrainConfig(run_folder=tmp_path / "run"), make_mesh(MeshConfig())
    saved = open_run_folder(config, mesh) / "config.yaml"
    content = yaml.safe_load(saved.read_text())
    del content["data"]["packing"], content["data"]["skip_damaged"], content["epochs"]
    saved.write_text(yaml.safe_dump(content))
    open_run_folder(config, mesh)

    def packed(packing: str, skip: bool) -> TrainConfig:
        data = dataclasses.replace(config.data, packing=packing, skip_damaged=skip)  # type: ignore[arg-type]
        return dataclasses.replace(config, data=data)

    open_run_folder(packed("concatenate", True), mesh)  # may change: damage shows on the way
    saved.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"differs in data\.packing\)"):
        open_run_folder(packed("best_fit", False), mesh)
