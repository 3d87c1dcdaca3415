"""Tuning data of the synthesizer: few-shot sequences of examples of one data set (section 2.1)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_gen.corpus.dataset_files import Files
from data_gen.engines import Completion, Request
from data_gen.engines.hub import fetch
from data_gen.instruction_pretrain.analysis.held_out import held_out_line
from data_gen.instruction_pretrain.collection import DATASETS, Dataset, Example, Gathered, gather
from data_gen.instruction_pretrain.collection.base import MOST_EXAMPLES
from data_gen.instruction_pretrain.formats import (
    BOS,
    CONTEXT_CLOSE,
    CONTEXT_OPEN,
    EOS,
    Pair,
    Shot,
    render_pairs,
)
from data_gen.instruction_pretrain.other_formats import in_pattern, other_patterns
from data_gen.instruction_pretrain.template_file import our_templates
from data_gen.instruction_pretrain.templates import training_record
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.config import OutputConfig
from data_gen.stages.stage import Stage, StageRun, Summary
from ipt_jax.core.bounds import Config, NotNegative, OneOf, Positive, Share
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.fingerprint import folder_digest
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import generator_of
from ipt_jax.core.tokenizers import Tokenizer, load_tokenizer

METHOD = "instruction_pretrain_tuning"
HELD_OUT_FILE = "held_out.jsonl"


@dataclass(frozen=True)
class TuningSource(Config):
    """A data set on this machine."""

    dataset: Annotated[str, OneOf(DATASETS)]
    """Name in the collection."""
    folder: str
    """Its folder within `root`, in the official layout, or hf://OWNER/NAME on the hub."""
    files: list[str] | None = None
    """Patterns in place of the data set's training files."""
    most_examples: Positive = MOST_EXAMPLES
    """Examples taken at most, those with the most pairs (App. A: 10K)."""

    @property
    def id(self) -> str:
        return self.dataset


@dataclass(frozen=True, kw_only=True)
class TuningConfig(OutputConfig):
    """Data sets in, few-shot sequences out, and examples that are kept from tuning."""

    sources: list[TuningSource] = field(default_factory=list)
    """Data sets to tune on."""
    unseen: list[TuningSource] = field(default_factory=list)
    """Data sets that are only tried on."""
    root: str = "."
    """Where the folders of the data sets lie."""
    output: str = "runs/ipt_tuning"
    """Folder: shards/ to tune on, templated/ to pre-train on (the same examples in the forms of
    augmented texts), rejected/, held_out.jsonl and summary.json are written there."""
    tokenizer: str = "mistral-7b-v0.1"
    """Of the model that is tuned: a name or a folder."""
    sequence_tokens: Positive = 4096
    """Most tokens of a sequence (Table 8): as many examples as fit."""
    held_out_examples: NotNegative = 50
    """Examples of each data set that are kept from tuning, at most a tenth of them."""
    shots: NotNegative = 3
    """Further examples noted beside each of them, for the few-shot setting (Table 5)."""
    most_pairs: Positive = 64
    """Pairs taken of one example."""
    unique_instructions: bool = False
    """Leave out pairs that ask what an earlier pair of the text asks, with other options, so that
    the synthesizer does not learn to repeat itself."""
    other_patterns: Share = 0.0
    """Share of the examples of each data set that are written in another format than its own, in
    sequences of their own (`other_formats.py`); 0 as in the paper."""
    seed: int = 0
    """Draws of order, held-out examples and shots derive from it."""

    def check_together(self) -> None:
        twice = {s.dataset for s in self.sources} & {s.dataset for s in self.unseen}
        if twice:
            raise UserError(
                f"sources: `{sorted(twice)[0]}` stands in `unseen` too: choose one.", key="sources"
            )
        for source in self.sources:
            if DATASETS[source.dataset].unseen:
                raise UserError(
                    f"sources: `{source.dataset}` is one of the sets that the synthesizer is tried "
                    "on but never tuned on (section 5.1): put it under `unseen`.",
                    key="sources",
                )


def example_parts(example: Example) -> tuple[list[str], list[float]]:
    """The parts of an example as it is tuned on, and their loss: the pairs and the end only.

    They join to `formats.render_example`; BOS and EOS are parts of their own, so that a tokenizer
    that has them under these names makes each of them one token (`encode: parts`).
    """
    bos, space = BOS[:-1], BOS[-1:]
    context = f"{space}{CONTEXT_OPEN} {example.text} {CONTEXT_CLOSE}\n\n"
    return [bos, context, render_pairs(example.pairs), EOS], [0.0, 0.0, 1.0, 1.0]


def count_tokens(example: Example, tokenizer: Tokenizer) -> int:
    """Tokens of an example within a sequence."""
    return len(tokenizer.encode_parts(*example_parts(example))[0])


def fit_example(
    example: Example, tokenizer: Tokenizer, config: TuningConfig
) -> tuple[Example | None, int, int]:
    """The example with as many of its pairs as fit; its tokens; pairs left out, the last first."""
    for kept in range(min(len(example.pairs), config.most_pairs), 0, -1):
        fitted = Example(example.id, example.dataset, example.text, example.pairs[:kept])
        tokens = count_tokens(fitted, tokenizer)
        if tokens <= config.sequence_tokens:
            return fitted, tokens, len(example.pairs) - kept
    return None, 0, len(example.pairs)


def sequences(lengths: Sequence[int], most_tokens: int, ahead: int = 64) -> list[list[int]]:
    """Places of the examples of each sequence: as many together as `most_tokens` holds (App. B).

    Where the next example does not fit, the first of the `ahead` after it that does is taken, so
    that rows of that length are nearly full; none waits longer than the sequence it begins.
    """
    found: list[list[int]] = []
    waiting = list(range(len(lengths)))
    while waiting:
        members = [waiting.pop(0)]
        room = most_tokens - lengths[members[0]]
        while True:
            near = waiting[:ahead]
            fitting = next((k for k, place in enumerate(near) if lengths[place] <= room), None)
            if fitting is None:
                break
            members.append(waiting.pop(fitting))
            room -= lengths[members[-1]]
        found.append(members)
    return found


class Tuning(Stage[TuningConfig, TuningSource]):
    """Data sets become few-shot sequences, one data set at a time; nothing is asked.

    Every question of a data set ends in exactly one count.
    """

    name, version, Config = METHOD, 1, TuningConfig
    parts, places = ("sequences", "templated"), {"sequences": "shards", "templated": "templated"}
    owns = (HELD_OUT_FILE, *(f"rejected/{name}.jsonl" for name in DATASETS))
    free = ("root",)
    units_in_memory = 1

    def __init__(self, config: TuningConfig) -> None:
        """Raises UserError: no data sets, or those whose files are not there, all named."""
        super().__init__(config)
        self._sources = [*config.sources, *config.unseen]
        if not self._sources:
            raise UserError(
                "`sources` is empty: name at least one data set and its folder.", key="sources"
            )
        missing = []
        for source in self._sources:
            try:
                patterns = source.files or DATASETS[source.dataset].train
                with Files(local_folder(source.folder, config.root), patterns) as files:
                    files.check()
            except UserError as error:
                missing.append(f"`{source.dataset}`: {error}")
        if missing:
            raise UserError(" ".join(missing), key="sources")
        self._tokenizer = load_tokenizer(config.tokenizer)

    def identity(self) -> Mapping[str, Any]:
        """Data sets and tokenizer by content."""
        prints: dict[str, Any] = {"tokenizer": self._tokenizer.prints()}
        for source in self._sources:
            folder = local_folder(source.folder, self.config.root)
            digest = folder_digest(folder, without=self.config.output)
            prints[f"data sets/{source.dataset}"] = digest
        return prints

    def begin(self, run: StageRun) -> None:
        self._run, run.output.tokenizer = run, self._tokenizer

    def units(self, raw: RecordSource | None) -> Sequence[TuningSource]:
        return self._sources

    def work(self, source: TuningSource) -> Generator[Request, Completion, UnitOutput]:
        yield from ()
        made = _Source(self.config, source, self._tokenizer)
        records: list[tuple[str, Record]] = []
        if source not in self.config.unseen:
            for record, examples in made.records():
                templated = _templated(record, examples, self.config.seed)
                records += [("sequences", record), ("templated", templated)]
        held_out = made.held_out_lines()
        with self._run.output.rejected(source.dataset) as reject:
            for piece in made.gathered.rejected:
                reject(source.dataset, piece)
        made.check(self._run.output.folder / "rejected" / f"{source.dataset}.jsonl")
        note = {"counts": made.counts(), "held_out": held_out}
        self._run.ledger.set_note(source.dataset, note)
        return UnitOutput(records)

    def failed(self, unit: TuningSource, failure: Reason) -> UnitOutput:
        raise RuntimeError(f"{unit.dataset}: {failure.detail}")

    def finish(self, totals: BlockTotals) -> Summary:
        notes = {one.dataset: self._run.ledger.note(one.dataset) for one in self._sources}
        counts = {name: note["counts"] for name, note in notes.items()}
        held_out = [line for note in notes.values() for line in note["held_out"]]
        path = self._run.output.folder / HELD_OUT_FILE
        atomic_write(path, "".join(f"{line}\n" for line in held_out))
        return {
            "datasets": counts,
            "sequences": sum(one["sequences"] for one in counts.values()),
            "tokens": sum(one["tokens"] for one in counts.values()),
            "held_out": len(held_out),
        }


def print_counts(summary: Mapping[str, Any]) -> None:
    """Print what became of each data set's records and questions."""
    for name, counts in summary["datasets"].items():
        left = {"surplus": counts["surplus_pairs"], "unused": counts.get("unused_pairs", 0)}
        left |= dict(sorted(counts["rejected"].items(), key=lambda item: -item[1]))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left.items() if count)
        print(
            f"{name}: {counts['records']:,} records with {counts['questions']:,} questions, "
            f"{counts.get('in_windows', 0):,} of them on windows of longer texts: "
            f"{counts['tuned_pairs']:,} pairs of {counts['tuned_examples']:,} examples in "
            f"{counts['sequences']:,} sequences, "
            f"{counts['held_out_pairs']:,} of {counts['held_out_examples']:,} held out; "
            f"left out: {reasons or 'none'}"
        )


class _Source:
    """One data set on its way; every question of it ends in exactly one count."""

    def __init__(self, config: TuningConfig, source: TuningSource, tokenizer: Tokenizer) -> None:
        self._config, self._source, self._tokenizer = config, source, tokenizer
        self.dataset: Dataset = DATASETS[source.dataset]
        self.gathered: Gathered = gather(
            self.dataset,
            local_folder(source.folder, config.root),
            files=source.files,
            most_examples=source.most_examples,
        )
        generator = generator_of(config.seed, "tuning", source.dataset)
        examples = self.gathered.examples
        if config.unique_instructions:
            examples = [self._unique(example) for example in examples]
        order = [examples[int(i)] for i in generator.permutation(len(examples))]
        kept = min(config.held_out_examples, len(order) // 10)
        self._unseen = source in config.unseen
        if self._unseen:
            kept = min(config.held_out_examples, len(order))
        self._held_out, self._rest = order[:kept], order[kept:]
        self._generator: np.random.Generator = generator
        self._counts = {"sequences": 0, "tuned_examples": 0, "tuned_pairs": 0, "tokens": 0}

    def _unique(self, example: Example) -> Example:
        first: dict[str, Pair] = {}
        for pair in example.pairs:
            if first.setdefault(pair.instruction.lower(), pair) is not pair:
                self.gathered.rejected.append(
                    Rejection.at(example.id, "repeated_question", pair.question)
                )
        return replace(example, pairs=tuple(first.values()))

    def records(self) -> Iterator[tuple[Record, list[Example]]]:
        """The sequences of everything that is not held out, with their examples."""
        number = 0
        for examples in self._by_pattern():
            for members, tokens in self._sequences(examples):
                yield self._record(number, members, tokens), members
                number += 1

    def _by_pattern(self) -> list[list[Example]]:
        """The examples in their own pattern, then those in each other one."""
        config, dataset = self._config, self._source.dataset
        if not config.other_patterns or not self._rest:
            return [self._rest]
        generator = generator_of(config.seed, "patterns", dataset)
        groups: dict[str | None, list[Example]] = {None: []}
        groups |= {pattern: [] for pattern in other_patterns(self._rest)}
        others = list(groups)[1:]
        answers = [pair.response for example in self._rest for pair in example.pairs]
        for example in self._rest:
            drawn, which = generator.random(), int(generator.integers(len(others)))
            pattern = others[which] if drawn < config.other_patterns else None
            kept: Example | None = example
            if pattern is not None:
                kept, left = in_pattern(example, pattern, answers, generator)
                self.gathered.rejected += [
                    Rejection.at(example.id, "not_in_that_pattern", pair.question) for pair in left
                ]
            if kept is not None:
                groups[pattern].append(kept)
        return list(groups.values())

    def _sequences(self, examples: Sequence[Example]) -> Iterator[tuple[list[Example], int]]:
        fitted: list[tuple[Example, int]] = []
        for example in examples:
            found, tokens, left = fit_example(example, self._tokenizer, self._config)
            if found is not None:
                fitted.append((found, tokens))
            reason = "pairs_past_the_sequence" if found else "longer_than_a_sequence"
            self.gathered.rejected += [
                Rejection.at(example.id, reason, pair.question)
                for pair in example.pairs[len(example.pairs) - left :]
            ]
        lengths = [tokens for _, tokens in fitted]
        for places in sequences(lengths, self._config.sequence_tokens):
            yield [fitted[place][0] for place in places], sum(lengths[place] for place in places)

    def _record(self, number: int, members: Sequence[Example], tokens: int) -> Record:
        parts, loss = [], []
        for example in members:
            of_example, weights = example_parts(example)
            parts += of_example
            loss += weights
        self._counts["sequences"] += 1
        self._counts["tuned_examples"] += len(members)
        self._counts["tuned_pairs"] += sum(len(example.pairs) for example in members)
        self._counts["tokens"] += tokens
        return Record(
            id=f"{METHOD}/{self.dataset.name}/{number:06d}",
            text="".join(parts),
            source=self.dataset.name,
            parts=tuple(parts),
            loss=tuple(loss),
            provenance={
                "method": METHOD,
                "licence": self.dataset.licence,
                "domain": self.dataset.domain,
                "parents": [example.id for example in members],
                "seed": self._config.seed,
            },
        )

    def held_out_lines(self) -> list[str]:
        """A line for each held-out example, with shots that are none of them where others are."""
        pool = self._rest or self._held_out
        lines = []
        for example in self._held_out:
            others = [other for other in pool if other.id != example.id]
            drawn = self._generator.permutation(len(others))[: self._config.shots]
            lines.append(held_out_line(example, [others[int(i)] for i in drawn], self._unseen))
        return lines

    def check(self, path: Path) -> None:
        """Raises UserError where nothing came of the data set; `path` lists what was rejected."""
        if self._counts["sequences"] or (self._unseen and self._held_out):
            return
        found, dataset = self.gathered, self.dataset
        first = found.rejected[0] if found.rejected else None
        raise UserError(
            f"`{dataset.name}` gives no example: of {found.records:,} records with "
            f"{found.questions:,} questions in {self._source.folder} none can be used"
            + (f" (the first, {first.where}: {first.reason}, {first.detail})" if first else "")
            + f"; {path} lists them: {dict(found.reasons)}. Give the folder as its authors "
            f"publish it ({dataset.source}), name the right `files`, or leave it out.",
            key="sources",
            path=path,
        )

    def counts(self) -> dict[str, Any]:
        """Of everything."""
        found = self.gathered
        counts: dict[str, Any] = {
            "licence": self.dataset.licence,
            "records": found.records,
            "questions": found.questions,
            "held_out_examples": len(self._held_out),
            "held_out_pairs": sum(len(example.pairs) for example in self._held_out),
            **self._counts,
            "surplus_examples": found.surplus_examples,
            "surplus_pairs": found.surplus_pairs,
            "in_windows": found.in_windows,
            "rejected": dict(found.reasons),
        }
        if self._unseen:
            counts["unused_pairs"] = sum(len(example.pairs) for example in self._rest)
        return counts


def _templated(record: Record, examples: Sequence[Example], seed: int) -> Record:
    """The sequence in the form of an augmented text: what pre-training mixes in (section 2.2)."""
    shots = [Shot(example.text, example.pairs) for example in examples]
    templates = our_templates()
    return training_record(record.id, shots, record.source, seed, templates, record.provenance)


def local_folder(folder: str, root: str) -> Path:
    """The folder itself, or that of a data set fetched from the hub.

    Raises UserError where the hub has no such data set or cannot be reached.
    """
    if not folder.startswith("hf://"):
        return Path(root).expanduser() / Path(folder).expanduser()
    name, _, revision = folder.removeprefix("hf://").partition("@")
    return fetch(
        *(name, revision or None),
        f"{folder} cannot be fetched from the hub ({{}}): check the name (hf://OWNER/NAME) and the "
        "network, or give a local folder.",
        "sources",
        repo_type="dataset",
    )
