"""The chain-of-thought tables of FLAN, copies of several data sets in one layout."""

from __future__ import annotations

from collections.abc import Iterator

from data_gen.instruction_pretrain.collection.files import Files, Located, unquoted_rows

FLAN = "github.com/google-research/FLAN, flan/v2/cot_data/"


def flan_records(files: Files) -> Iterator[Located]:
    """Question, options, answer and explanation; options may begin with a letter in brackets."""
    for file in files.chosen():
        for line in unquoted_rows(file):
            if line.error:
                yield line
                continue
            try:
                asked, answer, explanation = (cell.replace("\\n", "\n") for cell in line.value)
                question, options = asked.split("\nOptions:\n")
            except ValueError:
                problem = "is not: question with options, answer, explanation"
                yield Located(line.where, error=problem)
                continue
            record = {
                "question": question,
                "options": [option.removeprefix("- ") for option in options.split("\n")],
                "answer": answer,
                "explanation": explanation,
            }
            yield Located(line.where, record)
