"""Make data_gen/sample_corpus/ out of permissively licensed public sets.

    python tools/make_sample_corpus.py --data ../shared/data

`--data` holds one folder for each source below, with the files of its repository at the commit
named. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "data_gen" / "sample_corpus"
MIN_CHARACTERS, MAX_CHARACTERS = 400, 2000
MERGE_MIN, MERGE_MAX = 600, 1800
BOOKS = (
    "austen-emma austen-persuasion austen-sense bryant-stories burgess-busterbrown "
    "carroll-alice chesterton-brown edgeworth-parents"
).split()
PASSAGES_PER_BOOK = 3

ATTRIBUTION = """# The sample corpus

{documents} documents in `documents.jsonl` and {held_out} further ones, never in the first, in
`held_out.jsonl`; one JSON object a line: `id`, `text`, `source`, `licence`. Made by
`python tools/make_sample_corpus.py --data FOLDER`; each text is that of its source, with hard
line breaks joined where the source wraps its lines.

| source | documents | held out | licence | from |
|---|---|---|---|---|
{rows}
"""
ORIGINS = {
    "pubmedqa": (
        "MIT",
        "github.com/pubmedqa/pubmedqa @ 1cbae8e92f72, `data/ori_pqal.json` (Jin et al. 2019): "
        "abstracts, sections joined by a line break",
    ),
    "fairytaleqa": (
        "Apache-2.0",
        "github.com/uci-soe/FairytaleQAData @ a24ddc173664, `data-by-train-split/section-stories` "
        "(Xu et al. 2022): adjacent sections of a story merged",
    ),
    "adaptllm": (
        "MIT",
        "github.com/microsoft/LMOps @ 4f2a9deb5f08, `adaptllm/data_samples/input-raw-texts` "
        "(Cheng et al. 2023)",
    ),
    "gutenberg": (
        "public domain",
        "Project Gutenberg books by way of github.com/teropa/nlp @ f89bc5a15b51, "
        "`resources/corpora/gutenberg`: passages",
    ),
}


@dataclass(frozen=True)
class Entry:
    """One line of the corpus."""

    id: str
    text: str
    source: str
    licence: str


def entry(source: str, name: str, text: str) -> Entry:
    """An entry with its source's licence."""
    return Entry(f"{source}/{name}", text, source, ORIGINS[source][0])


def fits(text: str) -> bool:
    """Whether a text has a length of the sample."""
    return MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS


def unwrapped(text: str) -> str:
    """Paragraphs with their hard line breaks joined."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


def spread(entries: list[Entry], count: int) -> list[Entry]:
    """`count` entries at even steps."""
    return [entries[i * len(entries) // count] for i in range(count)]


def pubmedqa(data: Path) -> list[Entry]:
    """Abstracts in the order of their PubMed ids."""
    with gzip.open(data / "pubmedqa" / "ori_pqal.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)
    texts = {name: "\n".join(articles[name]["CONTEXTS"]) for name in sorted(articles)}
    return [entry("pubmedqa", name, text) for name, text in texts.items() if fits(text)]


def fairytales(data: Path) -> dict[str, list[Entry]]:
    """By book: adjacent sections merged to MERGE_MIN..MERGE_MAX characters."""
    books: dict[str, list[Entry]] = {}
    packed = data / "fairytaleqa" / "fairytaleqa_questions_and_sections.tar.gz"
    with tarfile.open(packed) as archive:
        for name in sorted(archive.getnames()):
            if "/section-stories/" not in name or not name.endswith(".csv"):
                continue
            member = archive.extractfile(name)
            assert member is not None
            rows = csv.DictReader(io.StringIO(member.read().decode("utf-8-sig"), newline=""))
            book = Path(name).stem.removesuffix("-story")
            texts = merged([unwrapped(row["text"] or "") for row in rows])
            found = [entry("fairytaleqa", f"{book}/{i}", text) for i, text in enumerate(texts)]
            if found := [one for one in found if MERGE_MIN <= len(one.text) <= MERGE_MAX]:
                books[book] = found
    return books


def merged(sections: list[str]) -> list[str]:
    """Adjacent sections joined while the whole stays within MERGE_MAX characters."""
    texts = [""]
    for section in sections:
        joined = f"{texts[-1]}\n\n{section}".strip()
        if len(joined) <= MERGE_MAX and len(texts[-1]) < MERGE_MIN:
            texts[-1] = joined
        else:
            texts.append(section)
    return texts


def gutenberg(data: Path) -> Iterator[Entry]:
    """Passages of whole paragraphs at even places of each book."""
    for book in BOOKS:
        text = (data / "corpus_gutenberg" / f"{book}.txt").read_text(encoding="utf-8")
        paragraphs = unwrapped(text).split("\n\n")
        for number in range(PASSAGES_PER_BOOK):
            start = (number + 1) * len(paragraphs) // (PASSAGES_PER_BOOK + 1)
            passage = ""
            for paragraph in paragraphs[start:]:
                passage = f"{passage}\n\n{paragraph}".strip()
                if len(passage) >= MERGE_MIN:
                    break
            if fits(passage):
                yield entry("gutenberg", f"{book}/{start}", passage)


def adaptllm(data: Path) -> list[Entry]:
    """The sample texts, by number."""
    folder = data / "lmops_adaptllm_raw_texts"
    paths = sorted(folder.glob("*.txt"), key=lambda path: int(path.stem))
    return [entry("adaptllm", path.stem, path.read_text(encoding="utf-8")) for path in paths]


def main() -> None:
    """Write documents.jsonl, held_out.jsonl and ATTRIBUTION.md."""
    parser = argparse.ArgumentParser(description="Make the sample corpus.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the source sets")
    data: Path = parser.parse_args().data
    abstracts = spread(pubmedqa(data), 190)
    books = fairytales(data)
    names = sorted(books)
    held_names = names[::3]
    tales = [one for name in names if name not in held_names for one in books[name]]
    held_tales = [one for name in held_names for one in books[name]]
    held_abstracts = abstracts[1::3][:60]
    documents = [one for one in abstracts if one not in held_abstracts]
    documents += spread(tales, 130) + adaptllm(data) + list(gutenberg(data))[:20]
    held_out = held_abstracts + spread(held_tales, 60)
    assert not {one.text for one in documents} & {one.text for one in held_out}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, entries in (("documents.jsonl", documents), ("held_out.jsonl", held_out)):
        lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in entries]
        (OUTPUT / name).write_text("".join(lines), encoding="utf-8")
    rows = [
        f"| {source} | {sum(one.source == source for one in documents)} "
        f"| {sum(one.source == source for one in held_out)} | {licence} | {origin} |"
        for source, (licence, origin) in ORIGINS.items()
    ]
    text = ATTRIBUTION.format(
        documents=len(documents), held_out=len(held_out), rows="\n".join(rows)
    )
    (OUTPUT / "ATTRIBUTION.md").write_text(text, encoding="utf-8")
    print(f"{len(documents)} documents and {len(held_out)} held out, in {OUTPUT}")


if __name__ == "__main__":
    main()
