"""Queries become templates: a silver chain of prompts, or a model that was tuned to do it.

FineInstructions, section 3.1: tags stand in place of what belongs to one query, and a paragraph
describes the documents that a template fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_gen.corpus import Document
from data_gen.engines import Completion, Request
from data_gen.engines.replies import object_of
from data_gen.fine_instructions import prompts
from data_gen.fine_instructions.prompts import DESCRIPTION_KEY, TEMPLATE_KEY
from data_gen.fine_instructions.rules import template_by_rules
from data_gen.fine_instructions.templates import Template, check_template
from data_gen.stages.asking import AskingStage, ChatConfig, carried_by, json_regex, json_text_regex
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.config import CorpusConfig
from data_gen.stages.stage import Summary, reasons_of
from ipt_jax.core.bounds import NotNegative
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason, Rejection

METHOD, TEMPLATES = "fi_templates", "templates"
# What a model is told of a template that was rejected.
_WRONG = {
    "changed": "words of the query were changed or left out.",
    "no_tag": "it had no tag.",
    "whole_query": "nothing of the query was left outside of its tags.",
    "empty_tag": "a tag was empty.",
    "nested_tag": "a tag stood within another.",
    "unbalanced_tag": "a tag was not closed.",
}
_EDGE = re.compile(r"(</?fi>)")
# Of constrained replies.
_TAG_TEXT, _MOST_TAGS = json_text_regex(3, 80, "<>"), 16
_DESCRIPTION = json_text_regex(20, 900, "<")


@dataclass(frozen=True, kw_only=True)
class GenericizeConfig(ChatConfig, CorpusConfig):
    """Queries in, templates out."""

    method: str = METHOD
    output: str = "runs/fi_templates"
    """Synthesis folder; made where missing."""
    form: Literal["chain", "tuned", "rules"] = "chain"
    """`chain`: our prompts with examples, for any chat model: template, repair, description.
    `tuned`: the query alone is asked and template and description come back in one JSON, as the
    published model `query_templatizer` and those tuned here do it. `rules`: no model is asked;
    names, numbers, dates and what follows a preposition are left open (`rules.py`)."""
    repairs: NotNegative = 1
    """Times that the spans of a query are asked for whose template was rejected (`chain`)."""


def render_reply(template: Template) -> str:
    """What a model that is tuned to make templates writes: JSON on one line."""
    content = {TEMPLATE_KEY: template.text, DESCRIPTION_KEY: template.documents}
    return json.dumps(content, ensure_ascii=False)


def template_from_spans(query: str, spans: Sequence[tuple[str, str]]) -> str | Reason:
    """The query with a tag in place of each quoted span, or why that cannot be.

    Args:
      spans: text and description of each; every one is looked for behind the one before.
    """
    parts, place = [], 0
    for text, described in spans:
        start = query.find(text, place) if text.strip() else -1
        if start < 0:
            return Reason("no_span", f"{text!r} does not stand in the query behind the one before")
        if "<" in described or ">" in described or not described.strip():
            return Reason("bad_description", f"{described!r} describes no kind of text")
        parts += [query[place:start], f"<fi>{described.strip()}</fi>"]
        place = start + len(text)
    return "".join([*parts, query[place:]])


def mend_template(text: str, query: str) -> str | None:
    """The template with the query's own words outside of its tags, where it differs from the query
    in case, white space and marks at the very end alone; None where it differs in more."""
    parts, query = _EDGE.split(text), query.strip()
    if len(parts) % 4 != 1 or len(parts) == 1:
        return None
    *kept, last = parts[::4]
    ends = [_loose(one) for one in kept]
    ends.append(_loose(last.rstrip(" \n.?!")) + r"[.?!]{0,9}\Z")
    pieces, place = list[str](), 0
    for number, pattern in enumerate(ends):
        # Behind a tag, which stands for something.
        search = re.compile(pattern, re.IGNORECASE)
        found = search.search(query, place + 1) if number else search.match(query)
        if found is None or (number and not any(map(str.isalnum, query[place : found.start()]))):
            return None
        pieces += [*(["<fi>", parts[4 * number - 2], "</fi>"] if number else []), found[0]]
        place = found.end()
    mended = "".join(pieces).strip()
    return mended if check_template(mended, query) is None else None


def _loose(part: str) -> str:
    """The pattern of a text with any white space for its own."""
    words = r"\s+".join(map(re.escape, part.split()))
    before, after = part[:1].isspace(), part[-1:].isspace() and bool(words)
    return rf"{r'\s+' if before else ''}{words}{r'\s+' if after else ''}"


class Genericize(AskingStage[GenericizeConfig]):
    """A model makes a template of each query and describes the documents that it fits."""

    name, version, Config = METHOD, 1, GenericizeConfig
    parts = (TEMPLATES,)

    def prompt_texts(self) -> Sequence[str]:
        if self.config.form == "rules":
            return []
        if self.config.form == "tuned":
            return ["{query}"]
        return [
            prompts.template_prompt("{query}"),
            prompts.spans_prompt("{query}", "{reason}"),
            prompts.description_prompt("{template}"),
        ]

    def check(self, document: Document) -> Reason | None:
        query = document.text
        if "<fi>" in query or "</fi>" in query:
            return Reason("tag_in_query", "it holds a tag of templates itself")
        chain = self.config.form == "chain"
        return self.too_long(prompts.template_prompt(query) if chain else query)

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        ask = {"chain": self._chain, "tuned": self._tuned, "rules": self._rules}[self.config.form]
        asked: list[str] = []
        tried: list[Reason] = []
        found = yield from ask(unit, asked, tried)
        if isinstance(found, Reason):
            return self.unused(unit, [*tried, found])
        pieces = [Rejection(unit.id, unit.source, *reason) for reason in tried]
        provenance = {
            **self.asked_provenance(asked),
            "parents": [unit.id],
            "query": unit.text,
            "query_source": unit.source,
            "talks_to_a_model": bool(carried_by(unit).get("talks_to_a_model", False)),
            "documents": found.documents,
            "complexity": found.complexity,
            "repaired": bool(tried),
        }
        record = Record(f"{METHOD}/{unit.id}", found.text, METHOD, provenance=provenance)
        pairs = [{"instruction": found.text, "response": found.documents}]
        shown = {"id": unit.id, "text": unit.text, "pairs": pairs}
        sample = {"id": record.id, "source": METHOD, "documents": [shown]}
        counts = {"documents": 1, "tags": found.complexity, "repaired": int(bool(tried))}
        return UnitOutput([(TEMPLATES, record)], pieces, counts, samples=[sample])

    def _rules(
        self, unit: Record, asked: list[str], tried: list[Reason]
    ) -> Generator[Request, Completion, Template | Reason]:
        yield from ()
        found = template_by_rules(unit.text)
        return check_template(found.text, unit.text) or found

    def _tuned(
        self, unit: Record, asked: list[str], tried: list[Reason]
    ) -> Generator[Request, Completion, Template | Reason]:
        asked.append(unit.text)
        regex = json_regex({TEMPLATE_KEY: _tagged(unit.text), DESCRIPTION_KEY: _DESCRIPTION})
        reply = yield self.request(unit.id, "tuned", unit.text, regex)
        text = _checked(_text_of(reply, TEMPLATE_KEY), unit.text, tried)
        return text if isinstance(text, Reason) else _described(text, reply)

    def _chain(
        self, unit: Record, asked: list[str], tried: list[Reason]
    ) -> Generator[Request, Completion, Template | Reason]:
        """`asked` and `tried` take in the prompts and why earlier attempts were rejected."""

        def question(turn: str, prompt: str, regex: str) -> Request:
            asked.append(prompt)
            return self.request(unit.id, turn, prompt, regex)

        prompt = prompts.template_prompt(unit.text)
        regex = json_regex({TEMPLATE_KEY: _tagged(unit.text)})
        reply = yield question("template", prompt, regex)
        text = _checked(_text_of(reply, TEMPLATE_KEY), unit.text, tried)
        for number in range(self.config.repairs):
            if not isinstance(text, Reason) or text.reason == "engine_error":
                break
            tried.append(text)
            prompt = prompts.spans_prompt(unit.text, _WRONG.get(text.reason, _WRONG["changed"]))
            reply = yield question(f"spans-{number}", prompt, _spans_regex(len(unit.text)))
            text = _checked(_from_spans(unit.text, reply), unit.text, tried)
        if isinstance(text, Reason):
            return text
        prompt = prompts.description_prompt(text)
        reply = yield question("description", prompt, json_regex({DESCRIPTION_KEY: _DESCRIPTION}))
        return _described(text, reply)

    def finish(self, totals: BlockTotals) -> Summary:
        made = totals.counts["documents"]
        return {
            "documents_augmented": made,
            **reasons_of(totals.unused),
            "templates": made,
            "repaired": totals.counts["repaired"],
            "tags_per_template": round(totals.counts["tags"] / max(1, made), 3),
        }

    def card(self, summary: Summary) -> Card:
        return Card(
            title="Instruction templates",
            about=(
                f"{summary['templates']:,} queries of people, each with tags in place of what "
                "belongs to it alone, and the documents it could be asked about described by a "
                "language model (FineInstructions, section 3.1)."
            ),
            gates=[
                "A template has tags that are balanced, not nested and not empty.",
                "Outside of its tags it is the query, letter for letter but for white space.",
            ],
            sampling=self.sampling_settings(),
            prompts=[CardPrompt("The model reads", one) for one in self.prompt_texts()],
        )


def _tagged(query: str) -> str:
    """The pattern of a template: tags balanced and filled; what is between them is free."""
    if "<" in query:
        return json_text_regex(1, 2 * len(query) + 200)
    between = json_text_regex(0, len(query), "<")
    return f"{between}(<fi>{_TAG_TEXT}</fi>{between}){{1,{_MOST_TAGS}}}"


def _spans_regex(characters: int) -> str:
    span = json_regex({"text": json_text_regex(1, characters), "description": _TAG_TEXT})
    return rf'\{{"spans": \[{span}(, {span}){{0,{_MOST_TAGS - 1}}}\]\}}'


def _checked(text: str | Reason, query: str, tried: list[Reason]) -> str | Reason:
    """The template, mended where that helps; `tried` takes in what was wrong with it then."""
    if isinstance(text, Reason):
        return text
    wrong = check_template(text, query)
    if wrong is not None and wrong.reason == "changed":
        mended = mend_template(text, query)
        if mended is not None:
            tried.append(wrong)
            return mended
    return wrong or text


def _value_of(completion: Completion, key: str) -> Any | Reason:
    """What a reply has under a key, or why it has nothing there."""
    reply, said = object_of(completion), completion.text[-300:]
    if isinstance(reply, dict) and key in reply:
        return reply[key]
    if completion.finish_reason == "length":
        return Reason("cut", said)  # objects within one that is cut are not the reply
    return Reason(reply if isinstance(reply, str) else f"no_{key}", said)


def _text_of(completion: Completion, key: str) -> str | Reason:
    text = _value_of(completion, key)
    if isinstance(text, Reason):
        return text
    if isinstance(text, str) and text.strip():
        return text.strip()
    return Reason(f"no_{key}", completion.text[-300:])


def _described(text: str, completion: Completion) -> Template | Reason:
    documents = _text_of(completion, DESCRIPTION_KEY)
    if isinstance(documents, Reason):
        return documents
    if "<fi>" in documents or "</fi>" in documents:
        return Reason("tag_in_description", documents)
    return Template(text, " ".join(documents.split()))


def _from_spans(query: str, completion: Completion) -> str | Reason:
    spans = _value_of(completion, "spans")
    if isinstance(spans, Reason):
        return spans
    found: list[tuple[str, str]] = []
    for span in spans if isinstance(spans, list) else ():
        fields = span if isinstance(span, dict) else {}
        text, told = fields.get("text"), fields.get("description")
        if isinstance(text, str) and isinstance(told, str):
            found.append((text.strip(), told))
    if not found or len(found) < len(spans):
        return Reason("no_spans", completion.text[-300:])
    # As they stand in the query, whatever the order they are told in.
    found.sort(key=lambda one: query.find(one[0]))
    return template_from_spans(query, found)
