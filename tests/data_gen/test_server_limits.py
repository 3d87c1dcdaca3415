"""How many requests a server is sent at once, and how long between attempts."""

from __future__ import annotations

import random
import time
from typing import Any

from data_gen.engines.concurrency import ConcurrencyLimit
from data_gen.engines.failures import retry_after, retry_delay
from tests.data_gen.asking import ask, opened
from tests.data_gen.misbehaving_server import MisbehavingServer


def test_the_limit_alone() -> None:
    now = 0.0
    limit = ConcurrencyLimit(8, 256, latency_ratio=4.0, clock=lambda: now)

    def answers(count: int, seconds: float, *, busy: bool = True) -> None:
        for _ in range(count):
            limit.active = int(limit.limit) if busy else 0
            limit.answered(now - seconds, 68)

    answers(8, 1.0)
    assert limit.limit == 16  # doubles in a round
    answers(50, 1.0, busy=False)
    assert limit.limit == 16  # grows only while it is in use
    now = 10.0
    limit.refused(sent_at=9.0)
    assert limit.limit == 8
    limit.refused(sent_at=9.5)  # under way when the limit was lowered: no news
    assert limit.limit == 8
    now = 20.0
    limit.refused(sent_at=11.0)
    assert limit.limit == 4
    answers(40, 5.0)  # sent before that
    assert limit.limit == 4
    now = 30.0
    answers(4, 1.0)
    assert 7 < limit.limit < 9  # 256 / 64 more in a round, doubling no longer
    answers(10_000, 1.0)
    assert limit.limit == 256
    answers(127, 5.0)  # five times as long as the best: down to four fifths
    assert 0.79 * 256 < limit.limit < 256
    for _ in range(60):
        now += 10.0
        answers(64, 50.0)  # as at first, when the limit was lowered only for what followed
        answers(64, 5.0)
    assert 8 <= limit.limit < 32
    for _ in range(40):
        now += 10
        limit.refused(sent_at=now - 1)
    assert limit.limit == 1  # never none
    assert (limit.lowest, limit.highest) == (1, 256)


def test_slow_answers_lower_the_limit() -> None:
    """A server that queues without a word: the more wait, the longer each takes."""

    def queueing(body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.002)  # one after the other, whatever the concurrency
        return {
            "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        }

    with MisbehavingServer(answer=queueing) as server:
        engine = opened(
            server,
            start_concurrency=4,
            max_concurrency=256,
            latency_ratio=3.0,
            read_seconds=20.0,
            total_seconds=20.0,
        )
        ask(engine, *(f"p{n}" for n in range(800)))
        engine.close()
    assert engine.limit.highest > 8
    assert engine.limit.limit < 128, engine.limit.limit


def test_delays_are_drawn_below_a_doubling_bound() -> None:
    draw = random.Random(3)

    def delays(attempt: int, asked: float | None = None) -> list[float]:
        return [
            retry_delay(attempt, asked, base_seconds=0.5, most_seconds=10.0, draw=draw)
            for _ in range(2000)
        ]

    for attempt, bound in ((1, 0.5), (2, 1.0), (4, 4.0), (9, 10.0), (5000, 10.0)):
        found = delays(attempt)
        assert 0 <= min(found) < 0.05 * bound and 0.95 * bound < max(found) <= bound
    assert min(delays(1, 3.0)) >= 3.0 and max(delays(9, 3.0)) <= 3.5
    assert max(delays(9, 1e9)) <= 10.5
    assert retry_after("7", 0.0) == 7.0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert retry_after("-3", 0.0) == 0.0
    assert [retry_after(wrong, 0.0) for wrong in (None, "soon", "nan", "inf", "")] == [None] * 5
