"""The three rules of decontamination: planted copies, borders, and real overlaps."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from pathlib import Path

import pytest

from data_gen.quality.decontaminate import (
    RULES,
    CoverageRule,
    DecontaminateConfig,
    Decontamination,
    NgramRule,
    SetCounts,
    SubstringRule,
    contamination_table,
)
from data_gen.quality.evaluations import EvaluationExample, EvaluationFile, load_evaluations
from data_gen.quality.substrings import SubstringIndex, alphanumerics, draw_substrings
from data_gen.quality.words import words
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record

CONFIG = DecontaminateConfig()


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def documents(shared: Path) -> list[str]:
    return [row["text"] for row in lines(shared / "data" / "raw_mixed.jsonl.gz")]


@pytest.fixture(scope="module")
def boolq(shared: Path) -> list[EvaluationExample]:
    path = str(shared / "data" / "boolq" / "val.jsonl.gz")
    return load_evaluations([EvaluationFile("BoolQ", path, ["passage", "question"])])[:600]


def records(texts: list[str], source: str = "made") -> list[Record]:
    return [Record(f"r{number}", text, source) for number, text in enumerate(texts)]


def example(text: str, name: str = "0", of: str = "set") -> EvaluationExample:
    return EvaluationExample(of, name, text)


# Every planted copy.


@pytest.mark.parametrize("rule", RULES)
def test_every_planted_copy_is_found_and_nothing_else(
    rule: str, documents: list[str], boolq: list[EvaluationExample]
) -> None:
    draw = random.Random(3)
    texts = [text[:3000] for text in documents[:1200]]
    planted = draw.sample(range(len(texts)), 300)
    chosen = draw.sample(range(len(boolq)), 300)
    for place, number in zip(planted, chosen, strict=True):
        cut = draw.randrange(len(texts[place]))
        copy = boolq[number].text
        if rule == "substring":  # letters and digits alone count
            copy = copy.replace(" ", draw.choice(["  ", "\n", "-"])).replace(",", "")
        else:
            copy = copy.upper().replace(" ", draw.choice(["  ", "\n", " * "]))
        texts[place] = f"{texts[place][:cut]} {copy} {texts[place][cut:]}"
    gate = RULES[rule](boolq, CONFIG)
    clean = RULES[rule](boolq, CONFIG).check(records([text[:3000] for text in documents[:1200]]))
    assert clean == [None] * 1200
    made = records(texts)
    # Batches of any size give the same.
    verdicts = [*gate.check(made[:700]), *gate.check(made[700:])]
    assert [n for n, verdict in enumerate(verdicts) if verdict is not None] == sorted(planted)
    assert {int(line["example"]) - 1 for line in gate.details()} >= set(chosen)
    counts = gate.counts()["BoolQ"]
    assert counts.examples == 600 and counts.contaminated >= 300
    matches = dict(gate.matches(texts))
    for place, number in zip(planted, chosen, strict=True):
        assert number in [match.example for match in matches[place]]


DISGUISES = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "references": lambda text: text.replace(" ", "&nbsp;").replace("é", "&eacute;"),
    "invisible": lambda text: text.replace("é", "\u200bé").replace("mon", "m\u00ado\u200dn"),
    "ligatures": lambda text: text.replace("fi", "\ufb01"),
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("rule", RULES)
def test_a_copy_is_found_however_its_letters_are_written(rule: str, disguise: str) -> None:
    words = "Le café de Zoé est fermé après-midi, été comme hiver, et le final écho de sa "
    text = words + "monnaie résonne déjà à Orléans, où le père Noël élève une haie"
    copy = DISGUISES[disguise](text)
    assert copy != text
    gate = RULES[rule]([example(text)], CONFIG)
    assert gate.check(records([f"Ici {copy} là."]))[0] is not None
    gate = RULES[rule]([example(copy)], CONFIG)
    assert gate.check(records([f"Ici {text} là."]))[0] is not None


# Substrings.


def test_letters_and_digits_are_all_that_is_left() -> None:
    assert alphanumerics("A b_c-1,\n2 é字 «x» ²") == "Abc12é字x2"
    assert alphanumerics("Plain, ASCII_text 42!") == "PlainASCIItext42"


def test_three_substrings_that_depend_on_the_example_alone() -> None:
    text = "".join(f"word {number} " for number in range(40))
    drawn = draw_substrings(example(text), 3, 50, seed=0)
    assert len(drawn) == 3 and {len(piece) for piece in drawn} == {50}
    assert all(piece in alphanumerics(text) for piece in drawn)
    assert draw_substrings(example(text), 3, 50, seed=0) == drawn
    assert draw_substrings(example(text, name="1"), 3, 50, seed=0) != drawn
    assert draw_substrings(example(text), 3, 50, seed=1) != drawn
    assert draw_substrings(example("Who is it?"), 3, 50, seed=0) == ["Whoisit"]
    assert draw_substrings(example("x" * 50), 3, 50, seed=0) == ["x" * 50]
    assert draw_substrings(example("?!"), 3, 50, seed=0) == []


def test_the_index_finds_what_a_plain_search_finds(documents: list[str]) -> None:
    draw = random.Random(11)
    texts = [text[:2000] for text in documents[:120]]
    patterns = []
    for length in (1, 3, 7, 8, 9, 15, 16, 17, 50):
        for _ in range(12):
            plain = alphanumerics(draw.choice(texts))
            at = draw.randrange(max(1, len(plain) - length))
            patterns.append(plain[at : at + length] or "x")
    patterns += ["Zq" * 10, "é字", patterns[-1]]
    wanted = {
        (place, number)
        for place, text in enumerate(texts)
        for number, pattern in enumerate(patterns)
        if pattern in alphanumerics(text)
    }
    assert len(wanted) > 1000
    assert set(SubstringIndex(patterns).find(texts)) == wanted


def test_nothing_is_found_across_two_texts_nor_with_case_changed() -> None:
    index = SubstringIndex(["abcdefghij", "12345678"])
    assert list(index.find(["xx abcde", "fghij", "ABCDEFGHIJ", "1234 5678"])) == [(3, 1)]


def test_examples_without_letters_match_nothing_and_are_counted() -> None:
    paper = DecontaminateConfig(shortest_characters=0)
    rule = SubstringRule([example("?? --"), example("yes", "1"), example("a b c d", "2")], paper)
    assert [v is None for v in rule.check(records(["yes", "..", "xabcdx"]))] == [False, True, False]
    assert rule.counts() == {"set": SetCounts(examples=3, contaminated=2, unmatchable=1)}


def test_short_examples_remove_nothing_unless_asked(documents: list[str]) -> None:
    """One word of ten letters is in many clean documents; as in the paper it removes them all."""
    items = [example("University"), example("exactly twenty letters", "1")]
    made = records([*documents, "Of exactly: TWENTY", "exactly twenty-letters"])
    default = SubstringRule(items, CONFIG)
    assert [n for n, v in enumerate(default.check(made)) if v] == [len(made) - 1]
    assert default.counts() == {"set": SetCounts(examples=2, contaminated=1, unmatchable=1)}
    paper = SubstringRule(items, DecontaminateConfig(shortest_characters=0))
    assert sum(v is not None for v in paper.check(made)) > 30


# Coverage.

TOKENS = [f"t{number}" for number in range(100)]


def text_of(*spans: tuple[int, int]) -> str:
    return " . other words between . ".join(" ".join(TOKENS[a:b]) for a, b in spans)


@pytest.mark.parametrize(
    ("tokens", "training", "contaminated"),
    [
        (16, [text_of((0, 8))], False),  # 8 of 16: exactly half is not more than half
        (15, [text_of((0, 8))], True),  # 8 of 15
        (18, [text_of((0, 9))], False),  # 9 of 18
        (17, [text_of((0, 9))], True),  # 9 of 17
        (40, [text_of((0, 10), (20, 30))], False),  # 20 of 40 in two places
        (40, [text_of((0, 10), (20, 31))], True),  # 21 of 40 in two places
        (40, [text_of((0, 14)), text_of((20, 34))], False),  # 28 of 40, but of two records
        (40, [text_of((0, 7), (8, 15), (16, 23), (24, 31))], False),  # runs of seven count nothing
        (7, [text_of((0, 7))], False),  # no 8-gram at all
        (8, [text_of((0, 8))], True),
        (40, [text_of((0, 12), (4, 21))], True),  # overlapping pieces cover 21 once
        (42, [text_of((0, 12), (4, 21))], False),
    ],
)
def test_more_than_half_of_the_words_by_one_record(
    tokens: int, training: list[str], contaminated: bool
) -> None:
    rule = CoverageRule([example(" ".join(TOKENS[:tokens]))], CONFIG)
    verdicts = rule.check(records(training))
    assert any(verdict is not None for verdict in verdicts) is contaminated
    assert rule.counts()["set"].contaminated == int(contaminated)
    assert rule.unmatchable == (frozenset({0}) if tokens < 8 else frozenset())


def test_coverage_is_that_of_the_plain_definition(
    documents: list[str], boolq: list[EvaluationExample]
) -> None:
    """Against sets of tuples, on texts patched together out of examples and documents."""
    draw = random.Random(5)
    some = boolq[:40]
    texts = []
    for number in range(80):
        parts = some[number % 40].text.split()
        keep = draw.randrange(len(parts))
        start = draw.randrange(len(parts) - keep)
        own = documents[number].split()[:100]
        texts.append(" ".join([*own[:50], *parts[start : start + keep], *own[50:]]))
    wanted = set()
    for place, text in enumerate(texts):
        own = words(text)
        grams = {tuple(own[at : at + 8]) for at in range(len(own) - 7)}
        for number, one in enumerate(some):
            its = words(one.text)
            covered = [False] * len(its)
            for at in range(len(its) - 7):
                if tuple(its[at : at + 8]) in grams:
                    covered[at : at + 8] = [True] * 8
            if sum(covered) > len(its) / 2:
                wanted.add((place, number, sum(covered) / len(its)))
    assert 20 < len(wanted) < 70
    rule = CoverageRule(some, CONFIG)
    assert {(t, m.example, m.score) for t, ms in rule.matches(texts) for m in ms} == wanted


def test_a_training_set_is_contaminated_above_its_share() -> None:
    examples = [example(" ".join(f"e{n}w{k}" for k in range(10)), str(n)) for n in range(100)]
    rule = CoverageRule(examples, CONFIG)
    rule.check(records([examples[0].text, examples[1].text, examples[0].text], "two of 100"))
    rule.check(records([one.text for one in examples[:3]], "three of 100"))
    rule.check(records(["something else entirely"], "none"))
    assert rule.shares() == {"three of 100": {"set": 0.03}, "two of 100": {"set": 0.02}}
    assert rule.contaminated_sources() == ["three of 100"]
    assert rule.summary()["training_records"] == 6
    first = next(iter(rule.details()))
    assert first["training_records"] == 3 and first["training_id"] == "r0"


# n-grams.


def test_thirteen_words_in_a_row_are_one_too_many() -> None:
    rule = NgramRule([example(" ".join(TOKENS[:30]))], CONFIG)
    texts = [text_of((3, 15)), text_of((3, 16)), text_of((0, 12), (12, 24))]
    assert [verdict is None for verdict in rule.check(records(texts))] == [True, False, True]
    assert rule.unmatchable == frozenset()
    assert NgramRule([example(" ".join(TOKENS[:12]))], CONFIG).unmatchable == {0}


# Real sets.


@pytest.fixture(scope="module")
def mixeval(shared: Path) -> list[Record]:
    found = []
    for name in ("free-form", "multiple-choice"):
        with gzip.open(shared / "data" / "mixeval" / f"{name}.json.gz", "rt") as file:
            for key, row in json.load(file).items():
                text = "\n".join([row["context"] or "", row["prompt"], *row.get("options", [])])
                found.append(Record(f"{name}-{key}", text, row["benchmark_name"]))
    assert len(found) == 600
    return found


@pytest.fixture(scope="module")
def evaluations(shared: Path) -> list[EvaluationExample]:
    def file(name: str, path: str, field: str) -> EvaluationFile:
        return EvaluationFile(name, str(shared / "data" / path), [field])

    return load_evaluations(
        [
            file("MMLU", "mmlu/mmlu_validation.jsonl.gz", "question"),
            file("MMLU", "mmlu/mmlu_dev.jsonl.gz", "question"),
            file("ARC", "arc/arc_easy.jsonl", "query"),
            file("ARC", "arc/arc_challenge.jsonl", "query"),
            file("BoolQ", "boolq/val.jsonl.gz", "question"),
            file("CommonsenseQA", "commonsenseqa/dev_rand_split.jsonl", "question.stem"),
            file("TriviaQA", "triviaqa_sub/triviaqa_sm_sub.jsonl.gz", "context"),
            file("HellaSwag", "hellaswag_1000/hellaswag.jsonl", "ctx"),
        ]
    )


# Counted by a plain implementation of each rule (sets of tuples, `in`) over all pairs. MixEval as
# it lies in the shared data holds no item of MMLU.
REAL = {
    "coverage": {"MMLU": 0, "ARC": 23, "BoolQ": 66, "CommonsenseQA": 48, "TriviaQA": 56,
                 "HellaSwag": 2},
    "ngram": {"MMLU": 0, "ARC": 17, "BoolQ": 0, "CommonsenseQA": 28, "TriviaQA": 25,
              "HellaSwag": 2},
    "substring": {"MMLU": 0, "ARC": 18, "BoolQ": 66, "CommonsenseQA": 56, "TriviaQA": 26,
                  "HellaSwag": 2},
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_the_known_overlaps_of_mixeval_with_its_sources(
    rule: str, mixeval: list[Record], evaluations: list[EvaluationExample]
) -> None:
    gate = RULES[rule](evaluations, CONFIG)
    gate.check(mixeval)
    assert {name: found.contaminated for name, found in gate.counts().items()} == REAL[rule]
    # An example is found in the part of MixEval that was drawn from its set.
    for line in gate.details():
        assert line["source"] == line["evaluation"], line
    assert gate.contaminated_sources() == CONTAMINATED[rule]


CONTAMINATED = {
    "coverage": ["BoolQ", "CommonsenseQA"],
    "ngram": ["CommonsenseQA"],
    "substring": ["BoolQ", "CommonsenseQA"],
}


# Table 9 and what is refused.


def test_the_table_has_the_rows_of_the_paper() -> None:
    raw = {"ARC-e": SetCounts(2376, 5, 0), "ARC-c": SetCounts(1172, 3, 0)}
    augmented = {"ARC-e": SetCounts(2376, 5, 0), "ARC-c": SetCounts(1172, 4, 0)}
    assert contamination_table(raw, augmented) == (
        "|  | ARC-e | ARC-c |\n"
        "| --- | ---: | ---: |\n"
        "| Total Eval Examples | 2376 | 1172 |\n"
        "| Contam in Raw Corpora | 5 | 3 |\n"
        "| Contam in Ins-Aug Corpora | 5 | 4 |\n"
        "| Contam in Synthesized Pairs | 0 | 1 |"
    )
    assert contamination_table(raw).endswith("| Contam in Raw Corpora | 5 | 3 |")
    with pytest.raises(UserError, match="different evaluation sets"):
        contamination_table(raw, {"ARC-e": SetCounts(2376, 5, 0)})
    with pytest.raises(UserError, match="must hold the raw texts too"):
        contamination_table(augmented, raw)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_records_changes_no_verdict(
    rule: str, mixeval: list[Record], evaluations: list[EvaluationExample]
) -> None:
    some = [one for one in evaluations if one.set_name in ("CommonsenseQA", "HellaSwag")]
    there: Decontamination = RULES[rule](some, CONFIG)
    back: Decontamination = RULES[rule](some, CONFIG)
    assert there.check(mixeval) == list(reversed(back.check(mixeval[::-1])))
    assert there.counts() == back.counts() and there.shares() == back.shares()


def test_evaluation_files_of_several_forms(tmp_path: Path) -> None:
    rows = [{"id": "q7", "question": {"stem": "A b?", "choices": ["c", "d"]}, "answer": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps({"k": rows[0]}).encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows * 2, ensure_ascii=False))
    wanted = {"a.jsonl": ["q7"], "b.json.gz": ["k"], "c.json": ["q7", "q7"]}
    for name, ids in wanted.items():
        file = EvaluationFile("set", str(tmp_path / name), ["question.stem", "question", "answer"])
        found = load_evaluations([file])
        assert [one.id for one in found] == ids
        assert {one.text for one in found} == {"A b?\nA b?\nc\nd"}


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        (None, "question", "there is no evaluation file"),
        ("", "question", "holds no example"),
        ('{"question": "a"}\n{"question', "question", "cannot be read"),
        ('{"question": "a"}', "query", "example 1 of .* has no field 'query'"),
        ('"text"', "question", "has no field 'question'"),
    ],
)
def test_a_bad_evaluation_file_is_named(
    content: str | None, field: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "eval.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_evaluations([EvaluationFile("set", str(path), [field])])
    with pytest.raises(UserError, match="name at least one in `evaluations`"):
        load_evaluations([])
