"""The stage: what goes in comes out or is rejected once, with its reason; and its configs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from data_gen.engines import Completion, Request
from data_gen.quality.decontaminate import DecontaminateConfig
from data_gen.quality.evaluations import EvaluationFile
from data_gen.quality.gate import Gate
from data_gen.quality.moderation import DEFAULT_RULES, ModerationConfig
from data_gen.quality.rules import RulesConfig
from data_gen.quality.stage import GATES, Filter, FilterConfig, check_records
from data_gen.stages.blocks import UnitOutput
from data_gen.stages.stage import run_stage
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.rejection import Reason
from ipt_jax.core.run_folder import FolderRefused
from tests.data_gen.written import records as records_of

QUESTION = "Which of the nine planets known to the ancients was named for the god of war?"


def sentence(number: int) -> str:
    """Twenty words that no other number has."""
    return " ".join(hashlib.sha256(f"{number}-{k}".encode()).hexdigest()[:7] for k in range(20))


def text(number: int) -> str:
    return f"Opening {sentence(number)}. Then {sentence(number + 10_000)}. At last it ends."


def write(folder: Path, records: Sequence[Record], records_per_shard: int = 4096) -> None:
    with ShardWriter(folder, records_per_shard) as shards:
        for record in records:
            shards.write(record)


def lines(folder: Path) -> list[dict[str, str]]:
    """Every rejected line, gate by gate."""
    return [
        {"gate": path.stem} | json.loads(line)
        for path in sorted(folder.glob("rejected/*.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Records of which each odd one out is known."""
    records = [Record(f"r{n}", text(n), "one", provenance={"n": n}) for n in range(300)]
    records[20] = Record("empty", " \n ", "one")
    records[30] = Record("copy", text(3), "one")
    records[40] = Record("start", text(4).replace("At last it ends", "It goes on"), "one")
    records[50] = Record("near", text(5).replace("Then", "Next"), "one")
    records[60] = Record("leak", f"{text(60)} {QUESTION}", "one")
    records[70] = Record("short", "Too short.", "one")
    records[80] = Record("harm", f"{text(80)} How to make a pipe bomb?", "one")
    write(tmp_path / "one", records, records_per_shard=64)
    return tmp_path / "one"


ALL = ["rules", "exact_text", "first_sentences", "near_duplicates", "substring", "moderation"]


def settings(tmp_path: Path, folders: Sequence[Path], name: str = "out", **more: object):
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"question": QUESTION}) + "\n")
    values = {
        "input": [str(folder) for folder in folders],
        "output": str(tmp_path / name),
        "gates": ALL,
        "rules": RulesConfig(min_words=5),
        "decontaminate": DecontaminateConfig([EvaluationFile("eval", str(evaluation))]),
        **more,
    }
    return FilterConfig(**values)  # type: ignore[arg-type]


def test_every_record_comes_out_or_is_rejected_once(tmp_path: Path, first: Path) -> None:
    write(tmp_path / "two", [Record(f"s{n}", text(n), "two") for n in (1, 500, 501)])
    folders = [first, tmp_path / "two"]
    told: list[tuple[str, int, int]] = []
    summary = run_stage(Filter(settings(tmp_path, folders), tell=lambda *one: told.append(one)))
    kept = records_of(tmp_path / "out" / "shards")
    rejected = lines(tmp_path / "out")
    # Nothing changed in what passed, and its order is that of the input.
    given = [record for folder in folders for record in records_of(folder)]
    bad = {"empty", "copy", "start", "near", "leak", "short", "harm", "s1"}
    assert kept == [record for record in given if record.id not in bad]
    found = {line["id"]: (line["gate"], line["reason"]) for line in rejected}
    assert len(rejected) == len(found) == 8
    assert found == {
        "empty": ("read", "empty"),
        "short": ("rules", "min_words"),
        "copy": ("exact_text", "duplicate"),
        "s1": ("exact_text", "duplicate"),
        "start": ("first_sentences", "duplicate"),
        "near": ("near_duplicates", "near_duplicate"),
        "leak": ("substring", "contaminated"),
        "harm": ("moderation", "weapons"),
    }
    details = {line["id"]: line["detail"] for line in rejected}
    assert details["copy"] == "repeats the record 'r3'" and "'r5'" in details["near"]
    assert "eval example 1" in details["leak"]
    where = {line["id"]: line["where"] for line in rejected}
    assert where["harm"] == f"record 16 of {first}/part-00001.arrayrecord"
    assert (summary["in"], summary["out"], summary["rejected"]) == (303, 295, 8)
    steps = summary["gates"]
    assert [step["gate"] for step in steps] == ["read", *ALL]
    for before, after in pairwise(steps):
        assert after["in"] == before["out"] == before["in"] - sum(before["rejected"].values())
    assert steps[5]["evaluations"] == {"eval": {"examples": 1, "contaminated": 1, "unmatchable": 0}}
    assert summary.items() <= json.loads((tmp_path / "out" / "summary.json").read_text()).items()
    (detail,) = (tmp_path / "out" / "details" / "substring.jsonl").read_text().splitlines()
    assert json.loads(detail)["training_id"] == "leak"
    assert told[0] == ("rules, exact_text, first_sentences", 0, 303)
    assert told[-1] == ("near_duplicates, substring, moderation", 298, 298)


def test_a_damaged_stretch_of_a_shard_is_rejected_and_counted(tmp_path: Path, first: Path) -> None:
    shard = sorted(first.glob("*.arrayrecord"))[2]
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    shard.write_bytes(data)
    summary = run_stage(Filter(settings(tmp_path, [first])))
    damaged = [line for line in lines(tmp_path / "out") if line["reason"] == "damaged"]
    assert 1 <= len(damaged) <= 64
    assert all(str(shard) in line["where"] and line["gate"] == "read" for line in damaged)
    assert summary["gates"][0]["rejected"] == {"damaged": len(damaged), "empty": 1}
    assert summary["in"] == 300 == summary["out"] + summary["rejected"]
    assert len(RecordSource(tmp_path / "out" / "shards")) == summary["out"] == 293 - len(damaged)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, first: Path) -> None:
    for name in ("out", "again"):
        run_stage(Filter(settings(tmp_path, [first], name, records_per_shard=100)))
    files = [
        {
            path.relative_to(folder): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("ledger.sqlite", "progress.jsonl")
        }
        for folder in (tmp_path / "out", tmp_path / "again")
    ]
    assert len(files[0]) > 8 and files[0] == files[1]


def test_a_gate_that_is_not_met_decides_nothing(tmp_path: Path, first: Path) -> None:
    gates = ["exact_text"]
    done = run_stage(Filter(settings(tmp_path, [first], gates=gates)))
    changed = {"rules": RulesConfig(min_words=9), "decontaminate": DecontaminateConfig()}
    assert run_stage(Filter(settings(tmp_path, [first], gates=gates, **changed))) == done


def test_a_finished_folder_is_of_the_files_that_its_gates_read(tmp_path: Path, first: Path) -> None:
    rules = tmp_path / "rules.yaml"
    shutil.copy(DEFAULT_RULES, rules)
    config = settings(tmp_path, [first], moderation=ModerationConfig(str(rules)))
    done = run_stage(Filter(config))
    shutil.move(rules, tmp_path / "moved.yaml")
    shutil.copy(tmp_path / "moved.yaml", rules)
    assert run_stage(Filter(config)) == done
    evaluation = shutil.copy(tmp_path / "evaluation.jsonl", tmp_path / "moved.jsonl")
    moved = settings(
        tmp_path,
        [first],
        moderation=ModerationConfig(str(tmp_path / "moved.yaml")),
        decontaminate=DecontaminateConfig([EvaluationFile("eval", str(evaluation))]),
    )
    assert run_stage(Filter(moved)) == done
    for path, name in {
        rules: "moderation/rules",
        tmp_path / "evaluation.jsonl": "evaluations/1/eval",
    }.items():
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(FolderRefused) as caught:
            run_stage(Filter(config))
        assert caught.value.differs == (name,)
        path.write_bytes(before)


def test_gates_meet_records_in_the_order_given(tmp_path: Path, first: Path) -> None:
    run_stage(Filter(settings(tmp_path, [first], gates=["near_duplicates", "exact_text"])))
    found = {line["id"]: line["gate"] for line in lines(tmp_path / "out")}
    # Met first, the near-duplicates leave nothing to the exact gate.
    assert found == {
        "empty": "read",
        "copy": "near_duplicates",
        "start": "near_duplicates",
        "near": "near_duplicates",
    }


def test_wrong_settings_make_nothing(tmp_path: Path, first: Path) -> None:
    with pytest.raises(UserError, match="no finished record shards"):
        run_stage(Filter(settings(tmp_path, [tmp_path / "nowhere"])))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="name at least one in `evaluations`"):
        run_stage(Filter(settings(tmp_path, [first], decontaminate=DecontaminateConfig())))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json", "run.lock"}
    run_stage(Filter(settings(tmp_path, [first])))  # they do not hold up the right ones


def test_nothing_in_gives_nothing_out(tmp_path: Path) -> None:
    write(tmp_path / "none", [])
    summary = run_stage(Filter(settings(tmp_path, [tmp_path / "none"])))
    assert (summary["in"], summary["out"], summary["rejected"]) == (0, 0, 0)
    assert len(RecordSource(tmp_path / "out" / "shards")) == 0


class Judge:
    """Five for an even number of characters, else two."""

    name, version, model, revision, context_tokens = "fake", "1", "judge", "r", 4096

    def count_tokens(self, text: object) -> int:
        return 1

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is not None:
                content = str(request.prompt[0].content)  # type: ignore[union-attr]
                score = 2 if "At last" not in content else 5
                yield Completion(request.id, f'{{"score": {score}}}', "stop", 1, 1)

    def close(self) -> None:
        raise AssertionError("not ours to close")


def test_a_judge_and_a_classifier_may_be_given(tmp_path: Path, first: Path) -> None:
    config = settings(
        tmp_path,
        [first],
        gates=["judge", "moderation"],
        moderation=ModerationConfig(rules=None),
    )
    classifier = lambda texts: [float("planets" in one) for one in texts]  # noqa: E731
    run_stage(Filter(config, classifier=classifier), engine=Judge())
    found = {line["id"]: (line["gate"], line["reason"]) for line in lines(tmp_path / "out")}
    assert found == {
        "empty": ("read", "empty"),
        "start": ("judge", "low_score"),
        "short": ("judge", "low_score"),
        "leak": ("moderation", "classifier"),
    }


def test_gates_work_on_records_in_memory(tmp_path: Path, first: Path) -> None:
    config = settings(tmp_path, [first])
    records = [Record("a", text(1), "s"), Record("b", "few", "s"), Record("c", text(1), "s")]
    verdicts = check_records(records, [GATES[name](config, None) for name in ALL])
    assert [None if v is None else v.reason for v in verdicts] == [
        None,
        "rules:min_words",
        "exact_text:duplicate",
    ]


def test_counts_that_do_not_add_up_stop_the_run(
    tmp_path: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Gate):
        name = "rules"

        def check(self, records: Sequence[Record]) -> list[Reason | None]:
            return [None] * (len(records) - 1)

    monkeypatch.setitem(GATES, "rules", lambda *_: Forgetful())
    with pytest.raises(ValueError, match="zip"):
        run_stage(Filter(settings(tmp_path, [first], gates=["rules"])))
    assert not (tmp_path / "out" / "summary.json").exists()


def test_records_that_are_lost_stop_the_run(tmp_path: Path, first: Path) -> None:
    class Losing(Filter):
        def work(self, record: Record) -> Generator[Request, Completion, UnitOutput]:
            output = yield from super().work(record)
            return UnitOutput() if record.id == "r7" else output

    with pytest.raises(RuntimeError, match="were lost"):
        run_stage(Losing(settings(tmp_path, [first], gates=["exact_text"])))
    assert not (tmp_path / "out" / "summary.json").exists()


def test_configs_are_read_and_name_known_gates(root: Path) -> None:
    paths = sorted((root / "configs" / "quality").glob("*.yaml"))
    assert [path.stem for path in paths] == ["genqa", "judged", "queries", "raw_corpus"]
    for path in paths:
        config = parse_config(
            FilterConfig, ["--config", str(path)], prog="launch/filter.py", description=""
        )
        written = yaml.safe_load(path.read_text())
        assert config.gates == written["gates"] and config.output == written["output"]
        for given, wanted in zip(
            config.decontaminate.evaluations,
            written.get("decontaminate", {}).get("evaluations", []),
            strict=True,
        ):
            assert given == EvaluationFile(**wanted)


def test_the_launch_script(tmp_path: Path, first: Path, root: Path) -> None:
    config = root / "configs" / "quality" / "genqa.yaml"
    command = [sys.executable, "launch/filter.py", "--config", str(config)]
    command += ["--input", json.dumps([str(first)]), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "300 in = 296 out + 4 rejected" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(
            "config.yaml",
            "environment.json",
            "rejected",
            "run.json",
            "run.lock",
            "ledger.sqlite",
            "progress.jsonl",
            "shards",
            "summary.json",
        ),
    }
