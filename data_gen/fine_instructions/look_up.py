"""Documents to the templates whose descriptions are nearest, here or in the actors of Ray.

Documents come in pieces, and each piece is embedded and looked up by itself: what is found does
not depend on where that is done, nor on how many do it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from data_gen.embedding.embedder import EncoderConfig, open_embedder
from data_gen.embedding.index import Gpu
from data_gen.engines.config import RayConfig
from data_gen.errors.shared import optional
from data_gen.fine_instructions.bank import open_index
from ipt_jax.core.errors import UserError

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows in the bank int64 [N, C + 1, K], -1 where there is none, and their cosines float32; NaN
where a document has no vector. And how many characters of each document the encoder saw, int64 [N];
-1 where vectors were handed over."""


class LookUp:
    """An encoder and an index."""

    def __init__(
        self, encoder: EncoderConfig | None, bank: Path, fingerprint: str, k: int, gpu: Gpu
    ) -> None:
        """`encoder`: None where vectors are handed over; raises UserError as what it opens."""
        self._embedder = None if encoder is None else open_embedder(encoder)
        self._index, self._k = open_index(bank, fingerprint, gpu), k

    def ready(self) -> bool:
        """Tells that it is open."""
        return True

    def find(self, piece: Sequence[str] | np.ndarray) -> Found:
        """The nearest templates of documents, given as texts or as vectors [N, C + 1, E]."""
        if isinstance(piece, np.ndarray):
            found_NCE, seen_N = piece, np.full(len(piece), -1)
        else:
            assert self._embedder is not None
            found_NCE = self._embedder.embed(piece)
            seen_N = np.array(self._embedder.seen(piece), np.int64)
        N, C, E = found_NCE.shape
        good_N = np.isfinite(found_NCE).all((1, 2))
        rows_NCK = np.full((N, C, self._k), -1, np.int64)
        scores_NCK = np.full((N, C, self._k), np.nan, np.float32)
        if good_N.any():
            rows_QK, scores_QK = self._index.search(found_NCE[good_N].reshape(-1, E), self._k)
            rows_NCK[good_N] = rows_QK.reshape(-1, C, self._k)
            scores_NCK[good_N] = scores_QK.reshape(-1, C, self._k)
        return rows_NCK, scores_NCK, seen_N

    def find_all(self, pieces: Sequence[Sequence[str] | np.ndarray]) -> Iterator[Found]:
        """`find` of each piece, in order."""
        return map(self.find, pieces)


class RayLookUp:
    """The same in several actors of a Ray cluster; one that is lost is started again elsewhere.

    Bank and encoder are opened there by the same paths: they lie on a disk that all nodes see.
    """

    def __init__(self, open_look_up: Callable[[], LookUp], config: RayConfig) -> None:
        """Raises UserError: no Ray, no cluster, or an actor that cannot open what it is to."""
        missing = "`ray.actors` needs Ray, which is not installed: `pip install 'ipt-jax[ray]'`."
        self._ray = optional("ray", UserError(missing, key="ray.actors"))
        if not self._ray.is_initialized():
            self._connect(config.address)
        made = self._ray.remote(_Actor).options(
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
            resources=dict(config.resources) or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        self._actors = [made.remote(open_look_up) for _ in range(config.actors)]
        self._first(config.start_seconds)

    def find_all(self, pieces: Sequence[Sequence[str] | np.ndarray]) -> Iterator[Found]:
        """`LookUp.find` of each piece, in order."""
        from ray.util import ActorPool

        pool = ActorPool(self._actors)
        with _as_told(self._ray):
            for found in pool.map(lambda actor, piece: actor.find.remote(piece), list(pieces)):
                yield cast(Found, found)

    def _connect(self, address: str) -> None:
        try:
            self._ray.init(address=address or None, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at `ray.address` = {address!r} ({error}): start one "
                "(`ray start --head`), or leave the address out for one on this machine alone.",
                key="ray.address",
            ) from error

    def _first(self, seconds: float) -> None:
        """Wait until one actor is open; what one cannot open, none can."""
        with _as_told(self._ray):
            waiting = [actor.ready.remote() for actor in self._actors]
            ready, _ = self._ray.wait(waiting, timeout=seconds)
            self._ray.get(ready)
        if not ready:
            raise UserError(
                f"no Ray actor has opened encoder and index after {seconds:g} s: see `ray status` "
                "whether the cluster has what `ray` asks for an actor, or raise "
                "`ray.start_seconds`.",
                key="ray.start_seconds",
            )


class _Actor:
    """Opens what it is to when it is first asked, so that an error there comes back as such."""

    def __init__(self, open_look_up: Callable[[], LookUp]) -> None:
        self._open = functools.cache(open_look_up)

    def ready(self) -> bool:
        return self._open().ready()

    def find(self, piece: Any) -> Found:
        return self._open().find(piece)


@contextlib.contextmanager
def _as_told(ray: Any) -> Iterator[None]:
    """Raise an actor's own error in place of Ray's about it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
