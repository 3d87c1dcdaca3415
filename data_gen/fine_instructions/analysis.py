"""What a set of instructions is made of: FineInstructions, sections 3.2 and 6.1, appendix D.

Pairs are read once, one after another: what is held of them are sums, and a count for each template
that was used.
"""

from __future__ import annotations

import functools
import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_gen.fine_instructions.analysis_page import instructions_report
from data_gen.fine_instructions.bank import bare_name, origin_of
from data_gen.fine_instructions.categories import made_of, template_digest
from data_gen.fine_instructions.drawing import BINS
from data_gen.fine_instructions.prompts import CATEGORIES
from data_gen.fine_instructions.query_sources import OTHER, SOURCES
from data_gen.fine_instructions.templates import Template
from data_gen.quality.inputs import InputShards
from data_gen.stages.cached import ProgressFactory, silent
from data_gen.stages.measurement import Measurement
from data_gen.stages.runner import Status, Usage
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import Config, NotEmpty, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record

_TOLD_EVERY = 1024  # pairs
_POINTS_A_DECADE = 10  # of the curve of templates over documents
_SHOWN = 10  # of the commonest templates
_VERBS, _OBJECTS = 20, 4  # of the sunburst, as Self-Instruct draws its own
FEW_USES = 1000
"""Most templates of the paper were used less often."""


@dataclass(frozen=True)
class InstructionAnalysis(Config):
    """Instructions and what they were made from: section 6.1, Table 4, Figure 3."""

    pairs: Annotated[list[str], NotEmpty("folders of record shards of pairs")] = field(
        default_factory=list
    )
    """Folders of shards of pairs, instantiated, judged or budgeted; those of a document stand one
    behind another, as all of these write them."""
    templates: Annotated[str, NotEmpty("the folder of the templates' shards")] = ""
    """Folder of the templates' shards, of which the bank was made."""
    nulls: list[str] = field(default_factory=list)
    """Folders of `shards/null` of `fi_instantiate`; empty: no null share."""
    instantiated: list[str] = field(default_factory=list)
    """Folders of the pairs that came with those, where `pairs` were judged or budgeted since."""
    matches: list[str] = field(default_factory=list)
    """Folders of `shards/matched` of `fi_match`; empty: nothing of what was drawn."""
    categories: list[str] = field(default_factory=list)
    """Folders of `shards/categories` of `fi_categories`; empty: no Table 4 and no Figure 3."""
    chunks: Positive = 5
    """Chunks by which documents were matched (`encoder.chunks`)."""
    output: str = "runs/analysis/instructions"
    """Folder of the results."""
    corpus: str = "corpus"
    """What the documents are called in the title."""


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · x ** exponent."""

    factor: float
    exponent: float
    r2: float
    """Share of the variance of log y that it explains."""
    since: int
    """Lowest x of the points that it was fitted to."""

    def at(self, x: float) -> float:
        """y."""
        return self.factor * x**self.exponent


def fit_power_law(points: Sequence[tuple[int, int]]) -> PowerLaw | None:
    """Least squares in log space over the last two decades of x; None where y does not vary.

    Args:
      points: (x, y), all above 0, x ascending.
    """
    last = points[-1][0] if points else 0
    found_N2 = np.log(np.array([one for one in points if 100 * one[0] >= last], float))
    if len(found_N2) < 3 or np.ptp(found_N2[:, 1]) == 0:
        return None
    x_N, y_N = found_N2.T
    exponent, constant = np.polyfit(x_N, y_N, 1)
    left = ((y_N - constant - exponent * x_N) ** 2).sum() / ((y_N - y_N.mean()) ** 2).sum()
    since = round(math.exp(x_N[0]))
    return PowerLaw(math.exp(constant), float(exponent), float(1 - left), since)


class Places:
    """Where answers were taken from, by the chunk that found the template: sums, no single ones."""

    def __init__(self, chunks: int) -> None:
        self.count_C, self.sum_C, self.square_C = np.zeros((3, chunks + 1))
        """Of each chunk; 0: those that the whole document found."""
        self.hundredths = np.zeros(101, np.int64)
        """How many lie there; the last: behind the end of what places are relative to."""

    def add(self, chunk: int, place: float) -> None:
        """`place`: 0 the beginning, 1 the end."""
        self.count_C[chunk] += 1
        self.sum_C[chunk] += place
        self.square_C[chunk] += place**2
        self.hundredths[min(int(100 * place), 100)] += 1

    def content(self) -> dict[str, Any]:
        """Means by chunk, Pearson's correlation of chunk and place, counts by hundredths."""
        some_C = self.count_C > 0
        mean_C = np.divide(self.sum_C, self.count_C, out=np.zeros_like(self.sum_C), where=some_C)
        one_C = some_C.astype(float)
        return {
            "answers": self.count_C.astype(int).tolist(),
            "means": [m if n else None for m, n in zip(mean_C.tolist(), some_C, strict=True)],
            "over_pairs": _pearson(self.count_C, self.sum_C, self.square_C),
            "over_chunk_means": _pearson(one_C, mean_C, mean_C**2),
            "hundredths": self.hundredths.tolist(),
        }


def _pearson(count_C: np.ndarray, sum_C: np.ndarray, square_C: np.ndarray) -> float | None:
    """Of the chunk's number, without 0, and a value of which each chunk has a count and sums."""
    n, chunk_C = count_C[1:].sum(), np.arange(1, len(count_C))
    if not n:
        return None
    mean_chunk, mean = (chunk_C * count_C[1:]).sum() / n, sum_C[1:].sum() / n
    together = (chunk_C * sum_C[1:]).sum() / n - mean_chunk * mean
    spreads = (chunk_C**2 * count_C[1:]).sum() / n - mean_chunk**2, square_C[1:].sum() / n - mean**2
    if min(spreads) < 1e-12:
        return None
    return float(together / math.sqrt(spreads[0] * spreads[1]))


class PairTally:
    """Pairs counted one after another."""

    def __init__(self, chunks: int) -> None:
        self.uses: Counter[bytes] = Counter()
        """Of each template that was used, by its digest."""
        self.pairs = self.documents = 0
        self.growth: list[tuple[int, int]] = []
        """(documents, templates used so far)."""
        self.in_document, self.in_seen = Places(chunks), Places(chunks)
        """Relative to the whole document, and to what of it the encoder saw."""
        self._document, self._next = "", 1.0

    def add(self, pair: Record) -> None:
        """Count a pair. Raises UserError where its record does not say what it was made of."""
        told = pair.provenance
        document, template = made_of(pair)
        if document != self._document:
            self._point(end=False)
            self._document = document
            self.documents += 1
        self.uses[template_digest(template)] += 1
        self.pairs += 1
        excerpts, chunk = told.get("answer_excerpts"), told.get("chunk")
        if not excerpts or chunk is None:
            return
        if not 0 <= chunk < len(self.in_document.count_C):
            raise UserError(
                f"chunks={len(self.in_document.count_C) - 1}: the template of the pair {pair.id!r} "
                f"was found by chunk {chunk}. Set `chunks` to the encoder's.",
                key="chunks",
                record=pair.id,
            )
        middle = middle_of(excerpts)
        self.in_document.add(chunk, middle / told["document_characters"])
        if told.get("seen_characters"):
            self.in_seen.add(chunk, middle / told["seen_characters"])

    def finish(self) -> None:
        """The last pair was counted."""
        self._point(end=True)

    def _point(self, end: bool) -> None:
        """Points are equally far apart on a logarithmic axis, but for the last."""
        if self.documents and (end or self.documents >= self._next):
            self.growth.append((self.documents, len(self.uses)))
            self._next = max(self.documents + 1, self._next * 10 ** (1 / _POINTS_A_DECADE))


def middle_of(excerpts: Sequence[Sequence[int]]) -> float:
    """Mean place of the characters of excerpts, given by first character and end."""
    lengths = [end - start for start, end in excerpts]
    middles = [(start + end) / 2 for start, end in excerpts]
    return sum(map(math.prod, zip(lengths, middles, strict=True))) / sum(lengths)


def analyse_instructions(
    config: InstructionAnalysis,
    *,
    bars: ProgressFactory = silent,
    on_start: Callable[[Path], None] = lambda folder: None,
) -> Measurement:
    """Measure what the config names and write `config.output`.

    Raises:
      UserError: no such shards, or they are not of pairs, templates, matches and categories that go
        together.
    """
    folder = Path(config.output).expanduser()
    pairs, templates = InputShards(config.pairs), InputShards([config.templates])
    others = {name: InputShards(getattr(config, name)) for name in _OTHERS if getattr(config, name)}
    on_start(folder)
    tally, began = PairTally(config.chunks), time.monotonic()
    with bars("pairs") as progress:
        for number, pair in enumerate(RecordUnits(pairs), 1):
            tally.add(pair)
            if number % _TOLD_EVERY == 0 or number == len(pairs):
                used, took = Usage(completions=number), time.monotonic() - began
                progress(Status(turns_expected=len(pairs), usage=used, fresh=used, seconds=took))
    tally.finish()
    law = fit_power_law(tally.growth)
    values: dict[str, Any] = {
        "corpus": config.corpus,
        "pairs": tally.pairs,
        "documents": tally.documents,
        "templates_used": len(tally.uses),
        "commonest_share": max(tally.uses.values(), default=0) / max(1, tally.pairs),
        "used_few_times": sum(uses < FEW_USES for uses in tally.uses.values()),
        "by_uses": _by_uses(tally.uses),
        "growth": [(x, y, law.at(x) if law and x >= law.since else None) for x, y in tally.growth],
        "power_law": law and asdict(law),
        "in_document": tally.in_document.content(),
        "in_seen": tally.in_seen.content(),
        **_by_template(templates, tally.uses),
    }
    if not tally.pairs or values["pairs_of_other_templates"] == tally.pairs:
        said = "made of one of them" if tally.pairs else "there at all"
        raise UserError(
            f"templates={config.templates}: no pair of `pairs` is {said}: name the pairs, and the "
            "templates that they were made of.",
            key="templates",
            path=config.templates,
        )
    if "nulls" in others:
        null, made = len(others["nulls"]), len(others.get("instantiated", pairs))
        values["null"] = {"null": null, "pairs": made, "share": null / max(1, null + made)}
    if "matches" in others:
        values["drawn"] = _drawn(others["matches"])
    if "categories" in others:
        values["categories"] = _categorised(others["categories"], tally.uses)
    report = instructions_report(values)
    report.write(folder)
    return report


_OTHERS = ("nulls", "instantiated", "matches", "categories")


def _by_uses(uses: Mapping[bytes, int]) -> dict[str, Any]:
    """Templates by how many pairs were made of them: edges of columns, and counts between."""
    found_N = np.fromiter(uses.values(), np.int64, len(uses))
    decades = math.ceil(math.log10(found_N.max(initial=1) + 1))
    edges = sorted({round(10 ** (step / 5)) for step in range(5 * decades + 1)})
    return {"edges": edges, "counts": np.histogram(found_N, edges)[0].tolist()}


def _by_template(templates: InputShards, uses: Mapping[bytes, int]) -> dict[str, Any]:
    """Templates and pairs by origin and number of tags; the commonest templates."""
    counts = {key: Counter[str]() for key in ("bank", "pairs")}
    tags = {key: np.zeros(BINS, np.int64) for key in counts}
    commonest: list[tuple[int, int, str, str]] = []
    for number, record in enumerate(RecordUnits(templates)):
        used, origin = uses.get(template_digest(record.id), 0), _source_of(origin_of(record))
        place = _bin(Template(record.text, "").complexity)
        for key, count in (("bank", 1), ("pairs", used)):
            counts[key][origin] += count
            tags[key][place] += count
        if used:
            one = (used, -number, record.text, origin)
            heapq.heappush(commonest, one)
            if len(commonest) > _SHOWN:
                heapq.heappop(commonest)
    return {
        "templates_in_bank": len(templates),
        "pairs_of_other_templates": sum(uses.values()) - counts["pairs"].total(),
        "by_origin": {key: dict(found.most_common()) for key, found in counts.items()},
        "by_tags": {key: found.tolist() for key, found in tags.items()},
        "commonest": [(text, origin, n) for n, _, text, origin in sorted(commonest, reverse=True)],
    }


@functools.lru_cache(maxsize=1024)
def _source_of(origin: str) -> str:
    """The name in SOURCES, where data that others made have a longer one (`allenai/gooaq`)."""
    bare = bare_name(origin)
    long = (name for name in SOURCES if len(name) > 4 and name != OTHER.name)
    return next((name for name in long if bare_name(name) in bare), origin)


def _drawn(matches: InputShards) -> dict[str, Any]:
    """What was drawn for documents, and how much of them the encoder saw."""
    origins, tags, documents = Counter[str](), np.zeros(BINS, np.int64), Counter[str]()
    share = 0.0
    for record in RecordUnits(matches):
        for one in _field(record, "templates", "matches"):
            origins[_source_of(one["origin"])] += 1
            tags[_bin(one["tags"])] += 1
        documents["all"] += 1
        seen = record.provenance.get("seen_characters")
        if seen is not None:
            documents["known"] += 1
            documents["cut"] += seen < len(record.text.rstrip())
            share += seen / max(1, len(record.text))
    return {
        "documents": documents["all"],
        "templates": origins.total(),
        "by_origin": dict(origins.most_common()),
        "by_tags": tags.tolist(),
        "documents_cut_off": documents["cut"] if documents["known"] else None,
        "seen_share": share / documents["known"] if documents["known"] else None,
    }


def _categorised(categories: InputShards, uses: Mapping[bytes, int]) -> dict[str, Any]:
    """Pairs by category, and by verb and object of the task: all, and those of medicine."""
    told, found = Counter[str](), Counter[str]()
    tasks = {key: Counter[tuple[str, str]]() for key in ("all", "medicine")}
    for record in RecordUnits(categories):
        belongs, (template,) = (_field(record, k, "categories") for k in ("categories", "parents"))
        used = uses.get(template_digest(template), 0)
        told["pairs"] += used
        told["templates"] += bool(used)
        found.update(dict.fromkeys(belongs, used))
        for key in ("all", *belongs):
            if key in tasks:
                tasks[key][record.provenance["verb"], record.provenance["object"]] += used
    return {
        **told,
        "by_category": {name: found[name] for name in CATEGORIES},
        "tasks": {key: _rings(counts) for key, counts in tasks.items()},
    }


def _rings(tasks: Mapping[tuple[str, str], int]) -> list[tuple[str, list[tuple[str, int]]]]:
    """The commonest verbs with their commonest objects; what is left of both as others."""
    verbs: dict[str, Counter[str]] = defaultdict(Counter)
    for (verb, what), count in tasks.items():
        verbs[verb][what] += count
    ordered = sorted(verbs.items(), key=lambda one: -one[1].total())
    rings = []
    for verb, objects in ordered[:_VERBS]:
        shown = objects.most_common(_OBJECTS)
        rest = objects.total() - sum(count for _, count in shown)
        rings.append((verb, [*shown, ("others", rest)]))
    left = sum(objects.total() for _, objects in ordered[_VERBS:])
    return [*rings, ("other verbs", [("others", left)])]


def _field(record: Record, name: str, key: str) -> Any:
    value = record.provenance.get(name)
    if isinstance(value, list):
        return value
    raise UserError(
        f"the record {record.id!r} has no list `{name}` in its provenance: `{key}` takes shards "
        f"of {'fi_match' if key == 'matches' else 'fi_categories'}.",
        key=key,
        record=record.id,
    )


def _bin(tags: int) -> int:
    return min(max(tags, 1), BINS) - 1
