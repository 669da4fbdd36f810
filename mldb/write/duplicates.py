"""Finding tensors whose bytes are in the store already, so that they are stored as references.

A candidate is a version with the same digest: the newest one of the same name, or any other by the
digests that ``mldb.log.digests`` knows. It counts once its bytes were read, as any read verifies
them, and compared. What was stored since the first look and lies in an active segment is compared
unverified first: equal to bytes of its digest, it is what was stored a moment ago. All of this is
outside the commit lock; under it the owner is confirmed (``mldb.write.references``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from mldb import keys
from mldb.deferred import NamedTuple
from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.aside import BESIDE_BYTES
from mldb.log.checksum import checks_and_digest, whole_digest
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
_COPIED_MAX: Final = 32 << 10
_PROBED: Final = 256
_PIECE: Final = 64 << 10
"""Bytes that are read at once of what is in no mapping: memory of that size is used again."""

_compare = ctypes.CDLL(None).memcmp  # it runs without the interpreter lock
_compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Owner(NamedTuple):
    """A version with bytes of its own, and these: decoded, compared, alive while they are held.

    ``is_raw``: they are a view of the log, which takes no memory. ``data`` is None where they were
    read piece by piece.
    """

    key: bytes
    lsn: int
    digest: bytes
    data: memoryview | None
    is_raw: bool


class Looked(NamedTuple):
    """What a first look found: the newest version of the name, and that it has these bytes.

    ``owner`` says who has them then; where nobody does, the bytes may be hashed by now.
    """

    newest: Entry | None
    owner: Owner | None = None
    checks: bytes | None = None
    digest: bytes = b""

    def with_hash(
        self, buffers: Sequence[Buffer], nbytes: int, *, is_written: bool = False
    ) -> Looked:
        """Return the same with the bytes hashed; without checksums where they are made later."""
        if self.digest:
            return self
        if is_written and nbytes >= BESIDE_BYTES:
            return Looked(self.newest, None, None, whole_digest(buffers))
        return Looked(self.newest, None, *checks_and_digest(buffers, fmt.BLOCK_LOG2))


class Duplicates:
    """Finds owners for new tensors, for one handle. Any thread.

    ``least`` is the size from which tensors are looked up, ``least_in_checkpoints`` that for
    checkpoints. Counters may miss one when two threads count at once.
    """

    def __init__(self, deduplicate: bool | int, door: Door, head: Callable[[], View]) -> None:
        from mldb.log.digests import Digests

        self.least, self.least_in_checkpoints = FROM_BYTES, CHECKPOINT_FROM_BYTES
        if deduplicate is not True:
            self.least = self.least_in_checkpoints = OFF if deduplicate is False else deduplicate
        self.head = head
        self._door = door
        self._digests = Digests()
        self._since = fmt.LSN_MAX  # the newest commit when it was first looked for something
        self.looked_up = 0
        """Tensors that were looked up."""
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

    def note(self, stored: Mapping[bytes, bytes], lsn: int) -> None:
        """Remember digests and keys of what commit *lsn* stored with bytes."""
        self._digests.note(stored, lsn)

    def note_shared(self, nbytes: int) -> None:
        """Count a tensor whose bytes another one of its batch has."""
        self.looked_up += 1
        self.in_batch += 1
        self.bytes_saved += nbytes

    def look_at_newest(
        self, view: View, key: bytes, buffers: Sequence[Buffer], nbytes: int
    ) -> Looked:
        """Return the newest version of *key*, and whether it has these bytes.

        For bytes that are not hashed yet: equal to verified bytes, they have their digest. A look
        at a few of them tells mostly that they are others.
        """
        try:
            newest = view.newest(key, view.intervals)
        except MldbError:  # of an index: whoever reads tells what is damaged, and this is stored
            self.unreadable += 1
            return Looked(None)
        if newest is None or newest.flags & fmt.ENTRY_TOMBSTONE:
            return Looked(newest)
        return Looked(newest, self._unchanged(view, key, newest, buffers, nbytes))

    def _unchanged(
        self, view: View, key: bytes, newest: Entry, buffers: Sequence[Buffer], nbytes: int
    ) -> Owner | None:
        """Return the owner of the newest version when it has these bytes, as far as that is seen.

        That is where they are mapped; anything else is looked for by the digest.
        """
        door = self._door
        if nbytes < self.least or len(buffers) != 1 or door.verify == "never":
            return None
        at: bytes | None
        try:
            at, held = key, newest
            if newest.encoding == fmt.ENCODING_REFERENCE:
                at, held = door.holder(view, key, newest, keys.shown(key))
            if held.length != nbytes or not door.is_raw(held):
                return None
            seen = door.seen(view, held)
            if seen is None or not _may_be_equal(buffers[0], seen):
                return None
            if not have_equal_bytes(buffers, (seen,)):
                return None
            data = door.version(view, at, held, nbytes, keys.shown(key))
        except MldbError:  # whoever looks by the digest counts it
            return None
        assert at is not None
        self.looked_up += 1
        self.same_name += 1
        self.bytes_saved += nbytes
        return Owner(at, held.commit_lsn, held.digest, data, True)

    def find(
        self,
        view: View,
        key: bytes,
        buffers: Sequence[Buffer],
        nbytes: int,
        digest: bytes,
        looked: Looked | None = None,
    ) -> Owner | None:
        """Return the owner of these bytes, which are about to be stored under *key*; or None.

        *looked* is what :meth:`look_at_newest` said of them.
        """
        self.looked_up += 1
        self._since = min(self._since, view.commit.lsn)
        try:
            newest = view.newest(key, view.intervals) if looked is None else looked.newest
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

    def begin(self, view: View) -> None:
        """Note that something is looked for in *view* from now on."""
        self._since = min(self._since, view.commit.lsn)

    def rival(self, view: View, key: bytes) -> bytes | None:
        """Return the digest of the newest version of *key*, empty if none; None if not readable.

        Below ``least`` bytes it is the only one that :meth:`find` looks at.
        """
        self._since = min(self._since, view.commit.lsn)
        try:
            newest = view.newest(key, view.intervals)
        except MldbError:
            return None
        return b"" if newest is None else newest.digest

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
            is_recent = held.commit_lsn > self._since
            recent = door.unread(view, held, _PIECE) if is_recent else None
            if recent is not None and have_equal_bytes(buffers, recent):
                data = recent[0] if isinstance(recent, tuple) else None
                return Owner(key, held.commit_lsn, held.digest, data, True)
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


def _may_be_equal(one: Buffer, other: memoryview) -> bool:
    """Whether some bytes in the middle are equal: the first ones are often those of padding."""
    low = len(other) // 2
    return bytes(one[low : low + _PROBED]) == bytes(other[low : low + _PROBED])


def have_equal_bytes(one: Sequence[Buffer], other: Iterable[Buffer]) -> bool:
    """Whether two sequences of buffers hold the same bytes.

    Compared at the speed of memory. Small ones are copied, which takes less time than a call of the
    system's library.
    """
    left = [memoryview(part) for part in reversed(one) if len(part)]
    for buffer in other:
        second = memoryview(buffer)
        while second:
            if not left:
                return False
            first = left.pop()
            size = min(len(first), len(second))
            if not _are_equal(first[:size], second[:size]):
                return False
            if len(first) > size:
                left.append(first[size:])
            second = second[size:]
    return not left


def _are_equal(first: memoryview, second: memoryview) -> bool:
    """Compare two buffers of one length."""
    size = len(first)
    if size <= _COPIED_MAX:
        return first.tobytes() == second.tobytes()
    one, two = np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)
    at = one.__array_interface__["data"][0], two.__array_interface__["data"][0]
    return bool(_compare(*at, size) == 0)
