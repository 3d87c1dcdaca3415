"""Pairs within the tokens of their documents: never more, the same wherever a block is made."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.fine_instructions.budget import BudgetConfig, BudgetPairs, budget_block
from data_gen.fine_instructions.instantiate import pair_parts
from data_gen.stages.stage import run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.tokenizers import load_tokenizer
from tests.data_gen.fine_instructions.stages import records_of, rejected_of, write_shards


def document(number: int, words: int) -> Record:
    return Record(f"d{number}", "word " * words, "s")


def pair(parent: str, number: int, words: int) -> Record:
    parts = pair_parts("Why?", "word " * words)
    name = f"{parent}#{number}"
    return Record(name, "".join(parts), "fi", parts, (0.0, 1.0), {"parents": [parent]})


def count(texts: list[str]) -> list[int]:
    return [len(text.split()) + 2 for text in texts]


BLOCK = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(1, 40), max_size=6)), min_size=1, max_size=8
)


@given(BLOCK, st.integers(0, 9))
def test_a_block_spends_what_its_documents_have_and_no_more(
    drawn: list[tuple[int, list[int]]], seed: int
) -> None:
    members = [
        (one := document(n, words), [pair(one.id, k, size) for k, size in enumerate(sizes)])
        for n, (words, sizes) in enumerate(drawn)
    ]
    found = budget_block(members, count, seed)  # type: ignore[arg-type]
    spent = [sum(one.sizes[place] for place in one.kept) for one in found]
    tokens = [one.tokens for one in found]
    # After each document no more has been spent than was there, and what is left is handed on.
    for used, had, one in zip(accumulate(spent), accumulate(tokens), found, strict=True):
        assert one.left == had - used >= 0
        smallest = min(
            (size for n, size in enumerate(one.sizes) if n not in one.kept), default=None
        )
        assert smallest is None or smallest > one.left  # what still fits is kept
    assert [one.given for one in found] == [0, *(one.left for one in found[:-1])]
    # The order is drawn by the document, not by its place: other documents change nothing but
    # what is left.
    alone = budget_block(members[:1], count, seed)  # type: ignore[arg-type]
    assert alone == found[:1]


def test_each_document_draws_an_order_of_its_own() -> None:
    kept = set()
    for number in range(40):
        one = document(number, 20)
        (found,) = budget_block([(one, [pair(one.id, k, 5) for k in range(6)])], count, 0)  # type: ignore[arg-type]
        kept.add(tuple(found.kept))
    assert {len(places) for places in kept} == {2} and len(kept) > 8  # of 15 pairs of places


def folders(tmp_path: Path) -> tuple[str, str]:
    documents = [document(n, 30 + 7 * (n % 5)) for n in range(23)]
    pairs = [pair(f"d{n}", k, 5 + 3 * k + n % 4) for n in range(0, 23, 2) for k in range(5)]
    # As several folders of judged pairs may give them, in no order.
    pairs = pairs[::2] + pairs[1::2]
    return write_shards(tmp_path / "pairs", pairs), write_shards(tmp_path / "documents", documents)


def config_of(tmp_path: Path, name: str, given: tuple[str, str], size: int = 4) -> BudgetConfig:
    return BudgetConfig(
        input=[given[0]], documents=[given[1]], output=str(tmp_path / name),
        tokenizer="mistral-7b-v0.1", documents_per_block=size, records_per_shard=8,
    )  # fmt: skip


def test_pairs_are_kept_or_told_of_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = folders(tmp_path)
    summary = run_stage(BudgetPairs(config_of(tmp_path, "whole", given)))
    assert summary["in"] == 60 == summary["out"] + summary["rejected"]
    assert summary["documents"] == 23 and summary["documents_with_pairs"] <= 12
    kept = records_of(tmp_path / "whole/shards")
    left_out = rejected_of(tmp_path / "whole")
    assert len(kept) == summary["out"] and set(left_out.values()) == {"over_budget"}
    assert sorted([*left_out, *(one.id for one in kept)]) == sorted(
        one.id for one in records_of(Path(given[0]))
    )
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    texts = [one.text for one in kept]
    assert summary["pair_tokens"] == sum(map(len, tokenizer.encode_batch(texts, True, True)))
    assert summary["pair_tokens"] <= summary["document_tokens"]
    assert kept[0] in records_of(Path(given[0]))  # with parts, loss and provenance

    real, done = BudgetPairs._read, list[str]()

    def stopping(self: BudgetPairs, unit):  # type: ignore[no-untyped-def]
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(unit.id)
        return real(self, unit)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BudgetPairs, "_read", stopping)
        run_stage(BudgetPairs(config_of(tmp_path, "stopped", given)))
    assert not (tmp_path / "stopped/summary.json").exists()
    assert run_stage(BudgetPairs(config_of(tmp_path, "stopped", given)))["out"] == summary["out"]
    assert records_of(tmp_path / "stopped/shards") == kept


def test_a_block_made_alone_is_the_block_of_the_whole_run(tmp_path: Path) -> None:
    given = folders(tmp_path)
    stage = BudgetPairs(config_of(tmp_path, "a", given))
    units = list(stage.units(None))
    assert len(units) == 6 and stage.units_per_block == 2

    def ids(unit) -> list[str]:  # type: ignore[no-untyped-def]
        try:
            next(stage.work(unit))
        except StopIteration as end:
            return [record.id for _, record in end.value.records]
        raise AssertionError("it asked")

    made = {unit.id: ids(unit) for unit in reversed(units)}
    run_stage(stage)
    whole = [one.id for one in records_of(tmp_path / "a/shards")]
    assert [name for unit in units for name in made[unit.id]] == whole
    # Another seed keeps others; blocks of one document hand nothing on.
    other = replace(config_of(tmp_path, "b", given), seed=1)
    run_stage(BudgetPairs(other))
    assert [one.id for one in records_of(tmp_path / "b/shards")] != whole
    alone = run_stage(BudgetPairs(config_of(tmp_path, "c", given, size=1)))
    assert alone["out"] < len(whole)
    failed = stage.failed(units[0], ("unit_failed", "x"))  # type: ignore[arg-type]
    assert len(failed.rejected) == failed.counts["in"] == 10


def test_pairs_without_their_document_are_refused(tmp_path: Path) -> None:
    documents = [document(n, 9) for n in range(3)]
    at = [write_shards(tmp_path / "d", documents), write_shards(tmp_path / "e", documents[1:2])]
    orphan = replace(pair("d9", 0, 3), id="orphan")
    several = replace(pair("d1", 0, 3), provenance={"parents": ["d1", "d2"]})
    for name, pairs, folder, key, record in (
        ("a", [pair("d1", 0, 3), orphan], at[:1], "documents", "orphan"),
        ("b", [several], at[:1], "input", "d1#0"),
        ("c", [pair("d1", 0, 3)], at, "documents", None),
    ):
        given = write_shards(tmp_path / f"pairs-{name}", pairs)
        config = replace(config_of(tmp_path, name, (given, "")), documents=folder)
        with pytest.raises(UserError) as refused:
            run_stage(BudgetPairs(config))
        assert (refused.value.key, refused.value.record) == (key, record)
    none = config_of(tmp_path, "none", (write_shards(tmp_path / "no", []), at[0]))
    summary = run_stage(BudgetPairs(none))
    assert (summary["in"], summary["out"], summary["documents"]) == (0, 0, 3)
