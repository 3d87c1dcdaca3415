"""Speed of the data pipeline on one core: ratios of pairs, measured alternately in one run.

    python tools/bench_data.py rows --text 'texts/*.jsonl.gz'
    python tools/bench_data.py packing
    python tools/bench_data.py shards
    python tools/bench_data.py tokens

rows: rows of 2,048 tokens from record shards of text, end to end, beside bare Grain with the same
tokenizer library and beside Hugging Face datasets streaming. packing: ready tokens to rows with
segments and positions, beside Grain's packers. shards: writing and reading ArrayRecord, beside the
bare library, and what its group size and compression cost. tokens: text to ids, beside the bare
tokenizer library.

Everything runs on one core and is measured in processor time, so that other work on the machine
disturbs it less. --text: JSON lines with a `text`; left out, the sample corpus.
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import importing

with importing():
    import numpy as np

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data_gen" / "sample_corpus" / "documents.jsonl"
Contender = Callable[[], int]  # does the work once; returns how many units it did


def read_texts(patterns: list[str], megabytes: float) -> list[str]:
    """Texts of JSON lines until there are so many megabytes of them."""
    paths = [Path(path) for pattern in patterns for path in sorted(glob(pattern))] or [SAMPLE]
    texts: list[str] = []
    room = megabytes * 1e6
    for path in paths:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                if not isinstance(text, str) or not text.strip():
                    continue
                room -= len(text.encode())
                texts.append(text)
                if room < 0:
                    return texts
    return texts


def alternate(
    contenders: Mapping[str, Contender], unit: str, rounds: int, base: str
) -> dict[str, dict[str, Any]]:
    """Every contender once a round, each round beginning with another; ratios within rounds."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            since = time.process_time()
            units = contenders[name]()
            speed = units / max(time.process_time() - since, 1e-9)
            if number:  # the first round warms up
                found[name].append(speed)
    table = {}
    for name, speeds in found.items():
        ratios = sorted(a / b for a, b in zip(speeds, found[base], strict=True))
        table[name] = {
            f"{unit}_per_second": round(statistics.median(speeds), 1),
            f"to {base}": [round(r, 3) for r in (ratios[0], statistics.median(ratios), ratios[-1])],
        }
    return table


def rows(texts: list[str], folder: Path, rounds: int) -> dict[str, Any]:
    """Text in record shards -> rows of 2,048 tokens."""
    import data_peers as peers

    ready = peers.Corpus(texts, folder)
    contenders: dict[str, Contender] = {
        "bare Grain": ready.bare_grain,
        "ours": ready.ours,
        "ours, best_fit": lambda: ready.ours(packing="best_fit"),
        "ours, tokenised beforehand": ready.ours_from_token_shards,
        "length index, once a corpus": ready.index,
        "Hugging Face datasets": ready.hugging_face,
    }
    return alternate(contenders, "tokens", rounds, "bare Grain")


def packing(rounds: int, tokens: int = 4_000_000) -> dict[str, Any]:
    """Ready ids -> rows with segments, positions and loss weights."""
    import data_peers as peers

    ready = peers.Ready(tokens)
    table = alternate(ready.contenders(), "tokens", rounds, "Grain first fit")
    for name, fill in ready.fill.items():
        table[name]["fill"] = round(fill, 4)
    return table


def shards(texts: list[str], folder: Path, rounds: int) -> dict[str, Any]:
    """ArrayRecord written and read, ours beside the bare library, then its options."""
    import data_peers as peers

    ready = peers.Shards(texts, folder)
    table = alternate(
        {"bare writer": ready.write_bare, "ours, writer": ready.write},
        "records",
        rounds,
        "bare writer",
    )
    table |= alternate(
        {"bare batched read": ready.read_bare, "ours, batched read": ready.read},
        "records",
        rounds,
        "bare batched read",
    )
    table["bytes, not zipped"] = {"megabytes": ready.megabytes}
    for options in peers.OPTIONS:
        table[options] = ready.try_options(options, rounds)
    return table


def tokens(texts: list[str], rounds: int) -> dict[str, Any]:
    """Text -> ids; units are megabytes of UTF-8."""
    import data_peers as peers

    table: dict[str, Any] = {}
    for name, bare, ours in peers.tokenizers(texts):
        contenders = {f"{name}, bare library": bare, f"{name}, ours": ours}
        table |= alternate(contenders, "bytes", rounds, f"{name}, bare library")
    return table


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rows", "packing", "shards", "tokens"))
    parser.add_argument("--text", nargs="*", default=[], help="JSON lines, .gz too; patterns")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of text to take at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write as well")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arguments.what == "packing":
        table = packing(arguments.rounds)
    else:
        texts = read_texts(arguments.text, arguments.megabytes)
        size = sum(len(text.encode()) for text in texts)
        print(f"{len(texts):,} texts, {size / 1e6:.1f} MB")
        with tempfile.TemporaryDirectory() as folder:
            if arguments.what == "tokens":
                table = tokens(texts, arguments.rounds)
            else:
                work = {"rows": rows, "shards": shards}[arguments.what]
                table = work(texts, Path(folder), arguments.rounds)
    for name, values in table.items():
        print(f"{name:28}", "  ".join(f"{key} {show(value)}" for key, value in values.items()))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def show(value: Any) -> str:
    """A number with its thousands apart, or minimum / median / maximum."""
    if isinstance(value, list):
        return " / ".join(f"{ratio:.2f}" for ratio in value)
    return f"{value:,}" if np.isscalar(value) else str(value)


if __name__ == "__main__":
    main()
