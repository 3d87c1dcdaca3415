"""Documents a second of the quality gates beside their peers, alternately in one run.

    python tools/bench_gates.py --data ../shared/data/raw_mixed.jsonl.gz
    python tools/bench_gates.py --data FILE --evaluations EVAL.jsonl --fields question

Every contender reads the same documents, cut to about 1 kB, once a round. Speeds are by CPU time,
ratios of the same round. Peers that are not installed (datasketch, datatrove) are named and left
out.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that it runs in a peer's environment too

from ipt_jax.core.errors import importing  # noqa: E402

with importing():
    from data_gen.quality.decontaminate import CoverageRule, DecontaminateConfig, SubstringRule
    from data_gen.quality.dedup import (
        ExactDuplicates,
        MinHashConfig,
        near_duplicate_candidates,
        near_duplicates,
    )
    from data_gen.quality.evaluations import EvaluationExample, EvaluationFile, load_evaluations
    from data_gen.quality.words import words

Work = Callable[[Sequence[str]], int]
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_PERMUTATIONS, _THRESHOLD, _SHINGLE = 128, 0.7, 5


def exact(key: Any) -> Work:
    """Our exact gate."""

    def work(texts: Sequence[str]) -> int:
        seen = ExactDuplicates(key)
        return sum(seen.add("", text) is not None for text in texts)

    return work


def plain_set(key: Callable[[str], str]) -> Work:
    """What one writes first: a set of strings."""

    def work(texts: Sequence[str]) -> int:
        keys = list(map(key, texts))
        return len(keys) - len(set(keys))

    return work


def two_sentences(text: str) -> str:
    """The first two, split at sentence ends."""
    return " ".join(_SENTENCES.split(text, maxsplit=2)[:2])


def minhash_candidates(texts: Sequence[str]) -> int:
    """Ours, from raw text to the documents that share a band with another."""
    config = MinHashConfig(_THRESHOLD, _SHINGLE, _PERMUTATIONS)
    return len(near_duplicate_candidates(len(texts), lambda ns: [texts[n] for n in ns], config))


def minhash_verified(texts: Sequence[str]) -> int:
    """Ours with every candidate compared exactly."""
    return len(near_duplicates(texts, MinHashConfig(_THRESHOLD, _SHINGLE, _PERMUTATIONS)))


def datasketch_candidates() -> Work:
    """datasketch: words of white space, shingles, its generator, query and insert."""
    datasketch: Any = importlib.import_module("datasketch")

    def shingles(text: str) -> set[bytes]:
        parts = text.lower().split()
        count = max(1, len(parts) - _SHINGLE + 1)
        return {" ".join(parts[at : at + _SHINGLE]).encode() for at in range(count)}

    def work(texts: Sequence[str]) -> int:
        index = datasketch.MinHashLSH(threshold=_THRESHOLD, num_perm=_PERMUTATIONS)
        found = 0
        # The quickest of its ways: permutations are made once.
        signatures = datasketch.MinHash.generator(map(shingles, texts), num_perm=_PERMUTATIONS)
        for number, signature in enumerate(signatures):
            found += bool(index.query(signature))
            index.insert(number, signature)
        return found

    return work


def datatrove_signatures() -> Work:
    """datatrove's MinHash signatures alone, without its files of buckets; words of white space."""
    minhash: Any = importlib.import_module("datatrove.pipeline.dedup.minhash")

    class WhiteSpace:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    minhash.load_word_tokenizer = lambda language: WhiteSpace()
    config = minhash.MinhashConfig(n_grams=_SHINGLE, num_buckets=16, hashes_per_bucket=8)
    step = minhash.MinhashDedupSignature(tempfile.gettempdir(), config)

    def work(texts: Sequence[str]) -> int:
        signed = 0
        for text in texts:
            shingles = step.get_shingles(text)
            if shingles.size:
                signed += len(step.get_signature(shingles)) > 0
        return signed

    return work


def matches(kind: Callable[..., Any], examples: Sequence[EvaluationExample]) -> Work:
    """Ours: a rule of decontamination."""
    rule = kind(examples, DecontaminateConfig())
    return lambda texts: sum(1 for _ in rule.matches(texts))


def tuple_overlap(examples: Sequence[EvaluationExample], lazily: bool) -> Work:
    """A set of tuples of 8 words; tells only whether a document shares one."""
    known: set[tuple[str, ...]] = set()
    for example in examples:
        known.update(_grams(words(example.text)))

    def work(texts: Sequence[str]) -> int:
        if lazily:
            return sum(not known.isdisjoint(_grams(words(text))) for text in texts)
        return sum(bool(known & set(_grams(words(text)))) for text in texts)

    return work


def _grams(parts: list[str]) -> Any:
    return zip(*(parts[at:] for at in range(8)), strict=False)


def contenders(
    examples: Sequence[EvaluationExample],
) -> tuple[dict[str, dict[str, Work]], dict[str, str]]:
    """By job, ours first; and the peers left out with the reason."""
    jobs: dict[str, dict[str, Work]] = {
        "exact, first two sentences": {
            "ours": exact("first_two_sentences"),
            "set of split sentences": plain_set(two_sentences),
        },
        "exact, whole text": {"ours": exact("text"), "set of texts": plain_set(str)},
        "MinHash, raw text to candidates": {"ours": minhash_candidates},
        "MinHash, candidates verified": {"ours": minhash_verified},
        "8-gram overlap": {
            "ours, coverage rule": matches(CoverageRule, examples),
            "set of tuples": tuple_overlap(examples, lazily=False),
            "isdisjoint(zip)": tuple_overlap(examples, lazily=True),
        },
        "substrings": {"ours": matches(SubstringRule, examples)},
    }
    left_out: dict[str, str] = {}
    for name, make in (("datasketch", datasketch_candidates), ("datatrove", datatrove_signatures)):
        try:
            work = make()
        except ImportError as error:
            left_out[name] = str(error)
            continue
        jobs["MinHash, raw text to candidates"][name] = work
    return jobs, left_out


def measure(work: dict[str, Work], texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Speeds and ratios to the first; each contender once a round, the order turned each round."""
    speeds: dict[str, list[float]] = {name: [] for name in work}
    found: dict[str, int] = {}
    names = list(work)
    for number in range(-1, rounds):  # the first round warms caches and does not count
        for name in names if number % 2 else reversed(names):
            fresh = [text.encode().decode() for text in texts]  # a string remembers its hash
            started = time.process_time()
            found[name] = work[name](fresh)
            seconds = time.process_time() - started
            if number >= 0:
                speeds[name].append(len(texts) / seconds)
    ours = speeds[names[0]]
    return {
        name: {
            "documents_per_second": _three(own),
            "ours_to_it": _three([mine / its for mine, its in zip(ours, own, strict=True)]),
            "found": found[name],
        }
        for name, own in speeds.items()
    }


def _three(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def read_texts(path: Path, characters: int, limit: int | None) -> list[str]:
    """The `text` of each line, cut to so many characters."""
    unpack = gzip.open if path.name.endswith(".gz") else open
    with unpack(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:characters] for line in file]
    return texts[:limit]


def show(results: dict[str, Any], left_out: dict[str, str]) -> None:
    """Print the table."""
    for job, found in results.items():
        print(f"\n{job}")
        for name, figures in found.items():
            speed, ratio = figures["documents_per_second"], figures["ours_to_it"]
            print(
                f"  {name:26} {speed['median']:>11,.0f} documents/s   ours to it "
                f"{ratio['min']:.2f} / {ratio['median']:.2f} / {ratio['max']:.2f}   "
                f"found {figures['found']}"
            )
    for name, reason in left_out.items():
        print(f"\n{name} left out: {reason}")


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="jsonl(.gz) with `text`")
    parser.add_argument("--characters", type=int, default=1000, help="of each document")
    parser.add_argument("--limit", type=int, help="documents")
    parser.add_argument("--evaluations", help="jsonl(.gz) of examples; else every 5th document")
    parser.add_argument("--fields", nargs="+", default=["question"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file")
    given = parser.parse_args()
    texts = read_texts(given.data, given.characters, given.limit)
    if given.evaluations:
        examples = load_evaluations([EvaluationFile("eval", given.evaluations, given.fields)])
    else:
        # Every second half of a document that is not measured: much text, few overlaps.
        examples = [
            EvaluationExample("made", str(n), text[len(text) // 2 :][::-1])
            for n, text in enumerate(texts[::5])
        ]
    jobs, left_out = contenders(examples)
    results = {job: measure(work, texts, given.rounds) for job, work in jobs.items()}
    show(results, left_out)
    packages = {}
    for name in ("rensa", "numpy", "datasketch", "datatrove"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    facts = {
        "documents": len(texts),
        "mean_characters": sum(map(len, texts)) / len(texts),
        "examples": len(examples),
        "rounds": given.rounds,
        "packages": packages,
        "left_out": left_out,
        "jobs": results,
    }
    if given.output is not None:
        given.output.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
