"""Instruction Pre-Training synthesis, whole: corpus -> chains -> engine -> record shards."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_gen.blocks import run_blocks
from data_gen.card import Prompt, write_card
from data_gen.corpus import (
    Document,
    RejectedDocument,
    corpus_sha256,
    find_files,
    read_corpus,
)
from data_gen.engines import (
    Engine,
    Sampling,
    identify_engine,
    open_engine,
    requests_under_way,
)
from data_gen.estimate import Estimate, estimate, sample_corpus, write_sample
from data_gen.failed_requests import FailedRequests
from data_gen.instruction_pretrain.chains import Chains, drive, generator_of
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.demonstrations import DEMONSTRATIONS
from data_gen.instruction_pretrain.format import EOS, pairs_regex, render_prompt
from data_gen.instruction_pretrain.records import (
    AUGMENTED,
    METHOD,
    PLAIN,
    Provenance,
    output_of,
    write_plain,
)
from data_gen.instruction_pretrain.rounds import Budget
from data_gen.instruction_pretrain.template_file import TemplateSet, load_templates
from data_gen.intake import RAW, take_in
from data_gen.ledger import ClosedLedger, Ledger
from data_gen.outputs import OutputFolder
from data_gen.progress import ProgressLog
from data_gen.runner import Progress, Status, no_progress
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import RecordSource

# Settings that no record depends on, or that the fingerprint has in another form.
_NOT_IN_RECORDS = (
    *("input", "output", "fresh", "engine", "gpus", "price_per_gpu_hour"),
    *("dry_run", "dry_run_documents", "templates"),
)
_BEHAVIOUR = 3  # raised when prompts, parsing or templates change, so that no run mixes two


def run_synthesis(
    config: SynthesisConfig,
    progress: Progress = no_progress,
    *,
    engine: Engine | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Make the synthesis folder `config.output` and give back its summary.

    A finished folder of the same settings is left as it is; an unfinished one goes on where it
    stopped, and so does one with requests that failed: those that may pass, or more than
    `engine.max_failed_share`. `engine` replaces the one that the config names. `on_start` is called
    with the folder once it is sure that this run may write there.

    Raises:
      UserError: bad corpus, model or settings; a folder of a run with other settings.
    """
    files = find_files(config.input)
    identity = asdict(identify_engine(config.engine)) if engine is None else _identity(engine)
    templates = load_templates(config.templates)
    fingerprint = _fingerprint(config, identity, corpus_sha256(files), templates.sha256)
    output = OutputFolder(Path(config.output), (RAW, PLAIN, AUGMENTED))
    with output.hold(METHOD, fingerprint, fresh=config.fresh) as run:
        finished = output.finished()
        most_failed = config.engine.max_failed_share
        if finished is not None and FailedRequests.of_summary(finished).settled(most_failed):
            return finished
        run.begin()
        summary = _run(config, output, engine, identity, templates, progress, on_start)
        output.finish(summary, fingerprint)
        run.finish()
    return summary


def _run(
    config: SynthesisConfig,
    output: OutputFolder,
    engine: Engine | None,
    identity: Mapping[str, str],
    templates: TemplateSet,
    progress: Progress,
    on_start: Callable[[Path], None] | None,
) -> dict[str, Any]:
    with Ledger(output.folder) as ledger:
        output.begin()
        if on_start is not None:
            on_start(output.folder)
        opened = engine or open_engine(config.engine)
        try:
            with ProgressLog(output.folder) as log:

                def tell(status: Status) -> None:
                    progress(status)
                    log(status)

                summary = _synthesize(config, output, ledger, opened, identity, templates, tell)
        finally:
            if engine is None:
                opened.close()
    return summary


def estimate_synthesis(
    config: SynthesisConfig, progress: Progress = no_progress, *, engine: Engine | None = None
) -> Estimate:
    """What `run_synthesis` would take, from a sample that goes through the engine; keeps nothing.

    Raises:
      UserError: as run_synthesis.
    """
    documents, count = sample_corpus(_documents(config), config.dry_run_documents, config.seed)
    if not documents:
        raise UserError("the corpus holds no document that can be read: see `input`.")
    with tempfile.TemporaryDirectory(prefix="estimate-") as name:
        sample, folder = Path(name) / "sample.jsonl", Path(name) / "run"
        write_sample(documents, sample)
        small = replace(
            config,
            input=[str(sample)],
            output=str(folder),
            fraction=1.0,
            limit=None,
            text_field="text",
            id_field="id",
        )
        summary = run_synthesis(small, progress, engine=engine)
        FailedRequests.of_summary(summary).tell(config.engine.max_failed_share)
        with ClosedLedger(folder) as ledger:
            tokens = ledger.token_counts()
    return estimate(
        count,
        len(documents),
        config.fraction,
        tokens,
        summary["seconds"],
        gpus=config.gpus,
        price_per_gpu_hour=config.price_per_gpu_hour,
    )


def _identity(engine: Engine) -> dict[str, str]:
    return {
        "name": engine.name,
        "version": engine.version,
        "model": engine.model,
        "revision": engine.revision,
    }


def synthesis_prints(config: SynthesisConfig) -> dict[str, Any]:
    """What a synthesis folder is made from, by name: corpus, templates and model by content.

    Raises UserError as `run_synthesis`.
    """
    corpus, templates = corpus_sha256(find_files(config.input)), load_templates(config.templates)
    return _fingerprint(config, asdict(identify_engine(config.engine)), corpus, templates.sha256)


def _fingerprint(
    config: SynthesisConfig, identity: Mapping[str, str], corpus: str, templates: str
) -> dict[str, Any]:
    """Everything that the records depend on; keys are named to the user when they differ."""
    settings = asdict(config)
    for key in _NOT_IN_RECORDS:
        del settings[key]
    for key in ("max_tokens", "temperature", "top_k", "top_p", "constrain", "context_tokens"):
        settings[f"engine.{key}"] = getattr(config.engine, key)
    settings["engine.vllm.dtype"] = config.engine.vllm.dtype
    prompts = render_prompt(DEMONSTRATIONS, "{text}") + pairs_regex(1, 2)
    return {
        **settings,
        **{f"engine.{key}": value for key, value in identity.items()},
        "method": f"{METHOD}/{_BEHAVIOUR}",
        "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "templates_sha256": templates,
        "corpus": corpus,
    }


def _synthesize(
    config: SynthesisConfig,
    output: OutputFolder,
    ledger: Ledger,
    engine: Engine,
    identity: Mapping[str, str],
    templates: TemplateSet,
    progress: Progress,
) -> dict[str, Any]:
    context_tokens = min(config.engine.context_tokens, engine.context_tokens)
    budget = Budget(engine.count_tokens, context_tokens, config.engine.max_tokens)
    if budget.max_tokens >= context_tokens:
        raise UserError(
            f"`engine.max_tokens` ({budget.max_tokens}) leaves no room for a prompt in the "
            f"context of {context_tokens} tokens: lower it."
        )
    sampling = Sampling(
        max_tokens=config.engine.max_tokens,
        temperature=config.engine.temperature,
        top_k=config.engine.top_k,
        top_p=config.engine.top_p,
        # The end of an example is one token for the published synthesizer, and letters for models
        # whose own end token is another.
        stop=(EOS,),
        regex=pairs_regex(config.min_pairs, config.max_pairs) if config.engine.constrain else None,
    )
    intake = take_in(
        _documents(config),
        output,
        ledger,
        check=lambda document: _too_long(document, budget),
        records_per_shard=config.records_per_shard,
    )
    rejected = intake.rejected
    raw = RecordSource(output.shards(RAW), verify=False)
    chosen = generator_of(config.seed, "selection").permutation(len(raw))
    chosen = chosen[: round(config.fraction * len(raw))]
    provenance = Provenance(config, identity, sampling, templates)
    totals = run_blocks(
        Chains(raw, chosen, config.rounds),
        lambda chain: drive(chain, config, budget, sampling),
        lambda done: output_of(done, provenance),
        engine,
        ledger,
        output,
        parts=(AUGMENTED,),
        units_per_block=max(1, config.records_per_shard // config.rounds),
        # Twice what the engine takes: it stays full while an early unit holds others back.
        units_in_flight=2 * requests_under_way(config.engine),
        turns_expected=len(chosen),
        progress=progress,
    )
    output.write_samples(totals.samples)
    plain_reasons = write_plain(config, output, raw, chosen, totals.unused)
    summary = {
        "method": METHOD,
        "model": identity["model"],
        "model_revision": identity["revision"],
        "engine": identity["name"],
        "engine_version": identity["version"],
        "constrained_decoding": config.engine.constrain,
        "rounds": config.rounds,
        "documents_in": len(raw) + rejected.total(),
        "documents_augmented": totals.counts["documents"],
        "documents_plain": plain_reasons.total(),
        "documents_rejected": rejected.total(),
        "plain_reasons": dict(plain_reasons),
        "rejected_documents": dict(rejected),
        "augmented_records": totals.counts["records"],
        "pairs": totals.counts["pairs"],
        "rejected_pieces": dict(totals.rejected),
        **asdict(totals.usage),
        **totals.failed.summary(),
        "seconds": round(ledger.seconds, 3),
        "gpu_hours": round(ledger.seconds / 3600 * config.gpus, 3),
        "cost": round(ledger.seconds / 3600 * config.gpus * config.price_per_gpu_hour, 2),
        "completion_tokens_per_second": round(
            totals.usage.completion_tokens / max(ledger.seconds, 1e-9), 1
        ),
    }
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    if summary["documents_in"] != sum(summary[part] for part in parts):
        raise RuntimeError(f"documents were lost or doubled: {summary}")
    write_card(
        output.folder,
        method="Instruction Pre-Training corpus",
        about=(
            f"{len(raw):,} raw texts, {summary['documents_augmented']:,} of them augmented with "
            "instruction–response pairs that a language model wrote about them "
            f"(Cheng et al., 2024; rounds: {config.rounds}). "
            "`shards/augmented` and `shards/plain` together hold every text once; `shards/raw` "
            "holds them as they came."
        ),
        summary=summary,
        sources=intake.sources,
        model={
            "model": identity["model"],
            "revision": identity["revision"],
            "engine": f"{identity['name']} {identity['version']}",
        },
        sampling=provenance.sampling_settings,
        seed=config.seed,
        gates=[
            "A document is UTF-8 text that fits into the model's context, with an id of its own.",
            "A pair is whole, in the format, and repeats no instruction of its text.",
        ],
        prompts=[Prompt("The synthesizer reads", _prompt_shown(config))],
    )
    return summary


def _prompt_shown(config: SynthesisConfig) -> str:
    return render_prompt(DEMONSTRATIONS if config.demonstrations else (), "{text}")


def _documents(config: SynthesisConfig) -> Iterator[Document | RejectedDocument]:
    return read_corpus(
        config.input,
        text_field=config.text_field,
        id_field=config.id_field,
        max_characters=config.max_characters,
        limit=config.limit,
    )


def _too_long(document: Document, budget: Budget) -> tuple[str, str] | None:
    """Why a document does not fit into the synthesizer, if it does not."""
    prompt = render_prompt((), document.text)
    if budget.fits(prompt):
        return None
    return "too_long", (
        f"its prompt has {budget.count_tokens(prompt):,} tokens; the context of "
        f"{budget.context_tokens:,} less {budget.max_tokens:,} to write holds no more than the "
        "rest: split it, or raise `engine.context_tokens`"
    )
