"""What stages have in common that ask a chat model about one text at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_gen.engines import EngineConfig, Message, Prompt, Request
from data_gen.stages.blocks import UnitOutput
from data_gen.stages.config import AskingConfig
from data_gen.stages.stage import Stage, StageRun
from data_gen.stages.units import RecordUnits
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import seed_of


@dataclass(frozen=True, kw_only=True)
class ChatConfig(AskingConfig):
    """Of a stage whose questions are the turns of a user."""

    chat: bool = True
    """Ask through the model's chat template; false for a model that has none."""


def json_text_regex(least: int, most: int, without: str = "") -> str:
    """The pattern of so many characters within a text of JSON, none of them in `without`."""
    return rf'([^"\\{re.escape(without)}\x00-\x1f]|\\["\\/bfnrt]){{{least},{most}}}'


def json_regex(values: Mapping[str, str], null: bool = False) -> str:
    """The pattern of a JSON object with these keys, texts in those patterns as values.

    For `engine.constrain`; with `null` that word alone matches too. Lengths should be bounded, or
    a weak model never ends a text.
    """
    fields = ", ".join(f'"{key}": "{pattern}"' for key, pattern in values.items())
    return rf"(\{{{fields}\}}|null)" if null else rf"\{{{fields}\}}"


def carried_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a document's record had: its provenance, where it came out of shards."""
    provenance = metadata.get("provenance")
    return {**metadata, **(provenance if isinstance(provenance, dict) else {})}


def carried_by(record: Record) -> dict[str, Any]:
    """`carried_fields` of a record of the corpus, as it stands in `shards/raw`."""
    return carried_fields(record.provenance.get("metadata", {}))


class AskingStage[C: ChatConfig](Stage[C, Record]):
    """The units are the documents of a corpus. Makes requests, knows which prompts fit, and what a
    record says of the model."""

    def prompt_texts(self) -> Sequence[str]:
        """All texts that its prompts are made of."""
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"prompt_sha256": _sha256(self.prompt_texts())}

    @property
    def engine_config(self) -> EngineConfig | None:
        """None for a stage whose `form` are rules."""
        return None if getattr(self.config, "form", "") == "rules" else self.config.engine

    def begin(self, run: StageRun) -> None:
        self._run, asked = run, self.config.engine
        if self.engine_config is None:
            return
        self._context_tokens = min(asked.context_tokens, run.engine.context_tokens)
        if asked.max_tokens >= self._context_tokens:
            raise UserError(
                f"`engine.max_tokens` ({asked.max_tokens}) leaves no room for a prompt in the "
                f"context of {self._context_tokens} tokens: lower it.",
                key="engine.max_tokens",
            )

    def units(self, raw: RecordSource | None) -> RecordUnits:
        assert raw is not None
        return RecordUnits(raw)

    def failed(self, unit: Record, failure: Reason) -> UnitOutput:
        return self.unused(unit, [failure])

    def unused(self, unit: Record, tried: Sequence[Reason]) -> UnitOutput:
        """Of a document that gave no record: a piece for each reason; the last one decided."""
        pieces = [Rejection(unit.id, unit.source, *reason) for reason in tried]
        return UnitOutput(rejected=pieces, unused={unit.id: tried[-1].reason})

    def as_prompt(self, text: str) -> Prompt:
        """A user's turn, or the text alone for a model without a chat template."""
        return (Message("user", text),) if self.config.chat else text

    def too_long(self, text: str) -> Reason | None:
        """Why a prompt cannot be asked; None: what may be written still fits behind it."""
        if self.engine_config is None:
            return None
        tokens, most = self._run.engine.count_tokens(self.as_prompt(text)), self._context_tokens
        if tokens + self.config.engine.max_tokens <= most:
            return None
        return Reason(
            "too_long",
            f"its prompt has {tokens:,} tokens; the context of {most:,} less "
            f"{self.config.engine.max_tokens:,} to write holds no more than the rest: split it, or "
            "raise `engine.context_tokens`",
        )

    def request(self, unit: str, turn: object, text: str, regex: str | None = None) -> Request:
        """One question; `regex` holds where the settings constrain what is written."""
        config = self.config
        constrained = regex if config.engine.constrain else None
        seed = seed_of(config.seed, self.name, unit, turn)
        sampling = config.engine.sampling(regex=constrained)
        return Request(f"{unit}/{turn}", self.as_prompt(text), sampling, seed)

    def sampling_settings(self) -> dict[str, Any]:
        """How tokens are drawn, for provenance and card."""
        if self.engine_config is None:
            return {}
        drawn = asdict(self.config.engine.sampling())
        del drawn["regex"], drawn["logprobs"]
        return {**drawn, "constrained": self.config.engine.constrain}

    def asked_provenance(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Of a record: method, model, engine, sampling, seed and the digest of its prompts."""
        who = self._run.identity
        return {
            "method": self.name,
            "model": who.model,
            "revision": who.revision,
            "engine": who.name,
            "engine_version": who.version,
            "sampling": self.sampling_settings(),
            "prompt_sha256": _sha256(prompts),
            "seed": self.config.seed,
        }


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
