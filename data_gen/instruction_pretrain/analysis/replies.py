"""What a chat model is asked to reply with, JSON, out of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def the_object(reply: str) -> dict[str, Any] | str:
    """The one JSON object of a reply, within prose or a fence too; else why there is none.

    What a model thinks within `<think>` is left out. Reasons: `no_json`, `several`.
    """
    found = list(_objects(_after_thoughts(reply)))
    if not found:
        return "no_json"
    return found[0] if all(one == found[0] for one in found) else "several"


def _after_thoughts(reply: str) -> str:
    _, closed, rest = reply.rpartition("</think>")
    if closed:
        return rest
    return "" if "<think>" in reply else reply


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    decoder, place = json.JSONDecoder(), reply.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(reply, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(found, dict):
                yield found
        place = reply.find("{", end)
