"""An OpenAI-compatible server that does as its prompts say, well or badly.

A prompt `500 cut ok | text` is answered with status 500, then with half a body, then right; the
last word counts for all later attempts. Words: a status (`429`, with Retry-After seconds as
`429:0.3`), ok, hang, trickle, cut, reset, half, html, plain, choices, nousage, nochoices, context,
quote, error200, surrogate, slow, redirect, filtered, garbage. A prompt without `|` is answered
right.

As a stub that answers after a fixed time: python -m tests.data_gen.misbehaving_server --port 0
--latency_ms 50; it prints its port and ends when its standard input is closed or it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MODEL = "stub-model"
_KIND = "application/json"


def text_of(body: dict[str, Any]) -> str:
    """The prompt, or the last message of a chat."""
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def right_answer(body: dict[str, Any]) -> dict[str, Any]:
    """What `ok` gives: the prompt backwards, ten tokens in, five out."""
    text = text_of(body)[::-1]
    said = {"text": text} if "prompt" in body else {"message": {"content": text}}
    return {
        "choices": [{"index": 0, **said, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }


class MisbehavingServer:
    """Runs on a thread of its own between `start` and `stop`; use as a context manager."""

    def __init__(
        self,
        *,
        capacity: int | None = None,
        latency_seconds: float = 0.0,
        owner: str = "vllm",
        models: tuple[str, ...] = (MODEL,),
        answer: Callable[[dict[str, Any]], dict[str, Any]] = right_answer,
    ) -> None:
        self.capacity = capacity
        self.latency_seconds = latency_seconds
        self.owner, self.models, self.answer = owner, models, answer
        self.models_status = 200
        self.key = ""
        self.port = 0
        self.attempts = Counter[str]()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.active = self.most_active = 0
        self.refused = 0
        self.keep_bodies = True
        self._pool = ThreadPoolExecutor(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> MisbehavingServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> MisbehavingServer:
        """Listen; after a `stop` on the same port again."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        """Cut all connections and listen no more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(10)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.run(self.serve(ready.set))

    async def serve(self, ready: Callable[[], None]) -> None:
        """Answer until stopped."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.BaseTransport] = set()
        self.active = 0
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        server = await self._loop.create_server(
            lambda: _Connection(self), sock=listening, backlog=4096
        )
        ready()
        await self._ended.wait()
        server.close()
        for transport in list(self._connections):
            transport.abort()  # type: ignore[attr-defined]
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reply(self, path: str, headers: dict[str, str], body: bytes) -> bytes | None:
        """The bytes of an answer; None where the connection has to be cut after those sent."""
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if key:
            self.keys.add(key)
        if path in ("/v1/models", "/health", "/version", "/tokenize"):
            return self._about(path, key, body)
        request = json.loads(body)
        text = text_of(request)
        self.attempts[text] += 1
        self.times[text].append(time.monotonic())
        if self.keep_bodies:
            self.bodies.append(request)
        if self.capacity is not None and self.active >= self.capacity:
            self.refused += 1
            return response(429, {"error": {"message": "too many requests"}})
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            if self.latency_seconds:
                await asyncio.sleep(self.latency_seconds)
            script = text.split("|")[0].split() if "|" in text else ["ok"]
            word = script[min(self.attempts[text], len(script)) - 1]
            return await self._misbehave(word, request, key)
        finally:
            self.active -= 1

    def _about(self, path: str, key: str, body: bytes) -> bytes:
        if path == "/tokenize":
            return response(200, {"count": len(json.loads(body)["prompt"].split())})
        if path == "/version":
            return response(200, {"version": "9.9"} if self.owner == "vllm" else {})
        if self.models_status != 200 or (self.key and key != self.key):
            status = self.models_status if self.models_status != 200 else 401
            return response(status, {"error": {"message": f"not for the key {key}"}})
        listed = [
            {"id": name, "owned_by": self.owner, "root": f"/models/{name}", "max_model_len": 512}
            for name in self.models
        ]
        return response(200, {"data": listed})

    async def _misbehave(self, word: str, request: dict[str, Any], key: str) -> bytes | None:
        code, _, pause = word.partition(":")
        if code.isdigit():
            headers = {"Retry-After": pause} if pause else {}
            return response(int(code), {"error": {"message": f"status {code}"}}, headers)
        if word == "hang":
            await asyncio.sleep(3600)
        if word == "slow":
            await asyncio.sleep(0.3)
        right = (
            await self._loop.run_in_executor(self._pool, self.answer, request)
            if (self.answer is not right_answer)
            else right_answer(request)
        )
        whole = json.dumps(right).encode()
        match word:
            case "cut":
                return response(200, None, raw=whole[: len(whole) // 2], length=len(whole)) + CUT
            case "trickle":
                return response(200, None, raw=b"", length=1 << 20) + TRICKLE
            case "reset":
                return None
            case "half":
                return response(200, None, raw=whole[: len(whole) // 2])
            case "html":
                return response(200, None, {"Content-Type": "text/html"}, raw=b"<html>Hello</html>")
            case "plain":
                return response(200, None, {"Content-Type": "text/plain"}, raw=whole)
            case "garbage":
                return b"this is no HTTP at all\r\n\r\n" + CUT
            case "redirect":
                return response(307, {}, {"Location": "http://127.0.0.1:1/elsewhere"})
            case "context":
                said = "This model's maximum context length is 512 tokens."
                return response(400, {"error": {"message": said}})
            case "quote":
                said = f"Incorrect API key provided: {key}"
                return response(401, {"error": {"message": said}})
            case "error200":
                return response(200, {"error": {"message": "out of memory", "code": 500}})
        choice = right["choices"][0]
        match word:
            case "choices":
                right["choices"] = [{**choice, "index": 1, "text": "wrong"}, choice, choice]
            case "nousage":
                del right["usage"]
            case "nochoices":
                right["choices"] = []
            case "filtered":
                choice["finish_reason"] = "content_filter"
            case "surrogate":
                choice["text"] = "half a pair \ud83d here"
        return response(200, right)


CUT = b"\0cut\0"  # at the end of an answer: close the connection
TRICKLE = b"\0trickle\0"  # at the end of an answer: a byte now and then, no end within 5 s


def response(
    status: int,
    content: Any,
    headers: dict[str, str] | None = None,
    *,
    raw: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """An HTTP/1.1 answer; `length` lies about the body's."""
    body = json.dumps(content).encode() if raw is None else raw
    lines = {"Content-Type": _KIND, "Content-Length": str(length or len(body)), **(headers or {})}
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One keep-alive connection, one request after the other."""

    def __init__(self, server: MisbehavingServer) -> None:
        self._server, self._buffer = server, b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._server._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._connections.discard(self._transport)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, split, rest = self._buffer.partition(b"\r\n\r\n")
        if not split:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        work = self._answer(first.split()[1], headers, rest[:length])
        self._task = self._server._loop.create_task(work)

    async def _answer(self, path: str, headers: dict[str, str], body: bytes) -> None:
        answer = await self._server.reply(path, headers, body)
        if answer is None:
            self._transport.abort()
            return
        self._transport.write(answer.removesuffix(CUT).removesuffix(TRICKLE))
        for _ in range(100 * answer.endswith(TRICKLE)):
            await asyncio.sleep(0.05)
            self._transport.write(b" ")
        if answer.endswith((CUT, TRICKLE)):
            self._transport.close()


def main() -> None:
    """Serve as a stub process until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency_ms", type=float, default=50.0)
    parser.add_argument("--capacity", type=int, default=None)
    arguments = parser.parse_args()
    server = MisbehavingServer(
        capacity=arguments.capacity, latency_seconds=arguments.latency_ms / 1000
    )
    server.port, server.keep_bodies = arguments.port, False
    server.times = defaultdict(lambda: [])
    with server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
