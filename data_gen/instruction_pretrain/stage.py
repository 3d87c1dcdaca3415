"""Instruction Pre-Training synthesis (section 2): corpus -> chains of rounds -> M-shot records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data_gen.corpus import Document
from data_gen.engines import Completion, Request
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.demonstrations import DEMONSTRATIONS
from data_gen.instruction_pretrain.formats import (
    EOS,
    Shot,
    pairs_regex,
    render_pairs,
    render_prompt,
)
from data_gen.instruction_pretrain.rounds import (
    Budget,
    Turn,
    group_shots,
    run_rounds,
    split_rounds,
)
from data_gen.instruction_pretrain.template_file import load_templates
from data_gen.instruction_pretrain.templates import training_record
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.stage import Stage, StageRun, Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import generator_of, seed_of

METHOD = "instruction_pretrain"
PLAIN, AUGMENTED = "plain", "augmented"


@dataclass(frozen=True)
class Chain:
    """A unit of work: documents of successive rounds."""

    id: str
    documents: tuple[Record, ...]


class Chains(Sequence[Chain]):
    """The chains of a run, read when they are asked for."""

    def __init__(self, raw: RecordSource, seed: int, fraction: float, rounds: int) -> None:
        """Chooses `fraction` of the records and splits them into chains of `rounds`."""
        order = generator_of(seed, "selection").permutation(len(raw))
        self.chosen: np.ndarray = order[: round(fraction * len(raw))]
        """Numbers of the chosen records, in drawn order."""
        self._raw = raw
        self._members = split_rounds(len(self.chosen), rounds)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        records = self._raw.read(self.chosen[self._members[number]].tolist())
        return Chain(f"chain-{number:08d}", tuple(records))


class InstructionPretrain(Stage[SynthesisConfig, Chain]):
    """A synthesizer writes pairs about chosen documents; texts and their pairs are one record."""

    name, version, Config = METHOD, 3, SynthesisConfig
    parts, plain = (AUGMENTED,), PLAIN
    free = ("templates",)

    def __init__(self, config: SynthesisConfig) -> None:
        super().__init__(config)
        self._templates = load_templates(config.templates)
        constrained = config.engine.constrain
        self._sampling = config.engine.sampling(
            # The end of an example is one token for the published synthesizer, and letters for
            # models whose own end token is another.
            stop=(EOS,),
            regex=pairs_regex(config.min_pairs, config.max_pairs) if constrained else None,
        )

    def identity(self) -> Mapping[str, Any]:
        prompts = render_prompt(DEMONSTRATIONS, "{text}") + pairs_regex(1, 2)
        return {
            "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            "templates_sha256": self._templates.sha256,
        }

    def begin(self, run: StageRun) -> None:
        self._run, most = run, self.config.engine.max_tokens
        context_tokens = min(self.config.engine.context_tokens, run.engine.context_tokens)
        self._budget = Budget(run.engine.count_tokens, context_tokens, most)
        if most >= context_tokens:
            raise UserError(
                f"`engine.max_tokens` ({most}) leaves no room for a prompt in the context of "
                f"{context_tokens} tokens: lower it.",
                key="engine.max_tokens",
            )

    def check(self, document: Document) -> tuple[str, str] | None:
        budget, prompt = self._budget, render_prompt((), document.text)
        if budget.fits(prompt):
            return None
        return "too_long", (
            f"its prompt has {budget.count_tokens(prompt):,} tokens; the context of "
            f"{budget.context_tokens:,} less {budget.max_tokens:,} to write holds no more than the "
            "rest: split it, or raise `engine.context_tokens`"
        )

    def units(self, raw: RecordSource | None) -> Chains:
        assert raw is not None
        config, self._raw = self.config, raw
        self._chains = Chains(raw, config.seed, config.fraction, config.rounds)
        return self._chains

    def work(self, chain: Chain) -> Generator[Request, Completion, UnitOutput]:
        config = self.config

        def request(index: int, prompt: str) -> Request:
            seed = seed_of(config.seed, "tokens", chain.documents[index].id)
            return Request(f"{chain.id}/{index}", prompt, self._sampling, seed)

        turns = yield from run_rounds(
            [document.text for document in chain.documents],
            self._budget,
            request,
            demonstrations=DEMONSTRATIONS if config.demonstrations else (),
            max_pairs=config.max_pairs,
        )
        rejected: list[Rejection] = []
        unused: dict[str, str] = {}
        for turn in turns:
            name, where = chain.documents[turn.index].id, f"{chain.id}/{turn.index}"
            ended, text = turn.completion.finish_reason, turn.completion.text
            for piece in turn.parsed.rejected:
                cut = ended == "length" and piece.reason == "unfinished"
                reason = "cut_at_max_tokens" if cut else piece.reason
                rejected.append(Rejection(name, where, reason, piece.detail))
            if ended == "error":
                rejected.append(Rejection(name, where, "engine_error", text))
            if not turn.parsed.pairs:
                unused[name] = "engine_error" if ended == "error" else "no_pairs"
        groups = group_shots(turns)
        made = [self._augmented(chain, n, members) for n, members in enumerate(groups)]
        counts = Counter(records=len(made))
        for members in groups:
            counts["documents"] += len(members)
            counts["pairs"] += sum(len(turn.parsed.pairs) for turn in members)
        records = [(AUGMENTED, record) for record, _ in made]
        return UnitOutput(records, rejected, counts, unused, [sample for _, sample in made])

    def _augmented(
        self, chain: Chain, number: int, members: Sequence[Turn]
    ) -> tuple[Record, dict[str, Any]]:
        """The M-shot record of one group, and how it is shown to a person."""
        documents = [chain.documents[turn.index] for turn in members]
        shots = [
            Shot(d.text, turn.parsed.pairs) for d, turn in zip(documents, members, strict=True)
        ]
        name, seed = f"{METHOD}-{chain.id}-{number}", self.config.seed
        prompts, who = "".join(turn.prompt for turn in members), self._run.identity
        record = training_record(
            *(name, shots, METHOD, seed, self._templates),
            provenance={
                "method": METHOD,
                "model": who.model,
                "revision": who.revision,
                "engine": who.name,
                "engine_version": who.version,
                "sampling": self._drawn(),
                "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
                "seed": seed,
                "parents": [document.id for document in documents],
                "sources": sorted({document.source for document in documents}),
                "pairs": sum(len(shot.pairs) for shot in shots),
                # As they were read, one string for each parent: `parse_pairs` gives them back.
                "generated": [render_pairs(shot.pairs) for shot in shots],
            },
        )
        shown = [
            {
                "id": document.id,
                "text": document.text,
                "pairs": [
                    {"instruction": pair.question, "response": pair.answer} for pair in shot.pairs
                ],
            }
            for document, shot in zip(documents, shots, strict=True)
        ]
        return record, {"id": name, "source": METHOD, "documents": shown}

    def _drawn(self) -> dict[str, Any]:
        drawn = asdict(self._sampling)
        del drawn["regex"], drawn["logprobs"]
        return {**drawn, "constrained": self._sampling.regex is not None}

    def failed(self, unit: Chain, failure: Reason) -> UnitOutput:
        reason, detail = failure.reason, failure.detail
        pieces = [Rejection(one.id, unit.id, reason, detail) for one in unit.documents]
        return UnitOutput(rejected=pieces, unused={one.id: reason for one in unit.documents})

    def finish(self, totals: BlockTotals) -> Summary:
        plain = self._write_plain(totals.unused)
        return {
            "rounds": self.config.rounds,
            "documents_augmented": totals.counts["documents"],
            "documents_plain": plain.total(),
            "plain_reasons": dict(plain),
            "augmented_records": totals.counts["records"],
            "pairs": totals.counts["pairs"],
        }

    def _write_plain(self, unused: Mapping[str, str]) -> Counter[str]:
        """Write the documents that were not chosen or got no pairs, in order; why, counted."""
        reasons, raw = Counter[str](), self._raw
        chosen = np.zeros(len(raw), bool)
        chosen[self._chains.chosen] = True
        folder = self._run.output.shards(PLAIN)
        with ShardWriter(folder, self.config.records_per_shard) as shards:
            for number, record in enumerate(RecordUnits(raw)):
                if chosen[number] and record.id not in unused:
                    continue
                reasons[unused.get(record.id, "not_selected")] += 1
                shards.write(record)
        return reasons

    def card(self, summary: Summary) -> Card:
        shots = DEMONSTRATIONS if self.config.demonstrations else ()
        return Card(
            title="Instruction Pre-Training corpus",
            about=(
                f"{len(self._raw):,} raw texts, {summary['documents_augmented']:,} of them "
                "augmented with instruction–response pairs that a language model wrote about them "
                f"(Cheng et al., 2024; rounds: {self.config.rounds}). "
                "`shards/augmented` and `shards/plain` together hold every text once; `shards/raw` "
                "holds them as they came."
            ),
            gates=[
                "A document is UTF-8 text that fits into the model's context, with an id of its "
                "own.",
                "A pair is whole, in the format, and repeats no instruction of its text.",
            ],
            sampling=self._drawn(),
            prompts=[CardPrompt("The synthesizer reads", render_prompt(shots, "{text}"))],
        )

    @property
    def units_per_block(self) -> int:
        return max(1, self.config.records_per_shard // self.config.rounds)

    def turns_expected(self, units: Sequence[Chain]) -> int:
        return len(self._chains.chosen)

    def sampled(self) -> SynthesisConfig:
        return replace(self.config, fraction=1.0)

    @property
    def share_asked(self) -> float:
        return self.config.fraction
