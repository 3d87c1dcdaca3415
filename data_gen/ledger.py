"""What the engine has answered so far: an SQLite file that a killed run goes on from."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_gen.engines.base import Completion
from ipt_jax.errors import UserError

LEDGER_NAME = "ledger.sqlite"
_COMMIT_EVERY = 16  # completions; at most so many are asked again after a kill


class Ledger:
    """Completions by (unit, turn). A completion once stored is never asked for again.

    One process at a time. Raises UserError where another run holds the folder, where the folder
    belongs to a run of another config, and where the file is damaged.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = folder / LEDGER_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / "ledger.lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"another run is writing to {folder}: wait for its end or choose another folder."
            ) from error
        self._uncommitted = 0
        try:
            self._open(fingerprint)
        except sqlite3.DatabaseError as error:
            self._lock.close()
            raise UserError(
                f"{self.path} cannot be used ({error}): the file is damaged or the disk is full. "
                "Free space and run again, or start over with --fresh."
            ) from error
        except UserError:
            self._lock.close()
            raise

    def _open(self, fingerprint: Mapping[str, Any]) -> None:
        self._db = sqlite3.connect(self.path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last commits
        self._db.executescript(
            """
            CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS completions (
              unit TEXT, turn INTEGER, text TEXT, finish_reason TEXT,
              prompt_tokens INTEGER, completion_tokens INTEGER, PRIMARY KEY (unit, turn)
            ) WITHOUT ROWID;
            """
        )
        stored = self._meta("fingerprint")
        if stored is None:
            self._set_meta("fingerprint", json.dumps(dict(fingerprint), sort_keys=True))
            self._db.commit()
            return
        before, now = json.loads(stored), json.loads(json.dumps(dict(fingerprint)))
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            self._db.close()
            raise UserError(
                f"{self.path.parent} belongs to a run with other settings ({', '.join(changed)} "
                "changed): start over with --fresh, or choose another `output` folder."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Also after Ctrl-C: what was received is kept.
        try:
            self.commit()
        finally:
            self._db.close()
            self._lock.close()

    def get(self, unit: str, turn: int) -> Completion | None:
        """The completion stored for this turn."""
        row = self._db.execute(
            "SELECT text, finish_reason, prompt_tokens, completion_tokens FROM completions "
            "WHERE unit = ? AND turn = ?",
            (unit, turn),
        ).fetchone()
        return None if row is None else Completion(f"{unit}/{turn}", *row)

    def put(self, unit: str, turn: int, completion: Completion) -> None:
        """Store a completion; durable after the next commit, at most 16 later."""
        c = completion
        self._db.execute(
            "INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?)",
            (unit, turn, c.text, c.finish_reason, c.prompt_tokens, c.completion_tokens),
        )
        self._uncommitted += 1
        if self._uncommitted >= _COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Make everything stored durable."""
        try:
            self._db.commit()
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path} cannot be written ({error}): free disk space, then run the same "
                "command again; nothing that was stored is lost."
            ) from error
        self._uncommitted = 0

    def add_seconds(self, seconds: float) -> None:
        """Add to the time that all runs together spent generating."""
        self._set_meta("seconds", str(self.seconds + seconds))
        self.commit()

    @property
    def seconds(self) -> float:
        """Time that all runs together spent generating."""
        return float(self._meta("seconds") or 0.0)

    def totals(self) -> tuple[int, int, int]:
        """Completions, prompt tokens and completion tokens stored."""
        return self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), "
            "COALESCE(SUM(completion_tokens), 0) FROM completions"
        ).fetchone()

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
