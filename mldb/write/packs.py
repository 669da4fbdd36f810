"""Packed payloads: many small tensors share one, so that a batch of hundreds costs a few frames."""

from __future__ import annotations

from collections.abc import Iterable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from mldb.history.kinds.tensors import tensors_packed
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.checksum import digest128
from mldb.log.frame import DraftFields, Record
from mldb.tensors.codec import Prepared, known_arrays
from mldb.write.buffers import BufferPool

if TYPE_CHECKING:
    from mldb.write.references import References

PACK_BELOW: Final = 64 << 10
PACK_BYTES: Final = fmt.PAGE_ALIGN_FROM
PACK_ENTRIES: Final = 1 << 14
ALIGN: Final = 1 << fmt.PAYLOAD_ALIGN_LOG2
_ZEROS: Final = bytes(ALIGN)
_RAW: Final = fmt.ENCODING_RAW
assert PACK_BYTES <= 1 << fmt.BLOCK_LOG2  # a pack is one block


class Pack:
    """One packed payload being filled: PACK_BYTES of borrowed memory and the drafts into it."""

    __slots__ = ("data", "drafts", "size")

    def __init__(self, buffers: BufferPool) -> None:
        self.data = buffers.take(PACK_BYTES)
        self.size = 0
        self.drafts: dict[bytes, DraftFields] = {}

    def has_room(self, size: int, entries: int) -> bool:
        """Whether *size* more bytes and as many entries fit."""
        fits = self.size + size + ALIGN <= PACK_BYTES
        return fits and len(self.drafts) + entries <= PACK_ENTRIES

    def write(self, prepared: Prepared) -> memoryview:
        """Copy the tensor behind the others and return it; :meth:`keep` makes it one of them.

        The caller has seen that it fits.
        """
        data, size = self.data, self.size
        start = (size + ALIGN - 1) & -ALIGN
        data[size:start] = _ZEROS[: start - size]
        end = start
        for buffer in prepared.buffers:
            size, end = end, end + len(buffer)
            data[size:end] = buffer
        return data[start:end]

    def keep(self, keys: Iterable[bytes], attr: bytes, length: int, digest: bytes) -> None:
        """Keep what was just written, under these keys."""
        start = (self.size + ALIGN - 1) & -ALIGN
        self.size = start + length
        for key in keys:
            self.drafts[key] = (key, 0, _RAW, start, length, digest, 0, attr, b"")

    def add(self, key: bytes, prepared: Prepared) -> None:
        """Copy the tensor in and keep it: both at once, for loops that stage many small ones."""
        data, size, length = self.data, self.size, prepared.nbytes
        start = (size + ALIGN - 1) & -ALIGN
        data[size:start] = _ZEROS[: start - size]
        end = start
        for buffer in prepared.buffers:
            size, end = end, end + len(buffer)
            data[size:end] = buffer
        digest = digest128(data[start:end])
        self.size = end
        self.drafts[key] = (key, 0, _RAW, start, length, digest, 0, prepared.attr, b"")

    def part(self, key: bytes) -> memoryview:
        """Return the bytes of a tensor in it."""
        draft = self.drafts[key]
        return self.data[draft[3] : draft[3] + draft[4]]

    def record(self) -> Record:
        """The record of this pack; hashed here, outside the commit lock."""
        return tensors_packed(list(self.drafts.values()), self.data[: self.size])


class Packs:
    """The packs of one staging area, each opened when the one before is full. Used by one thread.

    ``where`` says which pack has a key. *seen* are the keys that were staged at some time: the
    owner's, who adds to it as well. Tensors of fewer than *below* bytes are packed as they come.
    """

    __slots__ = ("_below", "_buffers", "_packs", "_seen", "where")

    def __init__(self, buffers: BufferPool, seen: set[bytes], below: int) -> None:
        self.where: dict[bytes, Pack] = {}
        self._buffers = buffers
        self._packs: list[Pack] = []
        self._seen = seen
        self._below = below

    def room(self, thread: int) -> tuple[Any, ...]:
        """What the compiled twin needs to pack arrays here, in this thread and in no other."""
        most, below = PACK_ENTRIES, self._below
        return thread, known_arrays, self._seen, self.where, self._packs, most, below

    def put_array(self, name: str, data: object) -> bool:
        """Pack an array under a new name, if the compiled twin can in one call; else do nothing."""
        twin = native.twin
        return twin is not None and twin.pack_array(name, data, self.room(get_ident())) is not None

    def put(self, key: bytes, prepared: Prepared) -> bool:
        """Pack a tensor that is small enough, under a key that is new; else do nothing."""
        if prepared.nbytes >= self._below or key in self._seen:
            return False
        twin = native.twin
        if twin is None or not twin.pack_tensor(
            key, prepared, self._seen, self.where, self._packs, PACK_ENTRIES
        ):
            self._seen.add(key)
            pack = self.where[key] = self.with_room(prepared.nbytes, 1)
            pack.add(key, prepared)
        return True

    def put_new(
        self, key: bytes, prepared: Prepared, references: References, digests: dict[bytes, bytes]
    ) -> bool:
        """Pack a tensor that is compared with one version, and with *digests*, and is another.

        Its digest is then one of these. Else do nothing: the longer way finds who has its bytes.
        """
        twin, nbytes = native.twin, prepared.nbytes
        if twin is None or nbytes >= PACK_BELOW:
            return False
        rival = references.rival(key, nbytes)
        if rival is None or not twin.pack_tensor(
            key, prepared, self._seen, self.where, self._packs, PACK_ENTRIES, rival, digests
        ):
            return False
        references.note_new()
        return True

    def put_run(
        self,
        keys: list[bytes],
        prepared: list[Prepared],
        first: int,
        stop: int,
        references: References,
        digests: dict[bytes, bytes],
    ) -> int:
        """Do what :meth:`put` and :meth:`put_new` do, from number *first* on; return what is left.

        Without the compiled twin all are.
        """
        twin = native.twin
        if twin is None:
            return first
        view, upper = references.compared(PACK_BELOW)
        seen, where, packs, below = self._seen, self.where, self._packs, self._below
        room = seen, where, packs, PACK_ENTRIES, below, upper
        left: tuple[int, int] = twin.pack_tensors(keys, prepared, first, stop, *room, view, digests)
        references.note_new(left[1])
        return left[0]

    def with_room(self, size: int, entries: int) -> Pack:
        """Return a pack with room for *size* bytes and as many entries."""
        packs = self._packs
        if not packs or not packs[-1].has_room(size, entries):
            packs.append(Pack(self._buffers))
        return packs[-1]

    def records(self) -> list[Record]:
        """Return the records of all packs that have entries."""
        return [pack.record() for pack in self._packs if pack.drafts]

    def give_back(self) -> None:
        """Let the next one have the memory; nothing is staged here from now on."""
        for pack in self._packs:
            self._buffers.give(pack.data)
        self._packs.clear()
