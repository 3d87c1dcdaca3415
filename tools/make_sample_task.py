"""Build the two sample tasks' data from held-out documents.

python tools/make_sample_task.py --held-out data_gen/sample_corpus/held_out.jsonl

`sample_continuation`: the words before a sentence, and which of four sentences comes next. The
three wrong ones come from other documents of the same source and are of similar length, so that
neither subject nor length gives the answer away. `sample_perplexity`: whole texts.
"""

import argparse
import hashlib
import json
import random
import re
from collections import defaultdict
from pathlib import Path

TASKS_FOLDER = Path(__file__).parent.parent / "ipt_jax" / "evaluation" / "tasks"
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]*[A-Z])")
SENTENCE_WORDS = range(5, 25)
CUTS = (0.5, 0.75)  # where in a document the question is asked, as shares of its sentences


def sentences(text: str) -> list[str]:
    """Split `text` at ends of sentences; good enough for prose, and nothing to install."""
    found, start = [], 0
    flat = " ".join(text.split())
    for match in SENTENCE_END.finditer(flat):
        found.append(flat[start : match.end()].strip())
        start = match.end()
    return [*found, flat[start:].strip()]


def seeded(*key: object) -> random.Random:
    """A generator of its own for each draw, so that adding a document changes no other item."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def by_hash(item: dict) -> bytes:
    """A fixed order that has nothing to do with what an item says."""
    return hashlib.sha256(item["id"].encode()).digest()


def continuation_items(documents: list[dict], context_words: int, cuts: tuple) -> list[dict]:
    """Items {id, source, context, choices, answer}; at most one for each cut of a document."""
    split = {document["id"]: sentences(document["text"]) for document in documents}
    pool: dict[str, list[tuple[str, str]]] = defaultdict(list)  # source -> (document, sentence)
    for document in documents:
        for sentence in split[document["id"]][1:]:
            if len(sentence.split()) in SENTENCE_WORDS:
                pool[document["source"]].append((document["id"], sentence))
    items = []
    for document in documents:
        parts = split[document["id"]]
        asked: set[int] = set()
        for cut in cuts:
            at = round(cut * len(parts))
            while at < len(parts) and len(parts[at].split()) not in SENTENCE_WORDS:
                at += 1
            if at in asked or not 1 <= at < len(parts):
                continue
            asked.add(at)
            true = parts[at]
            others = [s for name, s in pool[document["source"]] if name != document["id"]]
            others = sorted(set(others) - {true}, key=lambda s: (abs(len(s) - len(true)), s))
            if len(others) < 12:
                continue
            draw = seeded(document["id"], at)
            choices = draw.sample(others[:12], 3)
            answer = draw.randrange(4)
            choices.insert(answer, true)
            context = " ".join(" ".join(parts[:at]).split()[-context_words:])
            items.append(
                {
                    "id": f"{document['id']}:{at}",
                    "source": document["source"],
                    "context": context,
                    "choices": choices,
                    "answer": answer,
                }
            )
    return items


def perplexity_items(documents: list[dict], count: int, words: int) -> list[dict]:
    """`count` documents, taken from the sources in turn, cut after `words` words."""
    by_source: dict[str, list[dict]] = defaultdict(list)
    for document in documents:
        by_source[document["source"]].append(document)
    queues = [by_source[source] for source in sorted(by_source)]
    taken: list[dict] = []
    for turn in range(max(map(len, queues))):
        taken += [queue[turn] for queue in queues if turn < len(queue)]
    return [
        {
            "id": document["id"],
            "source": document["source"],
            "text": " ".join(document["text"].split()[:words]),
        }
        for document in taken[:count]
    ]


def write(name: str, items: list[dict], folder: Path) -> None:
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    (folder / name).write_text(lines, encoding="utf-8")
    print(f"{folder / name}: {len(items)} items, {len(lines.encode()):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the two sample tasks' data.")
    parser.add_argument("--held-out", type=Path, default="data_gen/sample_corpus/held_out.jsonl")
    parser.add_argument("--output", type=Path, default=TASKS_FOLDER)
    parser.add_argument("--context-words", type=int, default=48)
    parser.add_argument("--items", type=int, default=160)
    parser.add_argument("--perplexity-documents", type=int, default=40)
    parser.add_argument("--perplexity-words", type=int, default=200)
    options = parser.parse_args()
    lines = options.held_out.read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines if line.strip()]
    items = continuation_items(documents, options.context_words, CUTS)
    kept = {item["id"] for item in sorted(items, key=by_hash)[: options.items]}
    items = [item for item in items if item["id"] in kept]
    write("sample_continuation.jsonl", items, options.output)
    write(
        "sample_perplexity.jsonl",
        perplexity_items(documents, options.perplexity_documents, options.perplexity_words),
        options.output,
    )


if __name__ == "__main__":
    main()
