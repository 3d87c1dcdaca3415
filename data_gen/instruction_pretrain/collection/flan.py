"""The chain-of-thought tables of FLAN, copies of several data sets in one layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.corpus.dataset_files import (
    DataFile,
    Files,
    Located,
    by_file,
    converted,
    unquoted_rows,
)


@by_file
def flan_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Question, options, answer and explanation; options may begin with a letter in brackets."""
    return converted(unquoted_rows(file), _record)


def _record(cells: Any) -> dict[str, Any]:
    try:
        asked, answer, explanation = (cell.replace("\\n", "\n") for cell in cells)
        question, options = asked.split("\nOptions:\n")
    except ValueError as error:
        raise ValueError("is not: question with options, answer, explanation") from error
    listed = [option.removeprefix("- ") for option in options.split("\n")]
    return {
        "question": question,
        "options": listed,
        "answer": answer,
        "explanation": explanation,
    }
