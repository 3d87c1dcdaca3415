"""What the engine has answered so far, and which output is whole: what a killed run goes on from.

One SQLite file. Completions stay in it to the end, so that output that was lost or damaged is made
again without asking the engine.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_gen.engines.base import Completion, TokenLogprob
from ipt_jax.errors import UserError
from ipt_jax.folder_lock import folder_lock

LEDGER_NAME = "ledger.sqlite"
_COMMIT_EVERY = 16  # completions; at most so many are asked again after a kill


class Ledger:
    """Completions by (unit, turn). A completion once stored is never asked for again.

    One process at a time. Raises UserError where another run holds the folder, where the folder
    belongs to a run of another config, and where the file is damaged.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = folder / LEDGER_NAME
        self._uncommitted = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(folder_lock(folder, "ledger.lock"))
            try:
                self._open(fingerprint)
            except sqlite3.DatabaseError as error:
                raise UserError(
                    f"{self.path} cannot be used ({error}): the file is damaged or the disk is "
                    "full. Free space and run again, or start over with --fresh."
                ) from error
            self._lock = stack.pop_all()

    def _open(self, fingerprint: Mapping[str, Any]) -> None:
        self._db = sqlite3.connect(self.path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last commits
        self._db.executescript(
            """
            CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS completions (
              unit TEXT, turn INTEGER, text TEXT, finish_reason TEXT, prompt_tokens INTEGER,
              completion_tokens INTEGER, logprobs TEXT, PRIMARY KEY (unit, turn)
            ) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS blocks (number INTEGER PRIMARY KEY, result TEXT);
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
            "SELECT text, finish_reason, prompt_tokens, completion_tokens, logprobs "
            "FROM completions WHERE unit = ? AND turn = ?",
            (unit, turn),
        ).fetchone()
        if row is None:
            return None
        *plain, logprobs = row
        found = None if logprobs is None else tuple(map(_logprob, json.loads(logprobs)))
        return Completion(f"{unit}/{turn}", *plain, logprobs=found)

    def put(self, unit: str, turn: int, completion: Completion) -> None:
        """Store a completion; durable after the next commit, at most 16 later."""
        c = completion
        self._db.execute(
            "INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(unit, turn, c.text, c.finish_reason, c.prompt_tokens, c.completion_tokens),
                None if c.logprobs is None else json.dumps([astuple(one) for one in c.logprobs]),
            ),
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

    def blocks(self) -> dict[int, dict[str, Any]]:
        """The results of the blocks whose output is whole, by number."""
        rows = self._db.execute("SELECT number, result FROM blocks ORDER BY number")
        return {number: json.loads(result) for number, result in rows}

    def finish_block(self, number: int, result: Mapping[str, Any]) -> None:
        """A block's output is on the disk: a later run passes over it."""
        text = json.dumps(dict(result), ensure_ascii=False)
        self._db.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (number, text))
        self.commit()

    def forget_block(self, number: int) -> None:
        """Its output is gone; it is made again from the completions."""
        self._db.execute("DELETE FROM blocks WHERE number = ?", (number,))
        self.commit()

    def note(self, key: str) -> Any:
        """What `set_note` stored under `key`; None where nothing."""
        found = self._meta(f"note {key}")
        return None if found is None else json.loads(found)

    def set_note(self, key: str, value: Any) -> None:
        """Keep something that JSON can hold."""
        self._set_meta(f"note {key}", json.dumps(value, ensure_ascii=False))
        self.commit()

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _logprob(stored: Sequence[Any]) -> TokenLogprob:
    token, logprob, likeliest = stored
    return TokenLogprob(token, logprob, tuple((text, value) for text, value in likeliest))


def stored_token_counts(folder: Path) -> list[tuple[int, int]]:
    """Prompt and completion tokens of every completion in a folder's ledger, which is closed."""
    with contextlib.closing(sqlite3.connect(folder / LEDGER_NAME)) as database:
        return database.execute(
            "SELECT prompt_tokens, completion_tokens FROM completions"
        ).fetchall()
