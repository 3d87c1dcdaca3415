"""Documents written anew by a model: WRAP, diverse questions and answers, Nemotron-CC's mixture.

The baselines of FineInstructions (section 4.1) in their native form: a rewritten text stands
alone, questions and answers stand below their document (Maini et al., 2024, arXiv 2401.16380;
Su et al., 2024, arXiv 2412.02595).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from data_gen.baselines.sentences import split_sentences
from data_gen.engines import Completion, Request
from data_gen.errors.shared import load_yaml
from data_gen.stages.asking import AskingStage, ChatConfig
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.config import CorpusConfig
from data_gen.stages.stage import Summary, reasons_of
from ipt_jax.core.bounds import AtLeast, NotEmpty, Positive
from ipt_jax.core.errors import UserError, did_you_mean
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import generator_of

METHOD, REWRITTEN, QA = "rewrite", "rewritten", "qa"
TASKS = ("rephrase", "qa", "distil", "extract", "knowledge")
DEFAULT_FILE = Path(__file__).with_name("rewrite.yaml")
_PLACE = "{text}"
# A line that only says that the text follows.
_OPENING = re.compile(r"\A(?:sure|certainly|of course|here)\b[^\n]{0,120}:[ \t]*\n+", re.IGNORECASE)
_QUESTION = re.compile(r"^[\s\-*#\d.]*Question:\s*", re.MULTILINE | re.IGNORECASE)
_ANSWER = re.compile(r"^[\s\-*]*Answer:\s*", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RewriteConfig(ChatConfig, CorpusConfig):
    """Documents in, rewritten texts out."""

    method: str = METHOD
    output: str = "runs/rewrite"
    """Synthesis folder; made where missing."""
    tasks: Annotated[
        list[Literal["rephrase", "qa", "distil", "extract", "knowledge"]], NotEmpty("name a task")
    ] = field(default_factory=lambda: ["rephrase"])
    """What is asked: `rephrase` alone is WRAP, `qa` alone diverse questions and answers, all five
    are Nemotron-CC's mixture."""
    each: bool = False
    """Every task of every document; else one a document, drawn evenly."""
    pairs_per_150_tokens: Positive = 1
    """Of the questions and answers about a document at least one is kept, and a drawn number up to
    so many for each 150 tokens of it (`qa`)."""
    least_words: Annotated[int, AtLeast(1)] = 5
    """Shorter replies are rejected."""
    prompts: str | None = None
    """YAML file of prompts in the form of data_gen/baselines/rewrite.yaml, or null for it."""

    def check_together(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"tasks={self.tasks!r}: names one twice.", key="tasks")


@dataclass(frozen=True)
class RewriteTask:
    """One thing that a model is asked to do with a text."""

    prompt: str
    """With the place {text}."""
    passage_words: int
    """Longer documents are asked about in passages of so many words at most."""

    def fill(self, text: str) -> str:
        return self.prompt.replace(_PLACE, text.strip())


def load_tasks(path: Path = DEFAULT_FILE) -> dict[str, RewriteTask]:
    """The tasks of a file of prompts. Raises UserError where one is missing, unknown or wrong."""
    content = load_yaml(path, "file of prompts", "prompts")
    if not isinstance(content, dict):
        said = f"{path} holds no tasks: its form is that of {DEFAULT_FILE.name}."
        raise UserError(said, key="prompts", path=path)
    for name in content:
        if name not in TASKS:
            said = f"{path}: unknown task {name!r}. {did_you_mean(str(name), TASKS)}"
            raise UserError(said, key=str(name), path=path)
    found = {}
    for name in TASKS:
        one = content.get(name)
        prompt = words = None
        if isinstance(one, dict) and one.keys() == {"prompt", "passage_words"}:
            prompt, words = one["prompt"], one["passage_words"]
        if not isinstance(prompt, str) or prompt.count(_PLACE) != 1:
            said = f"{path}: {name!r} needs a `prompt` with the place {_PLACE} once."
            raise UserError(said, key=name, path=path)
        if type(words) is not int or words < 20:
            said = f"{path}: {name!r} needs `passage_words`, a whole number of at least 20."
            raise UserError(said, key=name, path=path)
        found[name] = RewriteTask(prompt, words)
    return found


def split_passages(text: str, most_words: int) -> list[str]:
    """Passages of whole sentences that join to the text, of `most_words` at most where no sentence
    is longer."""
    starts, words = [0], 0
    for sentence in split_sentences(text):
        more = len(sentence.text.split())
        if words and words + more > most_words:
            starts.append(sentence.start)
            words = 0
        words += more
    ends = [*starts[1:], len(text)]
    passages = [text[a:b] for a, b in zip(starts, ends, strict=True)]
    return [one for one in passages if one.strip()]


def parse_answered(reply: str) -> list[str]:
    """The pairs of a reply as `Question: …`, a new line, `Answer: …`; broken ones are left out."""
    found = []
    for piece in _QUESTION.split(reply)[1:]:
        question, *answers = (part.strip() for part in _ANSWER.split(piece))
        if question and len(answers) == 1 and answers[0]:
            found.append(f"Question: {question}\nAnswer: {answers[0]}")
    return found


class Rewrite(AskingStage[RewriteConfig]):
    """A model rewrites documents, passage by passage, by one or several tasks."""

    name, version, Config = METHOD, 1, RewriteConfig
    parts = (REWRITTEN,)
    free = ("prompts",)

    def __init__(self, config: RewriteConfig) -> None:
        """Raises UserError as `load_tasks`."""
        super().__init__(config)
        path = DEFAULT_FILE if config.prompts is None else Path(config.prompts).expanduser()
        self._tasks = load_tasks(path)

    def prompt_texts(self) -> Sequence[str]:
        return [self._tasks[name].prompt for name in self.config.tasks]

    def identity(self) -> Mapping[str, Any]:
        sizes = [self._tasks[name].passage_words for name in self.config.tasks]
        return {**super().identity(), "passage_words": sizes}

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        records: list[tuple[str, Record]] = []
        pieces: list[Rejection] = []
        counts, shown = Counter[str](), list[dict[str, str]]()
        for name in self._chosen(unit):
            texts, prompts = list[str](), list[str]()
            for number, passage in enumerate(self._passages(name, unit.text)):
                prompt = self._tasks[name].fill(passage)
                wrong = self.too_long(prompt)
                found: list[str] | Reason
                if wrong is None:
                    prompts.append(prompt)
                    found = self._read(
                        name, (yield self.request(unit.id, f"{name}-{number}", prompt))
                    )
                else:
                    found = wrong
                if isinstance(found, Reason):
                    pieces.append(Rejection(f"{unit.id}/{name}-{number}", unit.source, *found))
                else:
                    texts += found
            if not texts:
                continue
            record = self._record(unit, name, texts, prompts)
            records.append((REWRITTEN, record))
            counts[f"task.{name}"] += 1
            shown.append({"instruction": name, "response": record.text})
        if not records:
            return UnitOutput((), pieces, counts, {unit.id: pieces[0].reason})
        counts["documents"] = 1
        document = {"id": unit.id, "text": unit.text, "pairs": shown}
        sample = {"id": unit.id, "source": METHOD, "documents": [document]}
        return UnitOutput(records, pieces, counts, samples=[sample])

    def _chosen(self, unit: Record) -> Iterator[str]:
        tasks = self.config.tasks
        if self.config.each:
            yield from tasks
        else:
            yield tasks[int(generator_of(self.config.seed, "task", unit.id).integers(len(tasks)))]

    def _passages(self, name: str, text: str) -> list[str]:
        return split_passages(text, self._tasks[name].passage_words)

    def _read(self, name: str, completion: Completion) -> list[str] | Reason:
        """What of a reply stands in the record, or why none of it does."""
        if completion.finish_reason == "error":
            return Reason("engine_error", completion.text)
        reply = completion.text.strip()
        if name == QA:
            pairs = parse_answered(reply)
            if completion.finish_reason == "length":
                pairs = pairs[:-1]  # the last is not whole
            return pairs or Reason("no_pairs", reply[:300])
        if completion.finish_reason == "length":
            return Reason("cut_at_max_tokens", reply[-300:])
        text = _OPENING.sub("", reply).strip()
        if len(text.split()) < self.config.least_words:
            return Reason("too_short", reply[:300])
        return [text]

    def _record(
        self, unit: Record, name: str, texts: Sequence[str], prompts: Sequence[str]
    ) -> Record:
        kept = list(texts)
        if name == QA:
            generator = generator_of(self.config.seed, "pairs", unit.id)
            tokens = self._run.engine.count_tokens(unit.text)
            most = max(1, self.config.pairs_per_150_tokens * tokens // 150)
            order = generator.permutation(len(texts))[: int(generator.integers(1, most + 1))]
            kept = [unit.text.strip(), *(texts[place] for place in order)]
        provenance = {
            **self.asked_provenance(prompts),
            "parents": [unit.id],
            "sources": [unit.source],
            "task": name,
            "passages": len(prompts),
        }
        if name == QA:
            provenance["pairs"] = len(kept) - 1
        return Record(
            f"{METHOD}/{name}/{unit.id}", "\n\n".join(kept), METHOD, provenance=provenance
        )

    def finish(self, totals: BlockTotals) -> Summary:
        tasks = {name: totals.counts[f"task.{name}"] for name in self.config.tasks}
        return {
            "documents_augmented": totals.counts["documents"],
            **reasons_of(totals.unused),
            "rewritten": sum(tasks.values()),
            "rewritten_by_task": tasks,
        }

    def card(self, summary: Summary) -> Card:
        tasks = ", ".join(self.config.tasks)
        return Card(
            title="Rewritten documents",
            about=(
                f"{summary['rewritten']:,} texts that a language model wrote of "
                f"{summary['documents_augmented']:,} documents ({tasks}). Questions and answers "
                "stand below their document; other texts stand alone."
            ),
            gates=[
                "A document is UTF-8 text with an id of its own.",
                "A reply is whole; a question has its answer.",
            ],
            sampling=self.sampling_settings(),
            prompts=[CardPrompt(name, self._tasks[name].prompt) for name in self.config.tasks],
        )
