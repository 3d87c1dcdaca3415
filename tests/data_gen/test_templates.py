"""Training texts: nothing is lost, choices are independent, a user's file is checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_gen.instruction_pretrain.formats import Pair, Shot
from data_gen.instruction_pretrain.template_file import (
    LISTS,
    SLOT,
    WEIGHTS,
    TemplateSet,
    load_templates,
    our_templates,
)
from data_gen.instruction_pretrain.templates import (
    Layout,
    draw_layout,
    numbered,
    render_training_text,
)
from ipt_jax.core.errors import UserError
from ipt_jax.core.seeds import generator_of

ARRANGEMENTS = WEIGHTS["arrangements"]
FORMATS = tuple(LISTS)[:4]

# One entry a list, so that a rendering can be written down.
SMALL = """
free_form: ["Q: {question}\\nA: {answer}"]
multiple_choice: ["Problem: Pick from:\\n{options}\\nQ: {question}\\nAnswer: {marker}"]
free_form_chain_of_thought: ["{question}\\nLet's think: {rationale}\\nSo it is [{answer}]"]
multiple_choice_chain_of_thought: ["{question}\\n{options}\\n{rationale}\\nSo: {marked_answer}"]
texts: ["Text: {text}"]
openings: ["Answer these."]
opening_connections: ["\\n"]
text_connections: ["\\n\\n"]
pair_connections: ["\\n--\\n"]
shot_connections: ["\\n==\\n"]
line_connections: ["\\n"]
option_connections: ["; "]
markers: ["{a}). "]
numbers: ["{1}) "]
option_questions: ["{question} ({options})"]
option_answers: ["{marked_answer}"]
reasoned_answers: ["{rationale} Thus {answer}"]
dialogues: ["Talk:\\n{dialogue}\\n(end)"]
dialogue_turns: ["X: {question}\\nY: {answer}"]
next_turns: ["{dialogue}\\nNext?\\n{turn}"]
numbered: ["Do:\\n{questions}\\nDone:\\n{answers}"]
examples: ["Seen:\\n{examples}\\nNew:\\n{last}"]
pairs_first: ["Write the text.\\n{pairs}\\nHere: {text}"]
shares: {pairs_first: 0, opening: 0}
"""
COLOUR = Pair("Which colour?", "blue", ("red", "blue"))
WHO = Pair("Who?", "Ann")
WHY = Pair("Why?", "rain", rationale="It was wet.")
SURE = Pair("Sure?", "yes", ("yes", "no"), "It says so.")


def templates_of(path: Path, text: str) -> TemplateSet:
    path.write_text(text, encoding="utf-8")
    return load_templates(path)


def arranged(name: str, templates: TemplateSet | None = None, **shares: float) -> TemplateSet:
    """The templates with one arrangement alone."""
    templates = templates or our_templates()
    weights = {**templates.weights, "arrangements": {name: 1.0}}
    return replace(templates, weights=weights, shares={**templates.shares, **shares})


def render(shots: list[Shot], templates: TemplateSet, seed: int = 0) -> list[str]:
    return render_training_text(shots, np.random.default_rng(seed), templates)


def marked_pairs(shot: int) -> tuple[Pair, ...]:
    """A pair of each format, and one whose response is no option; every string stands out."""
    pairs = []
    for number in range(5):
        name = f"<{shot}.{number}>"
        options = tuple(f"o{place}{name}" for place in range(3)) if number in (1, 3, 4) else ()
        response = f"o1{name}" if number in (1, 3) else f"r{name}"
        rationale = f"why{name}" if number in (2, 3) else None
        pairs.append(Pair(f"i{name}", response, options, rationale))
    return tuple(pairs)


MARKED = [Shot(f"t<{shot}>", marked_pairs(shot)) for shot in range(2)]


@pytest.mark.parametrize(
    ("arrangement", "expected"),
    [
        (
            "reading",
            "Text: T\n\n|Problem: Pick from:\na). red; b). blue\nQ: Which colour?\nAnswer: b)."
            "|\n--\nWhy?\nLet's think: It was wet.\nSo it is [rain]"
            "|\n--\nSure?\na). yes; b). no\nIt says so.\nSo: a). yes"
            "|\n==\nText: U\n\n|Q: Who?\nA: Ann"
            "|\n--\nProblem: Pick from:\na). red; b). blue\nQ: Which colour?\nAnswer: b).",
        ),
        (
            "dialogue",
            "Text: T\n\n|Talk:\nX: Which colour? (a). red; b). blue)\nY: b). blue"
            "|\nX: Why?\nY: It was wet. Thus rain"
            "|\nX: Sure? (a). yes; b). no)\nY: It says so. Thus a). yes\n(end)"
            "|\n==\nText: U\n\n|Talk:\nX: Who?\nY: Ann"
            "|\nX: Which colour? (a). red; b). blue)\nY: b). blue\n(end)",
        ),
        (
            "numbered",
            "Text: T\n\n|Do:\n1) Which colour? (a). red; b). blue)|\n2) Why?"
            "|\n3) Sure? (a). yes; b). no)"
            "|\nDone:\n1) b). blue|\n2) It was wet. Thus rain|\n3) It says so. Thus a). yes"
            "|\n==\nText: U\n\n|Do:\n1) Who?|\n2) Which colour? (a). red; b). blue)"
            "|\nDone:\n1) Ann|\n2) b). blue",
        ),
        (
            "examples",
            "Text: T\n\n"
            "|Seen:\nProblem: Pick from:\na). red; b). blue\nQ: Which colour?\nAnswer: b)."
            "|\n--\nWhy?\nLet's think: It was wet.\nSo it is [rain]"
            "|\nNew:\nSure?\na). yes; b). no\nIt says so.\nSo: a). yes"
            "|\n==\nText: U\n\n|Seen:\nQ: Who?\nA: Ann"
            "|\nNew:\nProblem: Pick from:\na). red; b). blue\nQ: Which colour?\nAnswer: b).",
        ),
        (
            "next_turn",
            "Text: T\n\n|X: Which colour? (a). red; b). blue)\nY: b). blue"
            "|\nX: Why?\nY: It was wet. Thus rain"
            "|\nNext?\nX: Sure? (a). yes; b). no)\nY: It says so. Thus a). yes"
            "|\n==\nText: U\n\n|X: Who?\nY: Ann"
            "|\nNext?\nX: Which colour? (a). red; b). blue)\nY: b). blue",
        ),
    ],
)
def test_an_arrangement_as_written_down(arrangement: str, expected: str, tmp_path: Path) -> None:
    templates = arranged(arrangement, templates_of(tmp_path / "t.yaml", SMALL))
    shots = [Shot("T", (COLOUR, WHY, SURE)), Shot("U", (WHO, COLOUR))]
    assert "|".join(render(shots, templates)) == expected


def test_openings_and_pairs_in_front(tmp_path: Path) -> None:
    templates = templates_of(tmp_path / "t.yaml", SMALL)
    shots = [Shot("T", (WHO, WHY))]
    opened = arranged("reading", templates, opening=1)
    assert render(shots, opened)[1] == "Answer these.\nQ: Who?\nA: Ann"
    first = arranged("reading", templates, opening=1, pairs_first=1)
    assert render(shots, first) == [
        "Write the text.\nQ: Who?\nA: Ann",
        "\n--\nWhy?\nLet's think: It was wet.\nSo it is [rain]",
        "\nHere: T",
    ]
    listed = arranged("numbered", templates, opening=1)
    assert render(shots, listed)[1] == "Do:\n1) Who?"
    listed = arranged("numbered", templates, opening=1, pairs_first=1)
    assert render(shots, listed)[0] == "Write the text.\nDo:\n1) Who?"


def answer_shown(layout: Layout, pair: Pair) -> bool:
    """Whether this layout writes the response out, not only the option's marker."""
    whole = layout.arrangement in ("reading", "examples")
    thought = "_chain_of_thought" if pair.rationale else ""
    form = layout.forms["multiple_choice" + thought if whole else "option_answers"]
    marked = pair.response in pair.options and SLOT.search(layout.forms["markers"])
    return "{marker}" not in form or not marked


@pytest.mark.parametrize("pairs_first", [0, 1])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_everything_is_written_where_it_should_be(arrangement: str, pairs_first: int) -> None:
    templates = arranged(arrangement, pairs_first=pairs_first)
    shown, hidden = Counter(), 0
    for seed in range(150):
        parts = render(MARKED, templates, seed)
        layout = draw_layout(templates, np.random.default_rng(seed), 5)
        text = "".join(parts)
        assert text.index("t<1>") > text.index("<0.4>")  # the second shot comes after the first
        for shot in MARKED:
            holder = [part for part in parts if shot.text in part]
            assert len(holder) == 1 and holder[0].count(shot.text) == 1
            assert not re.search(r"<\d\.\d>", holder[0])
            before = all(text.index(p.instruction) < text.index(shot.text) for p in shot.pairs)
            assert before == bool(pairs_first)
            asked = [text.index(pair.instruction) for pair in shot.pairs]
            assert asked == sorted(asked)
            for pair in shot.pairs:
                counts = Counter({pair.instruction: 1, **dict.fromkeys(pair.options, 1)})
                if pair.rationale:
                    counts[pair.rationale] += 1
                written = not pair.options or answer_shown(layout, pair)
                counts[pair.response] += written
                assert {string: text.count(string) for string in counts} == counts
                shown[pair.response in pair.options] += written
                hidden += not written
                places = [text.index(option) for option in pair.options]
                assert places == sorted(places)
                if pair.rationale and written:
                    reasons, answer = text.index(pair.rationale), text.rindex(pair.response)
                    assert text.index(pair.instruction) < reasons < answer
            if arrangement == "numbered":
                answers = [text.rindex(p.response) for p in shot.pairs if answer_shown(layout, p)]
                assert min(answers) > max(asked)
    assert shown[True] > 100 and shown[False] >= 900 and hidden > 100


def test_every_pattern_of_every_format() -> None:
    """Each entry in turn, with a pair of its format."""
    pairs = dict(zip(FORMATS, marked_pairs(0)[:4], strict=True))
    for name, pair in pairs.items():
        for form in our_templates().lists[name]:
            lists = {**our_templates().lists, name: (form,), "markers": ("({A}) ",)}
            templates = arranged("reading", replace(our_templates(), lists=lists), pairs_first=0)
            text = "".join(render([Shot("t", (pair, pair))], templates))
            assert text.count(pair.instruction) == 2
            assert text.count(pair.rationale or "i<0") == 2
            if pair.options:
                expected = 2 if "{marker}" in form else 4
                assert text.count(pair.response) == expected, form
                assert text.count("(B)") == (2 if "{answer}" in form else 4), form


def test_how_many_templates_there_are() -> None:
    distinct = {name: len(set(entries)) for name, entries in our_templates().lists.items()}
    assert set(distinct) == set(LISTS)
    for name in FORMATS:
        assert distinct[name] >= 40, name
    assert distinct["openings"] >= 30
    for name in ("text_connections", "pair_connections", "texts", "pairs_first"):
        assert distinct[name] >= 20, name
    assert min(distinct[name] for name in ("dialogues", "numbered", "examples", "next_turns")) > 10
    markers = our_templates().lists["markers"]
    assert {slot for marker in markers for slot in SLOT.findall(marker)} == set("1aAiI")
    for form in ("- ", "({a}) ", "[{A}] ", "{i}. ", "{1}: ", "({I}) "):
        assert form in markers
    assert not set(markers) & set(our_templates().lists["numbers"])


@pytest.mark.parametrize(
    ("form", "number", "expected"),
    [
        ("({a}) ", 3, "(c) "),
        ("[{A}] ", 26, "[Z] "),
        ("{a}). ", 27, "aa). "),
        ("{A}: ", 703, "AAA: "),
        ("{1}. ", 12, "12. "),
        ("{i}) ", 4, "iv) "),
        ("({I}) ", 49, "(XLIX) "),
        ("{i}.", 18, "xviii."),
        ("- ", 2, "- "),
    ],
)
def test_markers_count(form: str, number: int, expected: str) -> None:
    assert numbered(form, number) == expected


@pytest.mark.parametrize(
    ("marker", "pair", "slot", "expected"),
    [
        ("{a}). ", COLOUR, "marker", "b)."),
        ("{A}: ", COLOUR, "marker", "B"),
        ("{A}: ", COLOUR, "marked_answer", "B: blue"),
        ("{A}: ", COLOUR, "answer", "blue"),
        ("- ", COLOUR, "marker", "blue"),
        ("- ", COLOUR, "marked_answer", "blue"),
        ("({1}) ", replace(COLOUR, response="Blue"), "marker", "Blue"),
        ("({1}) ", replace(COLOUR, response="Blue"), "marked_answer", "Blue"),
    ],
)
def test_what_stands_for_the_answer(
    marker: str, pair: Pair, slot: str, expected: str, tmp_path: Path
) -> None:
    own = f"markers: ['{marker}']\nmultiple_choice: ['{{question}} {{options}} ={{{slot}}}']\n"
    templates = arranged("reading", templates_of(tmp_path / "t.yaml", own), pairs_first=0)
    assert render([Shot("T", (pair, pair))], templates)[-1].endswith(f"={expected}")


def test_braces_and_slots_within_texts_stay() -> None:
    odd = "{question} {0} {{x}} {answer} %s {text} {options} \\1 {"
    pairs = (
        Pair(f"1{odd}", f"2{odd}"),
        Pair(f"3{odd}", f"4{odd}", (f"4{odd}", f"5{odd}"), f"6{odd}"),
    )
    for arrangement in ARRANGEMENTS:
        for seed in range(30):
            text = "".join(render([Shot(f"0{odd}", pairs)], arranged(arrangement), seed))
            assert {number for number in "0123456" if f"{number}{odd}" in text} == set("0123456")


def test_braces_of_a_template_stay(tmp_path: Path) -> None:
    own = """free_form: ['{ "ask": "{question}", "say": "{answer}", {{}} }']"""
    templates = arranged("reading", templates_of(tmp_path / "t.yaml", own), pairs_first=0)
    text = render([Shot("T", (WHO, WHO))], templates)[-1]
    assert text.endswith('{ "ask": "Who?", "say": "Ann", {{}} }')


def layouts(count: int, fewest_pairs: int) -> list[Layout]:
    return [
        draw_layout(our_templates(), generator_of(0, "template", number), fewest_pairs)
        for number in range(count)
    ]


def choices(count: int) -> dict[str, np.ndarray]:
    """Every choice of so many records, as numbers."""
    drawn = layouts(count, 5)
    values = {
        "arrangement": [layout.arrangement for layout in drawn],
        "whether pairs come first": [layout.pairs_first for layout in drawn],
        "opened": [layout.opened for layout in drawn],
        **{name: [layout.forms[name] for layout in drawn] for name in LISTS},
    }
    return {name: np.unique(column, return_inverse=True)[1] for name, column in values.items()}


def dependence(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's chi-square of two choices, in standard deviations from what chance gives."""
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    expected = np.outer(table.sum(1), table.sum(0)) / len(first)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float((((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def test_choices_are_independent() -> None:
    drawn = choices(6000)
    found = {(a, b): dependence(drawn[a], drawn[b]) for a, b in combinations(drawn, 2)}
    assert len(found) == 26 * 25 / 2
    assert {two: far for two, far in found.items() if abs(far) > 5} == {}
    # The measure sees what one seed for all choices does: the same place in every list.
    common = generator_of(0).random(6000)
    assert dependence((common * 48).astype(int), (common * 36).astype(int)) > 1000


@pytest.mark.parametrize(
    ("fewest_pairs", "expected"),
    [
        (2, dict.fromkeys(ARRANGEMENTS, 0.05) | {"reading": 0.8}),
        (1, {"reading": 0.95, "dialogue": 0.05}),
    ],
)
def test_shares(fewest_pairs: int, expected: dict[str, float]) -> None:
    count = 20_000
    drawn = layouts(count, fewest_pairs)
    found = Counter(layout.arrangement for layout in drawn)
    found["first"] = sum(layout.pairs_first for layout in drawn)
    found["opened"] = sum(layout.opened for layout in drawn)
    expected = {**expected, "first": 0.05, "opened": 0.5}
    assert set(found) == set(expected)
    for name, share in expected.items():
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs(found[name] / count - share) < 4 * deviation, name


def test_a_text_with_one_pair_keeps_the_record_from_arrangements_of_several() -> None:
    shots = [Shot("T", (WHO, WHY)), Shot("U", (WHO,))]
    for arrangement in ("numbered", "examples", "next_turn"):
        alone = arranged(arrangement)
        mixed = replace(our_templates(), weights={**alone.weights, "arrangements": {}})
        for seed in range(20):  # one_pair_arrangements decide
            assert render(shots, alone, seed) == render(shots, mixed, seed)


def test_a_pure_function_of_shots_and_state() -> None:
    state = np.random.default_rng(3)
    state.random(5)
    other = np.random.default_rng(9)
    other.bit_generator.state = state.bit_generator.state
    assert render_training_text(MARKED, state) == render_training_text(MARKED, other)
    texts = {"".join(render(MARKED, our_templates(), seed)) for seed in range(300)}
    assert len(texts) == 300


def test_a_longer_list_moves_no_other_choice() -> None:
    lists = {**our_templates().lists, "openings": (*our_templates().lists["openings"], "More.")}
    longer = replace(our_templates(), lists=lists)
    for seed in range(50):
        one = draw_layout(our_templates(), np.random.default_rng(seed), 2)
        two = draw_layout(longer, np.random.default_rng(seed), 2)
        assert {**one.forms, "openings": ""} == {**two.forms, "openings": ""}
        assert one.arrangement == two.arrangement


def test_later_shots_follow_earlier_ones() -> None:
    shots = [Shot(f"«{n}»", (COLOUR, WHY, WHO, SURE)) for n in range(3)]
    for seed in range(200):
        layout = draw_layout(our_templates(), np.random.default_rng(seed), 4)
        between = re.split(r"«\d»", "".join(render(shots, our_templates(), seed)))[1:3]
        assert between[0] == between[1] and layout.forms["shot_connections"] in between[0]


def test_real_questions_come_through_whole(shared: Path) -> None:
    lines = (shared / "data/aqua/dev.json").read_text(encoding="utf-8").splitlines()
    pairs = []
    for row in map(json.loads, lines[:60]):
        options = tuple(option.partition(")")[2] for option in row["options"])
        right = options["ABCDE".index(row["correct"])]
        pairs.append(Pair(row["question"], right, options, row["rationale"]))
    assert len(pairs) == 60
    for arrangement in ARRANGEMENTS:
        for place in range(0, 60, 3):
            text = "".join(
                render([Shot("Algebra.", tuple(pairs[place : place + 3]))], arranged(arrangement))
            )
            for pair in pairs[place : place + 3]:
                for string in (pair.instruction, pair.rationale or "", *pair.options):
                    assert string in text


def test_shots_without_pairs_are_refused() -> None:
    for shots in ([], [Shot("T", (WHO,)), Shot("U", ())]):
        with pytest.raises(ValueError, match="each shot pairs"):
            render(shots, our_templates())


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    own = "free_form: ['{question} ~ {answer}']\nshares: {opening: 0}\narrangements: {reading: 2}\n"
    templates = templates_of(tmp_path / "own.yaml", own)
    assert templates.lists["free_form"] == ("{question} ~ {answer}",)
    assert templates.lists["openings"] == our_templates().lists["openings"]
    assert templates.shares == {"pairs_first": 0.05, "opening": 0}
    assert templates.weights["arrangements"] == {"reading": 2}
    assert templates.weights["one_pair_arrangements"] == {"reading": 95, "dialogue": 5}
    for seed in range(50):
        assert "Who? ~ Ann" in "".join(render([Shot("T", (WHO, WHY))], templates, seed))


def test_the_fingerprint_of_templates(tmp_path: Path) -> None:
    parts = ["openings: ['x']", "shares: {opening: 0.4}", "arrangements: {reading: 1, dialogue: 2}"]
    found = {templates_of(tmp_path / "t.yaml", part).sha256 for part in parts}
    found |= {our_templates().sha256, templates_of(tmp_path / "t.yaml", "\n".join(parts)).sha256}
    assert len(found) == 5
    again = templates_of(tmp_path / "moved.yaml", "# a comment\n" + parts[0])
    assert again.sha256 in found and load_templates().sha256 == our_templates().sha256


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("free_form: ['{question}']", "free_form.0='{question}' has no slot {answer}"),
        (
            "multiple_choice: ['{question} {options} {answer}', '{question} {answer}']",
            "multiple_choice.1='{question} {answer}' has no slot {options}",
        ),
        (
            "multiple_choice: ['{question} {options}']",
            "has 0 of the slots {answer}, {marker}, {marked_answer}: it must have one",
        ),
        ("multiple_choice: ['{question} {options} {answer} {marker}']", "has 2 of the slots"),
        ("free_form: ['{queston} {answer}']", "{queston} that is unknown here. The nearest is 'q"),
        ("openings: ['About {text}']", "{text} that is unknown here. It can have none"),
        ("free_form: ['{question} {answer} {answer}']", "has the slot {answer} more than once"),
        ("markers: ['{a}{1} ']", "markers.0='{a}{1} ' has 2 of the slots"),
        ("numbers: ['- ']", "numbers.0='- ' has 0 of the slots"),
        ("openings: []", "openings=[]: must be given: at least one entry"),
        ("openings: Hello", "openings='Hello': must be a list"),
        ("openings: ['']", "openings.0='' is empty"),
        ("openings: [yes]", "openings.0=True: must be text"),
        ("opening: ['x']", "opening: unknown key. The nearest is 'openings'"),
        ("1: ['x']", "1: unknown key."),
        ("openings: ['x']\nopenings: ['y']", "the key 'openings' stands twice"),
        ("arrangements: {reading: -1}", "arrangements.reading=-1: must be at least 0"),
        ("arrangements: {reading: 0}", "arrangements={'reading': 0}: must be above 0 for at least"),
        ("arrangements: {}", "arrangements={}: must be above 0 for at least one arrangement"),
        ("arrangements: {readin: 1}", "arrangements.readin='readin': there is no such choice"),
        ("arrangements: {reading: .nan}", "arrangements.reading=nan: must be finite"),
        ("arrangements: {reading: yes}", "arrangements.reading=True: must be a number"),
        ("arrangements: [reading]", "arrangements=['reading']: must be a mapping"),
        ("one_pair_arrangements: {numbered: 1}", "one_pair_arrangements.numbered='numbered'"),
        ("shares: {opening: 1.5}", "shares.opening=1.5: must be at least 0 and at most 1"),
        ("", "must hold keys with their templates"),
        ("- x", "must hold keys with their templates"),
        ("openings: ['x", "cannot be read"),
        ("? [a]\n: b", "cannot be read"),
    ],
)
def test_what_a_wrong_file_gets(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    with pytest.raises(UserError) as caught:
        templates_of(path, content)
    assert words in str(caught.value) and f"the template file {path}" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no template file .*none.yaml: correct"):
        load_templates(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("openings: ['é']".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.yaml cannot be read"):
        load_templates(tmp_path / "latin.yaml")
