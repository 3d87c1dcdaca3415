"""Rows of Arrow tables as Python values, one bad value at a time."""

from collections.abc import Collection
from typing import Any

# What pyarrow raises where Python has no such value: a date past the year 9999, an unknown time
# zone, a text that is not UTF-8, a duration too long, two fields of one name.
_UNCONVERTIBLE = (ValueError, ArithmeticError, LookupError, TypeError)


def rows_of(table: Any, asked: Collection[str]) -> list[dict[str, Any] | str]:
    """The rows of an Arrow table or batch, each a dict; or what is wrong with it, in words, where
    a column of ``asked`` holds a value that Python cannot.

    In other columns such a value is given as Arrow prints it: nobody may ever look at it.
    """
    try:
        return table.to_pylist()
    except _UNCONVERTIBLE:
        names = table.column_names if hasattr(table, "column_names") else table.schema.names
        columns = [
            _values(name, table.column(place), name in asked) for place, name in enumerate(names)
        ]
    rows: list[dict[str, Any] | str] = []
    for values in zip(*columns, strict=True):
        wrong = [value.what for value in values if isinstance(value, _Bad)]
        rows.append(wrong[0] if wrong else dict(zip(names, values, strict=True)))
    return rows


class _Bad:
    def __init__(self, what: str) -> None:
        self.what = what


def _values(name: str, column: Any, asked: bool) -> list[Any]:
    try:
        return column.to_pylist()
    except _UNCONVERTIBLE:
        return [_value(name, column.slice(place, 1), asked) for place in range(len(column))]


def _value(name: str, one: Any, asked: bool) -> Any:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return _Bad(f"the field '{name}' is not UTF-8 at byte {error.start}")
    except _UNCONVERTIBLE as error:
        if asked:
            return _Bad(f"the field '{name}' holds a {one.type} that cannot be read ({error})")
        return str(one).strip("[] \n")
