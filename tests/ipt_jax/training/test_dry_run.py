"""Configs say what the papers say; the dry run compiles each of them without data."""

import dataclasses
import math
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from jax.sharding import AbstractMesh, Mesh

from ipt_jax.chips.devices import DEVICES
from ipt_jax.chips.topology import why_not
from ipt_jax.core.configuration import as_yaml, parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.data.mixture import load_mixture, load_mixture_config
from ipt_jax.models.sharding import MESH_AXES, make_mesh
from ipt_jax.training import dry_run as planning
from ipt_jax.training.config import TrainConfig, check_division, with_accumulation
from ipt_jax.training.dry_run import estimate_memory
from ipt_jax.training.optimizer import warmup_steps
from ipt_jax.training.step import make_setup

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "configs" / "train"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

_TABLE_14 = {"preset": "ipt_500m", "steps": 200_000, "batch": 0.5e6, "row": 2048, "rate": 3e-4}
_SMALL = {**_TABLE_14, "warmup": 2000}
_LARGE = {**_SMALL, "preset": "ipt_1_3b", "steps": 100_000, "batch": 1e6, "rate": 2e-4}
_DOMAIN = {
    "preset": "llama3_8b",
    "steps": 4000,
    "batch": 0.25e6,
    "row": 4096,
    "rate": 1e-5,
    "warmup": 1000,
}
# What the papers state: Instruction Pre-Training, Tables 8 and 14 and section 3.2;
# FineInstructions, 3.1, 3.3 and 4.2; GenQA, A.1. `tokens` are those of the whole run.
PAPERS: dict[str, dict[str, Any]] = {
    "ipt_500m_vanilla": _SMALL,
    "ipt_500m_mix": _SMALL,
    "ipt_500m_instruct": _SMALL,
    "ipt_1_3b_vanilla": _LARGE,
    "ipt_1_3b_instruct": _LARGE,
    "llama3_8b_biomedicine": _DOMAIN,
    "llama3_8b_finance": _DOMAIN,
    "ipt_synthesizer": {
        "preset": "mistral_7b",
        "batch": 16384,
        "row": 4096,
        "rate": 5e-6,
        "warmup": 1000,
        "epochs": 5,
        "tokens": 1e9,
    },
    "instruction_tune_500m": {"preset": "ipt_500m"},
    "fi_1_8b_ipt": {"preset": "fi_1_8b", "epochs": 4, "tokens": 92e9},
    "fi_1_8b_nemotron": {"preset": "fi_1_8b", "epochs": 1, "tokens": 300e9},
    "fi_300m_nemotron": {"preset": "fi_300m", "epochs": 1, "tokens": 300e9},
    "fi_7b_nemotron": {"preset": "fi_7b", "epochs": 1, "tokens": 300e9},
    "fi_genericizer": {"preset": "llama3_2_1b"},
    "fi_instantiator": {"preset": "llama3_2_3b"},
    "genqa_llama3_8b": {"preset": "llama3_8b", "batch": 128 * 2048, "row": 2048, "rate": 1e-6},
}


def read(name: str, *options: str) -> TrainConfig:
    arguments = ["--config", str(FOLDER / f"{name}.yaml"), *options]
    return parse_config(TrainConfig, arguments, prog="test", description="")


def test_every_training_of_the_papers_has_its_config():
    assert {*PAPERS, "quickstart"} == set(NAMES)


@pytest.mark.parametrize("name", PAPERS)
def test_configs_have_the_papers_numbers(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, paper = read(name), PAPERS[name]
    config.check()
    optimizer = config.optimizer
    found = {
        "preset": config.model.preset,
        "steps": config.steps,
        "batch": config.batch_tokens,
        "row": config.data.row_tokens,
        "rate": optimizer.peak_learning_rate,
        "warmup": warmup_steps(optimizer, config.steps),
        "epochs": config.epochs,
        "tokens": config.train_tokens,
    }
    for key, value in paper.items():  # 0.5M tokens are 256 rows of 2,048: 5% above
        assert found[key] == (pytest.approx(value, rel=0.05) if key == "batch" else value), key
    decoder = config.model.decoder()
    if "ipt" in name.split("_") or name.startswith("llama3"):  # Tables 8 and 14
        if not name.startswith("fi"):
            assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.95)
            assert (optimizer.weight_decay, optimizer.clip_norm) == (0.1, 1.0)
            assert (optimizer.schedule, decoder.dropout) == ("cosine", 0.1)
    assert config.data.tokenizer == (
        "llama3" if decoder.vocabulary_size == 128256 else "mistral-7b-v0.1"
    )
    assert decoder.compute_dtype == "bfloat16" and config.mesh.fsdp == -1


def test_genqa_warms_up_a_tenth_and_falls_to_nothing_without_weight_decay():
    config = read("genqa_llama3_8b")
    assert (config.optimizer.warmup_fraction, config.optimizer.final_fraction) == (0.1, 0.0)
    assert (config.optimizer.weight_decay, config.optimizer.schedule) == (0.0, "cosine")
    assert (config.batch_rows, config.rows_per_device) == (128, 8)  # the paper's 8 and 2 pieces


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "mixtures").glob("*.yaml")), ids=str)
def test_every_mixture_parses(path):
    assert load_mixture_config(path).tasks


@pytest.mark.parametrize("name", NAMES)
def test_tuning_has_loss_on_responses_and_pre_training_on_all(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    mixture = load_mixture(read(name).data)
    tuning = name.startswith(("genqa", "ipt_synth", "fi_gen", "fi_inst", "instruction"))
    assert {task.loss for task in mixture.tasks} == {"responses" if tuning else "all"}
    if read(name).epochs is not None:  # an epoch is defined by the sources' own sizes
        assert (mixture.rates, mixture.by) == ("natural", "tokens")


def test_mixtures_have_the_papers_rates():
    def rates(name: str) -> tuple[str, Any]:
        mixture = load_mixture_config(ROOT / "configs" / "mixtures" / f"{name}.yaml")
        return mixture.by, mixture.rates

    assert rates("ipt_biomedicine") == ("tokens", {"augmented": 1, "general": 1})
    # Cheng et al. (2023), section 4: 1:1 for biomedicine, 1:2 for finance.
    assert rates("ipt_finance") == ("tokens", {"augmented": 1, "general": 2})
    by, table_5 = rates("genqa")
    assert by == "examples" and sum(table_5.values()) == 100
    assert list(table_5.values()) == [8, 5, 16, 14, 13, 8, 6, 15, 15]
    by, general = rates("ipt_general")  # 80B as it is, 20B with about 10B of pairs, 0.2B 4 times
    assert (by, general) == ("tokens", {"plain": 80, "augmented": 30, "tuning": 0.8})


@pytest.mark.parametrize("domain", ["biomedicine", "finance"])
def test_ablations_change_one_thing(domain):
    def read_mixture(ablation: str = "") -> tuple[Any, dict[str, Any]]:
        path = ROOT / "configs" / "mixtures" / f"ipt_{domain}{ablation}.yaml"
        mixture = load_mixture_config(path)
        return mixture.rates, {task.name: task for task in mixture.tasks}

    rates, tasks = read_mixture()
    assert read_mixture("_without_corpora") == ("natural", {"general": tasks["general"]})
    for ablation in ("rule_based", "1_shot", "random_pairs"):
        source = f"runs/ipt_{domain}/{ablation}/shards/augmented"
        augmented = dataclasses.replace(tasks["augmented"], source=source)
        assert read_mixture(f"_{ablation}") == (rates, {**tasks, "augmented": augmented})


def rows_of_the_tables() -> dict[tuple[str, str], tuple[str, str, str]]:
    """Of docs/fineinstructions_rows.md: tables, mixture and data by corpus and row."""
    page = (ROOT / "docs" / "fineinstructions_rows.md").read_text(encoding="utf-8")
    table = page.partition("<!-- rows -->")[2].partition("<!-- end of rows -->")[0]
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.strip().splitlines()[2:]]
    return {
        (corpus, row): (tables, mixture.strip("`"), data.strip("`"))
        for tables, corpus, row, mixture, data in cells
    }


def test_every_row_of_fine_instructions_is_a_config_with_another_mixture(monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = rows_of_the_tables()
    # Its Tables 1, 5 and 6; Table 1 has the judged pairs under the method's plain name.
    both = {"Standard Pre-Training", "FineInstructions", "FineInstructions (judged)"}
    named = {"IPT": both | {"IPT"}, "Nemotron-CC": both | {"WRAP", "Q&A", "Nemotron-CC"}}
    assert rows.keys() == {(corpus, row) for corpus, of in named.items() for row in of}
    assert {row for (_, row), (tables, *_) in rows.items() if "6" in tables} == {
        *("Standard Pre-Training", "Nemotron-CC", "FineInstructions (judged)")
    }
    for (corpus, row), (tables, mixture, data) in rows.items():
        for size in ("1_8b", *(("300m", "7b") if "6" in tables else ())):
            name = f"fi_{size}_{corpus.partition('-')[0].lower()}"
            own = read(name)
            other = read(name, "--data.mixture", f"configs/mixtures/{mixture}.yaml")
            (task,) = load_mixture(other.data).tasks
            assert (task.source.partition("/shards")[0], task.loss) == (data, "all")
            assert dataclasses.replace(other, data=own.data) == own
            if row == "FineInstructions (judged)":
                assert own.data == other.data


# Runs the real command once for each config, in one process: JAX and its imports are paid once.
COMMAND = """
import runpy, sys
names, launch = sys.argv[2:], sys.argv[1]
for name in names:
    print("##", name, flush=True)
    sys.argv = [launch, "--config", f"configs/train/{name}.yaml", "--dry_run"]
    try:
        runpy.run_path(launch, run_name="__main__")
    except SystemExit as stop:
        print("exit", stop.code, flush=True)
"""


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory):
    """A working folder with the configs and nothing else: no data, no weights."""
    folder = tmp_path_factory.mktemp("nowhere")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=900
    )


def launch(folder: Path, name: str, *options: str) -> subprocess.CompletedProcess:
    command = [str(ROOT / "launch" / "train.py"), "--config", f"configs/train/{name}.yaml"]
    return run(folder, *command, "--dry_run", *options)


def program_of(name: str) -> str:
    """What a config's compiled step depends on, and more: all but what it reads and how long."""
    config = read(name)
    data = dataclasses.replace(config.data, mixture="", tokenizer="")
    config = dataclasses.replace(config, data=data, run_folder=Path(), init_from=None)
    return as_yaml(dataclasses.replace(config, train_tokens=2**40, epochs=None))


# Of configs with the same program the first; the others differ in what test_configs_have_… holds.
PROGRAMS = sorted({program_of(name): name for name in reversed(NAMES)}.values())


@pytest.fixture(scope="module")
def dry_runs(nowhere):
    """What the dry run of each program printed; two processes at a time."""
    groups: dict[int, list[str]] = {}
    for name in PROGRAMS:
        groups.setdefault(read(name).dry_run_devices, []).append(name)
    parts = [part for names in groups.values() for part in (names[::2], names[1::2]) if part]
    launcher = str(ROOT / "launch" / "train.py")
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda part: run(nowhere, "-c", COMMAND, launcher, *part), parts))
    printed = {}
    for process in done:
        for text in process.stdout.split("## ")[1:]:
            name, _, rest = text.partition("\n")
            printed[name] = rest + process.stderr
    return printed


def gigabytes(printed: str, part: str) -> float:
    (memory,) = (line for line in printed.splitlines() if line.startswith("memory a device"))
    found = re.search(rf"{part} ([\d.]+)", memory)
    assert found, printed
    return float(found[1])


def test_no_program_is_left_out():
    assert {program_of(name) for name in NAMES} == {program_of(name) for name in PROGRAMS}
    assert len(PROGRAMS) < len(NAMES)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_dry_runs_without_data_and_adds_up(name, dry_runs, nowhere):
    printed, config = dry_runs[name], read(name)
    assert "exit 0" in printed, printed
    decoder, devices = config.model.decoder(), config.dry_run_devices
    count = decoder.parameter_count()
    assert f"model {config.model.preset}, {count:,} parameters" in printed
    assert f"{config.steps:,} steps of {config.batch_tokens:,} tokens" in printed
    # 4 bytes a parameter and 8 of moments, split by fsdp; norms are whole on each device.
    split = devices if config.mesh.fsdp == -1 else 1
    for part, size in (("parameters", 4), ("optimiser", 8)):
        expected = pytest.approx(1e-9 * size * count / split, rel=0.02, abs=0.006)
        assert gigabytes(printed, part) == expected
    parts = ("parameters", "optimiser", "gradients, activations and buffers", "batch")
    total = sum(gigabytes(printed, part) for part in parts)
    assert gigabytes(printed, "memory a device") == pytest.approx(total, abs=0.03)
    device = DEVICES[config.dry_run_device]
    assert total < 0.9 * device.memory_bytes / 1e9
    flops = decoder.flops_per_token(config.data.row_tokens)
    seconds = config.steps * config.batch_tokens * flops / (device.peak_flops * 0.4 * devices)
    pieces = re.search(r"(\d+) piece\(s\) of (\d+) row\(s\) a device", printed)
    assert pieces and int(pieces[1]) * int(pieces[2]) * devices == config.batch_rows
    hours = re.search(rf"([\d.,]+) hours on {device.name} at an assumed MFU of 40%", printed)
    assert hours and float(hours[1].replace(",", "")) == pytest.approx(seconds / 3600, abs=0.06)
    assert ("train_tokens assumed" in printed) == (config.epochs is not None)
    if why := why_not(device):
        assert f"by XLA for a virtual CPU device ({why}), attention reference" in printed
    assert [path.name for path in nowhere.iterdir()] == ["configs"]  # nothing was written


def advised(name: str, where: str) -> list[str]:
    """The options that the comments of a config advise."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"# {where}"))
    options = lines[first].partition("--")
    if options[1]:
        return shlex.split("--" + options[2])
    rest = []
    for line in lines[first + 1 :]:
        if not line.startswith("#   --"):
            break
        rest += shlex.split(line[1:])
    return rest


def test_eight_billion_on_64_devices_and_on_one_with_adapters(nowhere):
    options = [
        ["--dry_run_devices", "64"],
        advised("llama3_8b_biomedicine", "One device"),
    ]
    with ThreadPoolExecutor(2) as pool:
        start = lambda more: launch(nowhere, "llama3_8b_biomedicine", *more)  # noqa: E731
        many, one = pool.map(start, options)
    assert many.returncode == 0, many.stderr
    assert "1 piece(s) of 1 row(s) a device" in many.stdout
    assert gigabytes(many.stdout, "parameters") == pytest.approx(4 * 8.03 / 64, rel=0.02)
    assert one.returncode == 0, one.stderr
    # Rank 64 on 32 blocks: 64 · (in + out) for query, output; key, value; gate, up, down.
    adapters = 32 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert f"{adapters:,} of adapters trained" in one.stdout
    assert gigabytes(one.stdout, "frozen base") == pytest.approx(2 * 8.03, abs=0.01)
    assert gigabytes(one.stdout, "adapters") == pytest.approx(4e-9 * adapters, abs=0.01)
    assert gigabytes(one.stdout, "optimiser") == pytest.approx(8e-9 * adapters, abs=0.01)
    assert "on h100" in one.stdout and gigabytes(one.stdout, "memory a device") < 40


# ru_maxrss would hold what the tests' own process had when it forked; this is the program's own.
WITH_PEAK = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(re.search("VmHWM.*", open("/proc/self/status").read())[0])
"""


def test_eight_billion_on_256_devices_keeps_activations_on_their_devices(nowhere):
    options = advised("llama3_8b_biomedicine", "256 devices")
    train = str(ROOT / "launch" / "train.py")
    config = ("--config", "configs/train/llama3_8b_finance.yaml")
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITH_PEAK, train, *config),
            *("--dry_run", "--dry_run_devices", "256", *options),
        ],
        cwd=nowhere,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "256 devices h100, mesh data 1 × fsdp 64 × tensor 4" in done.stdout
    # Were the residual stream or the logits copied to every device, this would be 300 GB.
    assert gigabytes(done.stdout, "memory a device") < 15
    peak = re.search(r"VmHWM:\s*(\d+) kB", done.stdout)
    assert peak and int(peak[1]) < 3e6


def test_what_cannot_fit_is_refused_with_what_to_change(nowhere):
    sizes = ("--batch_tokens", str(2**26), "--dry_run_devices", "1", "--mesh.data", "1")
    done = launch(nowhere, "quickstart", *sizes, "--dry_run_device", "tpu_v5e")
    assert done.returncode == 2 and done.stderr.startswith("error: this run needs")
    assert "more than 90% of the 16 GB of dry_run_device=tpu_v5e" in done.stderr
    assert "set rows_per_device (from 1; it is 262144 now)" in done.stderr
    assert "model.overrides.remat: full" in done.stderr


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> Mesh:
    return cast(Mesh, AbstractMesh((data, fsdp, tensor, context), MESH_AXES))


@pytest.mark.parametrize(
    ("options", "mesh", "said"),
    [
        (["--accumulation_steps", "4"], mesh_of(fsdp=64), "accumulation_steps=1 would"),
        ([], mesh_of(fsdp=256), r"let 64 of them share the rows and 4 split .* accumulation_ste"),
        ([], mesh_of(fsdp=12), "let 4 of them share the rows and 3 split"),
        ([], mesh_of(tensor=16), "kv_heads=8 .* mesh.tensor=8 would"),
        ([], mesh_of(context=3), "row_tokens=4096 does not divide"),
        (
            ["--model.overrides", "{width: 4104}"],
            mesh_of(fsdp=16),
            "mesh.fsdp=16 does not divide width=4104 .* mesh.fsdp=12 would",
        ),
    ],
)
def test_uneven_shares_are_refused_with_what_would_do(options, mesh, said):
    config = read("llama3_8b_biomedicine", *options)
    with pytest.raises(UserError, match=said):
        check_division(config, config.model.decoder(), mesh)


def test_accumulation_follows_from_the_mesh():
    config = read("llama3_8b_biomedicine")  # 64 rows, 2 a device at a time
    for devices, pieces in ((1, 32), (8, 4), (32, 1), (64, 1)):
        assert with_accumulation(config, mesh_of(fsdp=devices)).pieces == pieces
    odd = read("llama3_8b_biomedicine", "--rows_per_device", "3")
    assert (
        with_accumulation(odd, mesh_of(fsdp=8)).pieces == 4
    )  # 8 rows a device: 2 at a time, 3 leave one
    given = read("llama3_8b_biomedicine", "--accumulation_steps", "8")
    assert with_accumulation(given, mesh_of(fsdp=8)).pieces == 8


def test_even_shares_are_accepted():
    config = read("llama3_8b_biomedicine")
    for mesh in (mesh_of(fsdp=64), mesh_of(fsdp=64, tensor=4), mesh_of(8, 8, 8, 8)):
        check_division(config, config.model.decoder(), mesh)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_parts_are_the_arguments_of_the_compiled_step(adapter, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["--model.preset", "tiny", "--data.row_tokens", "64", "--mesh.data", "1"]
    if adapter:
        options += ["--adapter.rank", "4", "--adapter.base_dtype", "bfloat16"]
        options += ["--init_from", "models/none"]
    config = read("quickstart", *options)
    plan = estimate_memory(config)  # on this process's one device
    setup = make_setup(config, make_mesh(config.mesh), source_count=1)
    batch = planning._abstract_batch(config, setup.mesh)
    memory = setup.step_function.lower(setup.abstract, batch).compile().memory_analysis()
    assert memory is not None
    counted = plan.fixed_bytes + plan.batch_bytes
    # Beside them only the counters, the key and the guard's recent losses.
    assert 0 < memory.argument_size_in_bytes - counted < 2048
    assert (plan.frozen_bytes > 0) == adapter
    assert plan.batch_bytes == 6 * 4 * config.batch_tokens
    assert plan.trained == plan.parameters if not adapter else plan.trained < plan.parameters
    assert plan.parameter_bytes == 4 * plan.trained and not math.isinf(plan.hours)


def test_the_partitioners_warnings_become_findings_and_errors_keep_theirs(capfd):
    warning = b"W1 spmd.cc:1] [SPMD] Involuntary full rematerialization. From a to b. As the last "
    with planning._captured_warnings() as found:
        os.write(2, b"chatter\n" + 2 * (warning + b"resort, XLA will replicate.\n"))
    assert found == ["Involuntary full rematerialization. From a to b."]
    with pytest.raises(RuntimeError), planning._captured_warnings():
        os.write(2, b"what the compiler said\n")
        raise RuntimeError
    assert capfd.readouterr().err == "what the compiler said\n"
