"""The methods by name: what launch/synthesize.py reads from the key `method`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_gen.baselines.random_pairs import RandomPairs
from data_gen.baselines.rewrite import Rewrite
from data_gen.baselines.stage import ReadingComprehension
from data_gen.engines import Engine
from data_gen.fine_instructions import chain
from data_gen.fine_instructions.budget import BudgetPairs
from data_gen.fine_instructions.categories import Categorise
from data_gen.fine_instructions.descriptions import Describe
from data_gen.fine_instructions.genericize import Genericize
from data_gen.fine_instructions.instantiate import Instantiate
from data_gen.fine_instructions.match import FiMatch
from data_gen.fine_instructions.mine import MinePairs
from data_gen.fine_instructions.queries import Queries
from data_gen.fine_instructions.students import Students
from data_gen.instruction_pretrain.stage import InstructionPretrain
from data_gen.stages.config import OutputConfig
from data_gen.stages.runner import Progress, no_progress
from data_gen.stages.stage import Stage, Summary, run_stage

METHODS: dict[str, type[Stage[Any, Any]]] = {
    stage.name: stage
    for stage in (
        *(InstructionPretrain, ReadingComprehension, RandomPairs, Rewrite),
        *(Queries, Genericize, Describe, MinePairs, FiMatch, Instantiate, BudgetPairs),
        *(Students, Categorise),
    )
}


CHAINS: dict[str, tuple[type[OutputConfig], Callable[[Any], dict[str, Any]]]] = {
    chain.METHOD: (chain.FineInstructionsConfig, chain.run_fine_instructions),
}
"""Several of them as jobs: the settings, and what gives the summaries of all steps in order."""


def stage_of(config: OutputConfig) -> Stage[Any, Any]:
    """The method whose settings these are."""
    return next(stage for stage in METHODS.values() if stage.Config is type(config))(config)


def synthesize(
    config: OutputConfig,
    progress: Progress = no_progress,
    *,
    engine: Engine | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> Summary:
    """`run_stage` with the method whose settings these are."""
    return run_stage(stage_of(config), progress, engine=engine, on_start=on_start)
