"""The rule-based baseline as a stage: corpus in, record shards out, no engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from data_gen.baselines.config import ReadingComprehensionConfig
from data_gen.baselines.domain_words import DomainWords, open_general, train_vocabulary
from data_gen.baselines.instructions import DEFAULT_FILE, Instructions, load_instructions
from data_gen.baselines.reading_comprehension import ReadingText, Rules, reading_comprehension
from data_gen.baselines.sentences import split_sentences
from data_gen.blocks import BlockTotals, UnitOutput, run_blocks
from data_gen.card import Prompt, write_card
from data_gen.corpus import corpus_sha256, find_files, read_corpus
from data_gen.engines import Completion, Request
from data_gen.engines.base import Prompt as AskedPrompt
from data_gen.intake import RAW, Intake, take_in
from data_gen.ledger import Ledger
from data_gen.outputs import OutputFolder, RejectedPiece
from data_gen.runner import Done, Failure, Progress, no_progress
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, atomic_write, file_sha256

METHOD = "reading_comprehension"
PLAIN, AUGMENTED = "plain", "augmented"
VOCABULARY_NAME = "domain.model"
_NOT_IN_RECORDS = ("input", "output", "fresh", "domain_vocabulary", "instructions")
_BEHAVIOUR = 1  # raised when rules change, so that no run mixes two
_READ_AHEAD = 256  # records read at a time


def run_reading_comprehension(
    config: ReadingComprehensionConfig,
    progress: Progress = no_progress,
    *,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Make the synthesis folder `config.output` and give back its summary.

    A finished folder of the same settings is left as it is; an unfinished one goes on where it
    stopped. The same corpus and settings give the same shards. `on_start` is called with the
    folder once it is sure that this run may write there.

    Raises:
      UserError: bad corpus, vocabulary, instructions or settings; a folder of another run.
    """
    files = find_files(config.input)
    wordings = load_instructions(_path(config.instructions) or DEFAULT_FILE)
    given = _read_vocabulary(config)
    fingerprint = _fingerprint(config, wordings, given, corpus_sha256(files))
    output = OutputFolder(Path(config.output), (RAW, PLAIN, AUGMENTED))
    with output.hold(METHOD, fingerprint, fresh=config.fresh, owns=(VOCABULARY_NAME,)) as run:
        finished = output.finished()
        if finished is not None:
            return finished
        run.begin()
        with Ledger(output.folder) as ledger:
            output.begin()
            if on_start is not None:
                on_start(output.folder)
            summary = _run(config, output, ledger, wordings, given, progress)
            output.finish(summary, fingerprint)
        run.finish()
    return summary


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()


def _read_vocabulary(config: ReadingComprehensionConfig) -> bytes | None:
    path = _path(config.domain_vocabulary)
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise UserError(
            f"`domain_vocabulary` ({path}) cannot be read ({error.strerror}): correct it, or "
            "leave it out to train one."
        ) from error


def _fingerprint(
    config: ReadingComprehensionConfig, wordings: Instructions, given: bytes | None, corpus: str
) -> dict[str, Any]:
    """Everything that the records depend on; keys are named to the user when they differ."""
    settings = asdict(config)
    for key in _NOT_IN_RECORDS:
        del settings[key]
    general = open_general(config.general_vocabulary)
    return {
        **settings,
        "method": f"{METHOD}/{_BEHAVIOUR}",
        "instructions": wordings.sha256,
        "domain_vocabulary": "trained" if given is None else DomainWords(given, general).sha256,
        "general_vocabulary": general.sha256,
        "corpus": corpus,
    }


def _run(
    config: ReadingComprehensionConfig,
    output: OutputFolder,
    ledger: Ledger,
    wordings: Instructions,
    given: bytes | None,
    progress: Progress,
) -> dict[str, Any]:
    intake = take_in(
        read_corpus(
            config.input,
            text_field=config.text_field,
            id_field=config.id_field,
            max_characters=config.max_characters,
            limit=config.limit,
        ),
        output,
        ledger,
        records_per_shard=config.records_per_shard,
    )
    documents = _Documents(RecordSource(output.shards(RAW), verify=False))
    general = open_general(config.general_vocabulary)
    model = given or _trained(config, documents, output, ledger)
    rules = Rules(
        domain=config.domain.strip(),
        words=DomainWords(model, general),
        general=general,
        instructions=wordings,
        most_per_sub=config.most_per_sub,
        text_tokens=config.text_tokens,
    )

    def read(document: Record) -> Generator[Request, Completion, ReadingText]:
        yield from ()  # nothing is asked
        title = _title(document, config)
        return reading_comprehension(document.id, document.text, title, rules, config.seed)

    totals = run_blocks(
        documents,
        read,
        lambda done: _output_of(done, config.seed, rules),
        _NoEngine(),
        ledger,
        output,
        parts=(AUGMENTED, PLAIN),
        units_per_block=config.records_per_shard,
        units_in_flight=64,  # texts in memory
        turns_expected=0,
        progress=progress,
    )
    output.write_samples(totals.samples)
    return _summarise(config, output, ledger, rules, intake, totals)


def _trained(
    config: ReadingComprehensionConfig,
    documents: _Documents,
    output: OutputFolder,
    ledger: Ledger,
) -> bytes:
    """The domain's vocabulary, trained once and kept in the folder."""
    path = output.folder / VOCABULARY_NAME
    if path.is_file() and ledger.note(VOCABULARY_NAME) == file_sha256(path):
        return path.read_bytes()
    step = max(1, -(-len(documents) // config.vocabulary_documents))
    model = train_vocabulary(_lines(documents, step), config.vocabulary_pieces)
    atomic_write(path, model)
    ledger.set_note(VOCABULARY_NAME, file_sha256(path))
    return model


def _lines(documents: _Documents, step: int) -> Iterator[str]:
    for number in range(0, len(documents), step):
        yield from (sentence.text for sentence in split_sentences(documents[number].text))


def _title(document: Record, config: ReadingComprehensionConfig) -> str | None:
    if config.title_field is not None:
        given = document.provenance.get("metadata", {}).get(config.title_field)
        if isinstance(given, str) and given.strip():
            return given
    return None if config.first_line_is_title else ""


def _output_of(done: Done[Record, ReadingText], seed: int, rules: Rules) -> UnitOutput:
    document, made = done.unit, done.outcome
    if isinstance(made, Failure):
        piece = RejectedPiece(document.id, document.source, made.reason, made.detail)
        return UnitOutput([(PLAIN, document)], [piece], {f"plain.{made.reason}": 1})
    if not made.tasks:
        return UnitOutput([(PLAIN, document)], counts={f"plain.{made.reason}": 1})
    provenance = {
        "method": METHOD,
        "seed": seed,
        "domain": rules.domain,
        "domain_vocabulary_sha256": rules.words.sha256,
        "general_vocabulary_sha256": rules.general.sha256,
        "instructions_sha256": rules.instructions.sha256,
        "parents": [document.id],
        "sources": [document.source],
        "tasks": dict(sorted(made.tasks.items())),
    }
    record = Record(f"{METHOD}/{document.id}", made.text, METHOD, provenance=provenance)
    counts = {f"tasks.{name}": count for name, count in made.tasks.items()}
    sample = {"id": record.id, "text": made.text, "tasks": dict(sorted(made.tasks.items()))}
    return UnitOutput([(AUGMENTED, record)], counts={"augmented": 1, **counts}, samples=[sample])


def _summarise(
    config: ReadingComprehensionConfig,
    output: OutputFolder,
    ledger: Ledger,
    rules: Rules,
    intake: Intake,
    totals: BlockTotals,
) -> dict[str, Any]:
    def under(prefix: str) -> dict[str, int]:
        found = totals.counts.items()
        return {k.removeprefix(prefix): n for k, n in sorted(found) if k.startswith(prefix)}

    plain, tasks = under("plain."), under("tasks.")
    raw = RecordSource(output.shards(RAW), verify=False)
    summary = {
        "method": METHOD,
        "domain": rules.domain,
        "documents_in": len(raw) + intake.rejected.total(),
        "documents_augmented": totals.counts["augmented"],
        "documents_plain": sum(plain.values()),
        "documents_rejected": intake.rejected.total(),
        "plain_reasons": plain,
        "rejected_documents": dict(intake.rejected),
        "rejected_pieces": dict(totals.rejected),
        "tasks": sum(tasks.values()),
        "tasks_by_type": tasks,
        "domain_words": len(rules.words.words),
        "domain_vocabulary_sha256": rules.words.sha256,
        "seconds": round(ledger.seconds, 3),
    }
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    if summary["documents_in"] != sum(summary[part] for part in parts):
        raise RuntimeError(f"documents were lost or doubled: {summary}")
    wordings = rules.instructions.wordings
    write_card(
        output.folder,
        method="Reading comprehension texts by rules",
        about=(
            f"Texts about {rules.domain}, followed by tasks that their own connectors, words and "
            "titles give (Cheng et al., 2023, arXiv 2309.09530). No model wrote any of it. "
            "`shards/augmented` and `shards/plain` together hold every text once; `shards/raw` "
            "holds them as they came."
        ),
        summary=summary,
        sources=intake.sources,
        model={"model": "none", "general vocabulary": config.general_vocabulary},
        sampling={"tasks of a sub-category in a text": config.most_per_sub},
        seed=config.seed,
        gates=["A document is UTF-8 text with an id of its own."],
        prompts=[Prompt(f"Wordings of {key}", "\n---\n".join(wordings[key])) for key in wordings],
    )
    return summary


class _Documents(Sequence[Record]):
    """Records one after another, read many at a time."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self._first, self._window = 0, list[Record]()

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return self._source.read(range(*index.indices(len(self))))
        if not self._first <= index < self._first + len(self._window):
            self._first = index - index % _READ_AHEAD
            last = min(self._first + _READ_AHEAD, len(self))
            self._window = self._source.read(range(self._first, last))
        return self._window[index - self._first]


class _NoEngine:
    """What `run_blocks` runs units with that ask nothing."""

    name = version = model = revision = "none"
    context_tokens = 0

    def count_tokens(self, text: AskedPrompt) -> int:
        raise RuntimeError("a rule asked a model")

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is not None:
                raise RuntimeError(f"a rule asked a model: {request.id}")
            yield from ()

    def close(self) -> None:
        pass
