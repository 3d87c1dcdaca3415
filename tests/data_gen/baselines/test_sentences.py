"""Where sentences end, and what is a title, in real texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_gen.baselines.sentences import split_sentences, split_title


def squeezed(text: str) -> str:
    return "".join(text.split())


def sentences(text: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(text)]


@pytest.mark.parametrize(
    "text",
    [
        ["The rate was 0.05 mg (p < 0.001).", "It fell."],
        ["Dr. J. W. Smith saw Fig. 3 of the U.S. Treasury's No. 5 report.", "He left."],
        ["We gave vitamin D. alone", "or not"],
        ["We gave vitamin D.", "Patients improved."],
        ["Binding is not MT.", "Feeding zinc did not matter."],
        ['"Is it so?"', "She was sure (quite sure).", "Twelve mln dlrs is much!", "12 is not."],
        ["V. Suppressor cells belong to a subset.", "IV fluids were given."],
        ["Texaco Inc. said so.", "It was paid by the co.", "The end"],
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: list[str]) -> None:
    if text[0].endswith("alone"):
        text = [" ".join(text)]
    assert sentences(" ".join(text)) == text


def test_a_wrapped_text_is_read_across_its_lines(news: list[dict[str, str]]) -> None:
    found = split_sentences(split_title(news[1]["text"])[1])
    assert [s.text for s in found][-1] == (
        "Computer Terminal makes computer generated labels, forms, tags and ticket printers and "
        "terminals."
    )
    assert len(found) == 8 and found[5].text.startswith("But, it said it would continue")


def test_lines_of_a_text_that_is_not_wrapped_are_its_paragraphs(abstracts: list[str]) -> None:
    found = split_sentences(abstracts[0])
    assert [s.paragraph for s in found] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert found[3].text.startswith("The addition of both 10 microM thymidine")


def test_every_character_lies_in_a_sentence(
    shared: Path, abstracts: list[str], news: list[dict[str, str]]
) -> None:
    folder = shared / "data/corpus_gutenberg"
    books = [(folder / f"{name}.txt").read_text() for name in ("austen-emma", "carroll-alice")]
    texts = [*abstracts, *books, *(row["text"] for row in news)]
    for text in texts:
        found = split_sentences(text)
        assert squeezed("".join(s.text for s in found)) == squeezed(text)
        starts = [s.start for s in found]
        assert starts == sorted(starts)
        for sentence in found:
            assert text[sentence.start : sentence.start + 99].split()[0] == sentence.text.split()[0]


def test_titles_of_real_texts(
    shared: Path, abstracts: list[str], news: list[dict[str, str]]
) -> None:
    titles = [split_title(text)[0] for text in abstracts]
    assert titles[5] == (
        "[Long-term treatment of virilized women with cyproterone acetate (author's transl)]."
    )
    assert titles[7].endswith("V. Suppressor cells within the activated OKT4+ population belong to "
                              "a distinct subset.")  # fmt: skip
    assert all(titles)
    title, rest = split_title(news[0]["text"])
    assert title == "BAHIA COCOA REVIEW" and rest.startswith("  Showers continued throughout")
    book = (shared / "data/corpus_gutenberg/austen-emma.txt").read_text()
    assert split_title(book)[0] == "[Emma by Jane Austen 1816]"
    middle = book[book.index("Sixteen years had Miss Taylor") :][:2000]
    assert split_title(middle) == ("", middle)


@pytest.mark.parametrize(
    "text",
    [
        "One line alone.",
        "A title\nthat goes on in the next line " + "and so on " * 20,
        "Sixteen years had Miss Taylor been with\n"
        + "Woodhouse and his two daughters, who loved\n" * 3
        + "her more as a friend than as a governess.",
        "Introduction:\n" + "Some words come here. " * 10,
        "“Well,” said he.\n" + "Some words come here. " * 10,
        "word " * 60 + "\n" + "Some words come here. " * 50,
        "A first line of a certain length\nShorter than twice.",
        "=====\n" + "Some words come here. " * 10,
    ],
)
def test_what_is_no_title(text: str) -> None:
    assert split_title(text) == ("", text)
