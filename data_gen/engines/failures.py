"""What went wrong with a request to a server, and whether asking again can help."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TRANSIENT_STATUS = {408, 409, 425, 429}  # and all of 5xx
_DETAIL_CHARACTERS = 300
_CONTEXT = re.compile(r"context.{0,10}(length|window|size)|too (long|many tokens)|max_model_len")


@dataclass(frozen=True)
class Failure:
    """One attempt that gave no completion."""

    reason: str
    """Short and countable: `http_429`, `timeout`, `connection_cut`, `malformed`, …"""
    detail: str
    """What the server or the network said."""
    permanent: bool = False
    """The same request would fail again."""
    busy: bool = False
    """A sign that the server has too much to do."""
    unreachable: bool = False
    """No connection was made: the server never saw the request."""
    retry_after_seconds: float | None = None
    """The pause that the server asks for."""


def status_failure(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Failure:
    """The failure that an HTTP status other than 200 stands for; `now` in seconds since 1970."""
    detail = error_message(body)
    if 300 <= status < 400:
        place = headers.get("Location", "another address")
        detail = f"it redirects to {place}; redirects are not followed, give that address instead"
        return Failure(f"http_{status}", detail, permanent=True)
    permanent = status < 500 and status not in _TRANSIENT_STATUS
    reason = f"http_{status}"
    if permanent and status in (400, 413, 422) and _CONTEXT.search(detail.lower()):
        reason = "context_too_long"
    return Failure(
        reason,
        detail,
        permanent,
        busy=status in (429, 503),
        retry_after_seconds=None if permanent else retry_after(headers.get("Retry-After"), now),
    )


def exception_failure(error: Exception) -> Failure | None:
    """The failure that an exception of aiohttp stands for; None for what is no such failure."""
    import aiohttp

    detail = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failure("unreachable", detail, unreachable=True)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Failure("timeout", detail, busy=True)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
        return Failure("connection_cut", detail)
    if isinstance(error, aiohttp.ClientError):
        return Failure("malformed", detail)
    return None


def error_message(body: bytes) -> str:
    """The message in an error's body: OpenAI's form, vLLM's, FastAPI's, or the body's beginning."""
    text = body.decode("utf-8", "replace")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        inner = parsed.get("error", parsed)
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("detail") or inner
        text = inner if isinstance(inner, str) else json.dumps(inner)
    return " ".join(text.split())[:_DETAIL_CHARACTERS] or "no text"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header (a number or a date) asks for; None where unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def retry_delay(
    attempt: int,
    asked_seconds: float | None,
    *,
    base_seconds: float,
    most_seconds: float,
    draw: random.Random,
) -> float:
    """Pause after attempt 1, 2, …: drawn from [0, base · 2^(attempt-1)] (full jitter).

    A pause that the server asked for is kept whole, up to `most_seconds`, with a drawn part on
    top, so that not all come back in the same moment.
    """
    drawn = draw.uniform(0.0, min(most_seconds, base_seconds * 2.0 ** min(attempt - 1, 60)))
    if asked_seconds is None:
        return drawn
    return min(asked_seconds, most_seconds) + min(drawn, base_seconds)
