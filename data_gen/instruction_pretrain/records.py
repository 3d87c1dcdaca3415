"""What a chain leaves behind: augmented records, rejected pieces, documents that stay plain."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from data_gen.blocks import UnitOutput
from data_gen.engines import Sampling
from data_gen.instruction_pretrain.chains import Chain, ChainOutcome, generator_of
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.format import Shot, render_pairs
from data_gen.instruction_pretrain.rounds import Turn, collections
from data_gen.instruction_pretrain.template_file import TemplateSet
from data_gen.instruction_pretrain.templates import render_training_text
from data_gen.outputs import OutputFolder, RejectedPiece
from data_gen.runner import Done, Failure
from ipt_jax.core.records import Record, RecordSource, ShardWriter

METHOD = "instruction_pretrain"
PLAIN, AUGMENTED = "plain", "augmented"


@dataclass(frozen=True)
class Provenance:
    """What all records of a run have in common."""

    config: SynthesisConfig
    identity: Mapping[str, str]
    sampling: Sampling
    templates: TemplateSet

    @property
    def sampling_settings(self) -> dict[str, Any]:
        """How tokens were drawn."""
        how = {k: v for k, v in asdict(self.sampling).items() if k not in ("regex", "logprobs")}
        return {**how, "constrained": self.sampling.regex is not None}

    def of(self, prompts: str, parents: Sequence[Record]) -> dict[str, Any]:
        """Who made a record, how, and out of what."""
        return {
            "method": METHOD,
            "model": self.identity["model"],
            "revision": self.identity["revision"],
            "engine": self.identity["name"],
            "engine_version": self.identity["version"],
            "sampling": self.sampling_settings,
            "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            "seed": self.config.seed,
            "parents": [document.id for document in parents],
            "sources": sorted({document.source for document in parents}),
        }


def output_of(done: Done[Chain, ChainOutcome], provenance: Provenance) -> UnitOutput:
    """Records, rejected pieces and counts of one chain."""
    chain, outcome = done.unit, done.outcome
    if isinstance(outcome, Failure):
        pieces = [RejectedPiece(d.id, chain.id, *astuple(outcome)) for d in chain.documents]
        return UnitOutput(rejected=pieces, unused={d.id: outcome.reason for d in chain.documents})
    rejected, unused = [], {}
    for turn in outcome.turns:
        document = chain.documents[turn.index]
        cut = outcome.finish_reasons[turn.index] == "length"
        for piece in turn.parsed.rejected:
            reason = "cut_at_max_tokens" if cut and piece.reason == "unfinished" else piece.reason
            where = f"{chain.id}/{turn.index}"
            rejected.append(RejectedPiece(document.id, where, reason, piece.piece))
        error = outcome.errors.get(turn.index)
        if error is not None:
            where = f"{chain.id}/{turn.index}"
            rejected.append(RejectedPiece(document.id, where, "engine_error", error))
        if not turn.parsed.pairs:
            unused[document.id] = "no_pairs" if error is None else "engine_error"
    made = [
        _augmented(chain, number, members, provenance)
        for number, members in enumerate(collections(outcome.turns))
    ]
    counts = Counter(records=len(made))
    for members in collections(outcome.turns):
        counts["documents"] += len(members)
        counts["pairs"] += sum(len(turn.parsed.pairs) for turn in members)
    records = [(AUGMENTED, record) for record, _ in made]
    return UnitOutput(records, rejected, counts, unused, [sample for _, sample in made])


def _augmented(
    chain: Chain, number: int, members: list[Turn], provenance: Provenance
) -> tuple[Record, dict[str, Any]]:
    """The M-shot record of one collection, and how it is shown to a person."""
    documents = [chain.documents[turn.index] for turn in members]
    shots = [Shot(d.text, turn.parsed.pairs) for d, turn in zip(documents, members, strict=True)]
    name = f"{METHOD}-{chain.id}-{number}"
    parts = render_training_text(
        shots, generator_of(provenance.config.seed, "template", name), provenance.templates
    )
    made = provenance.of("".join(turn.prompt for turn in members), documents)
    record = Record(
        id=name,
        text="".join(parts),
        source=METHOD,
        parts=tuple(parts),
        loss=(1.0,) * len(parts),  # loss on all tokens (2.2)
        provenance={
            **made,
            "pairs": sum(len(shot.pairs) for shot in shots),
            # As they were read, one string for each parent: `parse_pairs` gives them back.
            "generated": [render_pairs(shot.pairs) for shot in shots],
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


def write_plain(
    config: SynthesisConfig,
    output: OutputFolder,
    raw: RecordSource,
    chosen: np.ndarray,
    unused: Mapping[str, str],
) -> Counter[str]:
    """Write the documents that were not selected or got no pairs to shards/plain, in order."""
    reasons = Counter[str]()
    selected = np.zeros(len(raw), bool)
    selected[chosen] = True
    with ShardWriter(output.shards(PLAIN), config.records_per_shard) as shards:
        for start in range(0, len(raw), 256):
            indices = range(start, min(start + 256, len(raw)))
            for index, record in zip(indices, raw.read(indices), strict=True):
                if selected[index] and record.id not in unused:
                    continue
                reasons[unused.get(record.id, "not_selected")] += 1
                shards.write(record)
    return reasons
