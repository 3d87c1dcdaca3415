"""What kind of knowledge a document holds, told by a model: FineInstructions, section 3.2.

The first round of tuning retrieves templates by these descriptions.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from data_gen.corpus import Document
from data_gen.engines import Completion, Request
from data_gen.engines.replies import object_of
from data_gen.fine_instructions.prompts import knowledge_prompt
from data_gen.stages.asking import AskingStage, ChatConfig, json_regex, json_text_regex
from data_gen.stages.blocks import UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.config import CorpusConfig
from data_gen.stages.stage import Summary
from ipt_jax.core.bounds import Positive
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason

METHOD, DESCRIPTIONS = "fi_descriptions", "descriptions"


@dataclass(frozen=True, kw_only=True)
class DescribeConfig(ChatConfig, CorpusConfig):
    """Documents in, descriptions of what they hold out."""

    method: str = METHOD
    output: str = "runs/fi_descriptions"
    """Synthesis folder; made where missing."""
    description_characters: Positive = 900
    """Longest description; longer ones are rejected."""


class Describe(AskingStage[DescribeConfig]):
    """A model describes the kind of knowledge in each document."""

    name, version, Config = METHOD, 1, DescribeConfig
    parts = (DESCRIPTIONS,)

    def prompt_texts(self) -> Sequence[str]:
        return [knowledge_prompt("{document}")]

    def check(self, document: Document) -> Reason | None:
        return self.too_long(knowledge_prompt(document.text))

    def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
        prompt, most = knowledge_prompt(unit.text), self.config.description_characters
        regex = json_regex({"description": json_text_regex(min(20, most), most)})
        answer = yield self.request(unit.id, 0, prompt, regex)
        reply, wrong, text = object_of(answer), None, ""
        if isinstance(reply, str):
            wrong = Reason(reply, answer.text[:300])
        elif not isinstance(said := reply.get("description"), str) or not said.strip():
            wrong = Reason("no_description", f"the reply has the keys {sorted(map(str, reply))}")
        elif len(text := " ".join(said.split())) > most:
            wrong = Reason("long_description", f"{len(text):,} characters; at most {most:,}")
        if wrong is not None:
            return self.unused(unit, [wrong])
        provenance = self.asked_provenance([prompt]) | {"parents": [unit.id]}
        record = Record(f"{METHOD}/{unit.id}", text, METHOD, provenance=provenance)
        pairs = [{"instruction": "What does it hold?", "response": text}]
        shown = {"id": unit.id, "text": unit.text, "pairs": pairs}
        sample = {"id": record.id, "source": METHOD, "documents": [shown]}
        return UnitOutput([(DESCRIPTIONS, record)], (), {"documents": 1}, samples=[sample])

    def card(self, summary: Summary) -> Card:
        return Card(
            title="Descriptions of documents",
            about=(
                f"{summary['documents_augmented']:,} documents, of each the kind of knowledge that "
                "it holds, by a language model (FineInstructions, section 3.2)."
            ),
            gates=["A document is UTF-8 text that fits into the model's context."],
            sampling=self.sampling_settings(),
            prompts=[CardPrompt("The model reads", self.prompt_texts()[0])],
        )
