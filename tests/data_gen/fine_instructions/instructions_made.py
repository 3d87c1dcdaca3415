"""A few instructions with all that they were made from, their numbers small enough to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_gen.fine_instructions.analysis import InstructionAnalysis
from ipt_jax.core.records import Record
from tests.data_gen.fine_instructions.stages import write_shards

# Name -> origin of its query, tags.
TEMPLATES = {
    "t0": ("allenai/gooaq", 1),
    "t1": ("reddit_qa", 2),
    "t2": ("gooaq", 12),
    "7": ("my/own", 1),
}
# Document, template, chunk, excerpts of the answer; each document has 1,000 characters.
PAIRS = [
    ("d0", "t0", 1, [[100, 300]]),
    ("d0", "t1", 5, [[700, 900]]),
    ("d1", "t0", 1, [[50, 150]]),
    ("d1", "t2", 5, [[300, 320], [380, 460]]),  # the middle of its characters is 398
    ("d2", "t0", 0, [[0, 1000]]),
    ("d3", "t0", 3, [[490, 510]]),
]
SEEN = {"d1": 500}  # characters that the encoder saw, where not all
CATEGORIES = {"t0": ["science", "reasoning"], "t2": ["medicine"], "7": ["math"]}
TASKS = {"t0": ("give", "advice"), "t2": ("name", "cause"), "7": ("name", "sum")}


def pair(document: str, template: str, chunk: Any = 1, excerpts: Any = ((0, 9),)) -> Record:
    told = {
        "parents": [document],
        "template": template,
        "chunk": chunk,
        "answer_excerpts": excerpts,
    }
    sizes = {"document_characters": 1000, "seen_characters": SEEN.get(document, 1000)}
    return Record(f"{document}#{template}", "text", "fi_instantiate", provenance=told | sizes)


def write_instructions(folder: Path, says: str = "", **changed: Any) -> InstructionAnalysis:
    """All shards below `folder`; `says` stands in each template."""
    templates = [
        Record(name, f"{says}What of {'<fi>a thing</fi>' * tags}?", "fi_templates",
               provenance={"query_source": origin, "documents": "Texts."})
        for name, (origin, tags) in TEMPLATES.items()
    ]  # fmt: skip
    drawn = [{"origin": "gooaq", "tags": 1}, {"origin": "reddit_qa", "tags": 11}]
    matches = [
        Record(
            name, "x" * 1000, "web", provenance={"templates": drawn[:n], "seen_characters": seen}
        )
        for name, n, seen in (("d0", 2, 1000), ("d1", 1, 500), ("d2", 1, None))
    ]
    told = [
        Record(f"fi_categories/{name}", "A task.", "fi_categories",
               provenance={"parents": [name], "categories": of, "verb": TASKS[name][0],
                           "object": TASKS[name][1]})
        for name, of in CATEGORIES.items()
    ]  # fmt: skip
    shards = {
        "pairs": [pair(*one) for one in PAIRS],
        "templates": templates,
        "nulls": [Record(f"null{n}", "x", "fi_instantiate") for n in range(2)],
        "matches": matches,
        "categories": told,
    }
    given = {name: [write_shards(folder / name, records)] for name, records in shards.items()}
    given["instantiated"] = given["pairs"] * 3
    return InstructionAnalysis(
        **{**given, "templates": given["templates"][0], "output": str(folder / "out"), **changed}
    )
