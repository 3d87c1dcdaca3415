"""What models are asked, in our own words; structure and markers are FineInstructions' (app. C)."""

from __future__ import annotations

import json

TEMPLATE_KEY, DESCRIPTION_KEY = "template", "compatible_document_description"
COMPATIBLE_KEY = "compatible"

_TEMPLATE_TASK = """\
Below is something that a person asked an assistant. Make a template of it, so that the same thing \
can be asked about other subjects, each time with another document at hand.

Put a tag in place of every span that belongs to this case alone: names, places, dates, numbers, \
the subject that is asked about, the situation the person is in, text that was pasted in. A tag \
says in a few words what kind of text stands there: <fi>kind of text</fi>

- Outside of the tags copy the query letter for letter, with its mistakes and its punctuation.
- There is at least one tag. No tag stands within another, and none is empty.
- Some words of the query stay outside of the tags: they say what is wanted.
- A description never repeats what it stands for."""

_TEMPLATE_SHOTS = (
    (
        "who founded the city of Odessa and when",
        "who founded the city of <fi>name of a city</fi> and when",
    ),
    (
        "My tomato plants get yellow leaves from the bottom up since I started watering daily. "
        "What is the most likely cause, and how do I fix it within a week?",
        "My <fi>kind of plant</fi> get <fi>visible sign of a problem</fi> since I <fi>recent "
        "change in how they are cared for</fi>. What is the most likely cause, and how do I fix "
        "it within <fi>span of time</fi>?",
    ),
    (
        "Write a short summary for a 10 year old of how vaccines train the immune system.",
        "Write a short summary for a <fi>reader's age or role</fi> of how <fi>process or "
        "mechanism to be explained</fi>.",
    ),
)

_SPANS_TASK = """\
A template of this query was tried, but it was not right: {reason}

Quote the spans of the query that belong to this case alone and that another document would fill \
in otherwise, each copied letter for letter, in their order, none of them touching or overlapping \
another; and say for each in a few words what kind of text stands there. Do not quote the words \
that say what is wanted."""

_SPANS_SHOTS = (
    ("who founded the city of Odessa and when", (("Odessa", "name of a city"),)),
    (
        "Write a short summary for a 10 year old of how vaccines train the immune system.",
        (
            ("10 year old", "a reader's age or role"),
            ("vaccines train the immune system", "process or mechanism to be explained"),
        ),
    ),
    (
        "I'm flying to Lisbon in March with two kids, what should I pack?",
        (
            ("Lisbon", "place to travel to"),
            ("March", "month or season"),
            ("two kids", "who comes along"),
        ),
    ),
)

_DESCRIPTION_TASK = """\
Below is a template of something that people ask; its tags <fi>...</fi> say what kind of text is \
to be filled in. Describe the documents that one could fill it in from and find the answer in: \
what they are about, what kind of knowledge they have to hold, how detailed they are. Two or three \
sentences, one paragraph. Speak of the kind of document, not of one document, and write no tags."""

_DESCRIPTION_SHOTS = (
    (
        "who founded the city of <fi>name of a city</fi> and when",
        "A historical article or encyclopedia entry about a particular city. It names the person "
        "or people who founded the city and gives the year or period in which that happened.",
    ),
)

_KNOWLEDGE_TASK = """\
Describe what kind of knowledge the document below holds: what it is about, which questions a \
reader could find answered in it, how detailed it is. Two or three sentences, one paragraph, that \
would fit every document with the same kind of knowledge: name the kind of subject, and do not \
retell what the document says."""

TASK_KEYS = ("task", "verb", "object")
CATEGORIES = {
    "science": "it is about nature, technology or society as a science studies them",
    "math": "something is to be calculated or proved, or it is about mathematics",
    "code": "program code is to be read, written or mended, or it is about programming",
    "medicine": "it is about illness, the body, treatment, medicines or how to stay well",
    "personal_life": "it is about somebody's own everyday life: home, family, friends, feelings, "
    "money, travel, hobbies",
    "reasoning": "the answer has to be worked out of what is known: compared, weighed, explained "
    "by causes, concluded; to look it up is not enough",
    "tasky": "something is to be made or done, such as a text to write, a plan, a list of ideas, a "
    "rewriting, and no question answered",
}
"""Those of Table 4, by what has to hold of a template."""
_CATEGORY_TASK = """\
Below is a template of something that people ask; its tags <fi>...</fi> say what kind of text is \
to be filled in.

First say the task in one short sentence, as an order to the one who does it. The sentence begins \
with a verb and names no tag. Give that verb again, as it stands there, and the noun that is its \
object, without article.

Then say "yes" or "no" to each of these; several may hold, or none:
"""
_CATEGORY_SHOTS = (
    (
        "why does <fi>name of a medicine</fi> cause <fi>a side effect</fi>",
        ("Name the reason why a medicine has a side effect.", "name", "reason"),
        ("science", "medicine", "reasoning"),
    ),
    (
        "write me a limerick about <fi>an animal</fi> who <fi>something it does</fi>",
        ("Write a limerick about an animal.", "write", "limerick"),
        ("tasky",),
    ),
    (
        "My <fi>relative</fi> keeps <fi>a bad habit</fi>. How do I bring it up?",
        ("Give advice on how to speak to a relative about a habit.", "give", "advice"),
        ("personal_life",),
    ),
    (
        "how tall is <fi>name of a building</fi>",
        ("Tell the height of a building.", "tell", "height"),
        (),
    ),
)

_INSTANTIATE_TASK = """\
You get a document that may hold what someone asked for, and a template of such a query: a text in \
natural language whose variables stand in tags ("<fi>what kind of text stands there</fi>").

1. Task: fill every variable in with something that the document speaks of, so that the result is \
a query that a person who has never seen the document could ask. Variables may be worded so that \
the sentence reads well; all else stays as it is. No <fi> tag may be left.
2. Answer: answer it out of the document. Nearly all of the answer is copied from it: a few words \
of your own may lead in, at least four fifths are quoted. Quote by tags and not by writing it \
out: <excerpt>first words<...>last words</excerpt> stands for the document's text from those first \
words through those last words. Copy the words at both ends letter for letter, four to eight of \
them, and choose ends that stand in the document only once. A short quotation stands whole between \
the tags: <excerpt>whole quotation</excerpt>
3. Answerability: the template was chosen for this document, and mostly it fits. Only if the \
document holds nothing that the variables or the answer could be taken from, reply with null and \
nothing else."""

_INSTANTIATE_SHOTS: tuple[tuple[str, tuple[tuple[str, object], ...]], ...] = (
    (
        "Lake Baikal lies in southern Siberia. It is the deepest lake on Earth: 1,642 metres from "
        "the surface to the bottom. More than three hundred rivers flow into it, and only one, the "
        "Angara, flows out.",
        (
            ("Give me a recipe for <fi>name of a dish</fi>.", None),
            (
                "how <fi>adjective of size</fi> is <fi>name of a lake or river</fi>",
                {
                    "instruction": "how deep is Lake Baikal",
                    "answer": "Lake Baikal is <excerpt>the deepest lake on Earth<...>surface to "
                    "the bottom.</excerpt>",
                },
            ),
        ),
    ),
    (
        "To repot an orchid, soak its roots in lukewarm water for ten minutes, so that they bend "
        "without breaking. Cut off whatever is brown or hollow. Set the plant on coarse bark in a "
        "clear pot that is barely wider than the roots, fill in bark up to the lowest leaf, and do "
        "not water it for a week.",
        (
            (
                "I just bought <fi>a kind of plant</fi>. How do I <fi>a task of gardening</fi> "
                "without <fi>a kind of damage</fi>?",
                {
                    "instruction": "I just bought an orchid. How do I repot it without breaking "
                    "its roots?",
                    "answer": "<excerpt>soak its roots in lukewarm<...>is brown or "
                    "hollow.</excerpt> Then <excerpt>fill in bark up to the lowest "
                    "leaf</excerpt>.",
                },
            ),
        ),
    ),
)


_COMPATIBLE_TASK = """\
Below are a document and a template of something that people ask; its tags <fi>...</fi> say what \
kind of text is to be filled in. Judge whether the two go together: the document has to hold \
something for every tag, so that a question comes out that someone could really ask, and the \
document itself has to answer that question. A document that is merely about the same field does \
not go together with the template."""

_COMPATIBLE_SHOTS = (
    (
        "Lake Baikal lies in southern Siberia. It is the deepest lake on Earth: 1,642 metres from "
        "the surface to the bottom.",
        (
            ("how deep is <fi>name of a lake</fi>", True),
            ("which fish live in <fi>name of a lake</fi>", False),
            ("Give me a recipe for <fi>name of a dish</fi>.", False),
            ("where is <fi>name of a lake or mountain</fi>", True),
        ),
    ),
)


def template_prompt(query: str) -> str:
    """Asks for the template of a query."""
    shots = "".join(
        f"{_block('Query', asked)}\n{_reply({TEMPLATE_KEY: wanted})}\n\n"
        for asked, wanted in _TEMPLATE_SHOTS
    )
    form = f'Reply with JSON alone: {{"{TEMPLATE_KEY}": "..."}}'
    return f"{_TEMPLATE_TASK}\n\n{form}\n\n{shots}{_block('Query', query)}\n"


def spans_prompt(query: str, reason: str) -> str:
    """Asks for the spans of a query whose template was rejected for `reason`."""
    form = 'Reply with JSON alone: {"spans": [{"text": "...", "description": "..."}]}'
    shown = "\n\n".join(
        f"{_block('Query', asked)}\n"
        + _reply({"spans": [{"text": text, "description": what} for text, what in spans]})
        for asked, spans in _SPANS_SHOTS
    )
    task = _SPANS_TASK.format(reason=reason)
    return f"{task}\n\n{form}\n\n{shown}\n\n{_block('Query', query)}\n"


def description_prompt(template: str) -> str:
    """Asks which documents a template fits."""
    shots = "".join(
        f"{_block('Instruction Template', text)}\n{_reply({DESCRIPTION_KEY: wanted})}\n\n"
        for text, wanted in _DESCRIPTION_SHOTS
    )
    form = f'Reply with JSON alone: {{"{DESCRIPTION_KEY}": "..."}}'
    return f"{_DESCRIPTION_TASK}\n\n{form}\n\n{shots}{_block('Instruction Template', template)}\n"


def category_prompt(template: str) -> str:
    """Asks what task a template sets, and which of CATEGORIES it belongs to."""
    kinds = "\n".join(f"- {name}: {what}" for name, what in CATEGORIES.items())
    keys = [*TASK_KEYS, *CATEGORIES]
    form = f"Reply with JSON alone: {json.dumps(dict.fromkeys(keys, '...'))}"
    shots = "".join(
        f"{_block('Instruction Template', text)}\n"
        + _reply(
            dict(zip(TASK_KEYS, told, strict=True))
            | {name: "yes" if name in belongs else "no" for name in CATEGORIES}
        )
        + "\n\n"
        for text, told, belongs in _CATEGORY_SHOTS
    )
    asked = _block("Instruction Template", template)
    return f"{_CATEGORY_TASK}{kinds}\n\n{form}\n\n{shots}{asked}\n"


def knowledge_prompt(document: str) -> str:
    """Asks what kind of knowledge a document holds."""
    form = 'Reply with JSON alone: {"description": "..."}'
    return f"{_KNOWLEDGE_TASK}\n\n{form}\n\n{_block('Document', document)}\n"


def compatible_prompt(document: str, template: str) -> str:
    """Asks whether a template can be filled in and answered out of a document."""
    form = f'Reply with JSON alone: {{"{COMPATIBLE_KEY}": true}} or {{"{COMPATIBLE_KEY}": false}}'
    blocks = [_COMPATIBLE_TASK, form]
    for shown, asked in _COMPATIBLE_SHOTS:
        blocks.append(_block("Document", shown))
        blocks += [
            f"{_block('Instruction Template', one)}\n{_reply({COMPATIBLE_KEY: fits})}"
            for one, fits in asked
        ]
    blocks += [_block("Document", document), _block("Instruction Template", template)]
    return "\n\n".join(blocks) + "\n"


def instantiate_prompt(document: str, template: str) -> str:
    """Asks for a template's instruction and answer.

    What all prompts share stands first, then the document, and the template last: an engine that
    keeps what it has read reads the rules once a run and a document once for all its templates.
    """
    form = 'Reply with JSON alone: {"instruction": "...", "answer": "..."}, or null.'
    blocks = [_INSTANTIATE_TASK, form]
    for shown, asked in _INSTANTIATE_SHOTS:
        blocks.append(_block("Compatible Document", shown))
        blocks += [f"{_block('Instruction Template', one)}\n{_reply(said)}" for one, said in asked]
    blocks.append(_block("Compatible Document", document))
    blocks.append(_block("Instruction Template", template))
    return "\n\n".join(blocks) + "\n"


def published_instantiate_prompt(document: str, template: str) -> str:
    """What the published instantiator reads: JSON, the template first."""
    content = {"instruction_template": template, "document": document}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _block(name: str, text: str) -> str:
    return f"<<<{name}:\n{text.strip()}\n>>>"


def _reply(content: object) -> str:
    return json.dumps(content, ensure_ascii=False)
