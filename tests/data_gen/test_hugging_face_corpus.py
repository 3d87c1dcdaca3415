"""Data sets of Hugging Face as corpora: saved ones, and a small hub on this machine."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_gen.corpus import Document, corpus_sha256, find_files, read_corpus
from data_gen.corpus.hub_names import HubName
from ipt_jax.core.errors import UserError

datasets = pytest.importorskip("datasets", reason="is read with 'ipt-jax[sources]'")

ROWS = [{"text": f"text {number}", "id": f"d{number}", "stars": number} for number in range(5)]
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


HUB_FILES = {
    "someone/corpus": {
        "data/train-00000.jsonl": jsonl(ROWS),
        "data/test-00000.jsonl": jsonl(ROWS[:1]),
    },
    "someone/script": {"script.py": b"open('ran', 'w')\nraise SystemExit(9)\n"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as reading a data set asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        parts = path.removeprefix("/api").strip("/").split("/")
        name, rest = "/".join(parts[1:3]), parts[3:]
        files = HUB_FILES.get(name)
        missing: tuple[int, bytes] = (404, b'{"error": "Entry not found"}')
        if parts[0] != "datasets" or files is None:
            return self._send(*missing, X_Error_Code="RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        if commit is None:
            return self._send(*missing, X_Error_Code="RevisionNotFound")
        if commit == COMMITS["v1"]:
            files = {one: data.replace(b"text ", b"TEXT ") for one, data in files.items()}
        inside = "/".join(rest[2:])
        if not rest or rest[0] == "revision":
            told = {"id": name, "sha": commit, "siblings": [{"rfilename": one} for one in files]}
            return self._send(200, json.dumps(told).encode(), Content_Type="application/json")
        if rest[0] == "tree":
            entries = [
                {"type": "file", "path": one, "size": len(data), "oid": "c" * 40}
                for one, data in files.items()
            ] + [
                {"type": "directory", "path": one, "size": 0, "oid": "c" * 40}
                for one in {file.rpartition("/")[0] for file in files} - {""}
            ]
            here = [one for one in entries if str(one["path"]).rpartition("/")[0] == inside]
            return self._send(200, json.dumps(here).encode(), Content_Type="application/json")
        if rest[0] != "resolve" or inside not in files:
            return self._send(*missing, X_Error_Code="EntryNotFound")
        data, etag = files[inside], {"ETag": f'"{"c" * 40}"', "X_Repo_Commit": commit}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            place = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self._send(206, part, Content_Range=place, **etag)
        return self._send(200, data, **etag)

    do_GET = do_HEAD = do_POST = _answer


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READ = """
import json, sys
from data_gen.corpus import Document, corpus_sha256, find_files, read_corpus
from ipt_jax.core.errors import UserError
told = {}
for path in sys.argv[1:]:
    try:
        told[path] = [
            corpus_sha256(find_files([path])),
            [
                [one.id, one.text, one.source, one.metadata]
                if isinstance(one, Document)
                else [one.id, one.reason]
                for one in read_corpus([path])
            ],
        ]
    except UserError as error:
        told[path] = str(error)
print(json.dumps(told))
"""


def test_data_sets_on_a_hub_are_streamed_at_their_commit(
    hub: str, root: Path, tmp_path: Path
) -> None:
    paths = {
        "main": "hf://someone/corpus",
        "v1": "hf://someone/corpus@v1",
        "commit": f"hf://someone/corpus@{COMMITS['v1']}",
        "test": "hf://someone/corpus?split=test",
        "files": "hf://datasets/someone/corpus/data/*.jsonl",
        "split": "hf://someone/corpus?split=nope",
        "subset": "hf://someone/corpus?subset=nope",
        "gone": "hf://someone/gone",
        "script": "hf://someone/script",
    }
    # The endpoint is read when the library is imported: a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", READ, *paths.values()],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_ENDPOINT": hub,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "USE_TORCH": "0",  # streaming imports it, where it is installed, for nothing used here
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "PYTHONPATH": str(root),
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    told = {name: answers[path] for name, path in paths.items()}
    whole = [[row["id"], row["text"], "corpus", {"stars": row["stars"]}] for row in ROWS]
    assert told["main"][1] == whole
    upper = [[name, text.replace("text", "TEXT"), *rest] for name, text, *rest in whole]
    assert told["v1"][1] == told["commit"][1] == upper
    assert told["test"][1] == whole[:1]
    assert (
        [row[:2] for row in told["files"][1]]
        == [
            ["d0", "text 0"],  # of test-00000.jsonl
            ["d0", "duplicate_id"],
            *([row["id"], row["text"]] for row in ROWS[1:]),
        ]
    )
    assert told["v1"][0] == told["commit"][0]
    assert len({told[name][0] for name in ("main", "v1", "test", "files")}) == 4
    assert "split" in told["split"] and "nope" in told["split"]
    assert "subset" in told["subset"] and "nope" in told["subset"]
    assert "hf://someone/gone" in told["gone"] and "cannot be read" in told["gone"]
    assert "cannot be read" in told["script"] and not (tmp_path / "ran").exists()


def test_a_saved_data_set_is_read_here_and_elsewhere(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="opens URLs")
    memory = fsspec.filesystem("memory")
    data = datasets.Dataset.from_list([{"stars": row["stars"], **row} for row in ROWS])
    splits = datasets.DatasetDict({"train": data, "test": data.select([4])})
    data.save_to_disk(str(tmp_path / "saved"))
    splits.save_to_disk(str(tmp_path / "splits"))
    memory.put(f"{tmp_path}/", "/saved-sets", recursive=True)
    wanted = [Document(r["id"], r["text"], "saved", {"stars": r["stars"]}) for r in ROWS]
    for place in (str(tmp_path), "memory:///saved-sets"):
        assert list(read_corpus([f"{place}/saved"])) == wanted
        assert [one.id for one in read_corpus([f"{place}/splits"])] == [one.id for one in wanted]
        assert [one.id for one in read_corpus([f"{place}/splits/test"])] == ["d4"]
        with pytest.raises(UserError, match="no column `body`"):
            list(read_corpus([f"{place}/saved"], text_field="body"))
    assert [one.id for one in read_corpus([f"{tmp_path}/saved"], id_field="none")] == [
        f"saved:{row}" for row in range(1, 6)
    ]


def test_the_split_must_be_named_where_there_is_no_train(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"validation": data}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match="no split 'train'.*splits/validation"):
        list(read_corpus([str(tmp_path / "splits")]))


def test_a_changed_or_damaged_saved_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder))
    before = corpus_sha256(find_files([str(folder)]))
    [file] = folder.glob("*.arrow")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"text 3", b"text 8"))
    assert corpus_sha256(find_files([str(folder)])) != before
    file.write_bytes(data[: len(data) // 3])
    with pytest.raises(UserError, match=r"saved cannot be read"):
        list(read_corpus([str(folder)]))


def test_an_image_in_a_row_is_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"text": "x", "image": {"bytes": b"no image", "path": None}}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    [found] = read_corpus([str(tmp_path / "saved")])
    assert isinstance(found, Document) and found.text == "x"


@pytest.mark.parametrize(
    "path", ["hf://", "hf://a/b/c", "hf://a/?split=x", "hf://a?split=", "hf://a?spilt=x"]
)
def test_a_name_that_cannot_be_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"in `input`") as error:
        find_files([path])
    assert path in str(error.value)


def test_a_name_is_written_as_it_is_read() -> None:
    name = HubName("o/n", "v1", "en us", "test")
    assert HubName.parse(str(name)) == name
    assert HubName.parse("hf://o/n") == HubName("o/n", split="train")
    [first, second] = find_files(["hf://o/n", "hf://p/n"])
    assert (first.label, second.label, first.source) == ("o/n:train", "p/n:train", "n")


def test_older_libraries_and_missing_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "__version__", "3.6.0")
        with pytest.raises(UserError, match=r"3\.6\.0, which is installed, can run code"):
            list(read_corpus([str(tmp_path / "saved")]))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"saved is read with .*ipt-jax\[sources\]"):
        list(read_corpus([str(tmp_path / "saved")]))
