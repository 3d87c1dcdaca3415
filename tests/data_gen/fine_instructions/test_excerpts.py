"""Excerpts: filled in from the document, or refused with a reason."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.fine_instructions.excerpts import (
    LEAST_SHARE,
    ExcerptError,
    Source,
    excerpt_share,
    expand,
)

DOCUMENT = (
    "It is  known that\nno preferred frame “exists” according to the principle of relativity, "
    "as Eﬁstein said. Other notes: the other frame; the café, the Cafe\u0301 — naïve end"
)
SOURCE = Source(DOCUMENT)


@pytest.mark.parametrize(
    ("quotation", "copy"),
    [
        ("no preferred<...>“exists”", "no preferred frame “exists”"),
        ("It is known<...>of relativity", DOCUMENT[: DOCUMENT.index(",")]),
        ('"exists" according', "“exists” according"),
        ("Einstein said", None),
        ("Efistein said", "Eﬁstein said"),
        ("cafe\u0301, the Café - nai\u0308ve", "café, the Cafe\u0301 — naïve"),
        ("the<...>frame", "the other frame"),  # the nearest pair, and no part of "other"
    ],
)
def test_a_copy_is_the_documents_own(quotation, copy):
    if copy is None:
        with pytest.raises(ExcerptError) as refused:
            SOURCE.find(quotation)
        assert refused.value.reason == "missing"
        return
    expanded = SOURCE.expand(f"So <excerpt> {quotation}</excerpt>!")
    assert expanded.text == f"So  {copy}!"
    ((start, end),) = expanded.places
    assert DOCUMENT[start:end] == copy


def test_a_full_stop_that_the_document_does_not_have_is_kept_and_is_no_copy():
    expanded = SOURCE.expand("<excerpt>according to<...>relativity.</excerpt>")
    assert expanded.text == "according to the principle of relativity."
    assert expanded.copied == ((0, len(expanded.text) - 1),)
    assert SOURCE.expand("<excerpt>said.</excerpt>").copied == ((0, 5),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<excerpt>It is", "unclosed"),
        ("It is</excerpt>", "unclosed"),
        ("<excerpt>It <excerpt>is</excerpt></excerpt>", "nested"),
        ("<excerpt> </excerpt>", "empty"),
        ("<excerpt>It is<...> </excerpt>", "empty"),
        ("<excerpt>It<...>is<...>known</excerpt>", "ellipsis"),
        ("<excerpt>from another document</excerpt>", "missing"),
        ("<excerpt>said<...>It is</excerpt>", "order"),
        ("<fi>a kind of frame</fi>", "tag"),
        ("It is <...> relativity", "tag"),
        ("<excerpt>that no<...>frame</excerpt>, <excerpt>preferred frame</excerpt>", "overlap"),
    ],
)
def test_what_is_not_the_documents_is_refused_with_a_reason(text, reason):
    with pytest.raises(ExcerptError) as refused:
        expand(text, DOCUMENT)
    assert refused.value.reason == reason and isinstance(refused.value, ValueError)


def test_a_documents_own_tags_are_not_copied():
    with pytest.raises(ExcerptError, match="tag: <fi>"):
        expand("<excerpt>a b c</excerpt>".replace("b", "<fi>"), "a <fi> c")


def test_the_share_is_of_characters():
    assert excerpt_share("In short, <excerpt>no preferred frame</excerpt>", DOCUMENT) == 18 / 28
    assert excerpt_share("Nothing is copied.", DOCUMENT) == 0 == excerpt_share("", DOCUMENT)
    assert LEAST_SHARE == 0.8


WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="<>."), min_size=1), min_size=4
).map(lambda words: [word for word in words if word.strip()])


@given(WORDS.filter(lambda words: len(words) > 3), st.data())
def test_any_span_named_by_its_ends_comes_back(words, data):
    document = " ".join(words)
    first = data.draw(st.integers(0, len(words) - 2))
    last = data.draw(st.integers(first + 1, len(words) - 1))
    quotation = f"{words[first]}<...>{words[last]}"
    altered = data.draw(st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
    quotation = " \n".join(unicodedata.normalize(altered, quotation).split(" "))
    begin, end, stop = Source(document).find(quotation)
    copy = " ".join(document[begin:end].split())
    plain = unicodedata.normalize("NFKD", copy)
    assert not stop and len(copy) <= len(" ".join(words[first : last + 1]))
    for edge, at_end in ((words[first], False), (words[last], True)):
        edge = unicodedata.normalize("NFKD", " ".join(edge.split()))
        assert edge in plain, (edge, plain, at_end)
