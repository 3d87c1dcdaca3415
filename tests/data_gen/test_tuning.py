"""Tuning data: sequences of one data set, loss on pairs, and a count for everything else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.instruction_pretrain import tuning
from data_gen.instruction_pretrain.analysis.held_out import read_held_out
from data_gen.instruction_pretrain.collection import Dataset, Example, Gathered, gather
from data_gen.instruction_pretrain.formats import Pair, render_example
from data_gen.instruction_pretrain.tuning import (
    Tuning,
    TuningConfig,
    TuningSource,
    count_tokens,
    fit_example,
    local_folder,
    print_counts,
    sequences,
)
from data_gen.stages.stage import run_stage, stage_fingerprint
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import RecordSource
from ipt_jax.core.run_folder import FolderRefused, prints_of
from ipt_jax.core.tokenizers import load_tokenizer
from tests.data_gen.written import records
from tests.run_folders import unlisted

pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
HERE = Path(__file__).parent / "collection"


@pytest.fixture(scope="module")
def config(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> TuningConfig:
    return TuningConfig(
        sources=[
            TuningSource("fairytaleqa", "fairytaleqa", most_examples=120),
            TuningSource("aqua", "aqua", files=["dev.json"]),
            TuningSource("babi", "babi", files=["qa6_*.txt"], most_examples=90),
        ],
        unseen=[TuningSource("logiqa", "logiqa", files=["Test.txt"])],
        root=str(shared / "data"),
        output=str(tmp_path_factory.mktemp("tuning") / "made"),
        sequence_tokens=600,
        held_out_examples=8,
        shots=3,
    )


@pytest.fixture(scope="module")
def summary(config: TuningConfig) -> dict[str, Any]:
    return run_stage(Tuning(config))


def test_a_sequence_takes_what_fits_and_loses_nothing() -> None:
    assert sequences([5, 4, 3, 9, 2], 10) == [[0, 1], [2, 4], [3]]
    assert sequences([5, 6, 7, 5], 10, ahead=1) == [[0], [1], [2], [3]]
    assert sequences([5, 6, 7, 5], 10, ahead=3) == [[0, 3], [1], [2]]
    assert sequences([], 10) == []
    lengths = [(7 * n) % 90 + 10 for n in range(500)]
    made = sequences(lengths, 200)
    assert sorted(place for members in made for place in members) == list(range(500))
    assert max(sum(lengths[place] for place in members) for members in made) <= 200
    assert sum(lengths) / (200 * len(made)) > 0.95


def test_sequences_are_whole_examples_of_one_data_set(
    config: TuningConfig, summary: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    made = records(Path(config.output) / "shards")
    assert len(made) == summary["sequences"] > 60
    tokens = 0
    for record in made:
        assert record.parts is not None and record.loss is not None
        ids, owners = tokenizer.encode_parts(record.parts, record.loss)
        tokens += len(ids)
        assert len(ids) <= config.sequence_tokens
        examples = len(record.parts) // 4  # BOS and EOS once each
        assert ids[owners % 4 == 0].tolist() == [tokenizer.bos_id] * examples
        assert ids[owners % 4 == 3].tolist() == [tokenizer.eos_id] * examples
        assert {parent.split("/")[0] for parent in record.provenance["parents"]} == {record.source}
        assert len(record.provenance["parents"]) == len(record.parts) // 4
        assert record.loss == (0.0, 0.0, 1.0, 1.0) * (len(record.parts) // 4)
        contexts, pairs = record.parts[1::4], record.parts[2::4]
        assert all(one.startswith(" <CON> ") and one.endswith(" </CON>\n\n") for one in contexts)
        assert all(one.startswith("<QUE> ") and one.endswith(" </END>") for one in pairs)
        assert record.text.count("<s> <CON> ") == len(contexts) == record.text.count("</s>")
    assert tokens == summary["tokens"]
    assert {record.source for record in made} == {"fairytaleqa", "aqua", "babi"}


def test_the_first_example_reads_as_the_format_renders_it(
    config: TuningConfig, summary: dict[str, Any]
) -> None:
    record = next(
        record for record in records(Path(config.output) / "shards") if record.source == "aqua"
    )
    assert record.parts is not None
    text = record.parts[1].removeprefix(" <CON> ").removesuffix(" </CON>\n\n")
    generated = record.parts[2]
    assert "\nOptions:\n- " in generated and "\nLet's think step by step. <ANS> " in generated
    assert "\nTherefore, the answer is " in generated
    pair = Pair.from_strings(
        generated.removeprefix("<QUE> ").partition(" <ANS> ")[0],
        generated.partition(" <ANS> ")[2].removesuffix(" </END>"),
    )
    assert len(pair.options) == 5 and pair.response in pair.options
    assert record.text.startswith(render_example(text, [pair]))


def test_every_question_ends_in_one_count(config: TuningConfig, summary: dict[str, Any]) -> None:
    for name, counts in summary["datasets"].items():
        lines = [
            json.loads(line)
            for line in (Path(config.output) / "rejected" / f"{name}.jsonl").read_text().split("\n")
            if line
        ]
        assert len(lines) == sum(counts["rejected"].values())
        assert all(line["where"] and line["reason"] for line in lines)
        of_records = {"malformed_file", "malformed_record", "no_context", "no_question"}
        of_questions = sum(
            n for reason, n in counts["rejected"].items() if reason not in of_records
        )
        assert counts["questions"] == (
            counts["tuned_pairs"]
            + counts["held_out_pairs"]
            + counts["surplus_pairs"]
            + counts.get("unused_pairs", 0)
            + of_questions
        )
    assert summary["datasets"]["aqua"]["rejected"]["no_context"] == 37
    assert summary["datasets"]["babi"]["rejected"]["repeated_question"] == 1
    assert summary["datasets"]["babi"]["surplus_examples"] > 100


def test_held_out_examples_are_in_no_sequence(
    config: TuningConfig, summary: dict[str, Any]
) -> None:
    tuned = {
        p
        for record in records(Path(config.output) / "shards")
        for p in record.provenance["parents"]
    }
    held_out = read_held_out(Path(config.output) / "held_out.jsonl")
    assert len(held_out) == summary["held_out"] == 8 * 4
    assert not tuned & {example.id for example in held_out}
    assert {e.dataset: e.unseen for e in held_out} == {
        "fairytaleqa": False,
        "aqua": False,
        "babi": False,
        "logiqa": True,
    }
    for example in held_out:
        assert len(example.shots) == 3
        assert example.text not in {shot.text for shot in example.shots}
    assert summary["datasets"]["logiqa"]["sequences"] == 0


def test_pre_training_sees_the_same_examples_in_plain_forms(
    config: TuningConfig, summary: dict[str, Any]
) -> None:
    plain = records(Path(config.output) / "templated")
    for sequence, record in zip(records(Path(config.output) / "shards"), plain, strict=True):
        assert sequence.id == record.id and sequence.parts is not None and record.loss is not None
        for context in sequence.parts[1::4]:
            assert context.removeprefix(" <CON> ").removesuffix(" </CON>\n\n") in record.text
        assert "<CON>" not in record.text and "<QUE>" not in record.text
        assert set(record.loss) == {1.0}


def test_what_does_not_fit_is_cut_or_refused() -> None:
    config = TuningConfig(sequence_tokens=120)
    tokenizer = load_tokenizer(config.tokenizer)
    pairs = tuple(Pair(f"What is number {n}?", f"It is {n}.") for n in range(20))
    example = Example("x/1", "x", "A short text.", pairs)
    found, tokens, left = fit_example(example, tokenizer, config)
    assert found is not None and found.pairs == pairs[: 20 - left] and 0 < left < 20
    assert tokens == count_tokens(found, tokenizer) <= 120
    one_more = replace(found, pairs=pairs[: 21 - left])
    assert count_tokens(one_more, tokenizer) > 120
    assert fit_example(replace(example, text="word " * 200), tokenizer, config) == (None, 0, 20)
    few = replace(config, sequence_tokens=4096, most_pairs=5)
    found, _, left = fit_example(example, tokenizer, few)
    assert found is not None and len(found.pairs) == 5 and left == 15


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "`sources` is empty"),
        ({"sources": [TuningSource("fever", "x")]}, "sources: `fever` is one of the sets.*5.1"),
        (
            {"sources": [TuningSource("aqua", "x")], "unseen": [TuningSource("aqua", "x")]},
            "sources: `aqua` stands in `unseen` too",
        ),
        (
            {
                "sources": [TuningSource("dream", "nowhere"), TuningSource("babi", str(HERE))],
                "unseen": [TuningSource("wikiwhy", str(HERE))],
            },
            "`dream`: there is no folder nowhere.*`babi`: .* no file qa.*`wikiwhy`: .* no file v1",
        ),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        run_stage(Tuning(TuningConfig(output=str(tmp_path / "out"), **changes)))


@pytest.mark.parametrize("part", ["sources", "unseen"])
def test_a_set_in_anothers_layout_is_no_success(
    config: TuningConfig, tmp_path: Path, part: str
) -> None:
    wrong = TuningSource("cosmosqa", "aqua", files=["dev.json"])
    sources = {"sources": [], "unseen": [], part: [wrong]}
    with pytest.raises(UserError) as told:
        run_stage(Tuning(replace(config, output=str(tmp_path / "out"), **sources)))
    said = str(told.value)
    assert "`cosmosqa` gives no example: of 254 records" in said and "dev.json:1" in said
    assert "{'malformed_record': 254}" in said and "wilburOne/cosmosqa" in said
    rejected = tmp_path / "out" / "rejected" / "cosmosqa.jsonl"
    assert str(rejected) in said and len(rejected.read_text().splitlines()) == 254
    assert not (tmp_path / "out" / "summary.json").exists()


def test_counts_are_printed_by_set_and_reason(
    summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_counts(summary)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fairytaleqa", "aqua", "babi", "logiqa"]
    counts = summary["datasets"]["aqua"]
    assert lines[1].startswith("aqua: 254 records with 217 questions")
    assert f": {counts['tuned_pairs']} pairs of" in lines[1] and "37 no_context" in lines[1]
    assert f"{summary['datasets']['logiqa']['unused_pairs']} unused" in lines[3]


def test_a_finished_folder_is_kept_and_another_is_not_overwritten(
    config: TuningConfig, summary: dict[str, Any]
) -> None:
    before = (Path(config.output) / "shards" / "manifest.json").read_bytes()
    assert run_stage(Tuning(config)) == summary
    with pytest.raises(FolderRefused) as caught:
        run_stage(Tuning(replace(config, sequence_tokens=300)))
    assert caught.value.differs == ("sequence_tokens",)
    assert (Path(config.output) / "shards" / "manifest.json").read_bytes() == before
    assert not unlisted(Path(config.output))


def test_a_run_that_stopped_goes_on_with_the_next_data_set(
    config: TuningConfig, summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[str] = []

    def stopping(dataset: Dataset, *place: Any, **how: Any) -> Gathered:
        if dataset.name == "babi" and "babi" not in gathered:
            gathered.append(dataset.name)
            raise KeyboardInterrupt
        gathered.append(dataset.name)
        return gather(dataset, *place, **how)

    monkeypatch.setattr(tuning, "gather", stopping)
    again = replace(config, output=str(tmp_path / "again"))
    with pytest.raises(KeyboardInterrupt):
        run_stage(Tuning(again))
    assert run_stage(Tuning(again)) == summary
    assert gathered == ["fairytaleqa", "aqua", "babi", "babi", "logiqa"]
    for name in ("shards", "templated"):
        one, other = (RecordSource(Path(c.output) / name) for c in (config, again))
        assert one.fingerprint == other.fingerprint


def test_data_sets_and_tokenizer_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "set" / "out").mkdir(parents=True)
    (tmp_path / "set" / "train.json").write_text("one")
    config = TuningConfig(sources=[TuningSource("aqua", "set")], root=str(tmp_path))
    load_tokenizer(config.tokenizer).save_pretrained(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    output = str(tmp_path / "set" / "out")
    config = replace(config, output=output, tokenizer=str(tmp_path / "here"))
    before = prints_of(stage_fingerprint(Tuning(config)))
    (tmp_path / "set" / "out" / "summary.json").write_text("its own")
    assert prints_of(stage_fingerprint(Tuning(config))) == before
    (tmp_path / "set" / "train.json").write_text("two")
    there = replace(config, tokenizer=str(tmp_path / "there"))
    same = prints_of(stage_fingerprint(Tuning(there)))
    assert {key for key in before if before[key] != same[key]} == {"data sets/aqua"}
    with open(tmp_path / "there" / "tokenizer.json", "a") as file:
        file.write(" ")
    load_tokenizer.cache_clear()
    after = prints_of(stage_fingerprint(Tuning(there)))
    differ = {key.partition(".")[0] for key in before if before[key] != after[key]}
    assert differ == {"data sets/aqua", "tokenizer"}


def test_a_data_set_of_the_hub_is_fetched_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def fetch(name: str, *, revision: str | None, repo_type: str) -> str:
        asked.append((name, revision, repo_type))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert local_folder("hf://deepmind/aqua_rat@main", "elsewhere") == tmp_path
    assert asked == [("deepmind/aqua_rat", "main", "dataset")]
    assert local_folder("aqua", "sets") == Path("sets/aqua")
