"""Launch files for clusters: their commands are ones that the launch scripts understand."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from data_gen.instruction_pretrain.config import SynthesisConfig
from ipt_jax.core.configuration import parse_config
from ipt_jax.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
SCRIPTS = {"launch/train.py": TrainConfig, "launch/synthesize.py": SynthesisConfig}


def parsed(command: str, *more: str):
    """What the launch script in a command makes of the options behind it."""
    words = shlex.split(command)
    place = next(n for n, word in enumerate(words) if word in SCRIPTS)
    options = [word for word in words[place + 1 :] if word != "$@"]
    return parse_config(SCRIPTS[words[place]], [*options, *more], prog="", description="")


@pytest.mark.parametrize("name", ["train", "synthesize"])
def test_slurm_scripts_run_what_they_say(name, tmp_path, monkeypatch):
    """With stand-ins for srun and scontrol: the command that would run on the nodes."""
    monkeypatch.chdir(ROOT)
    for tool, code in (
        ("srun", 'printf "%s " "$@"'),
        ("scontrol", 'test "$*" = "show hostnames n[1-3]" && printf "n1\\nn2\\nn3\\n"'),
    ):
        (tmp_path / tool).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / tool).chmod(0o755)
    configs = {"train": "train/ipt_1_3b_instruct", "synthesize": "synthesize/ipt_general"}
    done = subprocess.run(
        ["bash", f"launch/slurm/{name}.sbatch", "--config", f"configs/{configs[name]}.yaml"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_JOB_NODELIST": "n[1-3]",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    config = parsed(done.stdout)
    if name == "train":
        assert config.processes.coordinator == "auto"
        assert config.run_folder.name == "ipt_1_3b_instruct"
    else:
        assert "symmetric-run --address n1:6379 --min-nodes 3 -- " in done.stdout
        ray = config.engine.ray
        assert (ray.actors, ray.gpus_per_actor, ray.address, config.gpus) == (24, 1, "auto", 24)
        assert config.engine.name == "vllm" and config.rounds == 2


def test_the_kuberay_job_asks_for_as_many_engines_as_it_has_gpus(monkeypatch):
    monkeypatch.chdir(ROOT)
    job = yaml.safe_load((ROOT / "launch" / "ray" / "kuberay.yaml").read_text())
    config = parsed(job["spec"]["entrypoint"])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    gpus = group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == config.engine.ray.actors * config.engine.ray.gpus_per_actor == config.gpus
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(config.output.startswith(mount) for mount in mounts)
    assert re.findall(r"\bimage: (\S+)", (ROOT / "launch/ray/kuberay.yaml").read_text()) == [
        "IMAGE",
        "IMAGE",
    ]
