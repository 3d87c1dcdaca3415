"""Chains of documents as units of work: which there are, what they ask, what comes back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_gen.engines import Completion, Request, Sampling
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.demonstrations import DEMONSTRATIONS
from data_gen.instruction_pretrain.rounds import Budget, Turn, run_chain, split_rounds
from ipt_jax.core.records import Record, RecordSource


def seed_of(run_seed: int, *names: object) -> int:
    """63 bits that depend on the run's seed and on the names alone."""
    text = json.dumps([run_seed, *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator_of(run_seed: int, *names: object) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(run_seed, *names)))


@dataclass(frozen=True)
class Chain:
    """A unit of work: documents of successive rounds."""

    id: str
    documents: tuple[Record, ...]


@dataclass(frozen=True)
class ChainOutcome:
    turns: list[Turn]
    finish_reasons: dict[int, str]
    """By round."""
    errors: dict[int, str]
    """What the engine said of a round that it could not answer."""


class Chains(Sequence[Chain]):
    """The chains of a run, read when they are asked for."""

    def __init__(self, raw: RecordSource, chosen: np.ndarray, rounds: int) -> None:
        self._raw, self._chosen = raw, chosen
        self._members = split_rounds(len(chosen), rounds)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        records = self._raw.read(self._chosen[self._members[number]].tolist())
        return Chain(f"chain-{number:08d}", tuple(records))


def drive(
    chain: Chain, config: SynthesisConfig, budget: Budget, sampling: Sampling
) -> Generator[Request, Completion, ChainOutcome]:
    """Drive a chain's rounds; a pure function of the completions."""
    rounds = run_chain(
        [document.text for document in chain.documents],
        budget,
        demonstrations=DEMONSTRATIONS if config.demonstrations else (),
        max_pairs=config.max_pairs,
    )
    finish_reasons: dict[int, str] = {}
    errors: dict[int, str] = {}
    try:
        index, prompt = next(rounds)
        while True:
            seed = seed_of(config.seed, "tokens", chain.documents[index].id)
            completion = yield Request(f"{chain.id}/{index}", prompt, sampling, seed)
            finish_reasons[index] = completion.finish_reason
            if completion.finish_reason == "error":
                errors[index] = completion.text
                completion = replace(completion, text="")
            index, prompt = rounds.send(completion.text)
    except StopIteration as end:
        return ChainOutcome(end.value, finish_reasons, errors)
