"""card.md of a synthesis folder: what the data is, where it came from and how it was made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipt_jax.core.records import atomic_write

CARD_NAME = "card.md"


@dataclass(frozen=True)
class Prompt:
    """A prompt that the method uses, as a person can read it."""

    title: str
    """What it is for."""
    text: str
    """With its places to fill in."""


def write_card(
    folder: Path,
    *,
    method: str,
    about: str,
    summary: Mapping[str, Any],
    sources: Counter[tuple[str, str]],
    model: Mapping[str, str],
    sampling: Mapping[str, Any],
    seed: int,
    gates: Sequence[str],
    prompts: Sequence[Prompt],
) -> Path:
    """Write `folder/card.md`, a data set card as the Hugging Face hub shows it.

    Args:
      method: title; `about` says in a sentence or two what was done.
      summary: numbers and tables of counts by reason, printed as they are named.
      sources: documents by source and licence.
      model: name, revision, engine, engine version.
      sampling, seed: how tokens were drawn.
      gates: what texts had to pass, one sentence each.
    """
    licences = sorted({licence for _, licence in sources})
    lines = [
        "---",
        f"license: {json.dumps(licences[0]) if len(licences) == 1 else 'other'}",
        "tags: [synthetic, instruction-pre-training]",
        "---",
        "",
        f"# {method}",
        "",
        about,
        "",
        "## Sources",
        "",
        *_table(
            ("source", "licence", "documents"), [(*key, n) for key, n in sources.most_common()]
        ),
        "",
        "The licence of a document is what its corpus states. Texts written by a model may also be "
        "bound by the terms of that model.",
        "",
        "## Counts",
        "",
        *_table(("", "count"), [(_say(k), v) for k, v in summary.items() if type(v) is int]),
    ]
    for name, reasons in summary.items():
        if isinstance(reasons, Mapping) and reasons:
            rows = sorted(reasons.items(), key=lambda item: -item[1])
            lines += ["", f"{_say(name)}:", "", *_table(("reason", "count"), rows)]
    lines += ["", "## Model", "", *_table(("", ""), [(_say(k), v) for k, v in model.items()])]
    drawn = [*sampling.items(), ("seed", seed)]
    lines += ["", "## Sampling", "", *_table(("", ""), [(_say(k), v) for k, v in drawn])]
    lines += ["", "## Gates", "", *(f"- {gate}" for gate in gates or ("None.",))]
    lines += ["", "## Prompts"]
    for prompt in prompts:
        lines += ["", f"{prompt.title}:", "", *_fenced(prompt.text)]
    path = folder / CARD_NAME
    atomic_write(path, "\n".join(lines) + "\n")
    return path


def _say(name: str) -> str:
    return name.replace("_", " ")


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        shown = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        return "| " + " | ".join(_cell(cell) for cell in shown) + " |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows)]


def _cell(text: str) -> str:
    """Corpora name their sources as they like: nothing of it is to be read as markup."""
    kept = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!" else c for c in kept)


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]
