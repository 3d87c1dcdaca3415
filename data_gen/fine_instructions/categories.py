"""What kinds of tasks templates set, told by a model: FineInstructions, section 6.1 and appendix D.

Of each template the seven categories of Table 4, and the task in a sentence with its verb and
object, which Figure 3 draws. `analysis.py` weighs them by how often a template was used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from data_gen.corpus import Document
from data_gen.engines import Completion, Request
from data_gen.engines.replies import object_of
from data_gen.fine_instructions.prompts import CATEGORIES, TASK_KEYS, category_prompt
from data_gen.quality.inputs import InputShards
from data_gen.stages.asking import AskingStage, ChatConfig, json_regex, json_text_regex
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.config import CorpusConfig
from data_gen.stages.stage import Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import Above, AtMost
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason
from ipt_jax.core.seeds import generator_of

METHOD, CATEGORISED = "fi_categories", "categories"
_TASK_CHARACTERS, _OBJECT_WORDS = 200, 3
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_REGEX = json_regex(
    {
        "task": json_text_regex(8, _TASK_CHARACTERS, "<"),
        "verb": "[A-Za-z-]{2,20}",
        "object": "[A-Za-z -]{2,40}",
        **dict.fromkeys(CATEGORIES, "(yes|no)"),
    }
)


@dataclass(frozen=True, kw_only=True)
class CategoriseConfig(ChatConfig, CorpusConfig):
    """Templates in, what they ask for out."""

    method: str = METHOD
    output: str = "runs/fi_categories"
    """Synthesis folder; made where missing."""
    pairs: list[str] = field(default_factory=list)
    """Folders of shards of pairs: only templates that one of these was made of are asked about;
    empty: all."""
    share: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Of these templates, drawn by their ids."""


@dataclass(frozen=True)
class TemplateTask:
    """What a template asks for."""

    task: str
    """In a sentence that begins with `verb`."""
    verb: str
    """Of the task, in small letters."""
    object: str
    """Of the verb, in small letters."""
    categories: tuple[str, ...]
    """Those of CATEGORIES that it belongs to."""


def made_of(pair: Record) -> tuple[str, str]:
    """Ids of the document and the template of a pair. Raises UserError where it does not say."""
    parents, template = (pair.provenance.get(key) for key in ("parents", "template"))
    if isinstance(parents, list) and len(parents) == 1 and template not in (None, ""):
        return str(parents[0]), str(template)  # published data number their templates
    raise UserError(
        f"the pair {pair.id!r} names the documents {parents!r} and the template {template!r} in "
        "its provenance: give shards of `fi_instantiate`, or of published pairs.",
        key="pairs",
        record=pair.id,
    )


def template_digest(template: str) -> bytes:
    """Eight bytes for an id, however long it is: millions are held at a time."""
    return hashlib.blake2b(template.encode(errors="surrogatepass"), digest_size=8).digest()


def read_task(completion: Completion) -> TemplateTask | Reason:
    """What a reply says of a template, or why that does not count.

    Reasons: `engine_error`, `cut`, `no_json`, `several`; `no_task`, `long_task`; `no_verb` (no
    word, or not the one that the task begins with); `no_object`; `no_category`.
    """
    reply = object_of(completion)
    if isinstance(reply, str):
        return Reason(reply, completion.text[-300:])
    task, verb, what = (" ".join(str(reply.get(key) or "").split()) for key in TASK_KEYS)
    first = _WORD.match(task)
    if first is None:
        return Reason("no_task", f"the task is {task!r}")
    if len(task) > _TASK_CHARACTERS:
        return Reason("long_task", f"{len(task):,} characters; at most {_TASK_CHARACTERS}")
    if first[0].lower() != verb.lower():
        return Reason("no_verb", f"the verb is {verb!r}, the task {task!r}")
    words = what.split(" ")
    if len(words) > _OBJECT_WORDS or not all(map(_WORD.fullmatch, words)):
        return Reason("no_object", f"the object is {what!r}")
    said = {name: str(reply.get(name)).strip().lower() for name in CATEGORIES}
    if unsaid := [f"{name} {word}" for name, word in said.items() if word not in _SAID]:
        return Reason("no_category", f"neither yes nor no: {', '.join(unsaid)}")
    belongs = tuple(name for name, word in said.items() if _SAID[word])
    return TemplateTask(task, verb.lower(), what.lower(), belongs)


_SAID = {"yes": True, "true": True, "no": False, "false": False}


class Categorise(AskingStage[CategoriseConfig]):
    """A model says of each template what it asks for and to which categories it belongs."""

    name, version, Config = METHOD, 1, CategoriseConfig
    parts = (CATEGORISED,)
    free = ("pairs",)  # by content in `identity`

    def __init__(self, config: CategoriseConfig) -> None:
        """Raises UserError: there are no such pairs."""
        super().__init__(config)
        self._pairs = InputShards(config.pairs) if config.pairs else None
        self._used: frozenset[bytes] | None = None

    def prompt_texts(self) -> Sequence[str]:
        return [category_prompt("{template}")]

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "pairs": self._pairs.fingerprints if self._pairs else "all"}

    def open(self) -> None:
        """Raises UserError: a pair names no template."""
        if self._pairs is not None:
            pairs = RecordUnits(self._pairs)
            self._used = frozenset(template_digest(made_of(pair)[1]) for pair in pairs)

    def check(self, document: Document) -> Reason | None:
        if self._used is not None and template_digest(document.id) not in self._used:
            return Reason("unused", "no pair was made of it")
        share = self.config.share
        if share < 1 and generator_of(self.config.seed, METHOD, document.id).random() >= share:
            return Reason("not_drawn", f"it is not of the {share:.4g} that are asked about")
        return self.too_long(category_prompt(document.text))

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        prompt = category_prompt(unit.text)
        found = read_task((yield self.request(unit.id, 0, prompt, _REGEX)))
        if isinstance(found, Reason):
            return self.unused(unit, [found])
        provenance = {
            **self.asked_provenance([prompt]),
            "parents": [unit.id],
            "verb": found.verb,
            "object": found.object,
            "categories": list(found.categories),
        }
        record = Record(f"{METHOD}/{unit.id}", found.task, METHOD, provenance=provenance)
        told = f"{found.task} ({', '.join(found.categories) or 'no category'})"
        pairs = [{"instruction": "What does it ask for?", "response": told}]
        shown = {"id": unit.id, "text": unit.text, "pairs": pairs}
        sample = {"id": record.id, "source": METHOD, "documents": [shown]}
        counts = {"documents": 1, **{f"of/{name}": 1 for name in found.categories}}
        return UnitOutput([(CATEGORISED, record)], (), counts, samples=[sample])

    def finish(self, totals: BlockTotals) -> Summary:
        categories = {name: totals.counts[f"of/{name}"] for name in CATEGORIES}
        return {**super().finish(totals), "templates_by_category": categories}

    def card(self, summary: Summary) -> Card:
        return Card(
            title="What instruction templates ask for",
            about=(
                f"{summary['documents_augmented']:,} templates, of each the task in a sentence and "
                "the categories it belongs to, by a language model (FineInstructions, section 6.1 "
                "and appendix D). A model errs in this."
            ),
            gates=[
                "The reply is one JSON object that answers every question.",
                "The task begins with its verb and has an object.",
            ],
            sampling=self.sampling_settings(),
            prompts=[CardPrompt("The model reads", self.prompt_texts()[0])],
        )
