"""The ablation of random pairs: an augmented corpus whose pairs belong to other texts.

Section 5.1 puts pairs of a different context beside a text to tell what the pairs' content does
from what their form does; this makes such a corpus to pre-train on.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.baselines.config import RandomPairsConfig
from data_gen.engines import Completion, Request
from data_gen.instruction_pretrain.formats import Shot, parse_pairs
from data_gen.instruction_pretrain.template_file import load_templates
from data_gen.instruction_pretrain.templates import training_record
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card
from data_gen.stages.stage import Stage, Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.seeds import generator_of

METHOD = "random_pairs"
AUGMENTED = "augmented"


@dataclass(frozen=True)
class Exchange:
    """An augmented record, and whose pairs its texts get."""

    id: str
    record: Record
    givers: Sequence[tuple[int, int]]
    """For each of its texts: row of a record and place of a text in it."""


class RandomPairs(Stage[RandomPairsConfig, Exchange]):
    """Every text keeps its place and its number of neighbours; pairs go to other texts.

    The pairs of all texts are handed on along one drawn circle, so that each set of pairs is used
    once and none stays where it was.
    """

    name, version, Config = METHOD, 1, RandomPairsConfig
    parts = (AUGMENTED,)
    free = ("synthesis", "templates")

    def __init__(self, config: RandomPairsConfig) -> None:
        """Raises UserError: no such folder, fewer than two texts, or records without pairs."""
        super().__init__(config)
        self._templates = load_templates(config.templates)
        shards_of = Path(config.synthesis).expanduser() / "shards"
        self._source = RecordSource(shards_of / AUGMENTED)
        self._raw = RecordSource(shards_of / "raw")
        self._exchanges = _Exchanges(config, self._source)

    def identity(self) -> Mapping[str, Any]:
        return {
            "synthesis": self._source.fingerprint,
            "raw": self._raw.fingerprint,
            "templates": self._templates.sha256,
        }

    def units(self, raw: RecordSource | None) -> Sequence[Exchange]:
        self._row_of = {record.id: row for row, record in enumerate(RecordUnits(self._raw))}
        return self._exchanges

    def work(self, unit: Exchange) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        given = [_pairs_of(self._source[row])[place] for row, place in unit.givers]
        parents = unit.record.provenance["parents"]
        documents = self._raw.read([self._row_of[parent] for parent in parents])
        shots = [
            Shot(document.text, parse_pairs(generated, unique_questions=False).pairs)
            for document, generated in zip(documents, given, strict=True)
        ]
        name, seed = f"{METHOD}-{unit.record.id}", self.config.seed
        record = training_record(
            *(name, shots, METHOD, seed, self._templates),
            provenance={
                **unit.record.provenance,
                "method": METHOD,
                "seed": seed,
                "pairs": sum(len(shot.pairs) for shot in shots),
                "generated": given,
                "templates_sha256": self._templates.sha256,
            },
        )
        counts = {"records": 1, "texts": len(given)}
        shown = [{"id": name, "text": record.text, "pairs": []}]
        sample = {"id": name, "source": METHOD, "documents": shown}
        return UnitOutput([(AUGMENTED, record)], (), counts, samples=[sample])

    def finish(self, totals: BlockTotals) -> Summary:
        return {
            "records": totals.counts["records"],
            "texts": totals.counts["texts"],
            "synthesis": self._source.fingerprint,
            "templates_sha256": self._templates.sha256,
            "seed": self.config.seed,
        }

    def card(self, summary: Summary) -> Card:
        return Card(
            title="Instruction-augmented corpus with random pairs",
            about=(
                f"{summary['texts']:,} texts of an Instruction Pre-Training corpus, each with the "
                "pairs that a language model wrote about another of them (Cheng et al., 2024, "
                "section 5.1)."
            ),
            gates=["None beside those of the corpus that it is made from."],
        )


class _Exchanges(Sequence[Exchange]):
    """All records of a synthesis in order, with the pairs of others drawn for their texts."""

    def __init__(self, config: RandomPairsConfig, source: RecordSource) -> None:
        self._records = RecordUnits(source)
        counts = [len(_pairs_of(record)) for record in self._records]
        self._places = [(row, n) for row, count in enumerate(counts) for n in range(count)]
        self._first = np.cumsum([0, *counts])
        if len(self._places) < 2:
            raise UserError(
                f"{config.synthesis} holds {len(self._places)} augmented text(s): pairs of another "
                "text need at least two.",
                key="synthesis",
                path=config.synthesis,
            )
        circle = generator_of(config.seed, METHOD).permutation(len(self._places))
        # Neighbours on the circle are never the same text.
        self._giver = np.empty(len(self._places), np.int64)
        self._giver[circle] = np.roll(circle, 1)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: Any) -> Any:
        givers = self._giver[self._first[row] : self._first[row + 1]]
        return Exchange(f"{row:08d}", self._records[row], [self._places[n] for n in givers])


def _pairs_of(record: Record) -> list[str]:
    """What was written for each of the record's texts."""
    generated = record.provenance.get("generated")
    if not isinstance(generated, list):
        raise UserError(
            f"the record {record.id!r} does not say which pairs it holds (`generated` in its "
            "provenance): make the synthesis folder again with this version.",
            key="synthesis",
            record=record.id,
        )
    return generated
