"""Every input form of a corpus to Documents; what is no document comes out with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from data_gen.corpus.array_records import read_examples, read_records
from data_gen.corpus.documents import MAX_CHARACTERS, Checker, Document, Raw
from data_gen.corpus.files import CorpusFile
from data_gen.corpus.finding import find_files
from data_gen.corpus.hugging_face import read_hub, read_saved
from data_gen.corpus.lines import read_jsonl, read_txt
from data_gen.corpus.tables import read_parquet
from data_gen.corpus.web_archives import read_web_archive
from data_gen.errors.shared import input_error
from ipt_jax.core.rejection import Rejection

_UNREADABLE = {"undecodable", "not_json", "damaged"}
Shape = Callable[[Raw, CorpusFile], Iterable[Raw]]
"""Makes of what a file holds the records that it stands for; of one that cannot be used, why."""


def read_corpus(
    paths: Sequence[str],
    *,
    text_field: str = "text",
    id_field: str = "id",
    max_characters: int = MAX_CHARACTERS,
    limit: int | None = None,
    shape: Shape | None = None,
) -> Iterator[Document | Rejection]:
    """Every document of the corpus in order, or in its place what was wrong with it.

    `paths` as for find_files. `limit` ends the corpus after that many records, rejected ones
    counted too. With `shape` the records are what it makes of them, and have a `text`.

    Raises:
      UserError: a path is missing, a file's form is unknown, a file cannot be read as a whole,
        or the corpus holds no record at all or none that can be read.
    """
    asked = ("" if shape else text_field, id_field)
    checker = Checker("text" if shape else text_field, id_field, max_characters)
    count, readable, first = 0, False, ""
    for file in find_files(paths):
        source = file.source
        for raw in _raws(file, asked):
            if limit is not None and count >= limit:
                return
            count += 1
            for one in shape(raw, file) if shape else (raw,):
                found = checker.check(one, source)
                if not readable:
                    if isinstance(found, Document) or found.reason not in _UNREADABLE:
                        readable = True
                    else:
                        first = first or f"{found.where}: {found.detail}"
                yield found
    if not count:
        names = ", ".join(paths)
        raise input_error(f"the corpus is empty ({names}): give files that hold documents.")
    if not readable:
        raise input_error(
            f"none of the {count:,} records of the corpus can be read. The first, {first}. Mend "
            "or replace the files.",
            record=first.partition(": ")[0],
        )


def _raws(file: CorpusFile, asked: Sequence[str]) -> Iterator[Raw]:
    match file.form:
        case "jsonl":
            return read_jsonl(file)
        case "txt":
            return read_txt(file)
        case "parquet":
            return read_parquet(file, asked)
        case "arrayrecord":
            return read_examples(file)
        case "records":
            return read_records(file)
        case "warc" | "wet":
            return read_web_archive(file)
        case "saved":
            return read_saved(file, asked)
        case "hub":
            return read_hub(file, asked)
    raise ValueError(f"no reader for the form {file.form!r} of {file.path}")
