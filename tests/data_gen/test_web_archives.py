"""WARC and WET: whose texts are read, and what damage costs."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastwarc", reason="reads web archives: pip install 'ipt-jax[warc]'")
pytest.importorskip("resiliparse", reason="reads web archives: pip install 'ipt-jax[warc]'")

from data_gen.corpus import Document, corpus_sha256, find_files, read_corpus
from data_gen.corpus import archive_records as archive_records_module
from data_gen.corpus.archive_records import captures
from data_gen.corpus.html import html_text
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Rejection

HTML = "text/html; charset=utf-8"


def record(
    name: str | None, block: bytes, kind: str = "conversion", type_: str = "text/plain", **more: str
) -> bytes:
    headers = {
        "WARC-Type": kind,
        **({"WARC-Record-ID": f"<urn:uuid:{name}>"} if name else {}),
        "WARC-Date": "2024-05-01T00:00:00Z",
        "WARC-Target-URI": f"https://example.org/{name}",
        "Content-Type": type_,
        **{key.replace("_", "-"): value for key, value in more.items()},
        "Content-Length": str(len(block)),
    }
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + block + b"\r\n\r\n"


def response(name: str, body: bytes, type_: str = HTML, status: int = 200, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Told\r\nContent-Type: {type_}\r\n{more}\r\n".encode()
    return record(name, head + body, "response", "application/http; msgtype=response")


def page(text: str, head: str = "<title>The page</title>") -> str:
    menu = "".join(f"<li><a href='/{n}'>Menu {n}</a></li>" for n in range(9))
    return (
        f"<html><head>{head}</head><body><nav><ul>{menu}</ul></nav><main><h1>Heading</h1>"
        f"<p>{text}</p><script>no()</script></main><footer>Imprint</footer></body></html>"
    )


def members(records: list[bytes]) -> bytes:
    return b"".join(map(gzip.compress, records))


def test_conversions_are_documents_and_what_tells_of_the_crawl_is_not(tmp_path: Path) -> None:
    records = [
        record("info", b"software: x\r\n", "warcinfo", "application/warc-fields"),
        record("a", "Grüße aus Köln.\n".encode(), WARC_Identified_Content_Language="deu"),
        record("b", b"caf\xe9"),
        record("c", b" \n"),
        record("d", b"nul \0 here"),
        record("a", b"the id again"),
        record(None, b"without an id"),
        record("e", b"x" * 5_000_000),
        record("f", b"%PDF", type_="application/pdf"),
    ]
    wanted = Document(
        "urn:uuid:a",
        "Grüße aus Köln.\n",
        "CC-1",
        {"url": "https://example.org/a", "date": "2024-05-01T00:00:00Z", "languages": "deu"},
    )
    for name, data in (
        ("CC-1.warc.wet.gz", members(records)),
        ("CC-1.wet", b"".join(records)),
        ("CC-1.warc.gz", gzip.compress(b"".join(records))),
    ):
        (tmp_path / name).write_bytes(data)
        found = list(read_corpus([str(tmp_path / name)], text_field="body"))
        assert found[0] == wanted, name
        reasons = [(one.id, getattr(one, "reason", None)) for one in found[1:]]
        assert reasons == [
            ("urn:uuid:b", "undecodable"),
            ("urn:uuid:c", "empty"),
            ("urn:uuid:d", "nul_character"),
            ("urn:uuid:a", "duplicate_id"),
            (f"{name}:7", None),
            ("urn:uuid:e", "too_long"),
            ("urn:uuid:f", "not_text"),
        ], name


def test_pages_become_their_main_text(tmp_path: Path) -> None:
    text = "Die Straße ist naß, und das Café hat geöffnet. " * 5
    price = "Der Kaffee kostet 3 € und der Kuchen 4 €. "
    body = page(text).encode()
    euro = page(price).encode("iso-8859-15")  # the bytes look like windows-1252
    meta = page(text, '<meta charset="iso-8859-1"><title>x</title>').encode("latin-1")
    squeezed = gzip.compress(body)
    chunks = b"%x\r\n" % len(squeezed) + squeezed + b"\r\n0\r\n\r\n"
    coded = "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
    records = [
        record("q", b"GET / HTTP/1.1\r\n\r\n", "request", "application/http; msgtype=request"),
        response("utf8", body),
        response("told", euro, 'text/html; Charset="ISO-8859-15"'),
        response("meta", meta, "text/html"),
        response("odd", body, "text/html; charset=none-such"),
        response("coded", chunks, more=coded),
        record("resource", body, "resource", "text/html"),
        record("m", b"", "metadata", "application/warc-fields"),
    ]
    (tmp_path / "a.warc.gz").write_bytes(members(records))
    found = list(read_corpus([str(tmp_path / "a.warc.gz")]))
    assert [one.id.removeprefix("urn:uuid:") for one in found] == [
        *("utf8", "told", "meta", "odd", "coded", "resource"),
    ]
    for one in found:
        assert isinstance(one, Document), one
        wanted = price if one.id == "urn:uuid:told" else text
        assert one.text.split() == ["Heading", *wanted.split()], one.id
    assert found[0].metadata["title"] == "The page"  # type: ignore[union-attr]


def test_what_is_no_page_is_rejected_with_its_reason(tmp_path: Path) -> None:
    body = page("text").encode()
    records = [
        response("good", body),
        response("image", b"\x89PNG", "image/png"),
        response("gone", body, status=404),
        response("moved", b"", status=301),
        response("cut", b"5\r\nab", more="Transfer-Encoding: chunked\r\n"),
        record("no-http", b"\x00\x01", "response", "application/http"),
        record("dns", b"x", "response", "text/dns"),
        response("no-text", b"<html><body><img src=a></body></html>"),
        response("deep", b"<div>" * 200_000 + b"text"),
        response("options", b"<select>" + b"<OPTION>a" * 100_000),
        record("rest", b"x", "continuation"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = list(read_corpus([str(tmp_path / "a.warc")]))
    assert [getattr(one, "reason", None) for one in found] == [
        *(None, "not_text", "http_status", "http_status", "damaged", "damaged", "not_text"),
        *("empty", "bad_html", "bad_html", "not_text"),
    ]
    assert "404" in found[2].detail  # type: ignore[union-attr]
    assert "image/png" in found[1].detail  # type: ignore[union-attr]


def told(data: bytes) -> list[str]:
    """The id of each whole record, `-` or the id in dashes for a damaged one."""
    found = [one for _, one in captures(io.BytesIO(data))]
    marked = [f"-{one.id}-" if isinstance(one, Rejection) else one.name for one in found]
    return [name.replace("urn:uuid:", "") for name in marked]


def whole() -> list[bytes]:
    """Five records, longer than what the library reads ahead."""
    random = np.random.default_rng(0)
    return [record(str(number), random.bytes(150_000).hex().encode()) for number in range(5)]


def broken(data: bytes, at: int, size: int = 20) -> bytes:
    return data[:at] + b"\xff" * size + data[at + size :]


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (lambda m: broken(m, len(m) // 2), "0 1 -2- 3 4"),
        (lambda m: broken(m, 0), "0 1 -- 3 4"),
        (lambda m: broken(m, len(m) - 8, 4), "0 1 -2- 3 4"),
        (lambda m: m[:-200], "0 1 -2- 3 4"),
        (lambda m: b"", "0 1 3 4"),
        (lambda m: b"rubbish" + m, "0 1 -- 2 3 4"),
        (lambda m: gzip.compress(b"hello\r\nno record"), "0 1 -- 3 4"),
    ],
)
def test_a_broken_member_is_told_and_the_reading_goes_on(
    harm: Callable[[bytes], bytes], wanted: str
) -> None:
    parts = [gzip.compress(one) for one in whole()]
    assert told(b"".join(parts)) == list("01234")
    parts[2] = harm(parts[2])
    assert told(b"".join(parts)) == wanted.split()


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (lambda r: b"rubbish\r\n" + r, "0 1 -- 2 3 4"),
        (lambda r: b"XX" + r, "0 1 -- 3 4"),
        (lambda r: r.replace(b"Content-Length: ", b"Content-Length: 9"), "0 1 -2- 3 4"),
        (lambda r: r.replace(b"Content-Length", b"Content-Longth"), "0 1 -2- 3 4"),
        (lambda r: r[:-500], "0 1 2 -- 4"),
    ],
)
def test_a_broken_record_that_is_not_compressed(
    harm: Callable[[bytes], bytes], wanted: str
) -> None:
    parts = whole()
    assert told(b"".join(parts)) == list("01234")
    parts[2] = harm(parts[2])
    assert told(b"".join(parts)) == wanted.split()


@pytest.mark.parametrize("compress", [True, False])
def test_a_cut_anywhere_costs_one_record(compress: bool) -> None:
    parts = [record(str(number), b"some words of text " * 9) for number in range(3)]
    padding = 0 if compress else 4  # the two line breaks behind a record
    if compress:
        parts = [gzip.compress(one) for one in parts]
        padding = 12  # the end of its compressed stream, after all of the text
    ends = [sum(map(len, parts[:number])) for number in range(4)]
    data = b"".join(parts)
    for cut in range(1, len(data) + 1):
        found = told(data[:cut])
        certain = sum(end <= cut for end in ends[1:])
        good = sum(not one.startswith("-") for one in found)
        nearly = any(end - padding <= cut < end for end in ends[1:])
        assert good in ((certain, certain + 1) if nearly else (certain,)), cut
        assert len(found) == certain + (cut not in ends), cut


def test_an_error_of_the_disk_is_not_taken_for_damage() -> None:
    class FailsOnce(io.BytesIO):
        failed = False

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000 and not self.failed:
                self.failed = True
                raise OSError("the cable was pulled")
            return super().read(size)

    with pytest.raises(OSError, match="the cable was pulled"):
        list(captures(FailsOnce(members(whole()))))


def test_a_record_too_long_to_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_records_module, "MOST_BYTES", 100)
    records = [record("a", b"short"), record("b", b"long " * 50), record("c", b"short too")]
    for name, data in (("a.wet.gz", members(records)), ("a.wet", b"".join(records))):
        (tmp_path / name).write_bytes(data)
        found = list(read_corpus([str(tmp_path / name)]))
        assert [getattr(one, "text", None) for one in found] == ["short", None, "short too"]
        assert isinstance(found[1], Rejection) and found[1].reason == "too_long"


@pytest.mark.parametrize(
    "data", [b"nothing of the kind " * 99, gzip.compress(b"nothing")], ids=["text", "zipped"]
)
def test_a_file_without_a_whole_record_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.warc.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.warc\.gz holds no record of a web archive"):
        list(read_corpus([str(tmp_path / "a.warc.gz")]))


def test_archives_elsewhere_are_read_alike(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="opens URLs")
    parts = [gzip.compress(one) for one in whole()]
    parts[2] = broken(parts[2], len(parts[2]) // 2)
    (tmp_path / "a.wet.gz").write_bytes(b"".join(parts))
    fsspec.filesystem("memory").pipe("/archives/a.wet.gz", b"".join(parts))
    here = list(read_corpus([str(tmp_path / "a.wet.gz")]))
    assert len(here) == 5 and list(read_corpus(["memory:///archives/*.wet.gz"])) == here


def test_the_extractor_counts_in_the_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.warc").write_bytes(record("a", b"text"))
    (tmp_path / "a.wet").write_bytes(record("a", b"text"))

    def sums() -> list[str]:
        return [corpus_sha256(find_files([f"{tmp_path}/a.{form}"])) for form in ("warc", "wet")]

    before = sums()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
    after = sums()
    assert after[0] != before[0] and after[1] == before[1]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.warc").write_bytes(record("a", b"text"))
    monkeypatch.setitem(sys.modules, "fastwarc", None)
    with pytest.raises(UserError, match=r"a\.warc is read with .*ipt-jax\[warc\]"):
        list(read_corpus([str(tmp_path / "a.warc")]))


def test_a_real_text_in_a_page_comes_out_whole(shared: Path) -> None:
    path = shared / "data" / "corpus_gutenberg" / "carroll-alice.txt"
    if not path.is_file():
        pytest.skip("no Gutenberg sample in ../shared/data")
    paragraphs = [" ".join(one.split()) for one in path.read_text("utf-8").split("\n\n")]
    paragraphs = [one for one in paragraphs if len(one) > 80][:200]
    escaped = [one.replace("&", "&amp;").replace("<", "&lt;") for one in paragraphs]
    body: Any = page("</p><p>".join(escaped)).encode()
    text, title = html_text(body, None)
    assert title == "The page"
    lines = text.split("\n")
    assert sum(one in lines for one in paragraphs) == len(paragraphs)
    assert "Menu" not in text and "Imprint" not in text
