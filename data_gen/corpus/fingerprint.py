"""What a run's fingerprint says of its corpus."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.corpus.files import CorpusFile, missing_package, read_errors
from data_gen.corpus.hub_names import HubName
from data_gen.corpus.hugging_face import hub_commit
from data_gen.errors.shared import optional
from ipt_jax.core.fingerprint import file_digest
from ipt_jax.core.records import MANIFEST_NAME

# What filesystems call a checksum or version of the content, best first; then times of change.
_CONTENT_KEYS = (
    *("ETag", "etag", "e_tag", "md5Hash", "content_md5", "crc32c", "checksum", "sha", "blob_id"),
    *("version_id", "generation"),
)
_TIME_KEYS = ("LastModified", "last_modified", "updated", "mtime", "modified", "modificationTime")


def corpus_sha256(files: Sequence[CorpusFile]) -> str:
    """Checksum over names and contents of the corpus files, in order.

    Of a file on this machine its bytes count; of one elsewhere its size and the checksum,
    version or else time that its filesystem gives, and its bytes where that gives none; of a
    folder of shards the manifest, which has their checksums; of a data set on the hub the commit;
    of web archives also the version of what extracts their texts; of all the form that is stated.
    Raises UserError naming the file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        stated = f"#{file.form}" if file.stated else ""
        digest.update(f"{file.label}{stated}\n".encode())
        with read_errors(file):
            digest.update(_content(file))
    return digest.hexdigest()


def _content(file: CorpusFile) -> bytes:
    if file.form == "hub":
        optional("huggingface_hub", missing_package(file.path, "Hugging Face datasets"))
        name = HubName.parse(file.path)
        told = (hub_commit(name.name, name.revision), name.name, name.subset, name.split)
        return json.dumps(told).encode()
    if file.form == "records":
        return _one(file, _inside(file, MANIFEST_NAME))
    if file.form == "saved":
        digest = hashlib.sha256()
        for name in _names_below(file):
            digest.update(f"{name}\n".encode() + _one(file, _inside(file, name)))
        return digest.digest()
    content = _one(file, file.path if file.filesystem is None else file.key)
    return content + _extractor() if file.form == "warc" else content


def _inside(file: CorpusFile, name: str) -> str:
    folder = file.path if file.filesystem is None else file.key
    return f"{folder.rstrip('/')}/{name}"


def _names_below(file: CorpusFile) -> list[str]:
    if file.filesystem is None:
        folder = Path(file.path)
        found = [path for path in folder.rglob("*") if path.is_file()]
        return sorted(path.relative_to(folder).as_posix() for path in found)
    start = len(file.key.rstrip("/")) + 1
    return sorted(str(path)[start:] for path in file.filesystem.find(file.key))


def _one(file: CorpusFile, path: str) -> bytes:
    if file.filesystem is None:
        return bytes.fromhex(file_digest(path))
    told = _told(file.filesystem.info(path))
    if told is not None:
        return told
    digest = hashlib.sha256()
    with file.filesystem.open(path, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _told(info: Mapping[str, Any]) -> bytes | None:
    for keys in (_CONTENT_KEYS, _TIME_KEYS):
        told = {key: str(info[key]) for key in keys if info.get(key)}
        if told:
            return json.dumps({"size": info.get("size"), **told}, sort_keys=True).encode()
    return None


def _extractor() -> bytes:
    try:
        return f"resiliparse {importlib.metadata.version('resiliparse')}".encode()
    except importlib.metadata.PackageNotFoundError:
        return b""  # reading says which extra brings it
