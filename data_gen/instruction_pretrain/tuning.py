"""Tuning data of the synthesizer: few-shot sequences of examples of one data set (section 2.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_gen.instruction_pretrain.analysis.held_out import held_out_line
from data_gen.instruction_pretrain.collection import DATASETS, Dataset, Example, Gathered, gather
from data_gen.instruction_pretrain.collection.base import MOST_EXAMPLES, Unusable
from data_gen.instruction_pretrain.collection.files import Files
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
from data_gen.instruction_pretrain.templates import render_training_text
from ipt_jax.core.bounds import Config, NotNegative, OneOf, Positive, Share
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import folder_digest
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import SHARD_FILES, Record, ShardWriter, atomic_write
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of
from ipt_jax.core.seeds import generator_of
from ipt_jax.core.tokenizers import Tokenizer, load_tokenizer

METHOD = "instruction_pretrain_tuning"
HELD_OUT_FILE = "held_out.jsonl"
_OWNS = (
    *(*RUN_FILES, HELD_OUT_FILE, "summary.json", *(f"rejected/{name}.jsonl" for name in DATASETS)),
    *(f"{part}/{name}" for part in ("shards", "templated") for name in SHARD_FILES),
)


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


@dataclass(frozen=True)
class TuningConfig(Config):
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
    sequences of their own (`patterns.py`); 0 as in the paper."""
    seed: int = 0
    """Draws of order, held-out examples and shots derive from it."""
    fresh: bool = False
    """Replace what an earlier run left in `output`."""

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

    They join to `format.render_example`; BOS and EOS are parts of their own, so that a tokenizer
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


def write_tuning_data(config: TuningConfig) -> dict[str, Any]:
    """Make the folder `config.output` and give back its summary.

    A finished folder of the same settings is left as it is.

    Raises:
      UserError: no sources, data sets that are not there or give no example, a folder made with
        other settings.
    """
    if not config.sources and not config.unseen:
        raise UserError("`sources` is empty: name at least one data set and its folder.")
    with RunFolder.open(
        config.output,
        METHOD,
        tuning_prints(config),
        owns=_OWNS,
        fresh=config.fresh,
        legacy=_before_markers,
    ) as run:
        if (done := _finished(run.path)) is not None:
            return done
        summary = _write(config, run.path)
        run.finish()
    return summary


def _write(config: TuningConfig, output: Path) -> dict[str, Any]:
    (output / "rejected").mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(config.tokenizer)
    held_out: list[str] = []
    counts: dict[str, Any] = {}
    with (
        ShardWriter(output / "shards", tokenizer=tokenizer) as shards,
        ShardWriter(output / "templated", tokenizer=tokenizer) as templated,
    ):
        for source in config.sources:
            work = _Source(config, source, tokenizer)
            for record, examples in work.records():
                shards.write(record)
                templated.write(_templated(record, examples, config.seed))
            held_out += work.held_out_lines(unseen=False)
            counts[source.dataset] = work.finish(output)
    for source in config.unseen:
        work = _Source(config, source, tokenizer)
        held_out += work.held_out_lines(unseen=True)
        counts[source.dataset] = work.finish(output)
    atomic_write(output / HELD_OUT_FILE, "".join(f"{line}\n" for line in held_out))
    summary = {
        "method": METHOD,
        "datasets": counts,
        "sequences": sum(one["sequences"] for one in counts.values()),
        "tokens": sum(one["tokens"] for one in counts.values()),
        "held_out": len(held_out),
    }
    atomic_write(
        output / "summary.json", json.dumps({**summary, "settings": _settings(config)}, indent=1)
    )
    return summary


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


def _check_files(config: TuningConfig) -> None:
    """Raises UserError naming every data set whose files are not there, before any is read."""
    missing = []
    for source in [*config.sources, *config.unseen]:
        patterns = source.files or DATASETS[source.dataset].train
        try:
            with Files(local_folder(source.folder, config.root), patterns) as files:
                files.check()
        except UserError as error:
            missing.append(f"`{source.dataset}`: {error}")
    if missing:
        raise UserError(" ".join(missing))


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
                self.gathered.unusable.append(
                    Unusable("repeated_question", pair.question, example.id)
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
                self.gathered.unusable += [
                    Unusable("not_in_that_pattern", pair.question, example.id) for pair in left
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
            self.gathered.unusable += [
                Unusable(reason, pair.question, example.id)
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

    def held_out_lines(self, *, unseen: bool) -> list[str]:
        """A line for each held-out example, with shots that are none of them where others are."""
        pool = self._rest or self._held_out
        lines = []
        for example in self._held_out:
            others = [other for other in pool if other.id != example.id]
            drawn = self._generator.permutation(len(others))[: self._config.shots]
            lines.append(held_out_line(example, [others[int(i)] for i in drawn], unseen))
        return lines

    def finish(self, output: Path) -> dict[str, Any]:
        """Write what was not used, and count everything."""
        found = self.gathered
        path = output / "rejected" / f"{self.dataset.name}.jsonl"
        lines = [json.dumps(asdict(piece), ensure_ascii=False) for piece in found.unusable]
        atomic_write(path, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
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
        if not (self._counts["sequences"] or (self._unseen and self._held_out)):
            first = found.unusable[0] if found.unusable else None
            raise UserError(
                f"`{self.dataset.name}` gives no example: of {found.records:,} records with "
                f"{found.questions:,} questions in {self._source.folder} none can be used"
                + (f" (the first, {first.where}: {first.reason}, {first.detail})" if first else "")
                + f"; {path} lists them: {dict(found.reasons)}. Give the folder as its authors "
                f"publish it ({self.dataset.source}), name the right `files`, or leave it out."
            )
        if self._unseen:
            counts["unused_pairs"] = sum(len(example.pairs) for example in self._rest)
        return counts


def _templated(record: Record, examples: Sequence[Example], seed: int) -> Record:
    """The sequence in the form of an augmented text: what pre-training mixes in (section 2.2)."""
    shots = [Shot(example.text, example.pairs) for example in examples]
    parts = render_training_text(shots, generator_of(seed, "template", record.id))
    return replace(record, text="".join(parts), parts=tuple(parts), loss=(1.0,) * len(parts))


def local_folder(folder: str, root: str) -> Path:
    """The folder itself, or that of a data set fetched from the hub.

    Raises UserError where the hub has no such data set or cannot be reached.
    """
    if not folder.startswith("hf://"):
        return Path(root).expanduser() / Path(folder).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = folder.removeprefix("hf://").partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{folder} cannot be fetched from the hub ({error}): check the name (hf://OWNER/NAME) "
            "and the network, or give a local folder."
        ) from error


def _settings(config: TuningConfig) -> dict[str, Any]:
    settings = asdict(config)
    for key in ("output", "root", "fresh"):
        del settings[key]
    return json.loads(json.dumps(settings))


def tuning_prints(config: TuningConfig) -> dict[str, str]:
    """What tuning data are made from, by name: data sets and tokenizer by content.

    Raises UserError naming every data set whose files are not there, or the tokenizer.
    """
    _check_files(config)
    prints = {**_settings(config), "tokenizer": load_tokenizer(config.tokenizer).prints()}
    for source in (*config.sources, *config.unseen):
        folder = local_folder(source.folder, config.root)
        prints[f"data sets/{source.dataset}"] = folder_digest(folder, without=config.output)
    return prints_of(prints)


def _finished(output: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end, with the settings it had."""
    try:
        content = load_json(output / "summary.json")
    except (FileNotFoundError, ValueError):
        return None
    content.pop("settings", None)
    return content


def _before_markers(output: Path) -> dict[str, str] | None:
    """The fingerprint of tuning data that an earlier version finished; None without any."""
    try:
        content = load_json(output / "summary.json")
        return prints_of(content["settings"]) if content["method"] == METHOD else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
