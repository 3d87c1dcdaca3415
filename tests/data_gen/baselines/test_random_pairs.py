"""The ablation of random pairs: every set of pairs is used once, and never where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_gen.baselines.config import RandomPairsConfig
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.formats import parse_pairs
from data_gen.methods import synthesize
from data_gen.stages.page import synthesis_report
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, ShardWriter
from tests.data_gen.fakes import FakeEngine
from tests.data_gen.written import records

AUGMENTED = Path("shards", "augmented")


@pytest.fixture(scope="module")
def synthesis(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("synthesis") / "run"
    corpus = str(root / "data_gen" / "sample_corpus" / "documents.jsonl")
    config = SynthesisConfig(input=[corpus], output=str(folder), fraction=1.0, limit=60)
    synthesize(config, engine=FakeEngine())
    return folder


def test_pairs_change_hands_and_nothing_else_does(synthesis: Path, tmp_path: Path) -> None:
    summary = synthesize(RandomPairsConfig(synthesis=str(synthesis), output=str(tmp_path / "out")))
    texts = {record.id: record.text for record in records(synthesis / "shards/raw")}
    before, after = (records(f / AUGMENTED) for f in (synthesis, tmp_path / "out"))
    assert len(before) == len(after) == summary["records"] > 20
    own: list[str] = []
    given: list[str] = []
    for old, new in zip(before, after, strict=True):
        was, now = old.provenance, new.provenance
        assert was["parents"] == now["parents"] and new.text == "".join(new.parts or ())
        own += was["generated"]
        given += now["generated"]
        pairs = [pair for one in now["generated"] for pair in parse_pairs(one).pairs]
        assert now["pairs"] == len(pairs)
        assert all(pair.instruction in new.text for pair in pairs)
        assert all(texts[parent] in new.text for parent in now["parents"])
    assert len(own) == summary["texts"]
    assert sorted(own) == sorted(given)
    assert all(mine != other for mine, other in zip(own, given, strict=True))


def test_the_same_seed_gives_the_same_shards_and_another_others(
    synthesis: Path, tmp_path: Path
) -> None:
    def made(name: str, seed: int) -> list[str]:
        synthesize(
            RandomPairsConfig(synthesis=str(synthesis), output=str(tmp_path / name), seed=seed)
        )
        return [record.text for record in records(tmp_path / name / AUGMENTED)]

    assert made("a", 1) == made("b", 1) != made("c", 2)


def test_a_folder_of_an_earlier_version_is_finished(synthesis: Path, tmp_path: Path) -> None:
    """It had no ledger, no samples and no method in its fingerprint."""
    config = RandomPairsConfig(synthesis=str(synthesis), output=str(tmp_path / "out"))
    summary = synthesize(config)
    marker = json.loads((tmp_path / "out" / "run.json").read_text())
    del marker["fingerprint"]["method"]
    marker["owns"] = [name for name in marker["owns"] if "ledger" not in name]
    (tmp_path / "out" / "run.json").write_text(json.dumps(marker))
    for name in ("ledger.sqlite", "samples.json", "card.md"):
        (tmp_path / "out" / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrayrecord")}
    assert synthesize(config) == summary
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "What was made" in synthesis_report(tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"parents": ["a"]}, "'x' does not say which pairs it holds"),
        ({"parents": ["a"], "generated": ["<QUE> a <ANS> b </END>"]}, r"holds 1 augmented text"),
    ],
)
def test_a_folder_that_will_not_do_is_named(
    tmp_path: Path, provenance: dict[str, Any], said: str
) -> None:
    for part in ("raw", "augmented"):
        with ShardWriter(tmp_path / "shards" / part) as shards:
            shards.write(Record("x", "t", "test", provenance=provenance))
    with pytest.raises(UserError, match=said):
        synthesize(RandomPairsConfig(synthesis=str(tmp_path), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
