"""What matching costs: pooling, embedding, the index; and what 18M templates and 1B documents take.

    python tools/bench_matching.py pooling
    python tools/bench_matching.py embedding --model all-minilm-l6-v2 --text 'texts/*.jsonl.gz'
    python tools/bench_matching.py index --store runs/vectors --count 1000000
    python tools/bench_matching.py capacity --figures figures.json

pooling: Gaussian pooling as one product beside a loop over its kernels. embedding: documents/s
with six vectors each beside plain sentence-transformers with one. index: each candidate on real
vectors: build, bytes, queries/s of 100 neighbours, recall@10 against exact search, autofaiss's
choice as peer where it is installed. Vectors are those of passages of the texts, and are kept in
--store. capacity: from the figures that the others wrote, or from rates given by hand.

Contenders take turns in one run and ratios are of the same round. --output adds to a JSON file.
--text: JSON lines with a `text`; left out, the sample corpus.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError, importing

with importing():
    import numpy as np
    from bench_data import read_texts

    from data_gen.embedding.build_index import (
        CANDIDATES,
        IndexConfig,
        measure_index,
        name_factory,
        train_index,
    )
    from data_gen.embedding.embedder import EncoderConfig, encoder_folder, open_embedder
    from data_gen.embedding.index import exact_search
    from data_gen.embedding.store import VectorStore, write_vectors
    from ipt_jax.core.configuration import run_main

Contender = Callable[[], int]  # does the work once; returns how many units it did
RATES = (
    *("bytes_per_vector", "queries_per_second"),
    *("documents_per_second", "descriptions_per_second"),
)
TEMPLATES, DOCUMENTS, VECTORS = 18_000_000, 1_000_000_000, 6
SHORT = "ours, passages of 40 words"
WORDS = 40  # of a passage: a description is about as long
FLAT, RECALL = "Flat", "recall_at_10"


def alternate(
    contenders: Mapping[str, Contender], unit: str, rounds: int, base: str
) -> dict[str, dict[str, Any]]:
    """Every contender once a round, each round beginning with another; by processor time."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            since = time.process_time()
            units = contenders[name]()
            if number:  # the first round warms up
                speeds[name].append(units / (time.process_time() - since))
    table = {}
    for name, own in speeds.items():
        ratios = sorted(a / b for a, b in zip(own, speeds[base], strict=True))
        spread = [round(r, 3) for r in (ratios[0], statistics.median(ratios), ratios[-1])]
        table[name] = {f"{unit}_per_second": round(statistics.median(own), 1), f"to {base}": spread}
    return table


def pooling(rounds: int, width: int, batch: int) -> dict[str, Any]:
    """Token vectors to six vectors, in one thread."""
    import torch

    from data_gen.embedding.pooling import GaussianPooling

    torch.set_num_threads(1)
    pool, table = GaussianPooling(), {}

    def loop(hidden_BTE: torch.Tensor, mask_BT: torch.Tensor) -> list[torch.Tensor]:
        """Appendix B kernel by kernel."""
        mask_BT1 = mask_BT.float()[..., None]
        length_B1 = mask_BT.sum(1, keepdim=True)
        place_BT = mask_BT.cumsum(1)
        found = [(hidden_BTE * mask_BT1).sum(1) / length_B1]
        for k in range(1, pool.num_chunks + 1):
            away_BT = (place_BT - k / (pool.num_chunks + 1) * length_B1) / (pool.sigma * length_B1)
            weight_BT1 = (-0.5 * away_BT**2).exp()[..., None] * mask_BT1
            found.append((hidden_BTE * weight_BT1).sum(1) / weight_BT1.sum(1))
        return found

    for tokens in (128, 512):
        hidden_BTE = torch.randn(batch, tokens, width)
        mask_BT = torch.ones(batch, tokens, dtype=torch.int64)
        with torch.inference_mode():
            apart = (pool(hidden_BTE, mask_BT) - torch.stack(loop(hidden_BTE, mask_BT), 1)).abs()
            assert apart.max() < 1e-4, "the loop computes something else"
            contenders: dict[str, Contender] = {
                f"loop, {tokens} tokens": lambda h=hidden_BTE, m=mask_BT: len(loop(h, m)[0]),
                f"one product, {tokens} tokens": lambda h=hidden_BTE, m=mask_BT: len(pool(h, m)),
            }
            table |= alternate(contenders, "documents", rounds, f"loop, {tokens} tokens")
    return table


def embedding(texts: Sequence[str], model: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Texts to vectors by the same model, batches and number of tokens, in one thread."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    config = EncoderConfig(model=model, max_tokens=tokens)
    ours = open_embedder(config)
    plain = SentenceTransformer(str(encoder_folder(config)))
    plain.max_seq_length = tokens
    contenders: dict[str, Contender] = {
        "sentence-transformers, one vector": lambda: len(
            plain.encode(list(texts), batch_size=config.batch_size, show_progress_bar=False)
        ),
        "ours, six vectors": lambda: len(ours.embed(texts)),
    }
    table = alternate(contenders, "documents", rounds, "sentence-transformers, one vector")
    table["ours, six vectors"]["width"] = ours.width
    passages = Passages(texts, 256)
    short = [text for _, text in passages.read(range(len(passages)))]
    alone = {SHORT: lambda: len(ours.embed(short))}
    return table | alternate(alone, "documents", rounds, SHORT)


class Passages:
    """Passages of texts, each of so many words, without those that came before."""

    def __init__(self, texts: Sequence[str], count: int) -> None:
        seen: dict[str, None] = {}
        for text in texts:
            words = text.split()
            for first in range(0, len(words), WORDS):
                seen.setdefault(" ".join(words[first : first + WORDS]))
            if len(seen) >= count:
                break
        self._passages = list(seen)[:count]

    def __len__(self) -> int:
        return len(self._passages)

    def read(self, numbers: Sequence[int], /) -> list[tuple[str, str]]:
        return [(str(number), self._passages[number]) for number in numbers]


def index(
    store: VectorStore, count: int, factories: Sequence[str], recall: float
) -> dict[str, Any]:
    """Each factory on the same vectors, with queries that are not among them."""
    config = IndexConfig(recall=recall)
    all_NE = store.vectors[:, 0]
    queries = min(config.measure_queries, len(all_NE) // 10)
    vectors_NE = all_NE[queries : queries + count].astype(np.float32)
    queries_QE = all_NE[:queries].astype(np.float32)
    since = time.perf_counter()
    exact_search(vectors_NE, queries_QE, 100)
    flat = queries / (time.perf_counter() - since)
    table: dict[str, Any] = {
        FLAT: {
            "vectors": len(vectors_NE),
            "width": vectors_NE.shape[1],
            RECALL: 1.0,
            "bytes_per_vector": 4 * vectors_NE.shape[1],
            "queries_per_second": round(flat, 1),
        }
    }
    centroids: dict[int, np.ndarray] = {}
    for factory in factories:
        name = name_factory(factory, *vectors_NE.shape)
        since = time.perf_counter()
        made = train_index(name, vectors_NE, centroids, "auto")
        made.add(vectors_NE)
        seconds = time.perf_counter() - since
        found = measure_index(made, name, vectors_NE, queries_QE, False, seconds, config)
        table[name] = {
            RECALL: round(found.recall, 4),
            "reached": found.recall >= recall,
            "probes": found.probes,
            "bytes_per_vector": found.bytes_per_vector,
            "queries_per_second": round(found.queries_per_second, 1),
            "to Flat": round(found.queries_per_second / flat, 1),
            "build_seconds": round(seconds, 1),
        }
        print(f"{name}: {table[name]}", flush=True)
    return table | autofaiss(vectors_NE, queries_QE, flat)


def autofaiss(vectors_NE: np.ndarray, queries_QE: np.ndarray, flat: float) -> dict[str, Any]:
    """The peer's choice for the memory of a byte a dimension; left out where it is not there."""
    try:
        from autofaiss import build_index as choose  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"autofaiss left out: {error}")
        return {}
    since = time.perf_counter()
    made, about = choose(
        vectors_NE,
        save_on_disk=False,
        metric_type="ip",
        max_index_memory_usage=f"{vectors_NE.nbytes // 4}B",
    )
    seconds = time.perf_counter() - since
    best = exact_search(vectors_NE, queries_QE, 10)[0]
    rows = made.search(queries_QE, 10)[1]
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(best, rows, strict=True)])
    since = time.perf_counter()
    made.search(queries_QE, 100)
    speed = len(queries_QE) / (time.perf_counter() - since)
    return {
        f"autofaiss: {about['index_key']}": {
            RECALL: round(float(recall), 4),
            "queries_per_second": round(speed, 1),
            "to Flat": round(speed / flat, 1),
            "build_seconds": round(seconds, 1),
        }
    }


def capacity(figures: Mapping[str, Any], given: Mapping[str, float | None]) -> dict[str, Any]:
    """18M templates and 1B documents from measured rates.

    Time for a query grows with √N where there are 4 √N lists: half of it finds the lists, the
    other half reads as many vectors as a list has. Building grows with N.
    """
    rates: dict[str, float] = {key: value for key, value in given.items() if value is not None}
    found = figures.get("index", {})
    if FLAT in found:
        flat, others = found[FLAT], [one for one in found.values() if one.get("probes")]
        # The fastest of those that reach the recall; where none does, the best.
        own = max(
            others,
            key=lambda one: (
                one["reached"],
                one["queries_per_second" if one["reached"] else RECALL],
            ),
        )
        grown = flat["vectors"] / TEMPLATES
        rates.setdefault("width", flat["width"])
        rates.setdefault("bytes_per_vector", own["bytes_per_vector"])
        rates.setdefault("queries_per_second", own["queries_per_second"] * math.sqrt(grown))
        rates.setdefault("build_seconds", own["build_seconds"] / grown)
    if "embedding" in figures:
        ours = figures["embedding"]["ours, six vectors"]
        rates.setdefault("documents_per_second", ours["documents_per_second"])
        passages = figures["embedding"][SHORT]["documents_per_second"]
        rates.setdefault("descriptions_per_second", passages)
        rates.setdefault("width", ours["width"])
    rates.setdefault("build_seconds", 0.0)
    needed = (*RATES, "width")
    if missing := [name for name in needed if name not in rates]:
        said = f"no figure of {', '.join(missing)}: measure it, or give --{missing[0]}."
        raise UserError(said, key=missing[0])
    width, hours = rates["width"], 3600
    seconds = DOCUMENTS / rates["documents_per_second"]
    bank_seconds = TEMPLATES / rates["descriptions_per_second"]
    return {
        "vectors of 18M descriptions, on disk": f"{TEMPLATES * width * 2 / 1e9:,.1f} GB",
        "index of them, mapped": f"{TEMPLATES * rates['bytes_per_vector'] / 1e9:,.1f} GB",
        "building it, this machine": f"{rates['build_seconds'] / hours:,.1f} hours",
        "embedding them": f"{bank_seconds / hours:,.0f} encoder hours",
        "embedding 1B documents": f"{seconds / hours:,.0f} encoder hours",
        "their vectors, if they are kept": f"{DOCUMENTS * VECTORS * width * 2 / 1e12:,.1f} TB",
        "6B queries": f"{DOCUMENTS * VECTORS / rates['queries_per_second'] / hours:,.0f} "
        "machine hours",
        "rates": {name: round(value, 2) for name, value in sorted(rates.items())},
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pooling", "embedding", "index", "capacity"))
    parser.add_argument("--text", nargs="*", default=[], help="JSON lines, .gz too; patterns")
    parser.add_argument("--megabytes", type=float, default=1.0, help="of text to take at most")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--tokens", type=int, default=256, help="of a document that are seen")
    parser.add_argument("--store", help="folder of vectors, made where missing")
    parser.add_argument("--count", type=int, default=20_000, help="vectors of the index")
    parser.add_argument("--factories", nargs="*", default=list(CANDIDATES))
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--width", type=int, help="E: of pooling 1024; of capacity as measured")
    parser.add_argument("--rounds", type=int, default=5)
    for rate in RATES:
        parser.add_argument(f"--{rate}", type=float, help="capacity: instead of the measured one")
    parser.add_argument("--figures", type=Path, help="capacity: what --output wrote")
    parser.add_argument("--output", type=Path, help="JSON file to add to")
    given = parser.parse_args()
    if given.what == "pooling":
        table = pooling(given.rounds, given.width or 1024, batch=32)
    elif given.what == "embedding":
        texts = read_texts(given.text, given.megabytes)
        table = embedding(texts, given.model, given.tokens, given.rounds)
    elif given.what == "index":
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(given, Path(given.store or folder))
            table = index(store, given.count, given.factories, given.recall)
    else:
        figures = json.loads(given.figures.read_text()) if given.figures else {}
        table = capacity(figures, {name: getattr(given, name) for name in (*RATES, "width")})
    for name, values in table.items():
        shown = values.items() if isinstance(values, dict) else [("", values)]
        print(f"{name:36}", "  ".join(f"{key} {value}" for key, value in shown))
    if given.output is not None:
        before = json.loads(given.output.read_text()) if given.output.is_file() else {}
        given.output.write_text(json.dumps(before | {given.what: table}, indent=1) + "\n")


def open_store(given: argparse.Namespace, folder: Path) -> VectorStore:
    """The vectors of --store, made of passages of the texts where they are not there."""
    if (folder / "store.json").is_file() and not given.text:
        return VectorStore(folder)
    asked = min(IndexConfig().measure_queries, given.count // 9 + 1)
    passages = Passages(read_texts(given.text, given.megabytes), given.count + asked)
    print(f"embedding {len(passages):,} passages into {folder}", flush=True)
    embedder = open_embedder(EncoderConfig(model=given.model, chunks=0, max_tokens=given.tokens))
    return write_vectors(folder, passages, embedder, f"passages-{len(passages)}")


if __name__ == "__main__":
    run_main(main)
