"""Instruction Pre-Training synthesis, whole: corpus -> chains -> engine -> record shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.corpus import RejectedDocument, corpus_sha256, find_files, read_corpus
from data_gen.engines import Completion, Engine, Request, Sampling, identify_engine, open_engine
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.demonstrations import DEMONSTRATIONS
from data_gen.instruction_pretrain.format import Shot, pairs_regex, render_prompt
from data_gen.instruction_pretrain.outputs import OutputFolder
from data_gen.instruction_pretrain.rounds import Budget, Turn, collections, run_chain, split_rounds
from data_gen.instruction_pretrain.templates import render_training_text
from data_gen.ledger import Ledger
from data_gen.runner import Progress, no_progress, run_units
from ipt_jax.errors import UserError
from ipt_jax.records import Record, RecordSource, ShardWriter

METHOD = "instruction_pretrain"
_BEHAVIOUR = 1  # raised when prompts, parsing or templates change, so that no run mixes two


@dataclass(frozen=True)
class _Chain:
    """A unit of work: documents of successive rounds."""

    id: str
    documents: tuple[Record, ...]


@dataclass(frozen=True)
class _ChainOutcome:
    turns: list[Turn]
    finish_reasons: dict[int, str]
    """By round."""
    errors: dict[int, str]
    """What the engine said of a round that it could not answer."""


def run_synthesis(
    config: SynthesisConfig,
    progress: Progress = no_progress,
    *,
    engine: Engine | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Make the synthesis folder `config.output` and give back its summary.

    A finished folder of the same settings is left as it is; an unfinished one goes on where it
    stopped. `engine` replaces the one that the config names. `on_start` is called with the folder
    once it is sure that this run may write there.

    Raises:
      UserError: bad corpus, model or settings; a folder of a run with other settings.
    """
    files = find_files(config.input)
    identity = asdict(identify_engine(config.engine)) if engine is None else _identity(engine)
    fingerprint = _fingerprint(config, identity, corpus_sha256(files))
    output = OutputFolder(Path(config.output))
    if config.fresh:
        output.clear()
    finished = output.finished(fingerprint)
    if finished is not None:
        return finished
    with Ledger(output.folder, fingerprint) as ledger:
        output.begin()
        if on_start is not None:
            on_start(output.folder)
        opened = engine or open_engine(config.engine)
        try:
            summary = _synthesize(config, output, ledger, opened, identity, progress)
        finally:
            if engine is None:
                opened.close()
        output.finish(summary, fingerprint)
    return summary


def _identity(engine: Engine) -> dict[str, str]:
    return {
        "name": engine.name,
        "version": engine.version,
        "model": engine.model,
        "revision": engine.revision,
    }


def _fingerprint(
    config: SynthesisConfig, identity: Mapping[str, str], corpus: str
) -> dict[str, Any]:
    """Everything that the records depend on; keys are named to the user when they differ."""
    settings = asdict(config)
    for key in ("input", "output", "fresh", "engine"):
        del settings[key]
    for key in ("max_tokens", "temperature", "top_k", "top_p", "constrain", "context_tokens"):
        settings[f"engine.{key}"] = getattr(config.engine, key)
    prompts = render_prompt(DEMONSTRATIONS, "{text}") + pairs_regex(1, 2)
    return {
        **settings,
        **{f"engine.{key}": value for key, value in identity.items()},
        "method": f"{METHOD}/{_BEHAVIOUR}",
        "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "corpus": corpus,
    }


def _seed(run_seed: int, *names: object) -> int:
    """63 bits that depend on the run's seed and on the names alone."""
    text = json.dumps([run_seed, *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _generator(run_seed: int, *names: object) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(_seed(run_seed, *names)))


def _synthesize(
    config: SynthesisConfig,
    output: OutputFolder,
    ledger: Ledger,
    engine: Engine,
    identity: Mapping[str, str],
    progress: Progress,
) -> dict[str, Any]:
    context_tokens = min(config.engine.context_tokens, engine.context_tokens)
    budget = Budget(engine.count_tokens, context_tokens, config.engine.max_tokens)
    if budget.max_tokens >= context_tokens:
        raise UserError(
            f"`engine.max_tokens` ({budget.max_tokens}) leaves no room for a prompt in the "
            f"context of {context_tokens} tokens: lower it."
        )
    rejected = _write_raw(config, output, budget)
    raw = RecordSource(output.shards("raw"), verify=False)
    accepted = len(raw)
    chosen = _generator(config.seed, "selection").permutation(accepted)
    chosen = chosen[: round(config.fraction * accepted)]
    plain_reason = {}
    chains = split_rounds(len(chosen), config.rounds)
    sampling = Sampling(
        max_tokens=config.engine.max_tokens,
        temperature=config.engine.temperature,
        top_k=config.engine.top_k,
        top_p=config.engine.top_p,
        regex=pairs_regex(config.min_pairs, config.max_pairs) if config.engine.constrain else None,
    )

    def units() -> Iterator[_Chain]:
        for number, members in enumerate(chains):
            records = raw.read([int(chosen[member]) for member in members])
            yield _Chain(f"chain-{number:08d}", tuple(records))

    def process(chain: _Chain) -> Generator[Request, Completion, _ChainOutcome]:
        return _process(chain, config, budget, sampling)

    pieces, counts = Counter[str](), Counter[str]()
    samples: list[dict[str, Any]] = []
    with (
        ShardWriter(output.shards("augmented"), config.records_per_shard) as shards,
        output.rejected_pieces() as write_piece,
    ):
        for chain, outcome in run_units(
            units(), process, engine, ledger, turns_expected=len(chosen), progress=progress
        ):
            for turn in outcome.turns:
                document = chain.documents[turn.index]
                for piece in turn.parsed.rejected:
                    reason = piece.reason
                    if reason == "unfinished" and outcome.finish_reasons[turn.index] == "length":
                        reason = "cut_at_max_tokens"
                    pieces[reason] += 1
                    write_piece(document.id, f"{chain.id}/{turn.index}", reason, piece.piece)
                if not turn.parsed.pairs:
                    error = turn.index in outcome.errors
                    plain_reason[document.id] = "engine_error" if error else "no_pairs"
            for number, members in enumerate(collections(outcome.turns)):
                record, sample = _augmented(chain, number, members, config, identity)
                shards.write(record)
                counts["records"] += 1
                counts["documents"] += len(members)
                counts["pairs"] += sum(len(turn.parsed.pairs) for turn in members)
                if len(samples) < 8:
                    samples.append(sample)
    output.write_samples(samples)
    plain_reasons = _write_plain(config, output, raw, {int(i) for i in chosen}, plain_reason)
    completions, prompt_tokens, completion_tokens = ledger.totals()
    summary = {
        "method": METHOD,
        "model": identity["model"],
        "model_revision": identity["revision"],
        "engine": identity["name"],
        "engine_version": identity["version"],
        "constrained_decoding": config.engine.constrain,
        "rounds": config.rounds,
        "documents_in": accepted + sum(rejected.values()),
        "documents_augmented": counts["documents"],
        "documents_plain": sum(plain_reasons.values()),
        "documents_rejected": sum(rejected.values()),
        "plain_reasons": dict(plain_reasons),
        "rejected_documents": dict(rejected),
        "augmented_records": counts["records"],
        "pairs": counts["pairs"],
        "rejected_pieces": dict(pieces),
        "completions": completions,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "seconds": round(ledger.seconds, 3),
        "completion_tokens_per_second": round(completion_tokens / max(ledger.seconds, 1e-9), 1),
    }
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    if summary["documents_in"] != sum(summary[part] for part in parts):
        raise RuntimeError(f"documents were lost or doubled: {summary}")
    return summary


def _write_raw(config: SynthesisConfig, output: OutputFolder, budget: Budget) -> Counter[str]:
    """Write every accepted document to shards/raw, the others to rejected/; count their reasons."""
    reasons = Counter[str]()
    with (
        ShardWriter(output.shards("raw"), config.records_per_shard) as shards,
        output.rejected_documents() as reject,
    ):
        for found in read_corpus(
            config.input,
            text_field=config.text_field,
            id_field=config.id_field,
            max_characters=config.max_characters,
            limit=config.limit,
        ):
            if isinstance(found, RejectedDocument):
                reasons[found.reason] += 1
                reject(found.id, found.where, found.reason, found.detail)
                continue
            prompt = render_prompt((), found.text)
            if not budget.fits(prompt):
                reasons["too_long"] += 1
                detail = (
                    f"its prompt has {budget.count_tokens(prompt):,} tokens; the context of "
                    f"{budget.context_tokens:,} less {budget.max_tokens:,} to write holds no more "
                    "than the rest: split it, or raise `engine.context_tokens`"
                )
                reject(found.id, found.source, "too_long", detail)
                continue
            kept = {"metadata": dict(found.metadata)} if found.metadata else {}
            shards.write(Record(found.id, found.text, found.source, provenance=_jsonable(kept)))
    return reasons


def _jsonable(metadata: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(metadata, default=str))  # parquet gives dates and the like


def _process(
    chain: _Chain, config: SynthesisConfig, budget: Budget, sampling: Sampling
) -> Generator[Request, Completion, _ChainOutcome]:
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
            seed = _seed(config.seed, "tokens", chain.documents[index].id)
            completion = yield Request(f"{chain.id}/{index}", prompt, sampling, seed)
            finish_reasons[index] = completion.finish_reason
            if completion.finish_reason == "error":
                errors[index] = completion.text
                completion = replace(completion, text="")
            index, prompt = rounds.send(completion.text)
    except StopIteration as end:
        return _ChainOutcome(end.value, finish_reasons, errors)


def _augmented(
    chain: _Chain,
    number: int,
    members: list[Turn],
    config: SynthesisConfig,
    identity: Mapping[str, str],
) -> tuple[Record, dict[str, Any]]:
    """The M-shot record of one collection, and how it is shown to a person."""
    documents = [chain.documents[turn.index] for turn in members]
    shots = [Shot(d.text, turn.parsed.pairs) for d, turn in zip(documents, members, strict=True)]
    name = f"{METHOD}-{chain.id}-{number}"
    parts = render_training_text(shots, _generator(config.seed, "template", name))
    prompts = "".join(turn.prompt for turn in members)
    record = Record(
        id=name,
        text="".join(parts),
        source=METHOD,
        parts=tuple(parts),
        loss=(1.0,) * len(parts),  # loss on all tokens (2.2)
        provenance={
            "method": METHOD,
            "model": identity["model"],
            "revision": identity["revision"],
            "engine": identity["name"],
            "engine_version": identity["version"],
            "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            "seed": config.seed,
            "parents": [document.id for document in documents],
            "sources": sorted({document.source for document in documents}),
            "pairs": sum(len(shot.pairs) for shot in shots),
        },
    )
    sample = {
        "id": name,
        "source": METHOD,
        "documents": [
            {
                "id": document.id,
                "text": document.text,
                "pairs": [
                    {"instruction": pair.question, "response": pair.answer} for pair in shot.pairs
                ],
            }
            for document, shot in zip(documents, shots, strict=True)
        ],
    }
    return record, sample


def _write_plain(
    config: SynthesisConfig,
    output: OutputFolder,
    raw: RecordSource,
    chosen: set[int],
    plain_reason: Mapping[str, str],
) -> Counter[str]:
    """Write the documents that were not selected or got no pairs to shards/plain, in order."""
    reasons = Counter[str]()
    with ShardWriter(output.shards("plain"), config.records_per_shard) as shards:
        for start in range(0, len(raw), 256):
            indices = range(start, min(start + 256, len(raw)))
            for index, record in zip(indices, raw.read(indices), strict=True):
                if index in chosen and record.id not in plain_reason:
                    continue
                reasons[plain_reason.get(record.id, "not_selected")] += 1
                shards.write(record)
    return reasons
