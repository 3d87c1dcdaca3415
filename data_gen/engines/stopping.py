"""Stop strings: looked for after each token, in its last few tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Decoders change a text at its first tokens (a space is stripped), and some tokens show nothing.
_MARGIN_TOKENS = 8
_CHARACTER_BYTES = 4  # of UTF-8: so many tokens may share a character
_HALF_CHARACTER = "\ufffd"


def cut_at_stop(
    decode: Callable[[list[int]], str], ids: list[int], stops: Sequence[str]
) -> str | None:
    """The text of `ids` up to the first stop string in it; None where there is none.

    To be asked after each token: what ends before the newest one was found then. So the last
    tokens are decoded, as many as the longest stop string has bytes and a few more; the whole text
    only where a stop string shows there, and it alone decides.
    """
    tail = _tail(decode, ids, stops)
    if not any(stop in tail for stop in stops):
        return None
    text = decode(ids)
    cuts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(cuts)] if cuts else None


def _tail(decode: Callable[[list[int]], str], ids: list[int], stops: Sequence[str]) -> str:
    reach_tokens = max(len(stop.encode()) for stop in stops) + _MARGIN_TOKENS
    text = decode(ids[-reach_tokens:])
    for more in range(1, _CHARACTER_BYTES):
        # Cut in the middle of a character, a run of byte tokens may show nothing but U+FFFD.
        if len(ids) < reach_tokens + more or not text.startswith(_HALF_CHARACTER):
            break
        text = decode(ids[-reach_tokens - more :])
    return text
