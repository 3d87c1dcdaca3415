"""Text of records and names as a terminal may show it."""

import re

# What moves the cursor, changes colours or turns the direction of what follows; lone surrogates
# cannot be written at all.
_UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Every character of ``text`` that does something written as one that shows it.

    Line feeds stay. Other control characters become their pictures (``␛``, ``␉``), the rest its
    number (``\\u202e``). All other characters stay as they are, so that texts still join.
    """
    return _UNSEEN.sub(lambda found: _shown(ord(found[0])), text)


def _shown(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{code:04x}"
