"""How numbers are written: on pages, in tables, in figures and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

ABSENT = "–"
"""What stands for a number that is not there."""
_SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def format_number(value: float, digits: int = 3) -> str:
    """A number of a glance, to so many significant digits: 250k, 1.23M, 0.25."""
    rounded = float(f"{value:.{digits}g}")
    for size, letter in _SIZES:
        if abs(rounded) >= size:
            return f"{rounded / size:.{digits}g}{letter}"
    return f"{rounded:.{digits}g}"


def format_cell(value: object, decimals: int | None = None) -> str:
    """What a table's cell says: integers whole, with thousands separators; None as ABSENT.

    Other numbers have so many `decimals`, or four significant digits.
    """
    if value is None:
        return ABSENT
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if decimals is None else f"{value:,.{decimals}f}"
    return str(value)


def format_percent(share: float | None, decimals: int = 1, sign: str = "%") -> str:
    """A share between 0 and 1 in per cent."""
    return ABSENT if share is None else f"{100 * share:.{decimals}f}{sign}"


def format_seconds(seconds: float) -> str:
    """4.2 s, 31 s, 2 min 05 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s"


def format_count(count: int, what: str) -> str:
    """1 model, 2 models."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts by name in one line."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
