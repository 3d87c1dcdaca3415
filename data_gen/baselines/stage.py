"""The rule-based baseline as a stage: corpus in, record shards out, nothing is asked."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_gen.baselines.config import ReadingComprehensionConfig
from data_gen.baselines.domain_words import DomainWords, open_general, train_vocabulary
from data_gen.baselines.instructions import DEFAULT_FILE, load_instructions
from data_gen.baselines.reading_comprehension import Rules, reading_comprehension
from data_gen.baselines.sentences import split_sentences
from data_gen.engines import Completion, Request
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card, CardPrompt
from data_gen.stages.stage import Stage, StageRun, Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, atomic_write, file_sha256
from ipt_jax.core.rejection import Reason, Rejection

METHOD = "reading_comprehension"
PLAIN, AUGMENTED = "plain", "augmented"
VOCABULARY_NAME = "domain.model"


class ReadingComprehension(Stage[ReadingComprehensionConfig, Record]):
    """Each text is followed by tasks that its own connectors, words and title give."""

    name, version, Config = METHOD, 1, ReadingComprehensionConfig
    parts, plain = (AUGMENTED, PLAIN), PLAIN
    owns = (VOCABULARY_NAME,)
    free = ("domain_vocabulary", "instructions")

    def __init__(self, config: ReadingComprehensionConfig) -> None:
        super().__init__(config)
        wordings = config.instructions
        self._wordings = load_instructions(
            DEFAULT_FILE if wordings is None else Path(wordings).expanduser()
        )
        self._given = _read_vocabulary(config)
        self._general = open_general(config.general_vocabulary)

    def identity(self) -> Mapping[str, Any]:
        given = self._given
        words = "trained" if given is None else DomainWords(given, self._general).sha256
        return {
            "instructions": self._wordings.sha256,
            "domain_vocabulary": words,
            "general_vocabulary": self._general.sha256,
        }

    def begin(self, run: StageRun) -> None:
        self._run = run

    def units(self, raw: RecordSource | None) -> RecordUnits:
        assert raw is not None
        config, documents = self.config, RecordUnits(raw)
        self._rules = Rules(
            domain=config.domain.strip(),
            words=DomainWords(self._given or self._trained(documents), self._general),
            general=self._general,
            instructions=self._wordings,
            most_per_sub=config.most_per_sub,
            text_tokens=config.text_tokens,
        )
        return documents

    def _trained(self, documents: RecordUnits) -> bytes:
        """The domain's vocabulary, trained once and kept in the folder."""
        config, ledger = self.config, self._run.ledger
        path = self._run.output.folder / VOCABULARY_NAME
        if path.is_file() and ledger.note(VOCABULARY_NAME) == file_sha256(path):
            return path.read_bytes()
        step = max(1, -(-len(documents) // config.vocabulary_documents))
        model = train_vocabulary(_lines(documents, step), config.vocabulary_pieces)
        atomic_write(path, model)
        ledger.set_note(VOCABULARY_NAME, file_sha256(path))
        return model

    def work(self, document: Record) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        rules, seed = self._rules, self.config.seed
        made = reading_comprehension(document.id, document.text, self._title(document), rules, seed)
        if not made.tasks:
            return _plain(document, made.reason)
        tasks = dict(sorted(made.tasks.items()))
        provenance = {
            "method": METHOD,
            "seed": seed,
            "domain": rules.domain,
            "domain_vocabulary_sha256": rules.words.sha256,
            "general_vocabulary_sha256": rules.general.sha256,
            "instructions_sha256": rules.instructions.sha256,
            "parents": [document.id],
            "sources": [document.source],
            "tasks": tasks,
        }
        record = Record(f"{METHOD}/{document.id}", made.text, METHOD, provenance=provenance)
        counts = {f"tasks.{name}": count for name, count in made.tasks.items()}
        shown = [{"id": document.id, "text": made.text, "pairs": []}]
        sample = {"id": record.id, "source": METHOD, "documents": shown}
        return UnitOutput([(AUGMENTED, record)], (), {"augmented": 1, **counts}, samples=[sample])

    def _title(self, document: Record) -> str | None:
        if self.config.title_field is not None:
            given = document.provenance.get("metadata", {}).get(self.config.title_field)
            if isinstance(given, str) and given.strip():
                return given
        return None if self.config.first_line_is_title else ""

    def failed(self, unit: Record, failure: Reason) -> UnitOutput:
        piece = Rejection(unit.id, unit.source, failure.reason, failure.detail)
        return _plain(unit, failure.reason, piece)

    def finish(self, totals: BlockTotals) -> Summary:
        def under(prefix: str) -> dict[str, int]:
            found = totals.counts.items()
            return {k.removeprefix(prefix): n for k, n in sorted(found) if k.startswith(prefix)}

        plain, tasks = under("plain."), under("tasks.")
        return {
            "domain": self._rules.domain,
            "documents_augmented": totals.counts["augmented"],
            "documents_plain": sum(plain.values()),
            "plain_reasons": plain,
            "tasks": sum(tasks.values()),
            "tasks_by_type": tasks,
            "domain_words": len(self._rules.words.words),
            "domain_vocabulary_sha256": self._rules.words.sha256,
        }

    def card(self, summary: Summary) -> Card:
        wordings = self._wordings.wordings
        return Card(
            title="Reading comprehension texts by rules",
            about=(
                f"Texts about {self._rules.domain}, followed by tasks that their own connectors, "
                "words and titles give (Cheng et al., 2023, arXiv 2309.09530). No model wrote any "
                "of it. `shards/augmented` and `shards/plain` together hold every text once; "
                "`shards/raw` holds them as they came."
            ),
            gates=["A document is UTF-8 text with an id of its own."],
            sampling={"tasks of a sub-category in a text": self.config.most_per_sub},
            prompts=[CardPrompt(f"Wordings of {k}", "\n---\n".join(wordings[k])) for k in wordings],
            model={"general vocabulary": self.config.general_vocabulary},
        )


def _plain(document: Record, reason: str, *pieces: Rejection) -> UnitOutput:
    return UnitOutput([(PLAIN, document)], pieces, {f"plain.{reason}": 1})


def _lines(documents: RecordUnits, step: int) -> Iterator[str]:
    for number in range(0, len(documents), step):
        yield from (sentence.text for sentence in split_sentences(documents[number].text))


def _read_vocabulary(config: ReadingComprehensionConfig) -> bytes | None:
    if config.domain_vocabulary is None:
        return None
    path = Path(config.domain_vocabulary).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"`domain_vocabulary` ({path}) cannot be read ({error.strerror}): correct it, or "
            "leave it out to train one.",
            key="domain_vocabulary",
            path=path,
        ) from error
