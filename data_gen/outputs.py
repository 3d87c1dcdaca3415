"""The synthesis folder: what lies where, and when it counts as finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_gen.ledger import LEDGER_NAME
from ipt_jax.errors import UserError
from ipt_jax.records import RecordSource, atomic_write

_OTHER_FILES = ("samples.json", "card.md", "progress.jsonl", "report.html")
RejectLine = Callable[[str, str, str, str], None]


@dataclass(frozen=True)
class RejectedPiece:
    """A document, or a piece of a generation, that was not used."""

    id: str
    """Of the document."""
    where: str
    """File and line, or unit and turn."""
    reason: str
    """A word for counts."""
    detail: str
    """For a person."""

    def line(self) -> bytes:
        """Its line in rejected/."""
        text = json.dumps(asdict(self), ensure_ascii=False)
        return f"{text}\n".encode(errors="backslashreplace")


class OutputFolder:
    """Paths of a synthesis folder. `summary.json` comes last: with it the folder is whole."""

    def __init__(self, folder: Path, parts: Sequence[str]) -> None:
        """`parts`: the folders of shards that a finished run has."""
        self.folder = folder.expanduser()
        self._parts = tuple(parts)
        self._summary = self.folder / "summary.json"

    def shards(self, part: str) -> Path:
        """Folder of the shards of a part (`raw`, `plain`, `augmented`, …)."""
        return self.folder / "shards" / part

    def rejected_pieces(self, block: int) -> Path:
        """File of what was not used of a block's generations."""
        return self.folder / "rejected" / f"pieces-{block:05d}.jsonl"

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
        files = (self.folder / name for name in _OTHER_FILES)
        for path in (*self.folder.glob(f"{LEDGER_NAME}*"), *files):
            path.unlink(missing_ok=True)

    def finished(self, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        """The summary, where a run of the same settings ended here and its shards are there."""
        try:
            content = json.loads(self._summary.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if content.pop("fingerprint", None) != json.loads(json.dumps(dict(fingerprint))):
            return None  # the ledger tells the user what differs
        if not all(map(self.is_whole, self._parts)):
            return None
        return content

    def is_whole(self, part: str) -> bool:
        """Whether a part has a manifest and every shard in it, with the bytes it was given."""
        try:
            RecordSource(self.shards(part), verify=True)
        except UserError:
            return False
        return True

    def begin(self) -> None:
        """Make the folder unfinished and ready to write."""
        self._summary.unlink(missing_ok=True)
        (self.folder / "rejected").mkdir(parents=True, exist_ok=True)

    def finish(self, summary: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Write the summary: from now on the folder is whole."""
        content = {**summary, "fingerprint": dict(fingerprint)}
        atomic_write(self._summary, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write augmented records for a person to look at."""
        text = json.dumps([dict(one) for one in samples], indent=1, ensure_ascii=False) + "\n"
        atomic_write(self.folder / "samples.json", text)

    @contextmanager
    def rejected_documents(self) -> Iterator[RejectLine]:
        """Take (id, where, reason, detail) lines; the file appears when the block ends well."""
        path = self.folder / "rejected" / "documents.jsonl"
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as file:

            def write(*piece: str) -> None:
                file.write(RejectedPiece(*piece).line())

            yield write
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
