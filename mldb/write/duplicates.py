"""Finding tensors whose bytes are in the store already, so that they are stored as references.

A candidate is a version with the same digest: the newest one of the same name, or any other by the
digests that ``mldb.log.digests`` knows. It counts once its bytes were read, as any read verifies
them, and compared. All of this is outside the commit lock; under it the owner is confirmed
(``mldb.write.references``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from mldb import keys
from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.digests import Digests
from mldb.log.door import Door
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import Entry
from mldb.log.view import View
from mldb.tensors.codec import unpack_descriptor

FROM_BYTES: Final = 64 << 10
"""Tensors from this size on are looked up, unless the option says another. A look that finds
nothing took 6 to 8 us: of a put that waits for no disk a fifth at 16 KiB, a seventh here, of a
durable one less than a hundredth."""
CHECKPOINT_FROM_BYTES: Final = 512
"""The same in a checkpoint, for the newest version of the same name and for what else is in it:
names come again there, and most of them are small."""
OFF: Final = fmt.PAYLOAD_BYTES_MAX + 1
_TRIES: Final = 4
_CHUNK: Final = 128 << 10
_COPIED_MAX: Final = 32 << 10


class Owner(NamedTuple):
    """A version with bytes of its own, and these: decoded, verified, alive while they are held.

    ``is_raw``: they are a view of the log, which takes no memory.
    """

    key: bytes
    lsn: int
    digest: bytes
    data: memoryview
    is_raw: bool


class Duplicates:
    """Finds owners for new tensors, for one handle. Any thread.

    ``least`` is the size from which tensors are looked up, ``least_in_checkpoints`` that for
    checkpoints. Counters may miss one when two threads count at once.
    """

    def __init__(self, deduplicate: bool | int, door: Door, head: Callable[[], View]) -> None:
        self.least, self.least_in_checkpoints = FROM_BYTES, CHECKPOINT_FROM_BYTES
        if deduplicate is not True:
            self.least = self.least_in_checkpoints = OFF if deduplicate is False else deduplicate
        self.head = head
        self._door = door
        self._digests = Digests()
        self.looked_up = 0
        """Tensors that were hashed to be looked up."""
        self.same_name = 0
        """Of these: the newest version of the name had the bytes."""
        self.by_digest = 0
        """Of these: another version had them."""
        self.in_batch = 0
        """Of these: a tensor of the same batch had them."""
        self.bytes_saved = 0
        self.unequal = 0
        """Times that the digest was the same and the bytes were not."""
        self.unreadable = 0
        """Times that what was found could not be read: it is damaged, or gone."""
        self.owners_gone = 0
        """References whose owner was gone at the commit: their bytes were stored."""

    def note(self, stored: Iterable[tuple[bytes, bytes]], lsn: int) -> None:
        """Remember digests and keys of what commit *lsn* stored with bytes."""
        self._digests.note(stored, lsn)

    def note_shared(self, nbytes: int) -> None:
        """Count a tensor whose bytes another one of its batch has."""
        self.looked_up += 1
        self.in_batch += 1
        self.bytes_saved += nbytes

    def find(
        self, view: View, key: bytes, buffers: Sequence[Buffer], nbytes: int, digest: bytes
    ) -> Owner | None:
        """Return the owner of these bytes, which are about to be stored under *key*; or None."""
        self.looked_up += 1
        try:
            newest = view.newest(key, view.intervals)
            if newest is not None and newest.digest == digest:
                owner = self._compared(view, key, newest, buffers, nbytes)
                if owner is not None:
                    self.same_name += 1
                    self.bytes_saved += nbytes
                    return owner
            if nbytes < self.least:
                return None
            for at, entry in self._others(view, digest):
                owner = self._compared(view, at, entry, buffers, nbytes)
                if owner is not None:
                    self.by_digest += 1
                    self.bytes_saved += nbytes
                    return owner
        except MldbError:  # of an index: whoever reads tells what is damaged, and this is stored
            self.unreadable += 1
        return None

    def _others(self, view: View, digest: bytes) -> Iterator[tuple[bytes, Entry]]:
        tries = _TRIES
        for at, entry in self._digests.find(view, digest):
            if at[:1] == keys.TENSORS and tries:
                tries -= 1
                yield at, entry

    def _compared(
        self, view: View, at: bytes, entry: Entry, buffers: Sequence[Buffer], nbytes: int
    ) -> Owner | None:
        """Return the owner of a version, or the version itself, when it has these bytes."""
        if entry.flags & fmt.ENTRY_TOMBSTONE:
            return None
        door, name = self._door, keys.shown(at)
        try:
            key, held = door.holder(view, at, entry, name)
            assert key is not None
            if unpack_descriptor(held.attr).nbytes != nbytes:
                self.unequal += 1
                return None
            data = door.version(view, key, held, nbytes, name)
        except MldbError:
            self.unreadable += 1
            return None
        if not have_equal_bytes(buffers, (data,)):
            self.unequal += 1
            return None
        return Owner(key, held.commit_lsn, held.digest, data, door.is_raw(held))

    def stats(self) -> dict[str, Any]:
        """What was found, and from which size on it is looked for; None when it is not."""
        is_on = self.least != OFF
        return {
            "from_bytes": self.least if is_on else None,
            "in_checkpoints_from_bytes": self.least_in_checkpoints if is_on else None,
            "looked_up": self.looked_up,
            "same_name": self.same_name,
            "by_digest": self.by_digest,
            "in_batch": self.in_batch,
            "bytes_saved": self.bytes_saved,
            "unequal": self.unequal,
            "unreadable": self.unreadable,
            "owners_gone": self.owners_gone,
        }


def is_owner(entry: Entry | None, digest: bytes) -> bool:
    """Whether this is a version with bytes of its own, and with this digest."""
    return (
        entry is not None
        and not entry.flags & fmt.ENTRY_TOMBSTONE
        and entry.encoding != fmt.ENCODING_REFERENCE
        and entry.digest == digest
    )


def have_equal_bytes(one: Sequence[Buffer], other: Sequence[Buffer]) -> bool:
    """Whether two sequences of buffers hold the same bytes.

    Compared in pieces that stay in the cache, eight bytes at a time: some 10 GB/s. Small ones are
    copied, which takes less time than to begin with the pieces.
    """
    if len(one) == len(other) == 1:
        first, second = memoryview(one[0]), memoryview(other[0])
        return len(first) == len(second) and _are_equal(first, second)
    left, right = _last_first(one), _last_first(other)
    while left and right:
        first, second = left.pop(), right.pop()
        size = min(len(first), len(second))
        if not _are_equal(first[:size], second[:size]):
            return False
        left += [first[size:]] if len(first) > size else []
        right += [second[size:]] if len(second) > size else []
    return not left and not right


def _last_first(buffers: Sequence[Buffer]) -> list[memoryview]:
    return [memoryview(part) for part in reversed(buffers) if len(part)]


def _are_equal(first: memoryview, second: memoryview) -> bool:
    """Compare two buffers of one length."""
    size = len(first)
    if size <= _COPIED_MAX:
        return first.tobytes() == second.tobytes()
    whole = size & -8
    one, two = np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)
    for low in range(0, whole, _CHUNK):
        high = min(low + _CHUNK, whole)
        if not (one[low:high].view(np.uint64) == two[low:high].view(np.uint64)).all():
            return False
    return first[whole:].tobytes() == second[whole:].tobytes()
