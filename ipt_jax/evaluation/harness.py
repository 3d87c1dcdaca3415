"""lm-evaluation-harness on exported Hugging Face folders, each model in a process of its own.

The harness runs PyTorch, which the trainer must not import; and its start takes as long as a small
task, so that on a CPU several models run side by side, the cores shared out between them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ipt_jax.core.bounds import Config, Positive
from ipt_jax.core.errors import UserError, require
from ipt_jax.core.files import naming
from ipt_jax.core.fingerprint import file_digest, folder_digest
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import atomic_write
from ipt_jax.core.report.markdown import text_table
from ipt_jax.core.report.values import Table
from ipt_jax.core.run_folder import LOCK_NAME, MARKER_NAME, RUN_FILES, RunFolder
from ipt_jax.core.weight_files import weight_files
from ipt_jax.evaluation.results import TRUNCATED_NAME, Result, read_lm_eval, read_results, table
from ipt_jax.evaluation.task_files import TASKS_FOLDER, render_tasks

SAMPLE_TASKS = ("sample_continuation", "sample_perplexity")
RESULTS_NAME = "results.json"
_FILES = (*RUN_FILES, RESULTS_NAME, MARKER_NAME, LOCK_NAME)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PROGRESS = re.compile(r"(\w[\w ]*):\s+\d+%\|[^|]*\| (\d+)/(\d+) ")


@dataclass(frozen=True)
class EvaluationConfig(Config):
    """Which models are measured on which tasks, and how."""

    models: dict[str, Path]
    """Name -> exported Hugging Face folder."""
    output: Path = Path("runs/evaluation")
    """Folder for results.json and, for each model, lm-eval's own files."""
    tasks: list[str] = field(default_factory=lambda: list(SAMPLE_TASKS))
    """Names of tasks: those in `include_path`, or lm-eval's own."""
    include_path: Path = TASKS_FOLDER
    """Folder of task YAMLs; `data_files` in them are relative to the YAML."""
    batch_size: Positive = 16
    """Requests that go through the model at once."""
    limit: Positive | None = None
    """Only the first so many items of each task; None: all."""
    device: str = "cpu"
    """cpu, cuda or cuda:N; on a GPU the models run one after another."""
    dtype: str = "float32"
    """Type the weights are loaded in."""
    offline: bool = True
    """Never ask a hub for models, tasks' data or metrics."""
    fresh: bool = False
    """Measure again what was already measured."""

    def check(self) -> None:
        """Refuse what cannot run, before anything starts.

        Raises:
          UserError: naming the key and what is allowed.
        """
        given = "given: at least one exported folder, `--models.NAME FOLDER`"
        require("models", self.models, bool(self.models), given)
        for name, folder in self.models.items():
            if not _NAME.fullmatch(name) or name in _FILES:
                raise UserError(
                    f"models.{name}: a name may hold letters, digits, dots, dashes and "
                    "underscores, and begins with no dot; it becomes a folder's name, so it is "
                    f"none of {', '.join(_FILES)} either.",
                    key=f"models.{name}",
                )
            _check_model(folder)
            output, model = self.output.expanduser().resolve(), folder.resolve()
            if output == model or output in model.parents or model in output.parents:
                raise UserError(
                    f"output={self.output}: the model {name} ({folder}) lies there, or it lies in "
                    "the model",
                    key="output",
                    advice="name a folder of the evaluation's own",
                )
        given = f"given, for example {', '.join(SAMPLE_TASKS)}"
        require("tasks", self.tasks, bool(self.tasks), given)
        there, path = self.include_path.is_dir(), str(self.include_path)
        require("include_path", path, there, "a folder of task YAMLs")


def _check_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(
            "no config.json there, so it is no exported model",
            path=folder,
            advice="write one with launch/convert.py to-hf, or name the right folder",
        )
    weight_files(folder, alone=True)
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        said = f"{folder}: no tokenizer.json or tokenizer.model; export the model again."
        raise UserError(said, path=folder)


def evaluate_models(
    config: EvaluationConfig, on_start: Callable[[Path], None] = lambda folder: None
) -> list[Result]:
    """Measure every model of `config` on every task and write `output/results.json`.

    A model whose files, tasks and settings are those of an earlier run is not measured again.
    `on_start` is called with the folder once it is sure that this run may write there.

    Returns:
      One Result for each model, task and metric, in the config's order.

    Raises:
      UserError: a folder that is no exported model, an unknown task, or lm-eval failing on one;
        the message names model, tasks and log.
    """
    config.check()
    owns = (*RUN_FILES, RESULTS_NAME, *(name for model in config.models for name in _owns(model)))
    with RunFolder.open(
        config.output, "evaluation", {}, owns=owns, fresh=None, legacy=_before_markers
    ) as run:
        run.begin()
        on_start(run.path)
        results = _evaluate_models(config, run)
        run.finish()
    return results


def _owns(model: str) -> tuple[str, ...]:
    """What is written of a model; its results come last, so that they go first."""
    written = (f"lm_eval/{name}" for name in ("*/results_*.json", "*/samples_*.jsonl"))
    names = (RESULTS_NAME, "lm_eval.log", "cache/", f"lm_eval/{TRUNCATED_NAME}", *written)
    return tuple(f"{model}/{name}" for name in names)


def _before_markers(output: Path) -> dict[str, str] | None:
    """Whether an earlier version measured here; each model's results say what they are of."""
    try:
        found = load_json(output / RESULTS_NAME)
        return {} if {"table", "lm_eval"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _evaluate_models(config: EvaluationConfig, run: RunFolder) -> list[Result]:
    side_by_side = 1
    if config.device == "cpu":
        side_by_side = min(len(config.models), len(os.sched_getaffinity(0)))
    running: set[subprocess.Popen[str]] = set()
    with (
        TemporaryDirectory(prefix="ipt-jax-tasks-") as tasks_folder,
        Progress(
            "[progress.description]{task.description}",
            TextColumn("{task.fields[doing]}"),
            TimeElapsedColumn(),
        ) as progress,
        ThreadPoolExecutor(side_by_side) as pool,
    ):
        asked = asked_of(config, Path(tasks_folder))
        jobs = [
            pool.submit(
                *(_evaluate_one, name, config, run, asked, tasks_folder),
                *(side_by_side, progress, running),
            )
            for name in config.models
        ]
        try:
            measured = [job.result() for job in jobs]
        except BaseException:  # Ctrl-C or one model's failure: the others must not run on
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
            raise
    results = [result for one, _ in measured for result in one]
    own = {name: raw for name, (_, raw) in zip(config.models, measured, strict=True)}
    atomic_write(
        run.path / RESULTS_NAME,
        json.dumps({"table": table(results), "lm_eval": own}, indent=1),
    )
    return results


def _evaluate_one(
    name: str,
    config: EvaluationConfig,
    run: RunFolder,
    asked: Mapping[str, Any],
    tasks_folder: str,
    side_by_side: int,
    progress: Progress,
    running: set[subprocess.Popen[str]],
) -> tuple[list[Result], dict[str, Any]]:
    folder = run.path / name
    mark = {"model": folder_digest(config.models[name], ("*",)), **asked}
    done = _already_measured(folder, mark)
    if done is not None and not config.fresh:
        progress.add_task(name, doing="measured before", total=1, completed=1)
        return done
    run.remove(*_owns(name))
    bar = progress.add_task(name, doing="starting lm-eval", total=None)
    log, written = folder / "lm_eval.log", folder / "lm_eval"
    written.mkdir(parents=True, exist_ok=True)
    # As JSON: in lm-eval's own notation a comma ends a value, and a path may hold one.
    model = {"pretrained": str(config.models[name].resolve()), "dtype": config.dtype}
    command = [
        *(sys.executable, "-m", "ipt_jax.evaluation.lm_eval_process"),
        *(str(written / TRUNCATED_NAME), "run", "--model", "counted", "--log_samples"),
        *("--model_args", json.dumps(model)),
        *("--tasks", ",".join(config.tasks), "--include_path", tasks_folder),
        *("--output_path", str(written), "--batch_size", str(config.batch_size)),
        *("--device", config.device),
        *(("--limit", str(config.limit)) if config.limit else ()),
    ]
    code = _run(
        command,
        _environment(config, side_by_side, folder / "cache"),
        log,
        lambda text: progress.update(bar, doing=text),
        running,
    )
    run.remove(f"{name}/cache/")
    if code != 0:
        raise UserError(
            f"lm-eval failed on model {name} ({config.models[name]}), tasks "
            f"{', '.join(config.tasks)}: {_reason(log)} The whole log is {log}.",
            path=log,
        )
    results, raw = read_lm_eval(written, name)
    atomic_write(
        folder / RESULTS_NAME,
        json.dumps({"fingerprint": mark, "table": table(results), "lm_eval": raw}, indent=1),
    )
    progress.update(bar, doing="measured", total=1, completed=1)
    return results, raw


def _environment(config: EvaluationConfig, side_by_side: int, cache: Path) -> dict[str, str]:
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
    # A cache of its own: two models that prepare the same task's data must not meet in one.
    environment["HF_DATASETS_CACHE"] = str(cache.resolve())
    if config.offline:
        environment |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    if config.device == "cpu":
        threads = max(1, len(os.sched_getaffinity(0)) // side_by_side)
        environment["OMP_NUM_THREADS"] = str(threads)
        # Logits over a whole vocabulary are large and short-lived; on huge pages they cost a
        # seventh less time.
        environment["THP_MEM_ALLOC_ENABLE"] = "1"
    return environment


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    say: Callable[[str], object],
    running: set[subprocess.Popen[str]],
) -> int:
    with (
        naming(log),
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=environment,
            text=True,  # universal newlines: tqdm's \r ends a line too
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        running.add(process)
        try:
            for line in process.stdout or ():
                if match := _PROGRESS.search(line):
                    say(f"{match[1].lower()} {match[2]}/{match[3]}")
                else:
                    file.write(line)
            return process.wait()
        finally:
            process.kill()
            running.discard(process)


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b|Killed", line)]
    said = (errors or lines or ["it said nothing, as a process that was killed does"])[-1]
    return said if said.endswith(".") else said + "."


def asked_of(config: EvaluationConfig, tasks_folder: Path) -> dict[str, Any]:
    """What the results depend on beside the model; its own tasks are written to `tasks_folder`.

    Raises UserError as `render_tasks`, and where lm-eval is not installed.
    """
    spec = find_spec("lm_eval")  # found and not imported: that takes seconds, and torch
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed", advice="`pip install 'ipt-jax[evaluation]'`")
    own = render_tasks(config.tasks, config.include_path, tasks_folder)
    keys = ("tasks", "limit", "batch_size", "dtype", "device")
    asked = {key: getattr(config, key) for key in keys}
    asked |= {f"tasks/{name}": digest for name, digest in own.items()}
    if own.keys() < set(config.tasks):
        asked["lm-eval's tasks"] = folder_digest(Path(spec.origin).parent / "tasks")
    code = file_digest(Path(__file__).with_name("lm_eval_process.py"))
    return {**asked, "lm-eval": version("lm-eval"), "lm_eval_process": code}


def _already_measured(
    folder: Path, mark: Mapping[str, Any]
) -> tuple[list[Result], dict[str, Any]] | None:
    path = folder / RESULTS_NAME
    if not path.is_file():
        return None
    try:
        found = load_json(path)
    except ValueError as error:  # written in one piece, so that its bytes changed on the disk
        print(f"{path} is damaged ({error}): measured again.", flush=True)
        return None
    if found.get("fingerprint") != mark:
        return None
    return read_results(path), found["lm_eval"]


def format_table(results: Sequence[Result]) -> str:
    """The results as aligned text, for a terminal."""
    rows = [
        (r.model, r.task, r.metric, f"{r.value:.4f}", r.between() or "", r.items) for r in results
    ]
    header = ("model", "task", "metric", "value", "95% interval", "n")
    return text_table(Table("", header, rows, text_columns=3))
