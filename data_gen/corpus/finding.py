"""Which files, folders and data sets `input` names."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_gen.corpus.files import FORMS, CorpusFile, missing_package
from data_gen.corpus.hub_names import HUB, HubName
from data_gen.errors.shared import input_error, one_line, optional
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import MANIFEST_NAME

_ENDINGS = {
    "jsonl": re.compile(r"\.jsonl?(\.gz|\.zstd?)?$"),
    "txt": re.compile(r"\.txt(\.gz|\.zstd?)?$"),
    "parquet": re.compile(r"\.parquet$"),
    "arrayrecord": re.compile(r"\.array_?record(-\d{5}-of-\d{5})?$"),
    "wet": re.compile(r"\.wet(\.gz)?$"),
    "warc": re.compile(r"\.warc(\.gz)?$"),
}
_SAVED = ("state.json", "dataset_dict.json")  # of Hugging Face `save_to_disk`
_PACKED = re.compile(r"\.(gz|zst)d?$")
_STATED = re.compile(rf"#({'|'.join(_ENDINGS)})$")
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*(://|::)", re.IGNORECASE)


def find_files(paths: Sequence[str]) -> list[CorpusFile]:
    """What `paths` name, in their order, the files of a pattern sorted, each once.

    A path is a file, a folder of record shards, a folder of a saved Hugging Face data set, a glob
    pattern, any of these at a URL that fsspec opens (`s3://…`, `gs://…`, `memory://…`), or
    `hf://NAME[@REVISION][?subset=…&split=…]`, a data set on the hub (split `train` unless named).
    Files of a data set on the hub have URLs too: `hf://datasets/NAME[@REVISION]/PATH`. `#FORM`
    behind a path (`texts/*.txt#jsonl`) is the form of its files, whatever their endings say.

    Raises UserError for a path that does not exist, a pattern that matches nothing, a form that
    cannot be read, and a URL that cannot be reached.
    """
    if not paths:
        raise input_error("no corpus is given: name at least one file or pattern in `input`.")
    found: dict[str, CorpusFile] = {}
    for path in paths:
        stated = _STATED.search(path)
        for file in _expanded(_STATED.sub("", path), stated[1] if stated else ""):
            here = file.filesystem is None and file.form != "hub"
            found.setdefault(os.path.abspath(file.path) if here else file.path, file)
    return _labelled(list(found.values()))


def _expanded(path: str, stated: str) -> list[CorpusFile]:
    if path.startswith(HUB) and not path.startswith(f"{HUB}datasets/"):
        return [CorpusFile(str(HubName.parse(path)), "hub")]
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    expanded = os.path.expanduser(path)
    if _PROTOCOL.match(expanded) and not os.path.exists(expanded):
        return _elsewhere(path, stated)
    if os.path.exists(expanded):
        return [_local(expanded, stated)]
    if glob.has_magic(expanded):
        matches = sorted(glob.glob(expanded, recursive=True))
        if not matches:
            raise _no_match(path)
        return [_local(os.path.normpath(match), stated) for match in matches]
    raise input_error(
        f"the corpus '{path}' does not exist: correct `input` (seen from {os.getcwd()}), or put "
        "the file there.",
        path=path,
    )


def _no_match(path: str) -> UserError:
    return input_error(
        f"the pattern '{path}' in `input` matches no file: correct the pattern.", path=path
    )


def _local(path: str, stated: str) -> CorpusFile:
    if not os.path.isdir(path):
        form, packed = _form(path, path, stated)
        return CorpusFile(path, form, packed, stated=bool(stated))
    return CorpusFile(path, _folder_form(path, os.listdir(path)))


def _elsewhere(path: str, stated: str) -> list[CorpusFile]:
    fsspec = optional("fsspec", missing_package(path, "fsspec"))
    try:
        filesystem, key = fsspec.core.url_to_fs(path)
        keys = [key] if filesystem.exists(key) else []
        if not keys and glob.has_magic(key):
            keys = sorted(str(match) for match in filesystem.glob(key))
            if not keys:
                raise _no_match(path)
        files = [_remote(filesystem, key, stated) for key in keys]
    except UserError:
        raise
    except ImportError as error:
        raise input_error(
            f"'{path}' in `input` needs a package for its protocol ({error}): install it.",
            path=path,
        ) from error
    except Exception as error:
        # Each filesystem raises kinds of its own for a refused login, an unknown host and so on.
        raise input_error(
            f"'{path}' in `input` cannot be reached ({one_line(error, 200)}): correct it, log in, "
            "or copy the files here.",
            path=path,
        ) from error
    if not files:
        raise input_error(f"the corpus '{path}' does not exist: correct `input`.", path=path)
    return files


def _remote(filesystem: Any, key: str, stated: str) -> CorpusFile:
    url = str(filesystem.unstrip_protocol(key))
    # Not `isdir`: over HTTP that downloads the file to look for links in it.
    if filesystem.info(key).get("type") == "directory":
        names = [str(name).rstrip("/").rpartition("/")[2] for name in filesystem.ls(key, False)]
        form, packed = _folder_form(url, names), ""
    else:
        # What a web address asks for behind its path is no part of the name.
        name = key.partition("?")[0] if "http" in url.partition(":")[0] else key
        form, packed = _form(name, url, stated)
    return CorpusFile(url, form, packed, stated=bool(stated), filesystem=filesystem, key=key)


def _folder_form(path: str, names: Sequence[str]) -> str:
    if MANIFEST_NAME in names:
        return "records"
    if any(name in names for name in _SAVED):
        return "saved"
    raise input_error(
        f"{path}: not a form of corpus that can be read; give {FORMS}. The files of a folder are "
        f"named by a pattern, as {path}/*.jsonl.",
        path=path,
    )


def _form(name: str, path: str, stated: str) -> tuple[str, str]:
    packed = found[1] if (found := _PACKED.search(name)) else ""
    for form, ending in _ENDINGS.items():
        if stated == form or (not stated and ending.search(name)):
            return form, packed
    raise input_error(f"{path}: not a form of corpus that can be read; give {FORMS}.", path=path)


def _labelled(files: list[CorpusFile]) -> list[CorpusFile]:
    """Each file with the shortest end of its path that no other file of the run has.

    Ids are made of it: files of one name in different folders must not make the same ids.
    """
    parts = [_parts(file) for file in files]
    depths = [1] * len(files)
    while True:
        labels = ["/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        shared = {label for label, count in Counter(labels).items() if count > 1}
        deeper = [
            number
            for number, label in enumerate(labels)
            if label in shared and depths[number] < len(parts[number])
        ]
        if not deeper:
            break
        for number in deeper:
            depths[number] += 1
    return [
        replace(file, label=file.path if label in shared else label)
        for file, label in zip(files, labels, strict=True)
    ]


def _parts(file: CorpusFile) -> list[str]:
    if file.form == "hub":
        return HubName.parse(file.path).label.split("/")
    path = os.path.abspath(file.path) if file.filesystem is None else file.key.partition("?")[0]
    return path.rstrip("/").split("/")
