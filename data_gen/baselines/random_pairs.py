"""The ablation of random pairs: an augmented corpus whose pairs belong to other texts.

Section 5.1 puts pairs of a different context beside a text to tell what the pairs' content does
from what their form does; this makes such a corpus to pre-train on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.instruction_pretrain.chains import generator_of
from data_gen.instruction_pretrain.format import Shot, parse_pairs
from data_gen.instruction_pretrain.template_file import TemplateSet, load_templates
from data_gen.instruction_pretrain.templates import render_training_text
from data_gen.outputs import OutputFolder
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import SHARD_FILES, Record, RecordSource, ShardWriter, atomic_write
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of

METHOD = "random_pairs"
_READ = 256
_FREE = ("synthesis", "output", "templates", "fresh")  # or in the fingerprint by content
_OWNS = (*RUN_FILES, "summary.json", *(f"shards/augmented/{name}" for name in SHARD_FILES))


@dataclass(frozen=True)
class RandomPairsConfig:
    """A finished synthesis folder in, shards whose texts carry the pairs of others out."""

    synthesis: str = "runs/synthesis"
    """Folder of a finished run of Instruction Pre-Training synthesis."""
    output: str = "runs/random_pairs"
    """Folder; shards/augmented and summary.json are written there."""
    templates: str = ""
    """Templates of the training texts, as of launch/synthesize.py."""
    seed: int = 0
    """Which pairs go to which text, and the draws of templates."""
    records_per_shard: int = 4096
    """Records in one shard."""
    fresh: bool = False
    """Delete what an earlier run of random pairs made in `output` and start over."""


def run_random_pairs(
    config: RandomPairsConfig, on_start: Callable[[Path], None] = lambda folder: None
) -> dict[str, Any]:
    """Write `config.output` and give back its summary.

    Every text keeps its place and its number of neighbours; the pairs of all texts are handed on
    along one drawn circle, so that each set of pairs is used once and none stays where it was.

    Raises:
      UserError: no such folder, fewer than two texts, or records without their pairs.
    """
    templates = load_templates(config.templates)
    shards_of = Path(config.synthesis).expanduser() / "shards"
    source, raw = RecordSource(shards_of / "augmented"), RecordSource(shards_of / "raw")
    places = [(i, n) for i, record in _records(source) for n in range(len(_pairs_of(record)))]
    if len(places) < 2:
        raise UserError(
            f"{config.synthesis} holds {len(places)} augmented text(s): pairs of another text "
            "need at least two."
        )
    circle = generator_of(config.seed, METHOD).permutation(len(places))
    # Neighbours on the circle are never the same text.
    giver = np.empty(len(places), np.int64)
    giver[circle] = np.roll(circle, 1)
    settings = {key: value for key, value in asdict(config).items() if key not in _FREE}
    prints = {"synthesis": source.fingerprint, "raw": raw.fingerprint}
    prints["templates"] = templates.sha256
    with RunFolder.open(
        config.output, METHOD, prints_of(settings) | prints, owns=_OWNS, fresh=config.fresh
    ) as run:
        done = OutputFolder(run.path, ("augmented",)).finished()
        if run.finished and done is not None:
            return done
        run.begin()
        on_start(run.path)
        _write(config, run.path, source, raw, places, giver, templates)
        summary = {
            "method": METHOD,
            "records": len(source),
            "texts": len(places),
            "synthesis": source.fingerprint,
            "templates_sha256": templates.sha256,
            "seed": config.seed,
        }
        atomic_write(run.path / "summary.json", json.dumps(summary, indent=1) + "\n")
        run.finish()
    return summary


def _write(
    config: RandomPairsConfig,
    output: Path,
    source: RecordSource,
    raw: RecordSource,
    places: Sequence[tuple[int, int]],
    giver: np.ndarray,
    templates: TemplateSet,
) -> None:
    """The shards: the pairs of the text at `places[giver[i]]` go to the one at `places[i]`."""
    row_of = {record.id: row for row, record in _records(raw)}
    taken = 0
    with ShardWriter(output / "shards" / "augmented", config.records_per_shard) as shards:
        for _, record in _records(source):
            given = [
                _pairs_at(source, *places[giver[taken + n]]) for n in range(len(_pairs_of(record)))
            ]
            documents = raw.read([row_of[parent] for parent in record.provenance["parents"]])
            shots = [
                Shot(document.text, parse_pairs(generated, unique_questions=False).pairs)
                for document, generated in zip(documents, given, strict=True)
            ]
            taken += len(given)
            name = f"{METHOD}-{record.id}"
            generator = generator_of(config.seed, "template", name)
            parts = render_training_text(shots, generator, templates)
            shards.write(
                Record(
                    id=name,
                    text="".join(parts),
                    source=METHOD,
                    parts=tuple(parts),
                    loss=(1.0,) * len(parts),
                    provenance={
                        **record.provenance,
                        "method": METHOD,
                        "seed": config.seed,
                        "pairs": sum(len(shot.pairs) for shot in shots),
                        "generated": given,
                        "templates_sha256": templates.sha256,
                    },
                )
            )


def _records(source: RecordSource) -> Iterator[tuple[int, Record]]:
    for start in range(0, len(source), _READ):
        rows = range(start, min(start + _READ, len(source)))
        yield from zip(rows, source.read(rows), strict=True)


def _pairs_of(record: Record) -> list[str]:
    """What was written for each of the record's texts."""
    generated = record.provenance.get("generated")
    if not isinstance(generated, list):
        raise UserError(
            f"the record {record.id!r} does not say which pairs it holds (`generated` in its "
            "provenance): make the synthesis folder again with this version."
        )
    return generated


def _pairs_at(source: RecordSource, row: int, place: int) -> str:
    return _pairs_of(source[row])[place]
