"""WARC and WET files: the pages of a crawl, or the texts that were made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.corpus.archive_records import MOST_BYTES, Captured, captures
from data_gen.corpus.documents import Raw
from data_gen.corpus.files import CorpusFile, missing_package, read_errors
from data_gen.corpus.html import html_text
from data_gen.errors.shared import input_error, optional
from ipt_jax.core.rejection import Rejection

_HTML = ("text/html", "application/xhtml+xml")
# Header -> field of a document's metadata.
_KEPT = {
    "warc-target-uri": "url",
    "warc-date": "date",
    "warc-truncated": "truncated",
    "warc-identified-content-language": "languages",
}


def read_web_archive(file: CorpusFile) -> Iterator[Raw]:
    """The text of each `conversion` record, and of each HTML page that a `response` or `resource`
    holds; the record's id is its `WARC-Record-ID`.

    What else is archived as content is rejected. Records that only tell of the crawl (warcinfo,
    request, metadata, revisit) are no records of the corpus. Raises UserError where a file holds
    nothing that is whole.
    """
    for module in ("fastwarc", "resiliparse.parse.html"):
        optional(module, missing_package(file.path, "resiliparse and fastwarc", "warc"))
    whole, first = False, ""
    with read_errors(file), file.open() as content:
        for number, found in captures(content):
            place = f"{file.label}:{number}"
            if isinstance(found, Rejection):
                first = first or found.detail
                yield Raw(place, None, found.reason, found.detail, found.id)
                continue
            whole = True
            if found.block is None:
                detail = f"a record of {found.length_bytes:,} bytes was not read"
                yield Raw(place, None, "too_long", detail, found.name)
            elif found.wanted:
                yield _raw(found, found.block, place)
    if first and not whole:
        raise input_error(
            f"{file.path} holds no record of a web archive that is whole ({first}): it is damaged "
            "or not what its ending says; replace it or take it out of `input`.",
            path=file.path,
        )


def _raw(found: Captured, block: bytes, place: str) -> Raw:
    def reject(reason: str, detail: str) -> Raw:
        return Raw(place, None, reason, detail, found.name)

    kept = {field: value for header, field in _KEPT.items() if (value := found.headers.get(header))}
    declared = found.headers.get("content-type") or ""
    kind = _plain_type(declared)
    if found.kind == "conversion" and kind in ("", "text/plain"):
        try:
            return Raw(place, {"id": found.name, "text": block.decode(), **kept}, own=True)
        except UnicodeDecodeError as error:
            return reject("undecodable", f"not UTF-8 at byte {error.start} of the text")
    charset = _charset(declared)
    if found.kind == "response" and kind == "application/http":
        try:
            status, kind, charset, block = _http(block)
        except (OSError, ValueError) as error:
            return reject("damaged", f"its HTTP response cannot be read ({error})")
        if not 200 <= status < 300:
            return reject("http_status", f"the server answered {status}")
        kind = kind or _plain_type(found.headers.get("warc-identified-payload-type") or "")
    if found.kind not in ("response", "resource") or kind not in _HTML:
        return reject("not_text", f"a {found.kind} record of {kind or 'an unknown type'}")
    try:
        text, title = html_text(block, charset)
    except ValueError as error:
        return reject("bad_html", str(error))
    if title:
        kept["title"] = title
    return Raw(place, {"id": found.name, "text": text, **kept}, own=True)


def _http(block: bytes) -> tuple[int, str, str | None, bytes]:
    """Status, type, charset and body of an HTTP response; chunks and compression undone.

    Raises ValueError where there is no such response, OSError where the body is damaged.
    """
    from fastwarc.warc import WarcRecord  # pyright: ignore[reportMissingModuleSource]

    record: Any = WarcRecord()
    record.set_bytes_content(block)
    record.is_http = True
    record.parse_http(auto_decode="all")
    status = record.http_headers.status_code
    if status is None:
        raise ValueError("it has no status line")
    declared = record.http_headers.get("Content-Type") or ""
    body = record.reader.read(MOST_BYTES + 1)  # what is compressed tells no length
    if len(body) > MOST_BYTES:
        raise ValueError(f"its body is longer than {MOST_BYTES:,} bytes")
    return int(status), _plain_type(declared), _charset(declared), body


def _plain_type(declared: str) -> str:
    return declared.partition(";")[0].strip().lower()


def _charset(declared: str) -> str | None:
    for part in declared.split(";")[1:]:
        key, _, value = part.partition("=")
        if key.strip().lower() == "charset":
            return value.strip().strip("\"'") or None
    return None
