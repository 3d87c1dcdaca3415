"""Templates against their queries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.fine_instructions.templates import Template, check_template

QUERY = "what effects does diabetes have on  the teeth of children?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("what effects does <fi>a condition</fi> have on the teeth of <fi>some people</fi>?", None),
        ("<fi>a question about</fi> diabetes have on the teeth of children?", None),
        ("what effects does <fi>a condition</fi>", None),
        (QUERY, "no_tag"),
        ("<fi>all of it</fi>", "whole_query"),
        ("what effects does <fi> </fi> have on the teeth of children?", "empty_tag"),
        ("what effects does <fi>a <fi>condition</fi></fi> have", "nested_tag"),
        ("what effects does a condition</fi> have", "unbalanced_tag"),
        ("what effects does <fi>a condition have on the teeth of children?", "unbalanced_tag"),
        ("which effects does <fi>a condition</fi> have on the teeth of children?", "changed"),
        ("what effects does <fi>a condition</fi> have on teeth of children?", "changed"),
        ("what effects does diabetes <fi>nothing</fi>have on the teeth of children?", "changed"),
        ("what effects does <fi>x</fi> have on the teeth of children", "changed"),
    ],
)
def test_a_template_is_the_query_but_for_its_tags(text, reason):
    found = check_template(text, QUERY)
    assert (found and found.reason) == reason


def test_the_same_variable_may_come_again_under_another_description():
    template = Template("write a <fi>document, e.g. a report</fi>. The <fi>document</fi> is", "any")
    assert template.variables == ("document, e.g. a report", "document")
    assert template.complexity == 2


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=4, max_size=9), st.data())
def test_any_spans_of_a_query_may_be_tagged(parts, data):
    tagged = data.draw(st.sets(st.integers(0, len(parts) - 1), min_size=1, max_size=3))
    text = "".join(f"<fi>{n}</fi>" if n in tagged else part for n, part in enumerate(parts))
    assert check_template(text, " " + "".join(parts)) is None
    longer = check_template(text, "".join(parts) + "c")
    assert (longer is None) == (len(parts) - 1 in tagged)
