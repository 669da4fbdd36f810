"""Checksums: xxh3-64 per block of the stored bytes, xxh3-128 of the decoded bytes.

xxh3 (https://github.com/Cyan4973/xxHash) is not cryptographic: it finds accidents, not attacks.
Both run near memory speed and without the GIL, so hashing in a second thread overlaps a write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_64, xxh3_64_digest, xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from mldb.log.fs.protocol import Buffer

check64 = xxh3_64_intdigest
block_check = xxh3_64_digest
digest128 = xxh3_128_digest

LONG: Final = 240
"""Of more bytes xxh3-64 is the lower half of xxh3-128: both merge the same accumulators in the same
way (xxHash's specification, doc/xxhash_spec.md, "XXH3 algorithm (for large inputs)")."""
_LOWER: Final = 8


def check_of_block(data: Buffer, digest: bytes) -> bytes:
    """Return the checksum of a block, whose digest this is; a second pass only over a short one."""
    return digest[_LOWER:] if len(data) > LONG else block_check(data)


def checks_and_digest(buffers: Sequence[Buffer], block_log2: int) -> tuple[bytes, bytes]:
    """Return the block checksums and the digest of a payload, the concatenation of *buffers*.

    A checksum is the canonical (big-endian) xxh3-64 of a block, 8 bytes; the digest is the xxh3-128
    of everything. No long copy is made.
    """
    size = sum(map(len, buffers))
    if size <= 1 << block_log2:
        digest = whole_digest(buffers)
        if size > LONG:
            return digest[_LOWER:], digest
        return (block_check(b"".join(buffers)) if size else b""), digest
    hashed = PayloadHash(block_log2)
    for buffer in buffers:
        hashed.update(memoryview(buffer))
    return hashed.finish()


def block_checks(buffers: Sequence[Buffer], block_log2: int) -> bytes:
    """Return the block checksums of a payload alone; see :func:`checks_and_digest`."""
    if len(buffers) == 1:
        data, size = memoryview(buffers[0]), 1 << block_log2
        return b"".join([block_check(data[at : at + size]) for at in range(0, len(data), size)])
    return checks_and_digest(buffers, block_log2)[0]


def whole_digest(buffers: Sequence[Buffer]) -> bytes:
    """Return the digest of a payload alone, the concatenation of *buffers*."""
    if len(buffers) == 1:
        return xxh3_128_digest(buffers[0])
    whole = xxh3_128()
    for buffer in buffers:
        whole.update(buffer)
    return whole.digest()


class PayloadHash:
    """The block checksums and the digest of a payload that comes in pieces. One thread.

    Each block is hashed twice while it is in the cache, so memory is read once.
    """

    __slots__ = ("_block", "_checks", "_room", "_size", "_whole")

    def __init__(self, block_log2: int) -> None:
        self._size = 1 << block_log2
        self._room = self._size
        self._block = xxh3_64()
        self._whole = xxh3_128()
        self._checks: list[bytes] = []

    def update(self, data: memoryview) -> None:
        """Take the next bytes of the payload."""
        position = 0
        while position < len(data):
            part = data[position : position + self._room]
            position += len(part)
            self._whole.update(part)
            if len(part) == self._size:
                self._checks.append(block_check(part))
                continue
            self._block.update(part)
            self._room -= len(part)
            if not self._room:
                self._close_block()

    def _close_block(self) -> None:
        self._checks.append(self._block.digest())
        self._block.reset()
        self._room = self._size

    def finish(self) -> tuple[bytes, bytes]:
        """Return what :func:`checks_and_digest` returns of the whole payload; called once."""
        if self._room != self._size:
            self._close_block()
        return b"".join(self._checks), self._whole.digest()
