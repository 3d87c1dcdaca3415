"""The card of a data set: everything on it, nothing of it read as markup."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import yaml

from data_gen.engines import EngineIdentity
from data_gen.stages.card import Card, CardPrompt, write_card


def card(tmp_path: Path, sources: Counter[tuple[str, str]]) -> str:
    return write_card(
        tmp_path,
        Card(
            title="Method",
            about="What was done.",
            gates=["Texts are not repeated."],
            sampling={"temperature": 0.5},
            prompts=[CardPrompt("The prompt", "a ``` b")],
        ),
        {
            "documents_in": 12345,
            "rate": 0.5,
            "constrained": True,
            "plain_reasons": {"no_pairs": 2, "other": 7},
        },
        sources,
        3,
        EngineIdentity("fake", "1", "m", "r1"),
    ).read_text(encoding="utf-8")


def test_a_card_has_sources_counts_model_sampling_gates_and_prompts(tmp_path: Path) -> None:
    text = card(tmp_path, Counter({("web", "MIT"): 3, ("books", "CC0"): 1}))
    for line in (
        "| web | MIT | 3 |", "| books | CC0 | 1 |", "| documents in | 12,345 |",
        "| other | 7 |\n| no_pairs | 2 |", "| revision | r1 |", "| temperature | 0.5 |",
        "| seed | 3 |", "- Texts are not repeated.", "````\na ``` b\n````",
    ):  # fmt: skip
        assert line in text, line
    assert "constrained" not in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "other"


def test_one_licence_is_the_cards_and_odd_names_stay_text(tmp_path: Path) -> None:
    text = card(tmp_path, Counter({("<b>a|b</b>\n# x", "MIT"): 1}))
    assert yaml.safe_load(text.split("---")[1])["license"] == "MIT"
    assert "| \\<b\\>a\\|b\\</b\\> # x | MIT | 1 |" in text
