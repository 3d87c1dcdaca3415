"""The synthesis folder: what lies where, and when it counts as finished."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections import Counter
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
from ipt_jax.core.shard_file import TokenCounter

_OWNS = (
    *(*RUN_FILES, *LEDGER_FILES, "summary.json", "samples.json", "card.md", "progress.jsonl"),
    *("report.html", "rejected/documents.jsonl", "rejected/pieces-#.jsonl"),
)
Reject = Callable[[str, Rejection], None]


class OutputFolder:
    """Paths of a synthesis folder. `summary.json` comes last: with it the folder is whole."""

    def __init__(
        self, folder: Path, parts: Sequence[str], places: Mapping[str, str] | None = None
    ) -> None:
        """`parts`: the sets of shards that a finished run has; `places`: where those of them lie
        that are not in `shards/PART`."""
        self.folder = folder.expanduser()
        self._places = {part: f"shards/{part}" for part in parts} | dict(places or {})
        self.left_out = Counter[str]()
        """Lines that `rejected` wrote, by file."""
        self.tokenizer: TokenCounter | None = None
        """Counts the tokens that the manifests tell of."""
        self._summary = self.folder / "summary.json"

    def shards(self, part: str) -> Path:
        """Folder of the shards of a part (`raw`, `plain`, `augmented`, …)."""
        return self.folder / self._places[part]

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
        shards = (f"{place}/{name}" for place in self._places.values() for name in SHARD_FILES)
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
        for key in ("fingerprint", "settings"):  # the second, of earlier versions
            content.pop(key, None)
        return content if all(map(self.is_whole, self._places)) else None

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
    def rejected(self, *names: str) -> Iterator[Reject]:
        """Takes the lines of `rejected/NAME.jsonl`; the files appear when the block ends well."""
        paths = {name: self.folder / "rejected" / f"{name}.jsonl" for name in names}
        with contextlib.ExitStack() as stack:
            files = {n: stack.enter_context(open(f"{p}.tmp", "wb")) for n, p in paths.items()}
            self.left_out |= dict.fromkeys(names, 0)

            def write(name: str, piece: Rejection) -> None:
                with naming(paths[name]):
                    files[name].write(piece.line())
                self.left_out[name] += 1

            yield write
            for name, file in files.items():
                with naming(paths[name]):
                    file.flush()
                    os.fsync(file.fileno())
        for path in paths.values():
            os.replace(f"{path}.tmp", path)


def _before_markers(folder: Path, kind: str) -> dict[str, str] | None:
    """The fingerprint of a run of `kind` that an earlier version began, or None: it stands in the
    ledger, or in the summary where it had none."""
    path = folder / LEDGER_NAME
    if not path.is_file():
        try:
            content = load_json(folder / "summary.json")
            return prints_of(content["settings"]) if content["method"] == kind else None
        except (OSError, ValueError, KeyError, TypeError):
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
