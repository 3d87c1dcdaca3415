"""What a chat model is asked to reply with, JSON, out of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data_gen.engines.base import Completion


def parse_json_object(reply: str) -> dict[str, Any] | str:
    """The one JSON object of a reply, within prose or a fence too; else why there is none.

    What a model thinks within `<think>` is left out. Reasons: `no_json`, `several`.
    """
    found = list(json_objects(after_thoughts(reply)))
    if not found:
        return "no_json"
    return found[0] if all(one == found[0] for one in found) else "several"


def object_of(completion: Completion) -> dict[str, Any] | str:
    """The JSON object that a model replied with; else why there is none: also `engine_error`, and
    `cut` where the token limit ended the reply before one."""
    if completion.finish_reason == "error":
        return "engine_error"
    found = parse_json_object(completion.text)
    return "cut" if found == "no_json" and completion.finish_reason == "length" else found


def after_thoughts(reply: str) -> str:
    """The reply without what a model thinks within `<think>`; nothing where that is not closed."""
    _, closed, rest = reply.rpartition("</think>")
    if closed:
        return rest
    return "" if "<think>" in reply else reply


def json_objects(reply: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in the text, in order."""
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
