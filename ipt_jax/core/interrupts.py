"""Ctrl-C while a script still imports: it ends with the code it would have later, in one line."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # exit code, as a shell gives it


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
