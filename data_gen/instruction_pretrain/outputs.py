"""The synthesis folder: what lies where, and when it counts as finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_gen.ledger import LEDGER_NAME
from ipt_jax.errors import UserError
from ipt_jax.records import Manifest, atomic_write

PARTS = ("raw", "plain", "augmented")
RejectLine = Callable[[str, str, str, str], None]


class OutputFolder:
    """Paths of a synthesis folder. `summary.json` comes last: with it the folder is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self._summary = self.folder / "summary.json"

    def shards(self, part: str) -> Path:
        """Folder of the shards `raw`, `plain` or `augmented`."""
        return self.folder / "shards" / part

    def clear(self) -> None:
        """Delete what a run left here, and nothing else.

        Raises UserError where the folder holds files but none of a synthesis run.
        """
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if not (self.folder / LEDGER_NAME).exists():
            raise UserError(
                f"{self.folder} holds files but no {LEDGER_NAME}: --fresh deletes only what a "
                "synthesis run left. Choose another `output` or empty the folder yourself."
            )
        self._summary.unlink(missing_ok=True)
        for name in ("shards", "rejected"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in (*self.folder.glob(f"{LEDGER_NAME}*"), self.folder / "samples.json"):
            path.unlink(missing_ok=True)

    def finished(self, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        """The summary, where a run of the same settings ended here and its shards are there."""
        try:
            content = json.loads(self._summary.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if content.pop("fingerprint", None) != json.loads(json.dumps(dict(fingerprint))):
            return None  # the ledger tells the user what differs
        for part in PARTS:
            try:
                shards = Manifest.load(self.shards(part)).shards
            except UserError:
                return None
            if not all((self.shards(part) / shard.name).is_file() for shard in shards):
                return None
        return content

    def begin(self) -> None:
        """Make the folder unfinished and ready to write."""
        self._summary.unlink(missing_ok=True)
        (self.folder / "rejected").mkdir(parents=True, exist_ok=True)

    def finish(self, summary: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Write the summary: from now on the folder is whole."""
        content = {**summary, "fingerprint": dict(fingerprint)}
        atomic_write(self._summary, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write_samples(self, samples: list[dict[str, Any]]) -> None:
        """Write augmented records for a person to look at."""
        text = json.dumps(samples, indent=1, ensure_ascii=False) + "\n"
        atomic_write(self.folder / "samples.json", text)

    @contextmanager
    def rejected_documents(self) -> Iterator[RejectLine]:
        """Take (id, where, reason, detail) lines; the file appears when the block ends well."""
        with _lines(self.folder / "rejected" / "documents.jsonl") as write:
            yield write

    @contextmanager
    def rejected_pieces(self) -> Iterator[RejectLine]:
        """As `rejected_documents`, for pieces of generations."""
        with _lines(self.folder / "rejected" / "pieces.jsonl") as write:
            yield write


@contextmanager
def _lines(path: Path) -> Iterator[RejectLine]:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:

        def write(name: str, where: str, reason: str, detail: str) -> None:
            line = {"id": name, "where": where, "reason": reason, "detail": detail}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield write
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
