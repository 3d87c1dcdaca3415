"""What the engine has answered so far, and which output is whole: what a killed run goes on from.

One SQLite file. Completions stay in it to the end, so that output that was lost or damaged is made
again without asking the engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Self

from data_gen.engines.base import Completion, TokenLogprob
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json

_LOG = logging.getLogger(__name__)
LEDGER_NAME = "ledger.sqlite"
# For the marker of a run folder; earlier versions had a lock of its own.
LEDGER_FILES = (LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm", "ledger.lock")
_COMMIT_EVERY = 16  # completions; at most so many are asked again after a kill
_COLUMNS = "unit, turn, text, finish_reason, prompt_tokens, completion_tokens, logprobs"
# What SQLite says where the file is whole but could not be written or opened.
_NOT_DAMAGE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY} | {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
}


@contextlib.contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
    """Whatever SQLite raises as a UserError that names the file and says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _NOT_DAMAGE:
        return UserError(
            f"{path} cannot be written ({error}): free disk space or give yourself the right to "
            "write there, then run the same command again; nothing that was stored is lost.",
            path=path,
        )
    return UserError(
        f"{path} cannot be used ({error}): it is damaged, or another program made it. Put a copy "
        f"of it back, or save what can be read (`sqlite3 {path.name} .recover`), or start over "
        "with --fresh, which asks for everything anew.",
        path=path,
    )


class Ledger:
    """Completions by (unit, turn). A completion once stored is never asked for again.

    One process at a time, that holds the run folder. An answer that does not match its checksum
    counts as not there. Raises UserError where the file is damaged or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_NAME
        self._uncommitted = self._damaged = 0
        folder.mkdir(parents=True, exist_ok=True)
        with ledger_errors(self.path):
            self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self.path)
        self._db.text_factory = _text
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last commits
        self._db.executescript(
            """
            CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS completions (
              unit TEXT, turn INTEGER, text TEXT, finish_reason TEXT, prompt_tokens INTEGER,
              completion_tokens INTEGER, logprobs TEXT, checksum INTEGER, PRIMARY KEY (unit, turn)
            ) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS blocks (number INTEGER PRIMARY KEY, result TEXT);
            """
        )
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(completions)")]
        if "checksum" not in columns:  # of a version before; its answers are taken as they are
            self._db.execute("ALTER TABLE completions ADD COLUMN checksum INTEGER")
        # What is missing is told now, not when the first answer has been paid for.
        self._db.execute(f"SELECT {_COLUMNS}, checksum FROM completions LIMIT 1").fetchall()
        self._db.execute("SELECT number, result FROM blocks LIMIT 1").fetchall()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Also after Ctrl-C: what was received is kept.
        try:
            self.commit()
        finally:
            self._db.close()
            if self._damaged:
                _LOG.warning("%s: %d damaged answers were passed over", self.path, self._damaged)

    def get(self, unit: str, turn: int) -> Completion | None:
        """The completion stored for this turn."""
        sql = f"SELECT {_COLUMNS}, checksum FROM completions WHERE unit = ? AND turn = ?"
        for row in self._execute(sql, (unit, turn)):
            completion = _completion(row)
            self._damaged += completion is None
            return completion
        return None

    def put(self, unit: str, turn: int, completion: Completion) -> None:
        """Store a completion; durable after the next commit, at most 16 later.

        Later turns of the unit are forgotten: they answered what followed on another completion.
        """
        c = completion
        row = (
            *(unit, turn, c.text, c.finish_reason, c.prompt_tokens, c.completion_tokens),
            None if c.logprobs is None else json.dumps([astuple(one) for one in c.logprobs]),
        )
        self._execute("DELETE FROM completions WHERE unit = ? AND turn >= ?", (unit, turn))
        self._execute(
            f"INSERT INTO completions ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, _checksum(row)),
        )
        self._uncommitted += 1
        if self._uncommitted >= _COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Make everything stored durable."""
        with ledger_errors(self.path):
            self._db.commit()
        self._uncommitted = 0

    def add_seconds(self, seconds: float) -> None:
        """Add to the time that all runs together spent generating."""
        self._set_meta("seconds", str(self.seconds + seconds))
        self.commit()

    @property
    def seconds(self) -> float:
        """Time that all runs together spent generating."""
        return float(self._json(self._meta("seconds") or "0"))

    def blocks(self) -> dict[int, dict[str, Any]]:
        """The results of the blocks whose output is whole, by number."""
        found = {}
        for number, result in self._execute("SELECT number, result FROM blocks ORDER BY number"):
            text = _unsealed(result)
            if text is None:
                self.forget_block(number)
            else:
                found[number] = json.loads(text)
        return found

    def finish_block(self, number: int, result: Mapping[str, Any]) -> None:
        """A block's output is on the disk: a later run passes over it."""
        text = _sealed(json.dumps(dict(result), ensure_ascii=False))
        self._execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (number, text))
        self.commit()

    def forget_block(self, number: int) -> None:
        """Its output is gone; it is made again from the completions."""
        self._execute("DELETE FROM blocks WHERE number = ?", (number,))
        self.commit()

    def note(self, key: str) -> Any:
        """What `set_note` stored under `key`; None where nothing."""
        found = self._meta(f"note {key}")
        return None if found is None else self._json(found)

    def set_note(self, key: str, value: Any) -> None:
        """Keep something that JSON can hold."""
        self._set_meta(f"note {key}", json.dumps(value, ensure_ascii=False))
        self.commit()

    def _meta(self, key: str) -> str | None:
        rows = self._execute("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def _set_meta(self, key: str, value: str) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _json(self, text: str) -> Any:
        try:
            return parse_json(text)
        except ValueError as error:
            raise _broken(self.path, error) from error

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _broken(self.path, error) from error


def _text(data: bytes) -> str:
    return data.decode(errors="replace")  # bytes that are no UTF-8 fail the checksum, not the read


def _checksum(row: Sequence[Any]) -> int:
    # A changed byte may also make bytes of a text.
    return zlib.crc32(json.dumps(row, default=repr).encode())


def _sealed(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _unsealed(text: Any) -> str | None:
    if not isinstance(text, str):
        return None
    inner = text[9:]
    return inner if text == _sealed(inner) else None


def _completion(row: Sequence[Any]) -> Completion | None:
    """What a row of _COLUMNS and checksum holds; None where that was changed on the disk."""
    *stored, checksum = row
    if checksum is not None and checksum != _checksum(stored):
        return None
    unit, turn, *plain, logprobs = stored
    found = None if logprobs is None else tuple(map(_logprob, json.loads(logprobs)))
    return Completion(f"{unit}/{turn}", *plain, logprobs=found)


def _logprob(stored: Sequence[Any]) -> TokenLogprob:
    token, logprob, likeliest = stored
    return TokenLogprob(token, logprob, tuple((text, value) for text, value in likeliest))


class ClosedLedger:
    """The ledger of a run that has ended, only read."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError, here and below, where the file is missing or damaged."""
        self.path = folder / LEDGER_NAME
        with ledger_errors(self.path):
            address = f"{self.path.resolve().as_uri()}?mode=ro"
            self._db = sqlite3.connect(address, uri=True)
            self._db.text_factory = _text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def of_unit(self, unit: str) -> list[tuple[int, Completion]]:
        """Turns and completions of a unit, in order."""
        found = []
        for row in self._rows("SELECT * FROM completions WHERE unit = ? ORDER BY turn", unit):
            completion = _completion(row if len(row) == 8 else (*row, None))
            if completion is None:
                raise _broken(self.path, ValueError(f"the answer to {unit}/{row[1]} was changed"))
            found.append((row[1], completion))
        return found

    def token_counts(self) -> list[tuple[int, int]]:
        """Prompt and completion tokens of every completion."""
        return self._rows("SELECT prompt_tokens, completion_tokens FROM completions")

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with ledger_errors(self.path):
            return self._db.execute(sql, values).fetchall()
