"""JSON lines, and text files that are one document each."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from data_gen.corpus.documents import Raw
from data_gen.corpus.files import CorpusFile, read_errors, unreadable
from data_gen.errors.shared import input_error
from ipt_jax.core import json_lines


def read_jsonl(file: CorpusFile) -> Iterator[Raw]:
    """The JSON object of each line that is not blank.

    Raises UserError where no line is one, and after the last whole line of a file cut short.
    """
    good = bad = 0
    first_bad = ""
    label = file.label
    with read_errors(file), file.unpacked() as lines:
        for number, line in enumerate(json_lines.read_lines(lines), 1):
            if line is None:
                raw = Raw(f"{label}:{number}", None, "too_long", json_lines.too_long())
            elif line.isspace():
                continue
            else:
                raw = _read_line(line, f"{label}:{number}")
            if raw.fields is None:
                bad += 1
                first_bad = first_bad or raw.detail
            else:
                good += 1
            yield raw
    if bad and not good:
        raise input_error(
            f"{file.path}: none of its {bad} lines is a JSON object in UTF-8 (the first: "
            f"{first_bad}). Give a file with one JSON object a line.",
            path=file.path,
        )


def _read_line(line: bytes, place: str) -> Raw:
    try:
        text = line.decode()
        if text[0] == "\ufeff":
            text = text[1:]
        fields = json_lines.parse_json(text)
        if isinstance(fields, dict):
            _refuse_half_pairs(fields)
    except UnicodeDecodeError as error:
        return Raw(place, None, "undecodable", f"not UTF-8 at byte {error.start} of the line")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        return Raw(place, None, "undecodable", f"half a surrogate pair ({half!a})")
    except ValueError as error:
        return Raw(place, None, "not_json", str(error)[:200])
    if not isinstance(fields, dict):
        return Raw(place, None, "not_json", f"a {type(fields).__name__}, not an object")
    return Raw(place, fields)


def _refuse_half_pairs(fields: dict[str, Any]) -> None:
    """Raises UnicodeEncodeError for half a surrogate pair, which escapes can make and no record
    can hold."""
    if not "".join(fields).isascii():
        "".join(fields).encode()
    for value in fields.values():
        if isinstance(value, str):
            if not value.isascii():
                value.encode()
        elif isinstance(value, dict | list):
            json.dumps(value, ensure_ascii=False).encode()


def read_txt(file: CorpusFile) -> Iterator[Raw]:
    """The whole file as one document, its folder's name as source."""
    place = file.label
    with read_errors(file):
        try:
            with file.unpacked() as content:
                data = content.read(json_lines.MAX_LINE_BYTES + 1)
            if len(data) > json_lines.MAX_LINE_BYTES:
                yield Raw(place, None, "too_long", json_lines.too_long())
                return
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            detail = (
                f"{file.path} is not UTF-8 (byte {error.start}): convert it, for example with "
                "`iconv -f latin1 -t utf-8`"
            )
            yield Raw(place, None, "undecodable", detail)
            return
        except (OSError, EOFError, zlib.error) as error:
            if not file.packed or getattr(error, "errno", None) is not None:
                raise
            yield Raw(place, None, "damaged", str(unreadable(file, error)))
            return
    path = file.path if file.filesystem is None else file.key
    folder = path.rpartition("/")[0].rpartition("/")[2]
    stem = place.rpartition("/")[2].split(".txt")[0]
    yield Raw(place, {"text": text, "source": folder or stem}, own=True)
