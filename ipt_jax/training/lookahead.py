"""Batches read ahead of the step, so that a run ends before it lacks one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ipt_jax.data.bad_records import DamageLog
from ipt_jax.data.packing import Rows

# `SyncPoint` answers a step late: what is voted at step n stops all processes after step n + 1.
_AHEAD = 2


class Lookahead(Iterator[Rows]):
    """This process's batches, some of them read ahead."""

    def __init__(self, batches: Iterator[Rows], damage: DamageLog):
        """Read the first batches; reading them fills `damage`.

        Raises:
          Exception: what reading them raises, for nothing is learnt yet that could be saved.
        """
        self._batches, self._damage = batches, damage
        self._read: deque[tuple[Rows, int]] = deque()
        self.damaged = 0
        """Records of the log that had shown when the batch given last was read, and no later."""
        self._error: Exception | None = None
        self._fill(_AHEAD)
        if self.error is not None:
            raise self.error

    def __next__(self) -> Rows:
        batch, self.damaged = self._read.popleft()
        self._fill(_AHEAD)
        return batch

    @property
    def error(self) -> Exception | None:
        """Why reading cannot go on, once it is time to stop: the next batch is still there."""
        return self._error if len(self._read) < _AHEAD else None

    def any_to_learn(self, most: int) -> bool:
        """Whether one of the next `most` batches has a token with a loss weight, or may have.

        Reads on only while none has. What cannot be read may: `error` tells of it in time.
        """
        looked = 0
        while looked < most:
            self._fill(looked + 1)
            if looked == len(self._read):
                return self._error is not None
            if self._read[looked][0]["loss_weights"].any():
                return True
            looked += 1
        return False

    def _fill(self, count: int) -> None:
        while self._error is None and len(self._read) < count:
            try:
                batch = next(self._batches)
                self._read.append((batch, len(self._damage)))
            except StopIteration:
                return
            except Exception as error:  # raised by the loop, when what was learnt is saved
                self._error = error
