"""A deterministic engine for tests: its answers depend on the prompt alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_gen.engines import Completion, Request
from data_gen.engines.streaming import RequestSource


class FakeEngine:
    """Writes two pairs for most texts, one for some, none for some; logs every request."""

    name, version, model, revision = "fake", "1", "fake-model", "r1"
    window = 32

    def __init__(
        self, log: Path | None = None, delay_seconds: float = 0.0, context_tokens: int = 4096
    ) -> None:
        self.context_tokens = context_tokens
        self.log = log
        self.delay_seconds = delay_seconds
        self.asked: list[Request] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        feed = RequestSource(requests)
        while not feed.exhausted:
            # Answers come back in an order of their own.
            taken = feed.take(self.window)
            if not taken:
                feed.wait()
            for request in sorted(taken, key=lambda r: hashlib.sha256(r.id.encode()).digest()):
                yield self.answer(request)

    def answer(self, request: Request) -> Completion:
        """Depends on the prompt and the seed alone."""
        self.asked.append(request)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(request.id + "\n")
        time.sleep(self.delay_seconds)
        digest = hashlib.sha256(f"{request.prompt}{request.seed}".encode()).hexdigest()
        pair = f"<QUE> What is {digest[:6]}? <ANS> {digest[6:12]} </END>"
        text = {
            0: "no pair at all",
            1: pair,
            2: f"{pair}\n\n{pair}",
        }.get(int(digest, 16) % 9, f"{pair}\n\n{pair.replace('What', 'Who')}")
        return Completion(request.id, text, "stop", self.count_tokens(str(request.prompt)), 7)

    def close(self) -> None:
        pass
