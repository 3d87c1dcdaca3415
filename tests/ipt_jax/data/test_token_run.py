"""Token shards: the same rows as from text, and runs that stop, go on or are refused."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.manifest import file_sha256
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.run_folder import FolderRefused, RunFolder
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data import token_run
from ipt_jax.data.encode import read_examples
from ipt_jax.data.mixture import DataConfig, load_mixture, load_mixture_config
from ipt_jax.data.packing import Tokenised
from ipt_jax.data.pipeline import MixtureRows, batches, open_mixture
from ipt_jax.data.sources import open_source
from ipt_jax.data.tasks import Task
from ipt_jax.data.token_run import TokenizeConfig, tokenize
from ipt_jax.data.token_shards import TokenSource
from tests.damaged_shards import damage

pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
ROOT = Path(__file__).parents[3]
ROWS = {"rows_per_batch": 4, "total_batches": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents, write_shards):
    """``raw``: 120 documents; ``talk``: 60 of several parts; ``qa.jsonl``: 50 pairs."""
    folder = tmp_path_factory.mktemp("texts")
    write_shards(folder / "raw", documents[:120])
    with ShardWriter(folder / "talk") as writer:
        for number, text in enumerate(documents[:60]):
            cuts = (0, 17, 17, 90, 200 + number)
            parts = tuple(text[a:b] for a, b in itertools.pairwise(cuts))
            parts = (*parts, "") if number % 3 == 0 else parts
            loss = (0.0, 1.0, 0.25, 1.0, 0.5)[: len(parts)]
            writer.write(Record(f"t/{number}", "".join(parts), "talk", parts, loss))
    rows = [{"instruction": text[:50], "response": text[50:400]} for text in documents[:50]]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def content(folder):
    """A mixture of all of them, with each policy."""
    return {
        "name": "both",
        "root": str(folder),
        "rates": {"raw": 5, "talk": 3, "qa": 2},
        "tasks": {
            "raw": {"source": "raw", "max_epochs": 9},
            "talk": {"source": "talk", "loss": "responses", "bos": False},
            "qa": {"source": "qa.jsonl", "loss": "responses", "preprocessors": ["pair"]},
        },
    }


@pytest.fixture(scope="module")
def made(folder, content):
    """Their token shards, from the launch script with two worker processes."""
    output = folder / "tokens"
    (folder / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    ran = launch(folder / "m.yaml", output, "--data.worker_count", "2")
    said, _ = ran.communicate(timeout=600)
    assert ran.returncode == 0, said
    assert "raw: 4/4 shards" in said
    assert "talk: 60 records, 0 of them damaged" in said
    return output


def launch(mixture: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "launch/tokenize_data.py", "--data.mixture", str(mixture)]
    return subprocess.Popen(
        [*command, "--output", str(output), "--records_per_shard", "32", *more],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("row_tokens", [64, 500])
def test_both_ways_give_the_same_rows(content, made, packing, row_tokens):
    """Bit for bit, with loss on all tokens, on parts and on responses."""
    text = DataConfig(content, row_tokens=row_tokens, packing=packing)
    tokens = replace(text, mixture=str(made / "mixture.yaml"), root="/elsewhere")
    opened = open_mixture(tokens)
    assert {type(source) for source in opened.sources} == {TokenSource}
    weights: set[float] = set()
    for one, other in zip(
        batches(open_mixture(text), **ROWS), batches(opened, **ROWS), strict=True
    ):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])
        weights |= set(np.unique(one["loss_weights"]).tolist())
    assert weights == {0, 0.25, 0.5, 1}


def test_examples_are_those_of_the_texts(content, made):
    """In the order of the records, with their kinds of numbers: ids int32, weights float32."""
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    texts = load_mixture(DataConfig(content)).tasks
    tokens = load_mixture_config(made / "mixture.yaml").tasks
    for text, token in zip(texts, tokens, strict=True):
        sources = [(task, open_source(task)) for task in (text, token)]
        assert len(sources[0][1]) == len(sources[1][1])
        indices = range(len(sources[0][1]))
        one, other = (read_examples(s, task, tokenizer, indices) for task, s in sources)
        for expected, found in zip(one, other, strict=True):
            assert found.tokens.dtype == expected.tokens.dtype == np.int32
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            assert (found.loss is None) == (expected.loss is None) == (text.loss == "all")
            if found.loss is not None and expected.loss is not None:
                assert found.loss.dtype == expected.loss.dtype == np.float32
                np.testing.assert_array_equal(found.loss, expected.loss)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "tokenize").glob("*.yaml")))
def test_the_configs_load(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = parse_config(TokenizeConfig, ["--config", str(path)], prog="tokenize", description="")
    assert load_mixture(read.data).tasks


def test_what_is_asked_of_a_mixture_stays(content, made):
    mixture = load_mixture_config(made / "mixture.yaml")
    assert (mixture.name, mixture.rates, mixture.by) == ("both", content["rates"], "tokens")
    assert [(t.max_epochs, t.adds_bos, t.loss) for t in mixture.tasks] == [
        (9, True, "all"),
        (None, False, "responses"),
        (None, True, "responses"),
    ]


def test_the_manifest_and_the_length_index(folder, made):
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    raw = RecordSource(folder / "raw")
    texts = [record.text for record in raw.read(range(120))]
    told = json.loads((made / "raw" / "manifest.json").read_text())
    assert told["format"] == "ipt-jax-tokens/1"
    assert told["details"]["tokenizer_sha256"] == tokenizer.sha256
    assert told["details"]["source_fingerprint"] == raw.fingerprint
    assert [shard["records"] for shard in told["shards"]] == [32, 32, 32, 24]
    counts = [len(ids) for ids in tokenizer.encode_batch(texts)]
    assert sum(shard["tokens"]["mistral-7b-v0.1"] for shard in told["shards"]) == sum(counts)
    assert sum(shard["text_bytes"] for shard in told["shards"]) == sum(
        len(text.encode()) for text in texts
    )
    for shard in told["shards"]:
        assert file_sha256(made / "raw" / shard["name"]) == shard["sha256"]
    (index,) = (made / "raw").glob("lengths-*.npy")
    assert np.load(index).tolist() == counts
    counted: list[Any] = []
    opened = open_mixture(
        DataConfig(str(made / "mixture.yaml")), progress=lambda *a: counted.append(a)
    )
    assert counted == []  # the index was taken
    assert (opened.lengths[0].path if opened.lengths[0] else None) == index
    index.unlink()
    open_mixture(DataConfig(str(made / "mixture.yaml")))
    assert np.load(index).tolist() == counts  # counted from the tokens
    assert {path.suffix for path in (made / "raw").iterdir()} == {".arrayrecord", ".json", ".npy"}


def test_records_of_token_shards_have_their_ids(content, made):
    config = DataConfig(str(made / "mixture.yaml"), row_tokens=128)
    found = MixtureRows(open_mixture(config), row_tokens=128, seed=0, rows=20).records(0, 20)
    text = MixtureRows(
        open_mixture(replace(config, mixture=content)), row_tokens=128, seed=0, rows=20
    )
    assert [(f["task"], f["id"]) for f in found] == [
        (f["task"], f["id"]) for f in text.records(0, 20)
    ]
    source = open_source(load_mixture_config(made / "mixture.yaml").tasks[2])
    record = source.read([3])[0]
    assert record.id == "qa.jsonl:4"
    assert record.text.startswith("Instruction: ") and "\n\nAnswer: " in record.text


@pytest.fixture
def config(content, tmp_path):
    """Of the task raw alone, into a folder of its own."""
    return TokenizeConfig(
        tmp_path / "out", DataConfig(content), tasks=["raw"], records_per_shard=50
    )


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_killed_run_goes_on(folder, made, tmp_path):
    """With SIGKILL, while it writes; then what was done stays and the rest is the same."""
    output, at = tmp_path / "out", tmp_path / "out" / "raw"
    # So slow that it is killed long before its end.
    run = launch(folder / "m.yaml", output, "--tasks", "[raw]", "--records_per_shard", "1")
    deadline = time.monotonic() + 900
    while len(list(at.glob("part-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    done = {path: path.stat().st_mtime_ns for path in at.glob("part-*.arrayrecord")}
    told = len(list(at.glob("part-*.json")))
    assert 3 <= told < 120
    assert not (at / "manifest.json").exists()
    with pytest.raises(UserError, match=r"no .*raw/manifest\.json"):
        open_source(Task("raw", str(at)))
    data = DataConfig(str(folder / "m.yaml"))
    (task,) = tokenize(TokenizeConfig(output, data, tasks=["raw"], records_per_shard=1))
    assert task.new_shards == 120 - told
    kept = [path for path in sorted(done)[:told] if path.stat().st_mtime_ns == done[path]]
    assert len(kept) == told
    examples = TokenSource(replace_source(made, at), load_tokenizer("mistral-7b-v0.1"))
    expected = TokenSource(replace_source(made, made / "raw"), load_tokenizer("mistral-7b-v0.1"))
    for one, other in zip(
        examples.examples(range(120)), expected.examples(range(120)), strict=True
    ):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def replace_source(made: Path, folder: Path) -> Any:
    return replace(load_mixture_config(made / "mixture.yaml").tasks[0], source=str(folder))


def test_two_runs_do_not_write_to_one_folder(folder, tmp_path):
    mixture = {"root": str(folder), "tasks": {"qa": {"source": "raw"}}}
    config = TokenizeConfig(tmp_path, DataConfig(mixture))
    with RunFolder.open(tmp_path, "tokens", {}, owns=()), pytest.raises(FolderRefused) as caught:
        tokenize(config)
    assert caught.value.reason == "locked"
    assert [task.records for task in tokenize(config)] == [120]


def test_a_shard_that_was_damaged_meanwhile_is_written_again(config, monkeypatch):
    write = token_run._write_shard

    def stops(job: Any, number: int) -> None:
        if number == 2:
            raise UserError("the power went")
        write(job, number)

    with monkeypatch.context() as patch:
        patch.setattr(token_run, "_write_shard", stops)
        with pytest.raises(UserError, match="the power went"):
            tokenize(config)
    at = config.output / "raw"
    first = at / "part-00000.arrayrecord"
    whole = first.read_bytes()
    first.write_bytes(whole[:-100])
    (at / "part-00001.json").write_text("{")  # cut short by the same
    (at / "part-00002.arrayrecord.77.tmp").write_bytes(b"left over")
    (task,) = tokenize(config)
    assert (task.new_shards, task.records, task.damaged) == (3, 120, 0)
    assert first.read_bytes() == whole
    before = contents(at)
    assert not any(name.endswith((".tmp", ".json")) and name != "manifest.json" for name in before)
    (task,) = tokenize(config)
    assert task.new_shards == 0
    assert contents(at) == before


def test_a_changed_shard_is_named(config):
    """By who trains on it, and by a run that would call its work done."""
    tokenize(config)
    mixture = load_mixture_config(config.output / "mixture.yaml")
    raw = replace(config.data, mixture={"tasks": {"raw": {"source": mixture.tasks[0].source}}})
    open_mixture(raw)
    damage(config.output / "raw" / "part-00001.arrayrecord")
    message = r"the sha256 of shard \S*out/raw/part-00001\.arrayrecord differs"
    for again in (lambda: open_mixture(raw), lambda: tokenize(config)):
        with pytest.raises(UserError, match=message):
            again()
    unchecked = replace(raw, verify_checksums=False)
    open_mixture(unchecked)  # the size is right, and the index is there
    assert tokenize(replace(config, data=replace(config.data, verify_checksums=False)))


def test_weights_that_are_not_one_for_each_token(config, monkeypatch):
    true = token_run.serialize_example

    def short(example: Tokenised, **names: str) -> bytes:
        assert example.loss is not None
        return true(Tokenised(example.tokens, example.loss[:-1]), **names)

    monkeypatch.setattr(token_run, "serialize_example", short)
    tokenize(replace(config, tasks=["talk"]))
    task = next(t for t in load_mixture(config.data).tasks if t.name == "talk")
    source = open_source(replace(task, source=str(config.output / "talk")))
    assert isinstance(source, TokenSource)
    with pytest.raises(DamagedRecord, match=r"record 4 of .*(\d+) loss weights, \d+ tokens"):
        source.examples([4])


def test_other_inputs_do_not_go_on_in_the_same_folder(config, content):
    (task,) = tokenize(config)
    tasks = {**content["tasks"], "raw": {"source": "raw", "eos": False}}
    other = replace(config, data=DataConfig({**content, "tasks": tasks}))
    qa = replace(config, tasks=["qa"])
    tokenize(qa)
    tasks = {**tasks, "qa": {**tasks["qa"], "id_key": "instruction"}}
    named = replace(qa, data=DataConfig({**content, "tasks": tasks}))
    refused = r"out/(raw|qa) holds shards that were made from other.*"
    for changed, name in (
        (other, r"\(eos differs"),
        (replace(config, records_per_shard=60), r"\(records_per_shard or"),
        (named, r"or id_key differs"),
    ):
        with pytest.raises(UserError, match=refused + name):
            tokenize(changed)
    (again,) = tokenize(replace(other, fresh=True))
    assert again.tokens == task.tokens - 120
    (config.output / "raw" / "manifest.json").unlink()
    (config.output / "raw" / "part-00000.json").write_text('{"key": "x", "shard": {"sha256": ""}}')
    with pytest.raises(UserError, match=r"out/raw holds shards of an unfinished run over other"):
        tokenize(config)
    with pytest.raises(UserError, match=r"tasks='row'.*nearest is 'raw'"):
        tokenize(replace(config, tasks=["row"]))


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("raw", "bos", False, r"`tasks\.raw\.bos` is False, but .*manifest\.json .*`bos: True`"),
        ("talk", "eos", False, r"`tasks\.talk\.eos` is False"),
        ("raw", "loss", "responses", r"`tasks\.raw\.loss` is 'responses', but .* no loss weights"),
        ("qa", "preprocessors", ["pair"], r"`tasks\.qa\.preprocessors` is .* token shards"),
        ("qa", "text_key", "body", r"`tasks\.qa\.text_key` is 'body', but"),
    ],
)
def test_a_task_that_does_not_fit_its_token_shards(made, task, key, value, message):
    content = yaml.safe_load((made / "mixture.yaml").read_text())
    content["tasks"][task][key] = value
    with pytest.raises(UserError, match=message):
        open_mixture(DataConfig(content))


def test_ids_of_another_vocabulary_are_refused(made, tmp_path, content):
    """A tokenizer folder with another model of the same kind: names may differ, checksums not."""
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    other, same = tmp_path / "other", tmp_path / "same"
    for folder in (other, same):
        folder.mkdir()
    data = tokenizer._path.read_bytes()  # type: ignore[attr-defined]
    (same / "tokenizer.model").write_bytes(data)
    shutil.copytree(made, tmp_path / "made")
    manifest = tmp_path / "made" / "raw" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"eos_id": 2', '"eos_id": 7'))
    with pytest.raises(UserError, match=r"made with `eos_id: 7`, but .* now has 2"):
        open_source(replace_source(made, tmp_path / "made" / "raw"))
    # An unknown field at the end of the proto: read by the library, another checksum.
    (other / "tokenizer.model").write_bytes(data + b"\xf8\x3f\x01")
    config = DataConfig(str(made / "mixture.yaml"), tokenizer=str(same), row_tokens=64)
    expected = next(batches(open_mixture(replace(config, tokenizer="mistral-7b-v0.1")), **ROWS))
    found = next(batches(open_mixture(config), **ROWS))
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    with pytest.raises(
        UserError,
        match=r"`tasks\.raw\.tokenizer` is .*other' with another vocab|"
        r"other', but .*manifest\.json.* 'mistral-7b-v0\.1' with another vocabulary",
    ):
        open_mixture(replace(config, tokenizer=str(other)))


def test_tokens_and_texts_are_not_taken_for_each_other(made, tmp_path):
    with pytest.raises(UserError, match=r"it lists tokens \(token shards\)"):
        RecordSource(made / "raw")
    config = DataConfig(str(made / "mixture.yaml"))
    with pytest.raises(
        UserError, match=r"tasks.raw.source. is '.*tokens/raw', but it holds tokens"
    ):
        tokenize(TokenizeConfig(tmp_path / "again", config))


@pytest.fixture
def bad_line(folder, documents):
    """JSON lines whose eighth is cut short."""
    path = folder / "bad.jsonl"
    lines = [json.dumps({"text": text}) for text in documents[:20]]
    lines[7] = lines[7][:-3]
    path.write_text("\n".join(lines))
    yield path
    path.unlink()


def test_damaged_records(bad_line, tmp_path):
    """They stop the run, or are counted and leave a gap, so that rows stay the same."""
    content = {"tasks": {"bad": {"source": str(bad_line)}}}
    config = TokenizeConfig(tmp_path / "out", DataConfig(content, row_tokens=64))
    with pytest.raises(UserError, match=r"line 8 of .*bad\.jsonl is no JSON object"):
        tokenize(config)
    skipping = replace(config.data, skip_damaged=True)
    (task,) = tokenize(replace(config, data=skipping))
    assert (task.records, task.damaged) == (20, 1)
    made = replace(skipping, mixture=str(tmp_path / "out" / "mixture.yaml"))
    opened = open_mixture(made)
    assert [*opened.damaged.records] == [("bad", 7)]
    for one, other in zip(
        batches(opened, **ROWS), batches(open_mixture(skipping), **ROWS), strict=True
    ):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    with pytest.raises(DamagedRecord, match=r"record 7 of .*part-00000\.arrayrecord.*line 8 of"):
        open_mixture(replace(made, skip_damaged=False))
