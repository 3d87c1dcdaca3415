"""Every command on its run folder: what it did not make stays, whose it is not it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_gen.baselines.config import RandomPairsConfig, ReadingComprehensionConfig
from data_gen.ingest import IngestConfig, ingest
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.tuning import Tuning, TuningConfig, TuningSource
from data_gen.methods import synthesize
from data_gen.quality.stage import Filter, FilterConfig
from data_gen.stages.measurement import Measurement, hold_analysis
from data_gen.stages.stage import run_stage
from ipt_jax.chains import quickstart
from ipt_jax.core import run_folder
from ipt_jax.core.configuration import write_run_files
from ipt_jax.core.errors import UserError
from ipt_jax.core.jobs import Job, hold_jobs, run_jobs
from ipt_jax.core.run_folder import FolderRefused, RunFolder
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.token_run import TokenizeConfig, tokenize
from ipt_jax.evaluation import harness
from ipt_jax.hf.export import export_hugging_face
from ipt_jax.models.config import PRESETS
from ipt_jax.models.decoder import new_params
from ipt_jax.training.convert import FromHuggingFaceConfig, from_hugging_face_folder
from tests.data_gen.fakes import FakeEngine
from tests.run_folders import content, unlisted

DECODER = dataclasses.replace(PRESETS["tiny"], vocabulary_size=64)


class NoTokenizer:
    """As much of one as an export needs."""

    name, bos_id, eos_id = "none", 1, 2

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@dataclass
class Door:
    """A command: runs to its end in `folder`."""

    run: Callable[..., Any]
    fresh: bool = True
    """It has --fresh."""
    other: bool = True
    """It refuses a folder of other settings (and takes them as `other=True`)."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a synthesis folder and two exported models."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = [{"id": f"d{n}", "text": f"Text number {n}. It is short."} for n in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    synthesis(folder, folder / "synthesis")
    export(folder, folder / "model")
    shutil.copytree(folder / "model", folder / "other_model")
    (folder / "other_model" / "notes.json").write_text("{}")
    return folder


def synthesis(inputs: Path, folder: Path, fresh: bool = False, other: bool = False) -> None:
    config = SynthesisConfig(
        input=[str(inputs / "corpus.jsonl")], output=str(folder), fraction=0.7, rounds=2,
        records_per_shard=4, seed=int(other), fresh=fresh,
    )  # fmt: skip
    on_start = partial(write_run_files, config=config)
    synthesize(config, engine=FakeEngine(), on_start=on_start)


def ingested(inputs: Path, folder: Path, fresh: bool = False, other: bool = False) -> None:
    config = IngestConfig(
        input=[str(inputs / "corpus.jsonl")],
        output=str(folder),
        limit=9 if other else None,
        fresh=fresh,
    )
    ingest(config, on_start=partial(write_run_files, config=config))


def random_pairs(inputs: Path, folder: Path, fresh: bool = False, other: bool = False) -> None:
    synthesize(
        RandomPairsConfig(
            synthesis=str(inputs / "synthesis"), output=str(folder), seed=int(other), fresh=fresh
        )
    )


def filtered(inputs: Path, folder: Path, fresh: bool = False, other: bool = False) -> None:
    gates = ["exact_text", "first_sentences"] if other else ["exact_text"]
    raw = str(inputs / "synthesis" / "shards" / "raw")
    config = FilterConfig(input=[raw], output=str(folder), gates=gates, fresh=fresh)
    run_stage(Filter(config), on_start=partial(write_run_files, config=config))


def tokens(inputs: Path, folder: Path) -> None:
    mixture = {"root": str(inputs), "tasks": {"raw": {"source": "synthesis/shards/raw"}}}
    tokenize(TokenizeConfig(folder, DataConfig(mixture), records_per_shard=4))


def export(inputs: Path, folder: Path) -> None:
    export_hugging_face(folder, DECODER, new_params(DECODER, 1), NoTokenizer())  # type: ignore[arg-type]


def weights(inputs: Path, folder: Path, other: bool = False) -> Path:
    model = inputs / ("other_model" if other else "model")
    return from_hugging_face_folder(FromHuggingFaceConfig(model, folder))


def evaluation(inputs: Path, folder: Path) -> None:
    def lm_eval(command: list[str], environment: Any, log: Path, *_: Any) -> int:
        written = log.parent / "lm_eval" / "model"
        written.mkdir(parents=True, exist_ok=True)
        for path in (log, written / "results_1.json", log.parent / "cache" / "downloads" / "x"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "_run", lm_eval)
        patch.setattr(harness, "read_lm_eval", lambda folder, name: ([], {}))
        models = {"a": inputs / "model", "b": inputs / "other_model"}
        harness.evaluate_models(harness.EvaluationConfig(models, folder))


def analysis(inputs: Path, folder: Path) -> None:
    with hold_analysis(folder, "corpus_analysis") as run:
        Measurement("title", "subtitle").write(run.path, [{}])


def job(inputs: Path, folder: Path, fresh: bool = False) -> None:
    with hold_jobs(folder, "quickstart", ("synthesis",), first="one", fresh=fresh) as run:
        write_run_files(run.path, DECODER)
        work = lambda results: synthesis(inputs, run.path / "synthesis")  # noqa: E731
        run_jobs(run.path, [Job("one", work, lambda results: {})])


DOORS = {
    "synthesize": Door(synthesis),
    "ingest": Door(ingested),
    "random_pairs": Door(random_pairs),
    "filter": Door(filtered),
    "tokenize": Door(tokens, fresh=False, other=False),
    "to-hf": Door(export, fresh=False, other=False),
    "from-hf": Door(weights, fresh=False),
    "evaluate": Door(evaluation, fresh=False, other=False),
    "analyse": Door(analysis, fresh=False, other=False),
    "quickstart": Door(job, other=False),
}


def refused(reason: str, path: Path, run: Callable[[], Any]) -> FolderRefused:
    before = content(path)
    with pytest.raises(FolderRefused) as caught:
        run()
    assert caught.value.reason == reason, caught.value
    assert content(path) == before
    return caught.value


@pytest.mark.parametrize("name", DOORS)
def test_a_command_and_its_folder(name: str, inputs: Path, tmp_path: Path) -> None:
    door, folder = DOORS[name], tmp_path / "run"
    run = partial(door.run, inputs, folder)
    starts = [run, *([partial(run, fresh=True)] if door.fresh else [])]
    run()
    made = set(content(folder))
    assert not unlisted(folder)

    # Of someone else's: everywhere, under names like ours.
    names = ("notes.txt", "part-1.bak", "part-00000.arrayrecord.bak", "config.yaml~", "10-mine/x")
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    trees = [path for path in places if "checkpoints" in path.parent.parts]
    strange = {}
    for place in (place for place in places if place not in trees):
        if any(tree in place.parents for tree in trees):
            continue
        for strange_name in names:
            path = place / strange_name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"mine, {path}")
            strange[path.relative_to(folder).as_posix()] = path.read_bytes()
    moved = folder.rename(tmp_path / "moved")
    door.run(inputs, moved)  # a folder that was moved goes on
    moved.rename(folder)
    for start in starts:
        start()
        assert strange.items() <= content(folder).items()
        assert set(content(folder)) == made | strange.keys()

    with run_folder._lock(folder):
        for start in starts:
            refused("locked", folder, start)
    if door.other:
        assert refused("differs", folder, partial(run, other=True)).differs
    bare = shutil.copytree(folder, tmp_path / "bare")
    for path in bare.rglob("run.*"):
        path.unlink()
    for path in content(bare):
        (bare / path).write_text("mine")
    RunFolder.open(tmp_path / "others", "other", {}, owns=()).close()
    for path, reason in ((bare, "not_ours"), (tmp_path / "others", "another_kind")):
        for fresh in [{}, {"fresh": True}][: len(starts)]:
            refused(reason, path, partial(door.run, inputs, path, **fresh))


@pytest.mark.parametrize("name", ["synthesize", "ingest", "random_pairs", "filter", "from-hf"])
def test_what_was_deleted_of_a_finished_run_is_made_again(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    DOORS[name].run(inputs, tmp_path)
    made = {name for name in content(tmp_path) if "/d/" not in name}
    for place in (tmp_path / "shards", tmp_path / "checkpoints"):
        shutil.rmtree(place, ignore_errors=True)
    DOORS[name].run(inputs, tmp_path)
    assert {name for name in content(tmp_path) if "/d/" not in name} == made
    (tmp_path / "summary.json").unlink(missing_ok=True)
    DOORS[name].run(inputs, tmp_path)
    assert {name for name in content(tmp_path) if "/d/" not in name} == made


def test_an_evaluation_beside_its_models_is_refused(inputs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(inputs / "model", tmp_path / "run" / "export").parent
    before = content(run)
    for models, output in (
        ({"export": run / "export"}, run),
        ({"export": run / "export"}, run / "export"),
        ({"export": run / "export"}, run / "export" / "evaluation"),
        *(({name: run / "export"}, tmp_path / "out") for name in ("..", ".", ".x", "run.json")),
    ):
        with pytest.raises(UserError, match="output=|models\\."):
            harness.evaluate_models(harness.EvaluationConfig(models, output))
    assert content(run) == before and not (tmp_path / "out").exists()


def test_tuning_data_in_the_folder_of_a_synthesis(inputs: Path, shared: Path, tmp_path: Path):
    folder = shutil.copytree(inputs / "synthesis", tmp_path / "run")
    (folder / "summary.json").unlink()  # it did not come to its end
    source = TuningSource("babi", "babi", files=["qa6_*.txt"], most_examples=20)
    config = TuningConfig(sources=[source], root=str(shared / "data"), output=str(folder))
    refused("another_kind", folder, lambda: run_stage(Tuning(config)))
    (folder / "run.json").unlink()  # as an earlier version left it
    with pytest.raises(FolderRefused):
        run_stage(Tuning(config))
    assert (folder / "ledger.sqlite").exists()


def before_markers(inputs: Path, folder: Path) -> Path:
    """A finished synthesis as an earlier version left it."""
    shutil.copytree(inputs / "synthesis", folder)
    (folder / "run.json").unlink()
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as database:
        stored = json.dumps(json.loads((folder / "summary.json").read_text())["fingerprint"])
        database.execute("INSERT INTO meta VALUES ('fingerprint', ?)", (stored,))
        database.commit()
    return folder


@pytest.mark.parametrize("fresh", [False, True])
def test_what_an_earlier_version_made_is_of_its_kind(
    inputs: Path, tmp_path: Path, fresh: bool
) -> None:
    folder = before_markers(inputs, tmp_path / "run")
    config = ReadingComprehensionConfig(
        input=[str(inputs / "corpus.jsonl")], output=str(folder), domain="finance", fresh=fresh
    )
    refused("not_ours", folder, lambda: synthesize(config))
    job(inputs, tmp_path / "job")
    for path in (tmp_path / "job").rglob("run.json"):
        path.unlink()
    hold = partial(hold_jobs, tmp_path / "job", "tuning", ("train",), fresh=fresh)
    refused("not_ours", tmp_path / "job", partial(hold, first="sequences"))
    hold(first="one").close()


def test_tokens_do_not_replace_records_put_beside_them(inputs: Path, tmp_path: Path) -> None:
    tokens(inputs, tmp_path)
    shutil.copytree(inputs / "synthesis" / "shards" / "plain", tmp_path / "plain")
    mixture = {"root": str(inputs), "tasks": {"plain": {"source": "synthesis/shards/raw"}}}
    config = TokenizeConfig(tmp_path, DataConfig(mixture), fresh=True)
    refused("not_ours", tmp_path, lambda: tokenize(config))


def test_a_home_in_a_path_is_the_users(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tokens(inputs, Path("~/tokens"))
    assert weights(inputs, Path("~/weights")) == tmp_path / "weights"
    config = quickstart.scaled(quickstart.QuickstartConfig(Path("~/quickstart")))
    assert config.folder == tmp_path / "quickstart"
    assert not unlisted(tmp_path) and not (tmp_path / "~").exists()


def test_a_quickstart_clears_the_trainings_of_its_own_mixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quickstart.QuickstartConfig(tmp_path, mixtures={"raw": ""})
    monkeypatch.setattr(quickstart, "run_jobs", lambda folder, jobs: {"export of raw": 0.0})
    monkeypatch.setattr(quickstart, "evaluate_models", lambda config: None)
    monkeypatch.setattr(quickstart, "quickstart_report", lambda page, **_: page)
    quickstart.run_quickstart(config)
    for name in ("train_raw", "train_mine"):  # of launch/train.py, the second
        with RunFolder.open(tmp_path / name, "training", {}, owns=("summary.json",)) as run:
            (run.path / "summary.json").touch()
    quickstart.run_quickstart(dataclasses.replace(config, fresh=True))
    assert [path.parent.name for path in tmp_path.rglob("summary.json")] == ["train_mine"]


def test_a_synthesis_that_an_earlier_version_began_goes_on(inputs: Path, tmp_path: Path) -> None:
    folder = before_markers(inputs, tmp_path / "run")
    before = json.loads((folder / "summary.json").read_text())
    error = refused("differs", folder, partial(synthesis, inputs, folder, other=True))
    assert error.differs == ("seed",)
    synthesis(inputs, folder)
    assert json.loads((folder / "summary.json").read_text()) == before
    assert not unlisted(folder)
