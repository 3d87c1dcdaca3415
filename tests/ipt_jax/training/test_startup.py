"""What is set before JAX starts: GPU flags, which leave the user's own alone; the compilation cache
across two processes; and memory that is freed and asked for again at no cost of page faults.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jaxlib import version

from ipt_jax.chips.devices import gpu_count, why_no_gpu
from ipt_jax.training.startup import (
    FLAGS,
    _additions,
    apply_gpu_flags,
    compiler_options,
    configure_malloc,
    gpu_flags,
)

ROOT = Path(__file__).parents[3]
START = "import jax; jax.numpy.zeros(3).block_until_ready(); print('started')"
# Seen to abort jaxlib 0.10 to 0.12.
FATAL = """
enable_triton_softmax_fusion enable_async_all_gather enable_async_collectives
enable_pipelined_collectives enable_custom_fusions enable_address_computation_fusion
cudnn_gemm_fusion lhs_enable_gpu_async_tracker nccl_per_stream_comms graph_level triton_hopper
simplify_all_fp_conversions nccl_symmetric_buffers
""".split()


def python(code: str, **environment: str) -> subprocess.Popen:
    base = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**base, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_installed_jaxlib_knows_every_flag_and_aborts_at_one_more():
    flags = gpu_flags(version.__version__)
    assert len(flags) > 5, f"jaxlib {version.__version__} has no flags in the table"
    known = python(START, JAX_PLATFORMS="cpu", XLA_FLAGS=" ".join(flags))
    more = " ".join([*flags, "--xla_gpu_enable_no_such_thing=true"])
    unknown = python(START, JAX_PLATFORMS="cpu", XLA_FLAGS=more)
    said, errors = known.communicate(timeout=600)
    assert known.returncode == 0 and "started" in said, errors
    _, errors = unknown.communicate(timeout=600)
    assert unknown.returncode != 0
    assert "Unknown flag in XLA_FLAGS: --xla_gpu_enable_no_such_thing" in errors


@pytest.mark.gpu
def test_a_gpu_starts_with_the_flags():
    code = "from ipt_jax.training.startup import apply_gpu_flags as a; print(a())"
    process = python(f"{code}; {START}; print(jax.devices()[0].platform)")
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and said.endswith("started\ngpu\n"), errors
    assert "latency_hiding" in said


@pytest.mark.parametrize("series", FLAGS)
def test_no_fatal_flag_and_a_reason_for_each(series):
    for name, (value, reason) in FLAGS[series].items():
        assert name.startswith("xla_gpu_") and value and len(reason) > 20
        assert not [fatal for fatal in FATAL if name.endswith(fatal)]


def test_flags_reach_xla(tmp_path):
    """With the driver's device file and the plugin's package there, and a flag that CPUs heed."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "site" / "jax_cuda13_plugin").mkdir(parents=True)
    code = (
        "import os; from pathlib import Path\n"
        "from jaxlib import version\n"
        "from ipt_jax.training.startup import FLAGS, apply_gpu_flags\n"
        "table = FLAGS['.'.join(version.__version__.split('.')[:2])]\n"
        "table['xla_force_host_platform_device_count'] = ('3', 'to be seen')\n"
        f"devices = Path({str(tmp_path / 'dev')!r})\n"
        "os.environ['CUDA_VISIBLE_DEVICES'] = '0,1'\n"
        "print(apply_gpu_flags(devices=devices))\n"
        f"{START}\n"
        "names = ('XLA_CLIENT_MEM_FRACTION', 'CUDA_DEVICE_MAX_CONNECTIONS')\n"
        "print(jax.device_count(), *(os.environ[name] for name in names))\n"
        "try: apply_gpu_flags(devices=devices)\n"
        "except RuntimeError as error: print(error)\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path / "site")])
    process = python(code, PYTHONPATH=path)
    said, errors = process.communicate(timeout=600)
    lines = said.splitlines()
    assert process.returncode == 0 and len(lines) == 4, errors
    assert " ".join(gpu_flags(version.__version__)) in lines[0]
    assert lines[1:] == ["started", "3 0.9 1", "apply_gpu_flags: JAX has its devices already"]


def test_the_users_own_settings_win():
    own = "--xla_dump_to=/x --xla_gpu_enable_pipelined_all_gather=false"
    environment = {"XLA_FLAGS": own, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    added, text = _additions(environment, "0.11.2")
    flags = added["XLA_FLAGS"].split()
    assert flags[:2] == own.split() and len(flags) == len(FLAGS["0.11"]) + 1
    assert not [flag for flag in flags if flag.endswith("all_gather=true")]
    assert "kept as you set them: xla_gpu_enable_pipelined_all_gather" in text
    # JAX refuses to start when both names of the fraction are set.
    assert set(added) == {"XLA_FLAGS", "CUDA_DEVICE_MAX_CONNECTIONS"}
    assert "CUDA_DEVICE_MAX_CONNECTIONS=1" in text and "MEM_FRACTION" not in text
    again, text = _additions({**environment, **added}, "0.11.2")
    assert again == {} and "yours name them all" in text
    added, text = _additions({"XLA_FLAGS": "flags.txt"}, "0.11.2")
    assert "XLA_FLAGS" not in added and "names the file flags.txt" in text


def test_one_gpu_gets_no_flags_for_several():
    added, text = _additions({}, "0.11.2", several=False)
    assert added == {"XLA_CLIENT_MEM_FRACTION": "0.9"}
    assert "for several GPUs" in text


def test_gpus_are_counted_without_starting_jax(tmp_path):
    for number in range(3):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    assert gpu_count({}, tmp_path) == 3
    assert gpu_count({"CUDA_VISIBLE_DEVICES": "2"}, tmp_path) == 1
    assert gpu_count({}, tmp_path / "none") == 0


def test_options_of_one_compilation_are_the_same_flags_as_values():
    options = compiler_options("0.11.2")
    assert options["xla_gpu_enable_latency_hiding_scheduler"] is True
    assert options["xla_gpu_all_gather_combine_threshold_bytes"] == 1 << 30
    assert options["xla_gpu_pipeline_all_gather"] == "COLLECTIVE_PIPELINING_MODE_ON"
    assert len(options) == len(gpu_flags("0.11.2")) - 1
    assert "xla_gpu_enable_pipelined_all_gather" in compiler_options("0.10.2")


def test_the_installed_jaxlib_takes_every_option():
    options = compiler_options(version.__version__)
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert lowered.compile(options)(1.0) == 2.0
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile({**options, "xla_gpu_no_such_option": True})


def test_an_unknown_series_gets_none_and_says_so():
    assert gpu_flags("0.99.1") == () == gpu_flags("0.1")
    added, text = _additions({}, "0.99.1")
    assert "XLA_FLAGS" not in added and "0.99.1" in text and "0.10, 0.11" in text
    assert gpu_flags("0.10.2") and gpu_flags("0.11.0.dev20260101")


def test_where_no_gpu_is_used_nothing_changes(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    assert "plugin" in str(why_no_gpu({}, None, tmp_path)) or _has_plugin()
    (tmp_path / "site" / "jax_cuda13_plugin").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert why_no_gpu({}, None, tmp_path) is None
    assert why_no_gpu({"CUDA_VISIBLE_DEVICES": "1"}, "cuda,cpu", tmp_path) is None
    assert why_no_gpu({}, "cpu", tmp_path) == "JAX_PLATFORMS=cpu"
    assert "hides" in str(why_no_gpu({"CUDA_VISIBLE_DEVICES": ""}, None, tmp_path))
    assert why_no_gpu({}, None, tmp_path / "site") == "no NVIDIA GPU here"
    before = dict(os.environ)
    assert "none added" in apply_gpu_flags(devices=tmp_path / "site")
    assert "xla_flags=none" in apply_gpu_flags("none", devices=tmp_path)
    assert dict(os.environ) == before


def _has_plugin() -> bool:
    return jax.devices()[0].platform == "gpu"


CACHED_STEPS = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from ipt_jax.training.startup import enable_compilation_cache
counts = {"cache_hits": 0, "cache_misses": 0}
def count(name, **_):
    if name.rsplit("/", 1)[-1] in counts:
        counts[name.rsplit("/", 1)[-1]] += 1
jax.monitoring.register_event_listener(count)
jax.config.update("jax_platforms", "cpu")
jnp.zeros(7).block_until_ready()  # made before the cache is asked for: does no harm
enable_compilation_cache(Path(sys.argv[1]))
step = jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c @ c), None), x, length=3)[0],
               donate_argnums=0)
x = jnp.eye(64) + 0.01
for _ in range(3):
    x = step(x)
print(counts["cache_hits"], counts["cache_misses"], float(x.sum()).hex())
"""


def start(folder: Path) -> tuple[list[str], str]:
    # Without the folder that all tests share.
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", CACHED_STEPS, folder],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_the_second_process_compiles_nothing_and_computes_the_same(tmp_path):
    folder = tmp_path / "deep" / "cache"
    (hits, misses, result), _ = start(folder)
    assert hits == "0" and int(misses) >= 2
    assert folder.stat().st_mode & 0o077 == 0, "others could put code there"
    kept = {path.name for path in folder.iterdir()}
    (hits_again, misses_again, result_again), errors = start(folder)
    if "doesn't match the machine type" in errors:
        pytest.skip("this jaxlib refuses its own CPU programs on this processor")
    assert (hits_again, misses_again) == (misses, "0")
    assert result_again == result
    assert {path.name for path in folder.iterdir()} == kept


PAGE_FAULTS = """
import resource
import numpy as np
from ipt_jax.training.startup import configure_malloc
def faults():
    np.ones(4 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(4 << 20)  # 32 MB, 8192 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), configure_malloc(), faults())
"""


def test_beside_an_accelerator_nothing_is_changed(tmp_path):
    (tmp_path / "nvidia0").touch()
    assert configure_malloc(tmp_path) is False


def test_freed_memory_is_kept():
    process = python(PAGE_FAULTS)
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    without, kept, count = said.split()
    if kept == "False":
        pytest.skip("this C library cannot be told to keep freed memory")
    assert int(count) < 1000 and int(count) * 10 < max(int(without), 10_000)
