"""The synthesis folder: what lies where, and when it counts as finished."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_gen.stages.ledger import LEDGER_FILES, LEDGER_NAME
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write, naming
from ipt_jax.core.json_lines import load_json, parse_json
from ipt_jax.core.records import SHARD_FILES, RecordSource
from ipt_jax.core.rejection import Rejection
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of

_OWNS = (
    *(*RUN_FILES, *LEDGER_FILES, "summary.json", "samples.json", "card.md", "progress.jsonl"),
    *("report.html", "rejected/documents.jsonl", "rejected/pieces-#.jsonl"),
)
RejectLine = Callable[[str, str, str, str], None]


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

    def hold(
        self,
        kind: str,
        fingerprint: Mapping[str, Any],
        *,
        fresh: bool,
        owns: Sequence[str] = (),
        defaults: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """The folder for a run of `kind`; `owns`: files that it writes beside those of every run.

        Raises FolderRefused as RunFolder.open.
        """
        shards = (f"shards/{part}/{name}" for part in self._parts for name in SHARD_FILES)
        return RunFolder.open(
            self.folder,
            kind,
            prints_of(fingerprint),
            owns=(*_OWNS, *shards, *owns),
            fresh=fresh,
            defaults=defaults,
            legacy=lambda folder: _before_markers(folder, kind),
        )

    def finished(self) -> dict[str, Any] | None:
        """The summary, where the run that is held ended and its shards are there."""
        try:
            content = load_json(self._summary)
        except (FileNotFoundError, ValueError):
            return None
        content.pop("fingerprint", None)
        return content if all(map(self.is_whole, self._parts)) else None

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
        with naming(path), open(temporary, "wb") as file:

            def write(*piece: str) -> None:
                file.write(Rejection(*piece).line())

            yield write
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _before_markers(folder: Path, kind: str) -> dict[str, str] | None:
    """The fingerprint in the ledger of a run of `kind` that an earlier version began, or None."""
    path = folder / LEDGER_NAME
    if not path.is_file():
        return None
    # A ledger that was closed has no log beside it; looking at it then makes none either.
    how = "mode=ro" if path.with_name(f"{LEDGER_NAME}-wal").exists() else "immutable=1"
    address = f"{path.resolve().as_uri()}?{how}"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            rows = database.execute("SELECT value FROM meta WHERE key = 'fingerprint'").fetchall()
        prints = prints_of(parse_json(rows[0][0]))
        return prints if prints["method"].partition("/")[0] == kind else None
    except (sqlite3.Error, ValueError, AttributeError, LookupError):
        return None
