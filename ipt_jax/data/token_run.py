"""Tokenising beforehand: the tasks of a mixture to token shards that give the same rows.

A shard is the work of one process and is written whole or not at all; a run that was stopped goes
on with the shards that are missing. The manifest comes last: until then no reader takes the folder.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ipt_jax.core.bounds import Config, Positive
from ipt_jax.core.errors import DamagedRecord, UserError, require_choice
from ipt_jax.core.files import atomic_write, sync_folder
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import (
    MANIFEST_NAME,
    TOKENS_FORMAT,
    Manifest,
    ShardInfo,
    check_shards,
    file_sha256,
    manifest_format,
)
from ipt_jax.core.orphans import end_with_parent
from ipt_jax.core.records import SHARD_FILES
from ipt_jax.core.run_folder import RunFolder
from ipt_jax.core.shard_file import ShardFile, shard_errors
from ipt_jax.core.tokenizers import FastTokenizer, Tokenizer, load_tokenizer
from ipt_jax.data.encode import extra_tokens, lengths_name, tokenise, write_lengths
from ipt_jax.data.mixture import DataConfig, load_mixture
from ipt_jax.data.sources import Source, open_source, read_records
from ipt_jax.data.tasks import HUB, Mixture, Task
from ipt_jax.data.token_shards import (
    OPTIONS,
    TokenSource,
    serialize_damaged,
    serialize_example,
    token_details,
)

MIXTURE_NAME = "mixture.yaml"
_CHUNK = 512  # records read and tokenised at once
_REPLACED = re.compile(
    r"part-\d{5,}\.arrayrecord((\.\d+)?\.tmp)?|(lengths|rows)-[0-9a-f]+(-damaged)?\.npy"
)


@dataclass(frozen=True)
class TokenizeConfig(Config):
    """What to tokenise and where to. Raises UserError for a value that cannot be."""

    output: Path
    """Folder for a folder of token shards for each task, and for a mixture file that names them."""
    data: DataConfig = field(default_factory=DataConfig)
    """The mixture and its tokenizer, as in a training config; `worker_count` processes tokenise."""
    tasks: list[str] | None = None
    """Only these tasks of the mixture; all of them if not given."""
    records_per_shard: Positive = 16384
    """Records in a shard: what an interrupted run loses is a shard for each process."""
    fresh: bool = False
    """Replace token shards in `output` that were made from other records or in another way."""


@dataclass(frozen=True)
class TokenizedTask:
    """What one task became."""

    name: str
    folder: Path
    records: int
    tokens: int
    """BOS and EOS included."""
    damaged: int
    """Records left out because they could not be read (`skip_damaged`)."""
    new_shards: int
    """Shards written by this run; the others were there."""


@dataclass(frozen=True)
class _TokenizeJob:
    """The work on one task; goes to every worker process."""

    task: Task
    source: Source
    tokenizer: Tokenizer
    folder: Path
    records_per_shard: int
    skip_damaged: bool
    details: dict[str, Any]
    """For the manifest; `key` stands for everything that the shards depend on."""

    @property
    def key(self) -> str:
        return self.details["key"]

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.records_per_shard)


def tokenize(
    config: TokenizeConfig,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> list[TokenizedTask]:
    """Write token shards for the tasks of a mixture, and a mixture file that names them.

    All sources are opened before the first shard is written. ``progress`` gets a task's name,
    shards done and in all. Raises UserError for a source that cannot be read, and for an output
    folder that holds something else or in which another run is writing.
    """
    # What is made how, each task's shards say; `fresh` replaces those that are made otherwise.
    config = replace(config, output=config.output.expanduser())
    mixture = load_mixture(config.data)
    made = (*SHARD_FILES, "part-#.json")
    tasks = [task.name for task in _chosen(config, mixture)]
    owns = (MIXTURE_NAME, *(f"{task}/{name}" for task in tasks for name in made))
    with RunFolder.open(config.output, "tokens", {}, owns=owns, legacy=_before_markers) as run:
        run.begin()
        done = _tokenize(config, mixture, progress)
        run.finish()
    return done


def _before_markers(output: Path) -> dict[str, str] | None:
    """Whether an earlier version tokenised to this folder."""
    tasks = [path.parent for path in output.glob(f"*/{MANIFEST_NAME}")]
    try:
        ours = any(manifest_format(folder) == TOKENS_FORMAT for folder in tasks)
    except UserError:
        return None
    return {} if ours or (not tasks and any(output.glob("*/part-*.json"))) else None


def _chosen(config: TokenizeConfig, mixture: Mixture) -> list[Task]:
    names = [task.name for task in mixture.tasks]
    for name in config.tasks or ():
        require_choice("tasks", name, names)
    chosen = [task for task in mixture.tasks if config.tasks is None or task.name in config.tasks]
    for task in chosen:
        if Path(task.name).name != task.name:
            raise UserError(f"the task {task.name!r} cannot name a folder", advice="rename it")
    return chosen


def _tokenize(
    config: TokenizeConfig, mixture: Mixture, progress: Callable[[str, int, int], None]
) -> list[TokenizedTask]:
    tokenizer = load_tokenizer(mixture.tasks[0].tokenizer)
    jobs = [_prepare(config, task, tokenizer) for task in _chosen(config, mixture)]
    manifests = [_finished(job, config) for job in jobs]
    todo = [
        [] if manifest is not None else _to_do(job, config.fresh)
        for job, manifest in zip(jobs, manifests, strict=True)
    ]
    left = [len(numbers) for numbers in todo]
    for i, job in enumerate(jobs):
        if manifests[i] is None and not left[i]:
            manifests[i] = _publish(job)
    work = [(i, number) for i, numbers in enumerate(todo) for number in numbers]
    for i in _write_shards(jobs, work, config.data.worker_count):
        left[i] -= 1
        progress(jobs[i].task.name, jobs[i].shards - left[i], jobs[i].shards)
        if not left[i]:
            manifests[i] = _publish(jobs[i])
    content = _mixture_file(mixture, config.output, {job.task.name for job in jobs})
    atomic_write(config.output / MIXTURE_NAME, yaml.safe_dump(content, sort_keys=False))
    return [
        _summary(job, manifest, len(numbers))
        for job, manifest, numbers in zip(jobs, manifests, todo, strict=True)
        if manifest is not None
    ]


def _prepare(config: TokenizeConfig, task: Task, tokenizer: Tokenizer) -> _TokenizeJob:
    data, folder = config.data, config.output / task.name
    source = open_source(
        task,
        verify=data.verify_checksums,
        index_folder=data.index_folder,
        skip_damaged=data.skip_damaged,
    )
    if isinstance(source, TokenSource):
        raise task.refused("source", "it holds tokens already", "leave the task out")
    details = token_details(task, tokenizer, source.fingerprint)
    # Names and paths may change; what decides over the bytes may not.
    free = {"task", "source", "tokenizer"}
    if not isinstance(tokenizer, FastTokenizer):  # else a config beside the vocabulary decides
        free |= {"bos_id", "eos_id"}
    decisive = {k: v for k, v in details.items() if k not in free}
    if task.id_key is not None:  # ids stand in the shards
        decisive["id_key"] = task.id_key
    text = json.dumps([decisive, len(source), config.records_per_shard, OPTIONS], sort_keys=True)
    details["key"] = hashlib.sha256(text.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return _TokenizeJob(
        task, source, tokenizer, folder, config.records_per_shard, data.skip_damaged, details
    )


def _summary(job: _TokenizeJob, manifest: Manifest, new_shards: int) -> TokenizedTask:
    damaged = int(manifest.details.get("damaged", 0))
    tokens = sum(sum(shard.tokens.values()) for shard in manifest.shards)
    return TokenizedTask(
        name=job.task.name,
        folder=job.folder,
        records=manifest.records,
        tokens=tokens + extra_tokens(job.task) * (manifest.records - damaged),
        damaged=damaged,
        new_shards=new_shards,
    )


def _finished(job: _TokenizeJob, config: TokenizeConfig) -> Manifest | None:
    """The manifest of the folder if it is of this very job; None where there is work to do."""
    if (found := manifest_format(job.folder)) is None:
        return None
    if found == TOKENS_FORMAT:
        manifest = Manifest.load(job.folder, TOKENS_FORMAT)
        if manifest.details.get("key") == job.key:
            check_shards(manifest, config.data.verify_checksums)
            return manifest
    if not config.fresh:
        before = Manifest.load(job.folder, found).details
        names = job.details.keys() - {"task", "source", "tokenizer", "key"}
        other = sorted(name for name in names if before.get(name) != job.details[name])
        raise UserError(
            f"{job.folder} holds shards that were made from other records or in another way "
            f"({', '.join(other) or 'records_per_shard or id_key'} differs)",
            key="output",
            path=job.folder,
            advice="give another `output`, or --fresh to replace them",
        )
    (job.folder / MANIFEST_NAME).unlink()
    return None


def _told(job: _TokenizeJob, number: int) -> Path:
    return job.folder / f"part-{number:05d}.json"


def _shard(job: _TokenizeJob, number: int) -> Path:
    return job.folder / f"part-{number:05d}.arrayrecord"


def _to_do(job: _TokenizeJob, fresh: bool) -> list[int]:
    """Shards not yet written by this very job."""
    todo = []
    for number in range(job.shards):
        path = _shard(job, number)
        try:
            told = load_json(_told(job, number))
            same, sha256 = told["key"] == job.key, told["shard"]["sha256"]
        except FileNotFoundError:
            todo.append(number)
            continue
        except (ValueError, KeyError, TypeError):
            todo.append(number)  # a file of a run that lost power; its shard is written again
            continue
        if not same and not fresh:
            raise UserError(
                f"{job.folder} holds shards of an unfinished run over other records or in another "
                "way",
                key="output",
                path=job.folder,
                advice="finish that one, give another `output`, or --fresh to replace them",
            )
        if not same or not path.is_file() or file_sha256(path) != sha256:
            todo.append(number)
    return todo


_JOBS: Sequence[_TokenizeJob] = ()  # of this worker process


def _start_worker(jobs: Sequence[_TokenizeJob], processors: Any) -> None:
    global _JOBS
    _JOBS = jobs
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run stops, and takes its shards with it
    if hasattr(os, "sched_setaffinity"):
        # Tokenizers start a thread for each processor they see: here that is the worker's share.
        os.sched_setaffinity(0, processors.get())


def _work(job: int, number: int) -> int:
    _write_shard(_JOBS[job], number)
    return job


def _write_shards(
    jobs: Sequence[_TokenizeJob], work: Sequence[tuple[int, int]], workers: int
) -> Iterator[int]:
    """Write shards, each given by its job and number; gives the job as a shard is done."""
    workers = min(workers, len(work))
    if workers < 1:
        for job, number in work:
            _write_shard(jobs[job], number)
            yield job
        return
    context = multiprocessing.get_context("spawn")
    shares = context.Queue()
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for worker in range(workers):
        shares.put(set(processors[worker::workers]) or {processors[worker % len(processors)]})
    with ProcessPoolExecutor(workers, context, _start_worker, (tuple(jobs), shares)) as pool:
        waiting = [pool.submit(_work, job, number) for job, number in work]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that tokenises was ended from outside, perhaps for want of memory",
                key="data.worker_count",
                advice="run the same command again, with fewer of them; shards that are done stay",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(job: _TokenizeJob, number: int) -> None:
    """One shard and, beside it until the manifest is written, what is to be told of it."""
    first = number * job.records_per_shard
    last = min(first + job.records_per_shard, len(job.source))
    lengths: list[int] = []
    shard = ShardFile(_shard(job, number), OPTIONS)
    try:
        for start in range(first, last, _CHUNK):
            for data, length, text in _examples(job, range(start, min(start + _CHUNK, last))):
                shard.write(data, text)
                lengths.append(length)
        tokens = {job.tokenizer.name: sum(n for n in lengths if n >= 0)}
        info = replace(shard.finish(), tokens=tokens)
        shard.publish()
        with shard_errors(shard.path):
            told = {"key": job.key, "shard": asdict(info), "lengths": lengths}
            atomic_write(_told(job, number), json.dumps(told))
    finally:
        shard.discard()


def _examples(job: _TokenizeJob, indices: range) -> Iterator[tuple[bytes, int, str]]:
    """Bytes, tokens (without BOS and EOS, -1 for a damaged record) and text of each."""
    found = read_records(job.source.read, job.source, indices, job.skip_damaged)
    whole = [
        (i, r) for i, r in zip(indices, found, strict=True) if not isinstance(r, DamagedRecord)
    ]
    places, records = [i for i, _ in whole], [record for _, record in whole]
    made = iter(tokenise(job.source, records, places, job.task, job.tokenizer))
    for record in found:
        if isinstance(record, DamagedRecord):
            yield serialize_damaged(str(record)), -1, ""
            continue
        example = next(made)
        data = serialize_example(example, id=record.id, source=record.source)
        yield data, len(example.tokens) - extra_tokens(job.task), record.text


def _publish(job: _TokenizeJob) -> Manifest:
    """The length index, then the manifest, then nothing that is no longer needed."""
    shards, lengths = [], [np.empty(0, np.int32)]
    for number in range(job.shards):
        told = load_json(_told(job, number))
        shards.append(ShardInfo(**told["shard"]))
        lengths.append(np.asarray(told["lengths"], np.int32))
    names = {shard.name for shard in shards}
    counts = np.concatenate(lengths)
    damaged = int((counts < 0).sum())
    details = {**job.details, "damaged": damaged}
    manifest = Manifest(job.folder, tuple(shards), TOKENS_FORMAT, details)
    index = lengths_name(manifest.fingerprint, job.tokenizer)
    for old in job.folder.iterdir():
        if old.name not in {*names, index} and _REPLACED.fullmatch(old.name):
            old.unlink()
    if not damaged:  # else who reads the shards decides whether to go on without those
        write_lengths(job.folder / index, counts)
    sync_folder(job.folder)
    manifest.write(job.folder)
    for number in range(job.shards):
        _told(job, number).unlink()
    return manifest


def _mixture_file(mixture: Mixture, output: Path, tokenized: set[str]) -> dict[str, Any]:
    """The mixture with token shards as sources, as a mixture file."""
    tasks: dict[str, Any] = {}
    for task in mixture.tasks:
        source, kept = task.source, ["bos", "eos", "loss", "encode", "max_epochs", "tokenizer"]
        if task.name in tokenized:
            source = str(output / task.name)
        else:
            kept += ["format", "text_key", "id_key", "split", "subset", "preprocessors"]
        # Whole paths: a run's `data.root` does not change them.
        whole = source if source.startswith(HUB) else str(Path(source).absolute())
        values: dict[str, Any] = {"source": whole}
        default = Task("default", "default")
        for key in kept:
            if (value := getattr(task, key)) != getattr(default, key):
                values[key] = list(value) if isinstance(value, tuple) else value
        tasks[task.name] = values
    rates = mixture.rates if isinstance(mixture.rates, str) else dict(mixture.rates)
    content: dict[str, Any] = {"name": mixture.name, "by": mixture.by, "rates": rates}
    if mixture.stages:
        content["stages"] = [asdict(stage) for stage in mixture.stages]
    return {**content, "tasks": tasks}
