"""FineInstructions as one command: each step a job, resumed where it stopped.

queries -> templates -> bank -> rounds of tuning the encoder -> threshold -> match -> instantiate
-> judge -> budget. Each lies in a folder of its own below the chain's, and can be rerun alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_gen.embedding.embedder import EncoderConfig
from data_gen.engines import Engine, identify_engine
from data_gen.fine_instructions.bank import BANK, BankConfig, build_bank
from data_gen.fine_instructions.budget import BudgetConfig, BudgetPairs
from data_gen.fine_instructions.descriptions import DESCRIPTIONS, Describe, DescribeConfig
from data_gen.fine_instructions.genericize import TEMPLATES, Genericize, GenericizeConfig
from data_gen.fine_instructions.instantiate import PAIRS, Instantiate, InstantiateConfig
from data_gen.fine_instructions.match import MATCHED, FiMatch, MatchConfig
from data_gen.fine_instructions.mine import JUDGED, MineConfig, MinePairs
from data_gen.fine_instructions.queries import Queries, QueriesConfig
from data_gen.fine_instructions.tune_matching import (
    ENCODER,
    SUMMARY,
    THRESHOLD,
    CalibrateConfig,
    TuneEncoderConfig,
    run_calibration,
    run_tuning,
)
from data_gen.quality.stage import Filter, FilterConfig
from data_gen.stages.config import CorpusConfig, OutputConfig
from data_gen.stages.page import samples_section, synthesis_report
from data_gen.stages.progress import terminal_progress
from data_gen.stages.stage import Stage, run_stage, stage_fingerprint
from ipt_jax.core.bounds import Config
from ipt_jax.core.configuration import as_yaml, write_run_files
from ipt_jax.core.errors import UserError
from ipt_jax.core.jobs import Job, Results, hold_jobs, job_seconds, run_jobs
from ipt_jax.core.report.page import PAGE_NAME, write_page
from ipt_jax.core.report.values import Facts, Part, Report, Section, Table
from ipt_jax.core.run_folder import FolderRefused

METHOD = "fine_instructions"
_FOLDERS = (
    *("queries", "templates", "bank", "descriptions"),
    *(f"round_{number}_{what}" for number in (1, 2) for what in ("pairs", "encoder", "bank")),
    *("calibration", "threshold", "match", "instantiate", "judged", "budget"),
)


@dataclass(frozen=True, kw_only=True)
class RoundConfig(Config):
    """A round of tuning the encoder (section 3.2): mine, judge, train."""

    mine: MineConfig = field(default_factory=MineConfig)
    """What is judged; folders and encoder follow from the chain."""
    tune: TuneEncoderConfig = field(default_factory=TuneEncoderConfig)
    """The training; folders and encoder follow from the chain."""


@dataclass(frozen=True, kw_only=True)
class FineInstructionsConfig(OutputConfig):
    """Data sets of queries and a corpus in, pairs within the corpus's tokens out.

    What a step reads of another, and the folders, follow from `output`.
    """

    method: str = METHOD
    output: str = "runs/fine_instructions"
    """Folder of the chain; the pairs lie in budget/shards."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The documents; of it `input`, `limit` and the fields count."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Embeds templates and documents, until it is tuned."""
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    """Where queries come from; without `sources`, `templates.input` is a corpus of them."""
    templates: GenericizeConfig = field(default_factory=GenericizeConfig)
    """Queries to templates."""
    bank: BankConfig = field(default_factory=BankConfig)
    """Templates to an index."""
    tuning_rounds: Literal[0, 1, 2] = 0
    """Rounds of tuning the encoder; the paper's two are `round_1` and `round_2`."""
    descriptions: DescribeConfig = field(default_factory=DescribeConfig)
    """Of documents, by which round 1 retrieves."""
    round_1: RoundConfig = field(default_factory=RoundConfig)
    """Whole documents by their descriptions."""
    round_2: RoundConfig = field(default_factory=RoundConfig)
    """Chunks of documents by themselves."""
    calibrate: bool = False
    """Find the threshold with the last encoder; false: `match.threshold` is used."""
    calibration: MineConfig = field(
        default_factory=lambda: MineConfig(ranks=[0, 3, 10, 30, 99], limit=1000)
    )
    """What is judged for it, over a range of ranks: chunks of so many documents."""
    threshold: CalibrateConfig = field(default_factory=CalibrateConfig)
    """What it has to reach."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """Documents to their templates."""
    instantiate: InstantiateConfig = field(default_factory=InstantiateConfig)
    """Templates to pairs."""
    judged: bool = True
    """Let pairs pass `judge`; false: the ablation of Table 5."""
    judge: FilterConfig = field(default_factory=lambda: FilterConfig(gates=["exact_text", "judge"]))
    """Gates of pairs, the judge last."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """As many tokens of pairs as the documents have."""


def run_fine_instructions(
    config: FineInstructionsConfig, engine: Engine | None = None
) -> dict[str, Any]:
    """Do what is not done of the chain; gives back the summaries of its steps by name.

    `engine` answers in place of those that the steps name.

    Raises:
      UserError: as the steps do; or too many requests of a step failed.
    """
    folder = Path(config.output).expanduser()
    with hold_jobs(folder, METHOD, _FOLDERS, first="templates", fresh=config.fresh):
        write_run_files(folder, config)
        results = run_jobs(folder, chain_jobs(replace(config, output=str(folder)), engine))
        report = chain_report(results, job_seconds(folder), folder / "instantiate/samples.json")
        write_page(folder / PAGE_NAME, report)
    return results


def chain_jobs(config: FineInstructionsConfig, engine: Engine | None = None) -> list[Job]:
    """The steps of the chain in order, each after all those before it."""
    chain = _Chain(config, engine)
    templates, encoder = config.templates, config.encoder
    if config.queries.sources:
        queries = replace(config.queries, output=chain.at("queries"))
        chain.stage("queries", Queries, queries)
        templates = replace(templates, input=[chain.at("queries/shards")])
    chain.stage("templates", Genericize, replace(templates, output=chain.at("templates")))
    made = chain.at(f"templates/shards/{TEMPLATES}")
    bank = chain.bank("bank", encoder, made)
    if config.tuning_rounds:
        chain.stage("descriptions", Describe, chain.of_corpus(config.descriptions, "descriptions"))
    told: str | None = chain.at(f"descriptions/shards/{DESCRIPTIONS}")
    rounds = [config.round_1, config.round_2][: config.tuning_rounds]
    for number, one in enumerate(rounds, 1):
        name = f"round_{number}"
        which = {"templates": made, "bank": bank, "encoder": encoder, "descriptions": told}
        mine = replace(chain.of_corpus(one.mine, f"{name}_pairs"), **which)
        chain.stage(f"{name}_pairs", MinePairs, mine)
        pairs, told = [chain.at(f"{name}_pairs/shards/{JUDGED}")], None
        tune = replace(
            one.tune, output=chain.at(f"{name}_encoder"), pairs=pairs, encoder=encoder, fresh=False
        )
        chain.job(f"{name}_encoder", tune, run_tuning, SUMMARY)
        encoder = replace(encoder, model=chain.at(f"{name}_encoder/{ENCODER}"), revision=None)
        bank = chain.bank(f"{name}_bank", encoder, made)
    which = {"templates": made, "bank": bank, "encoder": encoder}
    if config.calibrate:
        mine = chain.of_corpus(config.calibration, "calibration")
        chain.stage("calibration", MinePairs, replace(mine, **which, descriptions=None))
        pairs = [chain.at(f"calibration/shards/{JUDGED}")]
        place: dict[str, Any] = {"output": chain.at("threshold"), "fresh": False}
        if rounds:  # by documents that the encoder was not tuned on
            place |= {"held_out": rounds[-1].tune.held_out, "seed": rounds[-1].tune.steps.seed}
        threshold = replace(config.threshold, **place, pairs=pairs, encoder=encoder)
        chain.job("threshold", threshold, run_calibration, THRESHOLD)
    match = replace(chain.of_corpus(config.match, "match"), **which, vectors=None)

    def matched(results: Results) -> MatchConfig:
        found = results.get("threshold")
        return replace(match, threshold=found["threshold"]) if found else match

    chain.stage("match", FiMatch, matched)
    instantiate = replace(
        config.instantiate,
        input=[chain.at(f"match/shards/{MATCHED}")],
        output=chain.at("instantiate"),
    )
    chain.stage("instantiate", Instantiate, instantiate)
    pairs = chain.at(f"instantiate/shards/{PAIRS}")
    if config.judged:
        judge = replace(config.judge, input=[pairs], output=chain.at("judged"))
        chain.stage("judged", Filter, judge)
        pairs = chain.at("judged/shards")
    budget = replace(
        config.budget,
        input=[pairs],
        documents=[chain.at("instantiate/shards/raw")],
        output=chain.at("budget"),
    )
    chain.stage("budget", BudgetPairs, budget)
    return chain.jobs


class _Chain:
    """Jobs one after another."""

    def __init__(self, config: FineInstructionsConfig, engine: Engine | None) -> None:
        self._config, self._folder, self._engine = config, Path(config.output), engine
        self.jobs: list[Job] = []

    def at(self, name: str) -> str:
        return str(self._folder / name)

    def of_corpus[C: CorpusConfig](self, config: C, name: str) -> C:
        """The settings of a step that reads the documents; a limit of its own stays."""
        corpus = self._config.corpus
        keys = ("input", "max_characters", "text_field", "id_field")
        given = {key: getattr(corpus, key) for key in keys}
        limit = config.limit or corpus.limit
        return replace(config, **given, limit=limit, output=self.at(name))

    def stage(self, name: str, made: type[Stage[Any, Any]], config: Any) -> None:
        """`config`: the settings, or what gives them once the results before are there."""
        given: Callable[[Results], Any] = config if callable(config) else lambda _: config

        def work(results: Results) -> Any:
            own = replace(given(results), fresh=False)
            stage, folder = made(own), Path(own.output)
            with _alone(folder), terminal_progress(name) as progress:
                summary = run_stage(
                    stage,
                    progress,
                    engine=self._engine,
                    on_start=lambda folder: write_run_files(folder, own),
                )
            if asked := stage.engine_config:
                failed = stage.failed_requests(summary)
                failed.tell(asked.max_failed_share, folder / "rejected")
            if made is not Filter:
                synthesis_report(folder)
            return summary

        def inputs(results: Results) -> Mapping[str, Any]:
            stage = made(given(results))
            asked, who = stage.engine_config, None
            if asked is not None and self._engine is not None:
                who = identify_engine(asked, self._engine)
            return {"config": as_yaml(stage.config), "content": stage_fingerprint(stage, who)}

        self._add(name, work, inputs, "summary.json")

    def bank(self, name: str, encoder: EncoderConfig, templates: str) -> str:
        config = replace(
            self._config.bank, output=self.at(name), templates=templates, encoder=encoder
        )
        self.job(name, config, build_bank, BANK)
        return config.output

    def job(self, name: str, config: Any, make: Callable[..., Any], made: str) -> None:
        def work(_: Results) -> Any:
            with _alone(Path(config.output)):
                return make(config, print, on_start=lambda folder: write_run_files(folder, config))

        def inputs(results: Results) -> Mapping[str, Any]:
            return {"config": as_yaml(config), "after": results}

        self._add(name, work, inputs, made)

    def _add(self, name: str, work: Any, inputs: Any, made: str) -> None:
        after = [job.name for job in self.jobs]
        self.jobs.append(Job(name, work, inputs, [self._folder / name / made], after))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Say that a step whose settings changed may be made anew without those before it."""
    try:
        yield
    except FolderRefused as error:
        if error.reason == "differs":
            said = f"{error} Or delete {folder} alone: the steps before it stay."
            raise UserError(said, path=folder, advice=f"delete {folder}") from error
        raise


def chain_report(results: Results, seconds: Mapping[str, float], samples: Path) -> Report:
    """Where queries, templates, documents and pairs went, step by step; and some pairs."""
    rows: list[tuple[object, ...]] = []
    for name, found in results.items():
        told = [
            ", ".join(f"{found[key]:,} {word}" for key, word in words if key in found)
            for words in (_WENT_IN, _CAME_OUT)
        ]
        rows.append((name.replace("_", " "), *told, round(seconds.get(name, 0.0), 1)))
    header = ("step", "in", "out", "seconds")
    note = "Seconds of a step's last run; each step has a folder with a card and a page of its own."
    parts: list[Part] = [Table("", header, rows, note, text_columns=3)]
    budget, asked = results["budget"], results["instantiate"]
    facts = [
        (f"{budget['out']:,}", "pairs"),
        (f"{budget['pair_tokens']:,}", "tokens of pairs"),
        (f"{asked['valid_share']:.1%}", "of what was no null passed the structural gates"),
        (f"{asked['null_share']:.1%}", "of templates did not fit (null)"),
    ]
    threshold = results["match"]["threshold"]
    about = f"templates from a cosine of {threshold:.3f} on"
    sections = [Section("Steps", parts), samples_section(samples)]
    return Report("FineInstructions", about, [Facts(facts)], sections)


_WENT_IN: Sequence[tuple[str, str]] = (
    ("queries_in", "records"),
    ("documents_in", "texts"),
    ("templates_asked", "templates"),
    ("in", "pairs"),
)
_CAME_OUT: Sequence[tuple[str, str]] = (
    ("queries_out", "queries"),
    ("templates", "templates"),
    ("pairs", "pairs"),
    ("fit", "of them fit"),
    ("null", "null"),
    ("out", "pairs"),
)
