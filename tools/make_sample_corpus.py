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
from typing import Any

from ipt_jax.core.errors import importing

with importing():
    from data_gen.quality.dedup import MinHashConfig, NearDuplicateGate
    from data_gen.quality.gate import RecordList
    from data_gen.quality.moderation import ModerationConfig, ModerationGate
    from data_gen.quality.rules import RulesConfig, RulesGate
    from ipt_jax.core.records import Record

OUTPUT = Path(__file__).resolve().parent.parent / "data_gen" / "sample_corpus"
MIN_CHARACTERS, MAX_CHARACTERS = 400, 2000
MERGE_MIN, MERGE_MAX = 600, 1800
BOOKS = (
    "austen-emma austen-persuasion austen-sense bryant-stories burgess-busterbrown "
    "carroll-alice chesterton-brown edgeworth-parents"
).split()
PASSAGES_PER_BOOK = 3

SHORT_QUERY, LONG_QUERY = 3, 600  # words, characters
# How many of each source, in the order of the file.
QUERIES = {
    "chatbot_arena": 80,
    "oasst1": 120,
    "expertqa": 160,
    "self_instruct": 100,
    "awesome_chatgpt_prompts": 40,
}
TALK_TO_A_MODEL = ("chatbot_arena", "oasst1")
# What no sample should ask for, beside the rules of data_gen/quality/moderation_rules.yaml.
NOT_FOR_ALL = re.compile(
    r"\b(?:sex\w*|porn\w*|nud\w+|erotic\w*|crotch|flirt\w*|kill\w*|suicid\w*|murder\w*|rape\w*|"
    r"weapons?|guns?|bombs?|terror\w*|attack\w*|violen\w*|fight|drugs?|cocaine|synthesi[sz]e|hack\w*|"
    r"exploit\w*|malware|shell ?code|racis\w*|nazi\w*|hitler|genocide|offensive|\w*stereotype\w*|"
    r"psychopath|address of|democrats?|republicans?)\b|\d{3}-\d{3}-\d{4}|@\w+\.\w",
    re.IGNORECASE,
)

ATTRIBUTION = """# The sample corpus

{documents} documents in `documents.jsonl` and {held_out} further ones, never in the first, in
`held_out.jsonl`; one JSON object a line: `id`, `text`, `source`, `licence`. Made by
`python tools/make_sample_corpus.py --data FOLDER`; each text is that of its source, with hard
line breaks joined where the source wraps its lines.

| source | documents | held out | licence | from |
|---|---|---|---|---|
{rows}

{queries} queries of people in `queries.jsonl`, each with whether it was put to a language model
(`talks_to_a_model`): English, at most {characters} characters, as they were asked.

| source | queries | licence | from |
|---|---|---|---|
{query_rows}
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
QUERY_ORIGINS = {
    "chatbot_arena": (
        "Apache-2.0",
        "github.com/lmarena/arena-hard-auto @ 196f6b826783, `data/arena-hard-v0.1/question.jsonl`: "
        "prompts of Chatbot Arena",
    ),
    "oasst1": (
        "Apache-2.0",
        "github.com/LAION-AI/Open-Assistant @ f1e6ed9526f5, `model/model_eval/manual/data` "
        "(Köpf et al. 2023): first messages that people wrote",
    ),
    "expertqa": (
        "MIT",
        "github.com/chaitanyamalaviya/ExpertQA @ 1aa7ba81bd4c, `data/r1_data_anon.jsonl` "
        "(Malaviya et al. 2023)",
    ),
    "self_instruct": (
        "Apache-2.0",
        "github.com/yizhongw/self-instruct @ 0b26ccaa4159, `data/seed_tasks.jsonl`, `human_eval` "
        "(Wang et al. 2022): instructions with their first input",
    ),
    "awesome_chatgpt_prompts": (
        "CC0",
        "github.com/f/awesome-chatgpt-prompts @ 94deb7a76c84, `prompts.csv`",
    ),
}


@dataclass(frozen=True)
class Entry:
    """One line of the corpus."""

    id: str
    text: str
    source: str
    licence: str


@dataclass(frozen=True)
class Query(Entry):
    """One line of the queries."""

    talks_to_a_model: bool


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


def spread[E: Entry](entries: list[E], count: int) -> list[E]:
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


def lines_of(path: Path) -> Iterator[Any]:
    """Values of a file of JSON lines, packed or not."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        yield from map(json.loads, file)


def asked(data: Path) -> Iterator[tuple[str, str, str]]:
    """Source, id and text of every query of the sources."""
    for row in lines_of(data / "queries_arena_hard" / "arena-hard-v0.1_question.jsonl"):
        yield "chatbot_arena", row["uid"], row["prompt"]
    for row in lines_of(data / "oasst_sample" / "en_100_message.jsonl.gz"):
        if not row["synthetic"]:
            yield "oasst1", row["message_id"], row["text"]
    rows = lines_of(data / "oasst_sample" / "prompt_lottery_en_250_text.jsonl")
    for number, text in enumerate(rows, 1):
        yield "oasst1", f"lottery/{number}", text
    for number, row in enumerate(lines_of(data / "expertqa" / "r1_data_anon.jsonl"), 1):
        yield "expertqa", str(number), row["question"]
    for name in ("seed_tasks", "user_oriented_instructions"):
        for row in lines_of(data / "self_instruct" / f"{name}.jsonl"):
            parts = (row["instruction"], row["instances"][0]["input"])
            yield "self_instruct", row["id"], "\n\n".join(filter(None, parts))
    with open(
        data / "awesome_chatgpt_prompts" / "prompts.csv", encoding="utf-8", newline=""
    ) as file:
        for row in csv.DictReader(file):
            yield "awesome_chatgpt_prompts", row["act"], row["prompt"]


def queries(data: Path) -> list[Query]:
    """Of each source so many as QUERIES says, at even steps of those that pass the gates."""
    found = [
        Query(
            f"{source}/{name}", text.replace("\r\n", "\n").strip(), source,
            QUERY_ORIGINS[source][0], source in TALK_TO_A_MODEL,
        )
        for source, name, text in asked(data)
        if not NOT_FOR_ALL.search(text)
    ]  # fmt: skip
    rules = RulesConfig(
        min_words=SHORT_QUERY,
        max_characters=LONG_QUERY,
        min_alphabetic=0.6,
        languages=["en"],
        min_language_score=0.9,
    )
    for gate in (
        RulesGate(rules),
        ModerationGate(ModerationConfig()),
        NearDuplicateGate(MinHashConfig()),
    ):
        records = [Record(one.id, one.text, one.source) for one in found]
        gate.prepare(RecordList(records))
        verdicts = gate.check(records)
        found = [one for one, wrong in zip(found, verdicts, strict=True) if wrong is None]
    return [
        one
        for source, count in QUERIES.items()
        for one in spread([one for one in found if one.source == source], count)
    ]


def main() -> None:
    """Write documents.jsonl, held_out.jsonl, queries.jsonl and ATTRIBUTION.md."""
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
    real = queries(data)
    files = {"documents": documents, "held_out": held_out, "queries": real}
    for name, entries in files.items():
        lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in entries]
        (OUTPUT / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = [
        f"| {source} | {sum(one.source == source for one in documents)} "
        f"| {sum(one.source == source for one in held_out)} | {licence} | {origin} |"
        for source, (licence, origin) in ORIGINS.items()
    ]
    query_rows = [
        f"| {source} | {QUERIES[source]} | {licence} | {origin} |"
        for source, (licence, origin) in QUERY_ORIGINS.items()
    ]
    text = ATTRIBUTION.format(
        documents=len(documents),
        held_out=len(held_out),
        rows="\n".join(rows),
        queries=len(real),
        characters=LONG_QUERY,
        query_rows="\n".join(query_rows),
    )
    (OUTPUT / "ATTRIBUTION.md").write_text(text, encoding="utf-8")
    print(
        f"{len(documents)} documents and {len(held_out)} held out, {len(real)} queries, in {OUTPUT}"
    )


if __name__ == "__main__":
    main()
