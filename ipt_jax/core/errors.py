"""How a command ends: by what a user can mend, by a stop of its own, by Ctrl-C."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from types import FrameType
from typing import Any


class UserError(Exception):
    """Bad input, a wrong setting or a full disk: something the user can mend.

    The message is one paragraph that names the file, record or key, says what was wrong there
    and what to do. Launch scripts print it and exit with code 2. What it does not name of the
    fields is added, the advice at its end; tests assert fields and not prose.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        path: str | PathLike[str] | None = None,
        record: str | None = None,
        advice: str | None = None,
    ):
        if advice is not None and advice not in message:
            message = f"{message.removesuffix('.')}; {advice.removesuffix('.')}."
        for place in (record, key, path):
            named = rf"(?<!\w){re.escape(str(place))}(?!\w)"  # as a word: a folder may be `out`
            if place is not None and not re.search(named, message):
                message = f"{place}: {message}"
        super().__init__(message)
        self.key, self.path, self.record, self.advice = key, path, record, advice

    def under(self, prefix: str) -> UserError:
        """The same of a key that is reached through `prefix`, as in `optimizer.`."""
        message = str(self)
        if self.key and message.startswith(self.key):
            message = prefix + message
        key = self.key and prefix + self.key
        return UserError(message, key=key, path=self.path, record=self.record, advice=self.advice)


class DamagedRecord(UserError):
    """One record that cannot be read, while others of its source may be."""


TRY_AGAIN = 75  # exit code, EX_TEMPFAIL: the same command may well succeed
INTERRUPTED = 130  # exit code, as a shell gives it


class RunStopped(Exception):
    """A run that ended itself before its end, saved as far as it got.

    `code` is the exit code of the process (docs/training.md lists them), the message one
    paragraph.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.code)  # from a process that a pool runs


def require(
    key: str, value: object, right: bool, allowed: str, path: str | PathLike[str] | None = None
) -> None:
    """Raise UserError unless `right`: the key (in the file `path`), its value, and `allowed`."""
    if not right:
        raise UserError(f"{key}={value!r}: must be {allowed}.", key=key, path=path)


def require_choice(key: str, value: object, valid: Iterable[str], **where: Any) -> None:
    """Raise UserError, with the fields in `where`, unless the value is one of the `valid`."""
    names = list(valid)
    if value not in names:
        nearest = did_you_mean(str(value), names)
        said = f"{key}={value!r}: there is no such choice. {nearest}"
        raise UserError(said, key=key, **where)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A sentence that names the valid name nearest to a wrong one, and all of them if few."""
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    hint = f"The nearest is {close[0]!r}" if close else "There are none"
    return f"{hint} (valid: {', '.join(map(repr, names))})." if len(names) > 1 else f"{hint}."


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Stands round the imports of a script, which take seconds; imports nothing slow itself.

    The process ends in the handler: extensions that are being loaded make another error of a
    KeyboardInterrupt, and nothing is begun yet that would have to be put away.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(number: int, frame: FrameType | None) -> None:
    print("\nStopped before anything was begun.", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
