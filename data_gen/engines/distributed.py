"""The same work on Ray: an engine in each actor, ledger and output where the run was started.

Actors only answer requests. Units, order, the ledger and the shards stay with one driver, so that
a run on Ray goes on from the folder of a run without it, and from the same answers writes the same
bytes. Where a node is lost, what its actor had not answered is asked of the others, and nothing
that was answered is asked again; this is why actors are used and no `ray.data` pipeline, which
makes lost blocks anew.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from data_gen.engines.base import Completion, Engine, Prompt, Request
from data_gen.engines.config import RayConfig
from data_gen.engines.isolation import with_isolation
from data_gen.engines.streaming import RequestSource
from data_gen.engines.waiting import WaitNotice
from data_gen.errors.shared import optional
from ipt_jax.core.errors import UserError

_WAIT_SECONDS = 0.05  # between two looks at a source that had nothing ready
_LOOK_SECONDS = 1.0  # between two looks at actors that load
_HANDED_AT_ONCE = 64  # requests in one call of an actor


class EngineWorker:
    """What runs in an actor: one engine, kept full from a queue."""

    def __init__(self, open_engine: Callable[[], Engine]) -> None:
        self._engine = open_engine()
        self._in: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def context_tokens(self) -> int:
        """Of the engine; also tells that it is loaded."""
        return self._engine.context_tokens

    def put(self, requests: list[Request]) -> None:
        """Answer these too."""
        for request in requests:
            self._in.put(request)

    def completions(self) -> Iterator[list[Completion]]:
        """Completions as they come, those together that are there together."""
        while True:
            found = [self._out.get()]
            while not self._out.empty():
                found.append(self._out.get())
            good = [one for one in found if isinstance(one, Completion)]
            if good:
                yield good
            for one in found:
                if isinstance(one, Exception):
                    raise one

    def _requests(self) -> Iterator[Request | None]:
        while True:
            try:
                yield self._in.get_nowait()
            except queue.Empty:
                yield None

    def _serve(self) -> None:
        try:
            for completion in with_isolation(self._engine, self._requests()):
                self._out.put(completion)
        except Exception as error:
            self._out.put(error)  # the engine is broken: the driver is told


@dataclass
class _Remote:
    """An actor as the driver sees it."""

    actor: Any
    stream: Any
    loaded: Any
    """Reference that is there when the engine is."""
    ready: bool = False
    """It was there."""
    asked: dict[str, Request] = field(default_factory=dict)


class RayEngine:
    """Answers by several engines on a Ray cluster. See Engine."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        config: RayConfig,
        *,
        name: str,
        version: str,
        model: str,
        revision: str,
        count_tokens: Callable[[Prompt], int],
    ) -> None:
        """Connect and start `config.actors` actors.

        `open_engine` is called in each of them, so it must be picklable; the other arguments say
        what it opens, without opening it here.

        Raises:
          UserError: ray is not installed, no cluster answers, or no actor has loaded its engine
            after `config.start_seconds`.
        """
        self.name, self.version, self.model, self.revision = name, version, model, revision
        self._count_tokens = count_tokens
        missing = (
            "`engine.ray.actors` needs Ray, which is not installed: `pip install 'ipt-jax[ray]'`."
        )
        optional("ray.exceptions", UserError(missing, key="engine.ray.actors"))
        self._ray = optional("ray", UserError(missing, key="engine.ray.actors"))
        self._config, self._open = config, open_engine
        self._owns = not self._ray.is_initialized()
        if self._owns:
            self._connect()
        self._call = 0
        self._lost = 0
        self._remotes = [self._start() for _ in range(config.actors)]
        self.context_tokens = self._first_answer()

    @property
    def lost_actors(self) -> int:
        """Actors that ended before their time and were replaced."""
        return self._lost

    def count_tokens(self, text: Prompt) -> int:
        """See Engine; counted here."""
        return self._count_tokens(text)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See Engine. Requests go to the actor that has the fewest."""
        self._call += 1
        feed, again = RequestSource(requests), deque[Request]()
        worked, notice = time.monotonic(), WaitNotice()
        try:
            while True:
                self._hand_out(feed, again)
                if any(remote.asked for remote in self._remotes):
                    worked = time.monotonic()
                elif feed.exhausted and not again:
                    return
                elif again and time.monotonic() - worked > self._config.start_seconds:
                    raise self._nowhere()
                for completion in self._take(again):
                    notice.restart()
                    yield completion
                notice.look(self._waits_for_answers)
        finally:
            for remote in self._remotes:
                remote.asked.clear()  # what still comes of this call is passed over

    def close(self) -> None:
        """End the actors, and the connection if it was made here."""
        for remote in self._remotes:
            self._ray.kill(remote.actor)
        self._remotes.clear()
        if self._owns:
            self._ray.shutdown()

    def _connect(self) -> None:
        try:
            self._ray.init(
                address=self._config.address or None, log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at `engine.ray.address` = {self._config.address!r} "
                f"({error}): start one (`ray start --head`), or leave the address out for one on "
                "this machine alone.",
                key="engine.ray.address",
            ) from error

    def _start(self) -> _Remote:
        made = self._ray.remote(EngineWorker).options(
            max_concurrency=3,  # completions() runs for ever, put() and context_tokens() beside it
            num_cpus=self._config.cpus_per_actor,
            num_gpus=self._config.gpus_per_actor,
            resources=dict(self._config.resources) or None,
        )
        actor = made.remote(self._open)
        stream = actor.completions.options(num_returns="streaming").remote()
        return _Remote(actor, stream, actor.context_tokens.remote())

    def _first_answer(self) -> int:
        until, notice = time.monotonic() + self._config.start_seconds, WaitNotice()
        while (left := until - time.monotonic()) > 0:
            waiting = {remote.loaded: remote for remote in self._remotes}
            ready, _ = self._ray.wait(list(waiting), timeout=min(left, _LOOK_SECONDS))
            if not ready:
                notice.look(self._waits_for)
                continue
            try:
                return self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError as error:
                if error.actor_init_failed:  # it would fail anywhere
                    raise self._cannot_open(error) from error
                self._replace(waiting[ready[0]], deque())  # killed, or its node is gone
            except self._ray.exceptions.RayError as error:
                raise self._cannot_open(error) from error
        raise self._nowhere()

    def _waits_for(self, seconds: float) -> str:
        return (
            f"waiting since {seconds:.0f} s for the first of {self._config.actors} Ray actors to "
            f"load its engine, at most {self._config.start_seconds:g} s "
            "(`engine.ray.start_seconds`); `ray status` shows what the cluster has."
        )

    def _waits_for_answers(self, seconds: float) -> str:
        asked = [len(remote.asked) for remote in self._remotes]
        ready = sum(remote.ready for remote in self._remotes)
        return (
            f"no Ray actor has answered anything for {seconds:.0f} s: {sum(asked):,} requests are "
            f"with {ready} of {len(asked)} actors that have loaded, {self._lost} were lost."
        )

    def _cannot_open(self, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[-1]
        said = f"a Ray actor could not open its engine: {reason}"
        return UserError(said, key="engine.ray.actors")

    def _nowhere(self) -> UserError:
        return UserError(
            f"no Ray actor has loaded its engine after {self._config.start_seconds:g} s: see "
            "`ray status` whether the cluster has what `engine.ray` asks for an actor, or raise "
            "`engine.ray.start_seconds`.",
            key="engine.ray.start_seconds",
        )

    def _loaded(self) -> list[_Remote]:
        """The actors that can work: one may wait long for a place, or for its weights."""
        waiting = {remote.loaded: remote for remote in self._remotes if not remote.ready}
        if waiting:
            done, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for reference in done:
                waiting[reference].ready = True
        return [remote for remote in self._remotes if remote.ready]

    def _hand_out(self, feed: RequestSource, again: deque[Request]) -> None:
        """Fill the actors evenly, a few requests at a time."""
        loaded = self._loaded()
        while loaded:
            remote = min(loaded, key=lambda one: len(one.asked))
            room = min(_HANDED_AT_ONCE, self._config.in_flight - len(remote.asked))
            batch = [again.popleft() for _ in range(min(max(room, 0), len(again)))]
            batch += feed.take(room - len(batch))
            if not batch:
                return
            marked = [replace(one, id=f"{self._call}:{one.id}") for one in batch]
            remote.actor.put.remote(marked)
            remote.asked |= {mark.id: one for mark, one in zip(marked, batch, strict=True)}

    def _take(self, again: deque[Request]) -> Iterator[Completion]:
        """What the actors have answered by now; waits a moment for the first."""
        streams = {remote.stream: remote for remote in self._remotes}
        self._ray.wait(list(streams), num_returns=1, timeout=_WAIT_SECONDS)
        # All that have something: of one alone it would be the first in the list, each time.
        ready, _ = self._ray.wait(list(streams), num_returns=len(streams), timeout=0)
        for stream in ready:
            remote = streams[stream]
            try:
                found = self._ray.get(next(stream))
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
            except (self._ray.exceptions.RayError, StopIteration):
                self._replace(remote, again)
                continue
            for completion in found:
                request = remote.asked.pop(completion.request_id, None)
                if request is not None:  # else of a call that was given up
                    yield replace(completion, request_id=request.id)

    def _replace(self, remote: _Remote, again: deque[Request]) -> None:
        """An actor is gone, with its node or alone: its requests go to the others."""
        self._lost += 1
        again.extend(remote.asked.values())
        self._remotes.remove(remote)
        if self._lost > self._config.most_lost:
            raise UserError(
                f"{self._lost} Ray actors were lost, more than `engine.ray.most_lost`: look into "
                "their logs (`ray logs`). What was answered is kept; run the same command again.",
                key="engine.ray.most_lost",
            )
        # Waits for a place in the cluster; until there is one, the others do the work.
        self._remotes.append(self._start())
