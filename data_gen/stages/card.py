"""card.md of a synthesis folder: what the data is, where it came from and how it was made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_gen.engines import EngineIdentity
from ipt_jax.core.files import atomic_write
from ipt_jax.core.report.markdown import markdown
from ipt_jax.core.report.values import Code, Items, Report, Section, Table

CARD_NAME = "card.md"


@dataclass(frozen=True)
class CardPrompt:
    """A prompt that the method uses, as a person can read it."""

    title: str
    """What it is for."""
    text: str
    """With its places to fill in."""


@dataclass(frozen=True)
class Card:
    """What a stage says of its data; counts, sources and model are added to it."""

    title: str
    """What the data is called."""
    about: str
    """In a sentence or two, what was done."""
    gates: Sequence[str]
    """What texts had to pass, one sentence each."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How it was drawn."""
    prompts: Sequence[CardPrompt] = ()
    """What a model read, or the wordings of rules."""
    model: Mapping[str, str] = field(default_factory=dict)
    """Beside the model that was asked: what else the texts depend on."""


def write_card(
    folder: Path,
    card: Card,
    summary: Mapping[str, Any],
    sources: Counter[tuple[str, str]],
    seed: int,
    identity: EngineIdentity,
) -> Path:
    """Write `folder/card.md`, a data set card as the Hugging Face hub shows it.

    Args:
      summary: numbers and tables of counts by reason, printed as they are named.
      sources: documents by source and licence.
      seed: of all draws.
      identity: the model that was asked; its words are "none" where none was.
    """
    asked = {"model": identity.model, "revision": identity.revision}
    asked["engine"] = f"{identity.name} {identity.version}"
    model = ({"model": "none"} if identity.model == "none" else asked) | dict(card.model)
    licences = sorted({licence for _, licence in sources})
    came = Table(
        "",
        ("source", "licence", "documents"),
        [(*key, n) for key, n in sources.most_common()],
        "The licence of a document is what its corpus states. Texts written by a model may also "
        "be bound by the terms of that model.",
        text_columns=2,
    )
    counts = [
        Table("", ("", "count"), [(_say(k), v) for k, v in summary.items() if type(v) is int])
    ]
    for name, reasons in summary.items():
        if isinstance(reasons, Mapping) and reasons:
            rows = sorted(reasons.items(), key=lambda item: -item[1])
            counts.append(Table(_say(name).capitalize(), ("reason", "count"), rows))
    sections = [
        Section("Sources", [came]),
        Section("Counts", counts),
        Section("Model", [_settings(model)]),
        Section("Sampling", [_settings({**card.sampling, "seed": seed})]),
        Section("Gates", [Items([*card.gates] or ["None."])]),
        Section("Prompts", [Code(prompt.title, prompt.text) for prompt in card.prompts]),
    ]
    head = [
        "---",
        f"license: {json.dumps(licences[0]) if len(licences) == 1 else 'other'}",
        "tags: [synthetic, instruction-pre-training]",
        "---",
        "",
        "",
    ]
    path = folder / CARD_NAME
    atomic_write(path, "\n".join(head) + markdown(Report(card.title, card.about, [], sections)))
    return path


def _settings(values: Mapping[str, Any]) -> Table:
    return Table("", ("", ""), [(_say(k), v) for k, v in values.items()], text_columns=2)


def _say(name: str) -> str:
    return name.replace("_", " ")
