"""The engine for any server that speaks OpenAI's completions and chat API."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from data_gen.engines.base import Completion, Prompt, Request, turns_of
from data_gen.engines.concurrency import ConcurrencyLimit
from data_gen.engines.config import EngineConfig
from data_gen.engines.failures import Failure, retry_delay
from data_gen.engines.openai_api import read_answer, request_body, request_path
from data_gen.engines.prompts import PromptEncoder, PromptError
from data_gen.engines.server_client import (
    ServerClient,
    ServerDescription,
    ServerSilent,
    allow_connections,
)
from data_gen.engines.streaming import LoopThread
from data_gen.engines.waiting import WaitNotice
from ipt_jax.core.errors import UserError

_ACCESS_CHECK_SECONDS = 30.0
_COUNT_ATTEMPTS = 4
_LOOK_SECONDS = 1.0  # between two looks at how long nothing was answered


@dataclass
class ServerStats:
    """Counts since the engine was opened."""

    attempts: int = 0
    """Requests sent, repeated ones included."""
    completions: int = 0
    """Whole answers."""
    retried: Counter[str] = field(default_factory=Counter)
    """Attempts that were repeated, by reason."""
    errors: Counter[str] = field(default_factory=Counter)
    """Requests that came back as an error, by the last reason."""
    without_usage: int = 0
    """Answers that did not report their tokens; counted here or, without a tokenizer, as 0."""


class ServerEngine:
    """Keeps many requests under way at one server, as many as it copes with.

    A failure that may pass (429, 5xx, a cut connection, half an answer, silence) is tried again
    after a drawn pause; what would fail again (400, 401, 404, 422, a prompt past the context)
    comes back at once. Either way every request gives exactly one completion, and none hurts
    another. A server that is gone altogether stops the call with a UserError; what it had answered
    until then has been handed over.
    """

    name = "server"

    def __init__(self, config: EngineConfig) -> None:
        """Connect and ask the server who it is.

        Raises UserError where it cannot be reached within `wait_seconds`, refuses the key or does
        not have the model.
        """
        self.config = config
        self.settings = settings = config.server
        allow_connections(settings.max_concurrency)
        self.stats = ServerStats()
        self._encoder: PromptEncoder | None = None
        if settings.tokenizer:
            self._encoder = PromptEncoder.load(Path(settings.tokenizer).expanduser())
        self._client = ServerClient(config)
        self._refuse = partial(UserError, path=self._client.address)
        self._draw = random.Random()
        self._thread = LoopThread("server-engine")
        self._clock = self._thread.loop.time
        self._under_way = 0
        self._last_answer, self._last_access_check = self._clock(), float("-inf")
        self._probing = asyncio.Lock()
        self._notice, self._last_failure = WaitNotice(self._clock), ""
        self.limit = ConcurrencyLimit(
            settings.start_concurrency,
            settings.max_concurrency,
            latency_ratio=settings.latency_ratio,
            clock=self._clock,
        )
        try:
            self.description = self._thread.call(_describe(self._client, settings.wait_seconds))
        except BaseException:
            self.close()
            raise
        said = self.description
        self.model, self.revision, self.version = said.model, said.revision, version_of(said)
        self._vllm = settings.dialect == "vllm" or (
            settings.dialect == "auto" and said.owner == "vllm"
        )
        limits = (config.context_tokens, said.context_tokens)
        self.context_tokens = min(limit for limit in limits if limit)

    def count_tokens(self, text: Prompt) -> int:
        """By the folder `engine.server.tokenizer`, or by asking the server. UserError without."""
        if self._encoder is not None:
            return self._encoder.count(text)
        if not self._vllm:
            raise self._refuse(
                f"the server at {self._client.address} cannot count a prompt's tokens: set "
                "`engine.server.tokenizer` to a folder with the model's tokenizer.",
                key="engine.server.tokenizer",
            )
        fields = (
            {"prompt": text, "add_special_tokens": False}
            if isinstance(text, str)
            else {"messages": turns_of(text)}
        )
        return self._thread.call(self._count({"model": self.model, **fields}))

    async def _count(self, fields: dict[str, object]) -> int:
        for attempt in range(1, _COUNT_ATTEMPTS + 1):
            found = await self._client.count(fields)
            if isinstance(found, int):
                return found
            if found.permanent or attempt == _COUNT_ATTEMPTS:
                break
            await asyncio.sleep(self._delay(attempt, found))
        raise self._refuse(
            f"the server at {self._client.address} did not count a prompt's tokens "
            f"({self._say(found)}): set `engine.server.tokenizer` to a folder with the model's "
            "tokenizer.",
            key="engine.server.tokenizer",
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See Engine. At most twice `max_concurrency` requests are read ahead.

        Raises UserError where the server is gone, or takes the key or the model no longer.
        """
        window = 2 * self.settings.max_concurrency
        watch = asyncio.run_coroutine_threadsafe(self._watch(), self._thread.loop)
        try:
            yield from self._thread.stream(requests, self._answer, window)
        finally:
            watch.cancel()

    def close(self) -> None:
        """Close the connections."""
        if not self._thread.loop.is_closed():
            self._thread.call(self._client.close())
        self._thread.close()

    async def _watch(self) -> None:
        """Say what is waited for while requests are under way and nothing is answered."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._under_way:
                self._notice.look(self._waits_for)

    def _waits_for(self, seconds: float) -> str:
        settings, retried = self.settings, self.stats.retried.total()
        last = f", the last time for {self._last_failure}" if self._last_failure else ""
        return (
            f"the server at {self._client.address} has completed nothing for {seconds:.0f} s: "
            f"{self.limit.active:,} requests are with it, {retried:,} were sent again{last}. One "
            f"is given up after {settings.max_attempts} attempts of at most "
            f"{settings.total_seconds:g} s (`engine.server.max_attempts`, `total_seconds`)."
        )

    async def _answer(self, request: Request) -> Completion:
        if self._under_way == 0:  # silence while nothing was asked says nothing
            self._last_answer = self._clock()
            self._notice.restart()
        self._under_way += 1
        try:
            return await self._ask_until_answered(request)
        finally:
            self._under_way -= 1

    async def _ask_until_answered(self, request: Request) -> Completion:
        settings = self.settings
        body = request_body(
            request,
            model=self.model,
            vllm=self._vllm,
            send_seed=settings.send_seed,
            extra=settings.extra_body,
        )
        sent = counted = 0
        while True:
            await self.limit.acquire(first=sent > 0)
            try:
                begun = self._clock()
                sent += 1
                result = await self._ask_once(request, body)
                if isinstance(result, Completion):
                    self._last_answer = self._clock()
                    self._notice.restart()
                    self.limit.answered(begun, max(0, result.completion_tokens))
                    return self._finish(request, replace(result, attempts=sent))
                if result.busy:
                    self.limit.refused(begun)
                if result.retry_after_seconds is not None and result.busy:
                    asked = min(result.retry_after_seconds, settings.max_backoff_seconds)
                    self.limit.pause(asked)
            finally:
                self.limit.release()
            if result.permanent:
                self._last_answer = self._clock()
                await self._check_access(result)
            else:
                # While the server is away altogether, trying to reach it costs no attempt.
                counted += not (result.unreachable and self._last_answer <= begun)
                await self._check_alive(result)
            if result.permanent or counted >= settings.max_attempts:
                self.stats.errors[result.reason] += 1
                kind = "permanent" if result.permanent else "transient"
                text = f"{self._say(result)} (attempts: {sent})"
                return Completion(request.id, text, "error", 0, 0, error_kind=kind, attempts=sent)
            self.stats.retried[result.reason] += 1
            self._last_failure = self._say(result)
            await asyncio.sleep(self._delay(max(1, counted), result))

    async def _ask_once(self, request: Request, body: bytes) -> Completion | Failure:
        self.stats.attempts += 1
        answer = await self._client.send(request_path(request), body)
        return answer if isinstance(answer, Failure) else read_answer(request, *answer)

    def _finish(self, request: Request, completion: Completion) -> Completion:
        self.stats.completions += 1
        if completion.prompt_tokens >= 0 and completion.completion_tokens >= 0:
            return completion
        self.stats.without_usage += 1
        prompt_tokens, tokens = completion.prompt_tokens, completion.completion_tokens
        return replace(
            completion,
            prompt_tokens=prompt_tokens if prompt_tokens >= 0 else self._estimate(request.prompt),
            completion_tokens=tokens if tokens >= 0 else self._estimate(completion.text),
        )

    def _estimate(self, text: Prompt) -> int:
        if self._encoder is None:
            return 0
        try:
            return self._encoder.count(text)
        except (PromptError, UserError):  # the server's template took what the local one does not
            return 0

    def _delay(self, attempt: int, failure: Failure) -> float:
        settings = self.settings
        most = settings.max_backoff_seconds
        if failure.unreachable:
            most = min(most, settings.down_seconds / 8)
        return retry_delay(
            attempt,
            failure.retry_after_seconds,
            base_seconds=settings.backoff_seconds,
            most_seconds=most,
            draw=self._draw,
        )

    def _say(self, failure: Failure) -> str:
        return self._client.clean(f"{failure.reason}: {failure.detail}")

    async def _check_alive(self, failure: Failure) -> None:
        """Raise UserError where nothing was answered for `down_seconds` and a probe fails too."""
        async with self._probing:
            silent = self._clock() - self._last_answer
            if silent < self.settings.down_seconds:
                return
            probe = await self._client.models()
            if not isinstance(probe, Failure) or probe.permanent:
                self._last_answer = self._clock()
                return
            raise self._refuse(
                f"the server at {self._client.address} has answered nothing for {silent:.0f} s "
                f"(`engine.server.down_seconds`; last {self._say(failure)}): start it again or "
                "mend `engine.server.url`, then run the same command again. What it had answered "
                "is kept.",
                key="engine.server.url",
            )

    async def _check_access(self, failure: Failure) -> None:
        """Raise UserError where a refused request means that all will be refused."""
        if failure.reason not in ("http_401", "http_403", "http_404"):
            return
        async with self._probing:
            if self._clock() - self._last_access_check < _ACCESS_CHECK_SECONDS:
                return
            self._last_access_check = self._clock()
            models = await self._client.models()
            if isinstance(models, Failure):
                if models.reason in ("http_401", "http_403"):
                    raise self._client.refusal(failure)
            elif models and self.model not in [model["id"] for model in models]:
                raise self._refuse(
                    f"the server at {self._client.address} no longer has the model '{self.model}' "
                    f"({self._say(failure)}): load it again, then run the same command again.",
                    key="engine.model",
                )


def describe_server(config: EngineConfig) -> ServerDescription:
    """What the server of `config` says of itself, asked over a connection of its own.

    Raises UserError as ServerEngine does.
    """
    client, thread = ServerClient(config), LoopThread("server-identity")
    try:
        return thread.call(_describe(client, config.server.wait_seconds))
    finally:
        thread.call(client.close())
        thread.close()


def version_of(description: ServerDescription) -> str:
    """For provenance: program and version, in the server's own words."""
    return " ".join(part for part in (description.owner, description.version) if part) or "unknown"


async def _describe(client: ServerClient, wait_seconds: float) -> ServerDescription:
    await client.open()
    clock = asyncio.get_running_loop().time
    until, notice = clock() + wait_seconds, WaitNotice(clock)
    while True:
        try:
            return await client.describe()
        except ServerSilent as silent:
            said = client.clean(str(silent))
            notice.look(
                lambda seconds, said=said: (
                    f"waiting for the server at {client.address} since {seconds:.0f} s ({said}), "
                    f"at most {wait_seconds:g} s (`engine.server.wait_seconds`)."
                )
            )
            if clock() >= until:
                raise UserError(
                    f"the server at {client.address} does not answer "
                    f"({said}; waited {wait_seconds:g} s): start it "
                    "(`python launch/serve.py` starts vLLM's), mend `engine.server.url`, or raise "
                    "`engine.server.wait_seconds`.",
                    key="engine.server.url",
                    path=client.address,
                ) from None
        await asyncio.sleep(min(1.0, max(0.05, wait_seconds / 10)))
