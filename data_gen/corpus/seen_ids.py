"""The ids that came before, in little memory."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

# A set of digests takes 90 to 100 bytes an id and is quickest: it may grow to 100 MB.
_MOST_IN_SET = 1 << 20
_DIGEST_BYTES = 16
_DIGESTS_IN_BUCKET = 64


class SeenIds:
    """Which ids were added, by 16 bytes of their hash.

    Up to a million ids in a set; beyond that in buckets of digests lying side by side, about
    25 bytes an id. Two ids are taken for one where their digests are equal: in a run of a
    billion ids the chance of that is less than 1 in 10^20.
    """

    def __init__(self) -> None:
        self._set: set[bytes] | None = set()
        self._buckets: list[bytearray] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        return digest in (self._bucket_of(digest) if self._set is None else self._set)

    def add(self, name: str) -> bool:
        """Remember an id; False where it was there already."""
        digest = _digest(name)
        if self._set is not None:
            if digest in self._set:
                return False
            self._set.add(digest)
            self._count += 1
            if self._count > _MOST_IN_SET:
                self._pack(self._set)
            return True
        bucket = self._bucket_of(digest)
        if digest in bucket:
            return False
        bucket += digest
        self._count += 1
        if self._count > _DIGESTS_IN_BUCKET * len(self._buckets):
            self._split()
        return True

    def _bucket_of(self, digest: bytes) -> bytearray:
        return self._buckets[int.from_bytes(digest[:4], "little") & (len(self._buckets) - 1)]

    def _pack(self, digests: set[bytes]) -> None:
        self._set = None
        size = 1 << (len(digests) // _DIGESTS_IN_BUCKET).bit_length()
        self._buckets = [bytearray() for _ in range(size)]
        while digests:
            digest = digests.pop()
            self._buckets[int.from_bytes(digest[:4], "little") & (size - 1)] += digest

    def _split(self) -> None:
        """Deal each bucket into two by the next bit of the digests."""
        bit = len(self._buckets)
        upper = []
        for number, bucket in enumerate(self._buckets):
            words = np.frombuffer(bucket, "<u4").reshape(-1, _DIGEST_BYTES // 4)
            high = (words[:, 0] & bit) != 0
            self._buckets[number] = bytearray(words[~high].tobytes())
            upper.append(bytearray(words[high].tobytes()))
        self._buckets += upper


def _digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
