"""Run folders of trainings: reopened by the same training, also after the code has learnt more."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml

from ipt_jax.core.run_folder import FolderRefused
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.pipeline import DataConfig, OpenMixture, open_mixture
from ipt_jax.models.lora import LoraConfig
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training import run_folder
from ipt_jax.training.checkpoints import LIST_NAME
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.hooks import drop_later_lines
from ipt_jax.training.optimizer import ExtensionConfig
from ipt_jax.training.run_folder import open_run_folder
from tests.run_folders import content


class NoData(OpenMixture):
    """For trainings that never begin."""

    def __init__(self) -> None:
        pass

    def prints(self) -> dict[str, str]:
        return {}


def opened(config: TrainConfig, mixture: OpenMixture | None = None) -> Path:
    with open_run_folder(config, make_mesh(MeshConfig()), mixture or NoData()) as folder:
        (folder / "metrics.jsonl").touch()  # a run that made nothing yet is no one's
        return folder


@pytest.mark.parametrize("marked", [True, False])
def test_keys_newer_than_the_run_have_their_defaults(tmp_path, marked):
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


MIXTURE = "rates: {a: 9, b: 1}\ntasks:\n  a: {source: a.jsonl}\n  b: {source: b.jsonl}\n"
LINES = "".join(f'{{"text": "record {n}"}}\n' for n in range(9))
OTHER = LINES.replace("record", "other")
VOCABULARY = {"<unk>": 0, "</s>": 1, "record": 2, "other": 3}


@pytest.mark.parametrize(
    ("changes", "differs", "said"),
    [
        ({"mixture.yaml": MIXTURE.replace("9", "1")}, {"mixture.rates.a"}, "(then 9.0, now 1.0)"),
        (
            {"mixture.yaml": MIXTURE.replace("b.jsonl", "b.jsonl, loss: responses")},
            {"tasks.b.loss"},
            "(then all, now responses)",
        ),
        (
            {
                "mixture.yaml": MIXTURE.replace("9", "9.0").replace(
                    "a.jsonl", "a.jsonl, max_epochs: 3"
                )
            },
            None,
            "",
        ),
        ({"a.jsonl": LINES[:105]}, {"sources/a"}, "sources/a"),
        ({"a.jsonl": LINES + LINES}, {"sources/a"}, "sources/a"),
        ({"a.jsonl": OTHER, "b.jsonl": LINES}, {"sources/a", "sources/b"}, "sources/b"),
        ({"tokenizer.json": {**VOCABULARY, "record": 3, "other": 2}}, {"tokenizer.sha256"}, ""),
        (
            {"tokenizer_config.json": '{"bos_token": "<unk>", "eos_token": "other"}'},
            {"tokenizer.eos_token", "tokenizer.eos_id"},
            "(then 1, now 3)",
        ),
        ({"model.safetensors": "other weights"}, {"init_from/weights"}, "init_from/weights"),
        ({"README.md": "of no account"}, None, ""),
    ],
)
def test_what_a_path_names_counts_by_content(tmp_path, changes, differs, said):
    write(tmp_path, {"a.jsonl": LINES, "b.jsonl": OTHER, "mixture.yaml": MIXTURE})
    write(tmp_path, {"config.json": "{}", "model.safetensors": "weights"})
    write(tmp_path, {"tokenizer_config.json": '{"bos_token": "<unk>", "eos_token": "</s>"}'})
    write(tmp_path, {"tokenizer.json": VOCABULARY})

    def start() -> Path:
        load_tokenizer.cache_clear()  # as in a process of its own
        mixture, folder = str(tmp_path / "mixture.yaml"), str(tmp_path)
        data = DataConfig(mixture=mixture, root=folder, tokenizer=folder)
        config = TrainConfig(run_folder=tmp_path / "run", data=data, init_from=tmp_path)
        return opened(config, open_mixture(data))

    start()
    write(tmp_path, changes)
    if differs is None:
        start()
        return
    with pytest.raises(FolderRefused) as caught:
        start()
    assert set(caught.value.differs) == differs and said in str(caught.value)


def test_what_a_path_names_may_move(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    write(folder, {"a.jsonl": LINES, "b.jsonl": OTHER, "mixture.yaml": MIXTURE})
    write(folder, {"config.json": "{}", "model.safetensors": "weights"})
    write(folder, {"tokenizer_config.json": '{"bos_token": "<unk>", "eos_token": "</s>"}'})
    write(folder, {"tokenizer.json": VOCABULARY})

    def start(place: Path) -> None:
        data = DataConfig(str(place / "mixture.yaml"), str(place), tokenizer=str(place))
        config = TrainConfig(run_folder=tmp_path / "run", data=data, init_from=place)
        opened(config, open_mixture(data))

    start(folder)
    marker = (tmp_path / "run" / "run.json").read_text()
    monkeypatch.chdir(tmp_path)
    start(Path("here"))
    start(folder.rename(tmp_path / "there"))
    assert (tmp_path / "run" / "run.json").read_text() == marker
    # Before there were markers nothing but the path was written down.
    (tmp_path / "run" / "run.json").unlink()
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("there", "elsewhere"))
    with pytest.raises(FolderRefused) as caught:
        start(tmp_path / "there")
    assert {"data.mixture", "data.root", "data.tokenizer", "init_from"} == {*caught.value.differs}


def test_a_run_that_training_began_with_may_train_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "weights_digest", lambda run: (run / "weights").read_text())
    before = tmp_path / "before"

    def train_before(weights: str, **changes: Any) -> None:
        opened(TrainConfig(run_folder=before, **changes))
        (before / "weights").write_text(weights)

    def start(**changes: Any) -> Path:
        return opened(TrainConfig(run_folder=tmp_path / "run", init_from=before, **changes))

    train_before("1")
    saved = start() / "checkpoints" / "5"
    train_before("2")
    with pytest.raises(FolderRefused, match="init_from/weights"):
        start()  # it would begin with others
    saved.mkdir(parents=True)
    (saved / LIST_NAME).touch()
    start()
    train_before("3", extensions=(ExtensionConfig(64, "constant"),))
    start()
    for changes in ({"resume": "0"}, {"adapter": LoraConfig()}):  # both read it again
        with pytest.raises(FolderRefused, match="init_from/weights"):
            start(**changes)
    train_before("3", fresh=True, seed=1)
    with pytest.raises(FolderRefused, match="init_from/run"):
        start()


def write(folder: Path, files: dict[str, str | dict[str, int]]) -> None:
    for name, text in files.items():
        if isinstance(text, str):
            (folder / name).write_text(text)
        else:
            model = tokenizers.models.WordLevel(text, "<unk>")
            tokenizers.Tokenizer(model).save(str(folder / name))


def test_a_second_training_is_refused_before_it_changes_anything(tmp_path):
    config, mesh = TrainConfig(run_folder=tmp_path / "run"), make_mesh(MeshConfig())
    with open_run_folder(config, mesh, NoData()) as folder:
        (folder / "metrics.jsonl").write_text("{}")
        before = content(folder)
        for fresh in (False, True):
            with pytest.raises(FolderRefused) as caught:
                opened(dataclasses.replace(config, fresh=fresh))
            assert caught.value.reason == "locked" and content(folder) == before


def test_a_folder_with_a_config_of_someone_elses_is_no_training(tmp_path):
    (tmp_path / "config.yaml").write_text("data: theirs\n")
    for fresh in (False, True):
        with pytest.raises(FolderRefused, match=r"config\.yaml is there"):
            opened(TrainConfig(run_folder=tmp_path, fresh=fresh))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_lines_are_never_lost(tmp_path, monkeypatch, capsys):
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
