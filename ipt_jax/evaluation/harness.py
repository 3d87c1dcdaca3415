"""lm-evaluation-harness on exported Hugging Face folders, each model in a process of its own.

The harness runs PyTorch, which the trainer must not import; and its start takes as long as a small
task, so that on a CPU several models run side by side, the cores shared out between them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ipt_jax.errors import UserError
from ipt_jax.evaluation.results import Result, read_lm_eval, read_results, table
from ipt_jax.evaluation.task_files import TASKS_FOLDER, render_tasks
from ipt_jax.records import atomic_write

SAMPLE_TASKS = ("sample_continuation", "sample_perplexity")
RESULTS_NAME = "results.json"
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PROGRESS = re.compile(r"(\w[\w ]*):\s+\d+%\|[^|]*\| (\d+)/(\d+) ")


@dataclass(frozen=True)
class EvaluationConfig:
    """Which models are measured on which tasks, and how."""

    models: dict[str, Path]
    """Name -> exported Hugging Face folder."""
    output: Path = Path("runs/evaluation")
    """Folder for results.json and, for each model, lm-eval's own files."""
    tasks: list[str] = field(default_factory=lambda: list(SAMPLE_TASKS))
    """Names of tasks: those in `include_path`, or lm-eval's own."""
    include_path: Path = TASKS_FOLDER
    """Folder of task YAMLs; `data_files` in them are relative to the YAML."""
    batch_size: int = 16
    """Requests that go through the model at once."""
    limit: int | None = None
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
        if not self.models:
            raise UserError(
                "models is empty: name at least one exported folder, `--models.NAME FOLDER`."
            )
        for name, folder in self.models.items():
            if not _NAME.fullmatch(name):
                raise UserError(
                    f"models.{name}: a name may hold letters, digits, dots, dashes and "
                    "underscores; it becomes a folder's name."
                )
            _check_model(folder)
        if not self.tasks:
            raise UserError(f"tasks is empty: name some, for example {', '.join(SAMPLE_TASKS)}.")
        for key in ("batch_size", "limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key}={value}: must be at least 1.")
        if not self.include_path.is_dir():
            raise UserError(f"include_path={self.include_path}: no such folder of task YAMLs.")


def _check_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there, so it is no exported model; write one with "
            "launch/convert.py to-hf, or name the right folder."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors there; export the model again.")
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer.json or tokenizer.model; export the model again.")


def evaluate(
    model_folder: Path,
    tasks: Sequence[str],
    output: Path,
    *,
    name: str | None = None,
    include_path: Path = TASKS_FOLDER,
    batch_size: int = 16,
    limit: int | None = None,
    device: str = "cpu",
) -> list[Result]:
    """Measure one exported model; see `evaluate_models`."""
    config = EvaluationConfig(
        models={name or model_folder.name: model_folder},
        output=output,
        tasks=list(tasks),
        include_path=include_path,
        batch_size=batch_size,
        limit=limit,
        device=device,
    )
    return evaluate_models(config)


def evaluate_models(config: EvaluationConfig) -> list[Result]:
    """Measure every model of `config` on every task and write `output/results.json`.

    A model whose weights, tasks and settings are those of an earlier run is not measured again.

    Returns:
      One Result for each model, task and metric, in the config's order.

    Raises:
      UserError: a folder that is no exported model, an unknown task, or lm-eval failing on one;
        the message names model, tasks and log.
    """
    config.check()
    config.output.mkdir(parents=True, exist_ok=True)
    tasks_folder = config.output / "tasks"
    shutil.rmtree(tasks_folder, ignore_errors=True)
    hashes = render_tasks(config.tasks, config.include_path, tasks_folder)
    side_by_side = 1
    if config.device == "cpu":
        side_by_side = min(len(config.models), len(os.sched_getaffinity(0)))
    running: set[subprocess.Popen[str]] = set()
    with (
        Progress(
            "[progress.description]{task.description}",
            TextColumn("{task.fields[doing]}"),
            TimeElapsedColumn(),
        ) as progress,
        ThreadPoolExecutor(side_by_side) as pool,
    ):
        jobs = [
            pool.submit(
                _evaluate_one, name, config, hashes, tasks_folder, side_by_side, progress, running
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
        config.output / RESULTS_NAME,
        json.dumps({"table": table(results), "lm_eval": own}, indent=1),
    )
    return results


def _evaluate_one(
    name: str,
    config: EvaluationConfig,
    hashes: Mapping[str, str],
    tasks_folder: Path,
    side_by_side: int,
    progress: Progress,
    running: set[subprocess.Popen[str]],
) -> tuple[list[Result], dict[str, Any]]:
    folder = config.output / name
    mark = _fingerprint(config.models[name], config, hashes)
    done = _already_measured(folder, mark)
    if done is not None and not config.fresh:
        progress.add_task(name, doing="measured before", total=1, completed=1)
        return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bar = progress.add_task(name, doing="starting lm-eval", total=None)
    log = folder / "lm_eval.log"
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--log_samples"),
        *("--model_args", f"pretrained={config.models[name].resolve()},dtype={config.dtype}"),
        *("--tasks", ",".join(config.tasks), "--include_path", str(tasks_folder.resolve())),
        *("--output_path", str(folder / "lm_eval"), "--batch_size", str(config.batch_size)),
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
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if code != 0:
        raise UserError(
            f"lm-eval failed on model {name} ({config.models[name]}), tasks "
            f"{', '.join(config.tasks)}: {_reason(log)} The whole log is {log}."
        )
    results, raw = read_lm_eval(folder / "lm_eval", name)
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


def _fingerprint(model: Path, config: EvaluationConfig, hashes: Mapping[str, str]) -> str:
    """What a result depends on. Of the weights, sizes and times: reading 16 GB takes a minute."""
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(model.iterdir())
        if path.is_file()
    ]
    settings = (config.tasks, config.limit, config.batch_size, config.dtype, config.device)
    said = json.dumps([str(model.resolve()), files, settings, dict(hashes)])
    return hashlib.sha256(said.encode()).hexdigest()


def _already_measured(folder: Path, mark: str) -> tuple[list[Result], dict[str, Any]] | None:
    path = folder / RESULTS_NAME
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))  # written in one piece: whole or not there
    if found.get("fingerprint") != mark:
        return None
    return read_results(path), found["lm_eval"]


def format_table(results: Sequence[Result]) -> str:
    """The results as aligned text, for a terminal."""
    rows = [("model", "task", "metric", "value", "95% interval", "n")]
    for r in results:
        between = "" if r.low is None or r.high is None else f"{r.low:.4f} to {r.high:.4f}"
        rows.append((r.model, r.task, r.metric, f"{r.value:.4f}", between, str(r.n)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
