"""Rewritten documents: passages, replies that count, native forms, stop and go on."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_gen.baselines.rewrite import (
    DEFAULT_FILE,
    TASKS,
    Rewrite,
    RewriteConfig,
    load_tasks,
    parse_answered,
    split_passages,
)
from data_gen.engines import EngineConfig
from data_gen.stages.stage import run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.stages import (
    records_of,
    run_stopped_and_whole,
    write_shards,
)

PAIRS = (
    "Here you are:\n\n- Question: Who came?\nAnswer: Ann.\n\n2. Question: Who left?\n"
    "Answer: Bob,\nat ten.\n\nQuestion: No answer.\n\nQuestion: Two?\nAnswer: a\nAnswer: b"
)


def corpus(folder: Path, count: int = 10, words: int = 400) -> list[str]:
    sentences = words // 8
    texts = ["".join(f"This is sentence {k} of text number {n}. " for k in range(sentences))
             for n in range(count)]  # fmt: skip
    return [write_shards(folder / "in", [Record(f"d{n}", t, "s") for n, t in enumerate(texts)])]


def say(prompt: str) -> str | None:
    number = int(re.search(r"of text number (\d+)", prompt)[1])  # type: ignore[index]
    if "Question: ..." in prompt:
        return PAIRS if number % 3 else "I would rather not."
    said = f"Sure, here is the text:\n\nText {number} told in other words."
    return {7: "Too short.", 8: None}.get(number, said)


def test_documents_are_rephrased_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    given = corpus(tmp_path)

    def make(name: str) -> Rewrite:
        output, engine = str(tmp_path / name), EngineConfig(max_failed_share=1.0)
        config = RewriteConfig(input=given, output=output, records_per_shard=4, engine=engine)
        return Rewrite(config)

    summary, asked = run_stopped_and_whole(make, say, after=9)
    assert summary["documents_augmented"] == summary["rewritten"] == 8
    assert summary["plain_reasons"] == {"too_short": 1, "engine_error": 1}
    assert summary["rejected_pieces"] == {"too_short": 2, "engine_error": 2}
    made = {one.id: one for one in records_of(tmp_path / "whole/shards/rewritten")}
    first = made["rewrite/rephrase/d0"]  # two passages, each told anew
    assert first.text == "\n\n".join(["Text 0 told in other words."] * 2) and first.parts is None
    assert (first.provenance["parents"], first.provenance["task"]) == (["d0"], "rephrase")
    assert first.provenance["passages"] == 2 and len(asked) == 20


def test_questions_stand_below_their_document_and_are_drawn_by_its_length(tmp_path: Path) -> None:
    given = corpus(tmp_path)
    config = RewriteConfig(input=given, output=str(tmp_path / "a"), tasks=["qa"])
    summary = run_stage(Rewrite(config), engine=ScriptedEngine(say))
    assert summary["plain_reasons"] == {"no_pairs": 4}
    documents = {one.id: one.text.strip() for one in records_of(Path(given[0]))}
    whole = parse_answered(PAIRS)
    assert whole == [
        "Question: Who came?\nAnswer: Ann.",
        "Question: Who left?\nAnswer: Bob,\nat ten.",
    ]
    counts = set()
    for one in records_of(tmp_path / "a/shards/rewritten"):
        before, text, pairs = one.text.partition(documents[one.provenance["parents"][0]])
        found = pairs.strip().split("\n\n")
        assert not before and text and len(found) == one.provenance["pairs"]
        assert set(found) <= set(whole) and len(set(found)) == len(found)
        counts.add(len(found))
    assert counts == {1, 2}  # of 400 tokens: one or two
    short = replace(config, input=corpus(tmp_path / "short", words=100), output=str(tmp_path / "b"))
    run_stage(Rewrite(short), engine=ScriptedEngine(say))
    assert {one.provenance["pairs"] for one in records_of(tmp_path / "b/shards/rewritten")} == {1}
    cut = replace(config, output=str(tmp_path / "c"))
    run_stage(Rewrite(cut), engine=ScriptedEngine(say, cut=True))  # its last pair is not whole
    for one in records_of(tmp_path / "c/shards/rewritten"):
        assert one.text.endswith(whole[0])
    rephrased = RewriteConfig(input=given, output=str(tmp_path / "d"))
    summary = run_stage(Rewrite(rephrased), engine=ScriptedEngine(say, cut=True))
    assert summary["plain_reasons"] == {"cut_at_max_tokens": 9, "engine_error": 1}


def test_a_mixture_draws_a_task_a_document_or_takes_all(tmp_path: Path) -> None:
    given = corpus(tmp_path, count=60, words=40)

    def run(name: str, **more: bool) -> dict[str, int]:
        config = RewriteConfig(
            input=given, output=str(tmp_path / name), tasks=list(TASKS), least_words=1, **more
        )  # type: ignore[arg-type]
        answers = ScriptedEngine(lambda prompt: PAIRS if "Question: ..." in prompt else "Anew.")
        return run_stage(Rewrite(config), engine=answers)["rewritten_by_task"]

    drawn = run("one")
    assert sum(drawn.values()) == 60 and min(drawn.values()) > 3
    assert run("all", each=True) == dict.fromkeys(TASKS, 60)
    names = [one.id for one in records_of(tmp_path / "all/shards/rewritten")]
    assert names[:5] == [f"rewrite/{task}/d0" for task in TASKS] and len(set(names)) == 300


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(20, 60))
def test_passages_join_to_the_text_and_are_short(sizes: list[int], most: int) -> None:
    text = "\n\n".join("Word" + " word" * (size - 1) + "." for size in sizes)
    passages = split_passages(text, most)
    assert "".join(passages) == text
    assert all(len(one.split()) <= max(most, *sizes) for one in passages)
    # No passage is shorter than it has to be: the next one's first sentence did not fit.
    for one, other in pairwise(passages):
        assert len(one.split()) + len(other.split("\n")[0].split()) > most


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"tldr": {"prompt": "{text}", "passage_words": 99}}, "tldr"),
        ({"qa": {"prompt": "{text} {text}", "passage_words": 99}}, "qa"),
        ({"qa": {"prompt": "{text}", "passage_words": 3}}, "qa"),
        ({"qa": {"prompt": "{text}"}}, "qa"),
        ({"distil": None}, "distil"),
    ],
)
def test_files_of_prompts_are_checked(tmp_path: Path, change: dict[str, object], key: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(DEFAULT_FILE.read_text()) | change))
    with pytest.raises(UserError) as refused:
        load_tasks(path)
    assert (refused.value.key, refused.value.path) == (key, path)
    path.write_text("[1]")
    with pytest.raises(UserError) as refused:
        Rewrite(RewriteConfig(prompts=str(path)))
    assert refused.value.key == "prompts"
    with pytest.raises(UserError) as refused:
        RewriteConfig(tasks=["qa", "qa"])
    assert refused.value.key == "tasks"
