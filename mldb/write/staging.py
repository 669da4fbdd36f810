"""Staged writes: the last write per key, turned into records at commit.

Small tensors are packed: many share one payload of at most 1 MiB, so that a batch of hundreds costs
a few frames and a read verifies one block. Larger ones get a frame of their own, and are held or
written at the call (``mldb.write.large``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mldb import keys
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.history.kinds.tensors import metadata_set, tensor_compressed, tensor_stored
from mldb.log.checksum import digest128
from mldb.log.frame import Draft, Record
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import Prepared, make_prepared, pack_metadata
from mldb.write.buffers import BufferPool
from mldb.write.duplicates import OFF, Duplicates, Looked, Owner, have_equal_bytes
from mldb.write.large import NEVER, LargeTensors, OpenPending
from mldb.write.made_ahead import MadeAhead
from mldb.write.packs import PACK_BELOW, Packs
from mldb.write.references import References
from mldb.write.staged import Asked, Staged, drafts_like, staged_parts
from mldb.write.staged_patches import StagedPatches


class Staging:
    """The writes of one transaction or checkpoint, in order of first mention. Used by one thread.

    ``fix`` says that values must be fixed at the call (a transaction's promise): buffers that alias
    the caller's memory are copied. Without it they must stay unchanged until the commit returns.
    Tensors of *spill_bytes* are written at the call, and all large ones once they are *together*
    bytes. Those of *least* bytes or more are looked up in *duplicates*: of those that the store has
    already, ``references`` are staged, and equal ones of this batch share their bytes.
    """

    def __init__(
        self,
        new_pending: OpenPending,
        spill_bytes: int,
        *,
        fix: bool,
        together: int = NEVER,
        compression: str | None = None,
        buffers: BufferPool | None = None,
        duplicates: Duplicates | None = None,
        least: int = OFF,
    ) -> None:
        self._buffers = buffers or BufferPool()
        self._large = LargeTensors(new_pending, self._buffers, alone=spill_bytes, together=together)
        self._seen: set[bytes] = set()  # keys that were staged at some time
        self._compression = compression
        self._spill_bytes = spill_bytes
        self._fix = fix
        self._changes: dict[bytes, KeyChange] = {}
        self._least = OFF if duplicates is None else least
        self._packs = Packs(self._buffers, self._seen, min(PACK_BELOW, self._least))
        self._where = self._packs.where
        self._digests: dict[bytes, bytes] = {}  # of what was looked up: to the first key with it
        self._copied = 0  # bytes of owners that are held in memory
        self.references = References(duplicates)
        self.patches = StagedPatches()

    def __bool__(self) -> bool:
        """Whether anything is staged."""
        stored = self._where or self._large
        return bool(stored or self.references or self.patches or self._changes)

    @property
    def pending(self) -> PendingSegment | None:
        """The segment of its own that this will be, if it will."""
        return self._large.pending

    def open_pending(self) -> PendingSegment:
        """Return the pending segment of this transaction, opened when first needed."""
        return self._large.open_pending()

    # --- staging ----------------------------------------------------------------------------------

    def room(self, thread: int) -> tuple[Any, ...]:
        """What ``native.twin.pack_array`` needs to stage small arrays, in this thread alone."""
        return self._packs.room(thread)

    def put_tensor(
        self,
        name: bytes,
        prepared: Prepared,
        aliases: tuple[bytes, ...] = (),
        looked: Looked | None = None,
    ) -> None:
        """Stage a tensor under a checked name, and under aliases of the same bytes.

        *looked* is what :meth:`look_ahead` said of it.
        """
        key = keys.TENSORS + name
        nbytes = prepared.nbytes
        packs = self._packs
        if not aliases and (
            packs.put(key, prepared) or packs.put_new(key, prepared, self.references, self._digests)
        ):
            return
        names = (name, *aliases)
        for item in names:
            self._forget(keys.TENSORS + item)
            if self._changes.pop(keys.TENSORS + item, None) is not None:
                # Deleted before in this transaction, and so its metadata. No TensorDeleted will
                # tell that any more; this event does.
                self.change(metadata_set(item, pack_metadata({})))
        if nbytes < PACK_BELOW:
            self._put_small(names, prepared)
        else:
            self._put_large(names, prepared, looked)

    def looker(self) -> Callable[[str, Prepared], Looked | None]:
        """Return what looks for a tensor of a checked name that will be put, and hashes it.

        It returns None of one that is not looked for. Any thread calls it; the tensor must stay as
        it is until it was put, also where values are fixed at the call.
        """
        least = max(PACK_BELOW, self._least)
        references = self.references
        if self._least != OFF:
            references.take_view()

        def look(name: str, prepared: Prepared) -> Looked | None:
            if prepared.nbytes < least:
                return None
            key = keys.TENSORS + name.encode()
            return references.look(key, prepared.buffers, prepared.nbytes)

        return look

    def put_run(self, named: list[bytes], prepared: list[Prepared], first: int, stop: int) -> int:
        """Stage small tensors under checked keys as :meth:`put_tensor` would, many in one call.

        From number *first* on, up to the first that is for that one, or to *stop*; return which.
        """
        return self._packs.put_run(named, prepared, first, stop, self.references, self._digests)

    def look_ahead(self, named: list[bytes], prepared: list[Prepared]) -> MadeAhead[Looked]:
        """Look for the large ones of tensors that will be put under these keys, before each call.

        They must stay as they are until it is closed.
        """
        least = OFF if self._fix else max(PACK_BELOW, self._least)
        if self._least != OFF:
            self.references.take_view()
        return MadeAhead(
            [
                None if item[3] < least else partial(self.references.look, key, item[2], item[3])
                for key, item in zip(named, prepared, strict=True)
            ]
        )

    def _put_small(self, names: tuple[bytes, ...], prepared: Prepared) -> None:
        pack = self._packs.with_room(prepared.nbytes, len(names))
        part = pack.write(prepared)
        asked, digest = Asked(names, prepared, (part,)), digest128(part)
        if prepared.nbytes >= self._least and self._is_here(asked, digest):
            return
        added = [keys.TENSORS + item for item in names]
        pack.keep(added, prepared.attr, len(part), digest)
        self._where.update(dict.fromkeys(added, pack))

    def _put_large(
        self, names: tuple[bytes, ...], prepared: Prepared, looked: Looked | None
    ) -> None:
        large, nbytes = self._large, prepared.nbytes
        at_once = large.streams(nbytes)
        fixed, copies = self._fixed(prepared, at_once)
        hashed = record = None
        if nbytes >= self._least:
            asked = Asked(names, prepared, fixed.buffers)
            key = keys.TENSORS + names[0]
            looked = looked or self.references.look_at_newest(key, fixed.buffers, nbytes)
            if not self._is_unchanged(asked, looked):
                # Checksums of what is written now are made meanwhile.
                looked = looked.with_hash(fixed.buffers, nbytes, is_written=at_once)
                if not self._is_here(asked, looked.digest, looked):
                    hashed = looked.checks, looked.digest
            if hashed is None:
                self._give(copies)
                return
        if self._compression is not None:
            digest = None if hashed is None else hashed[1]
            record = tensor_compressed(names[0], fixed, names[1:], digest=digest)
        if record is not None:
            self._give(copies)
            copies, at_once = [], large.streams(record.payload_length)
        else:
            record = tensor_stored(names[0], fixed, names[1:], hashed=hashed)
        added = [keys.TENSORS + item for item in names]
        if at_once:
            large.write(added, record)
        else:
            large.hold(added, record, copies)

    def _fixed(self, prepared: Prepared, at_once: bool) -> tuple[Prepared, list[memoryview]]:
        """Return a value that stays as it is, and the memory that was taken for it."""
        copies: list[memoryview] = []
        descriptor, attr, buffers, nbytes, owned = prepared
        if not self._fix or owned or at_once:
            return prepared, copies
        for part in buffers:
            copy = self._buffers.take(len(part))
            copy[:] = part
            copies.append(copy)
        return make_prepared((descriptor, attr, tuple(copies), nbytes, owned)), copies

    # --- bytes that are there already -------------------------------------------------------------

    def _is_unchanged(self, asked: Asked, looked: Looked) -> bool:
        """Stage references where the newest version of the name was found to have these bytes."""
        owner = looked.owner
        if owner is None or not self._refer(asked, owner):
            return False
        self._digests.setdefault(owner.digest, keys.TENSORS + asked.names[0])
        return True

    def _is_here(self, asked: Asked, digest: bytes, looked: Looked | None = None) -> bool:
        """Stage names without bytes where the batch or the store has them already.

        The bytes are compared as they are in the buffers, which may be used for others afterwards.
        """
        key, nbytes = keys.TENSORS + asked.names[0], asked.prepared.nbytes
        holder = self._digests.get(digest)
        if holder is not None and self._share(holder, asked, digest):
            self.references.note_shared(nbytes)
            return True
        self._digests[digest] = key
        owner = self.references.find(key, asked.buffers, nbytes, digest, looked)
        return owner is not None and self._refer(asked, owner)

    def _refer(self, asked: Asked, owner: Owner) -> bool:
        """Stage references of these names; False where keeping the bytes takes too much."""
        kept = self._kept(asked, owner)
        if kept is None:
            return False
        for item in asked.names:
            self.references.add(keys.TENSORS + item, kept, owner)
        return True

    def _kept(self, asked: Asked, owner: Owner) -> Prepared | None:
        """Return what can be stored after all should the owner go; None where that takes too much.

        What the caller may change meanwhile cannot, nor can the buffers, which hold the same.
        """
        prepared, data = asked.prepared, owner.data
        if not self._fix or prepared.owned:
            return prepared
        if data is None or not owner.is_raw:
            self._copied += prepared.nbytes
            if self._copied > self._spill_bytes:
                return None
        if data is None:
            data = memoryview(b"".join(asked.buffers))
        return prepared._replace(buffers=(data,), owned=True)

    def _share(self, holder: bytes, asked: Asked, digest: bytes) -> bool:
        """Let names have the bytes that another key of this batch has, if they are the same."""
        names, attr = asked.names, asked.prepared.attr
        staged = self.read(holder)
        if staged is None or staged.digest != digest:
            return False  # it was overwritten since
        if not have_equal_bytes(asked.buffers, staged_parts(staged, self.pending)):
            return False
        added = [keys.TENSORS + item for item in names]
        reference = self.references.get(holder)
        pack = self._where.get(holder)
        if reference is not None:
            for key in added:
                same = reference.prepared._replace(attr=attr)
                self.references.add(key, same, reference.owner)
        elif pack is not None and pack.has_room(0, len(names)):
            pack.drafts.update(drafts_like(pack.drafts[holder], added, attr))
            self._where.update(dict.fromkeys(added, pack))
        else:
            return self._large.share(holder, added, attr)
        return True

    def _give(self, copies: list[memoryview]) -> None:
        for part in copies:
            self._buffers.give(part)

    def _forget(self, key: bytes) -> None:
        """Drop an earlier write of this transaction to the same key."""
        if key not in self._seen:
            self._seen.add(key)
            return
        self.references.pop(key)
        self.patches.pop(key)
        pack = self._where.pop(key, None)
        if pack is not None:
            del pack.drafts[key]
        self._large.forget(key)

    def change(self, *changes: KeyChange) -> None:
        """Stage what events without a payload say."""
        for change in changes:
            self._forget(change.key)
            self._changes.pop(change.key, None)
            self._changes[change.key] = change

    def note_seen(self, key: bytes) -> None:
        """Note that something is staged of a key; rows of it are put into ``patches``."""
        self._seen.add(key)

    # --- reading back -----------------------------------------------------------------------------

    def read(self, key: bytes) -> Staged | None:
        """Return what was staged for *key*, or None."""
        change = self._changes.get(key)
        if change is not None:
            return Staged(change.attr or b"", None, change.attr is None)
        pack = self._where.get(key)
        if pack is not None:
            draft = Draft._make(pack.drafts[key])
            return Staged(draft.attr, (pack.part(key),), False, digest=draft.digest)
        large = self._large.read(key)
        if large is not None:
            return large
        reference = self.references.get(key)
        if reference is not None:
            draft, buffers = Draft._make(reference.draft), reference.prepared.buffers
            return Staged(draft.attr, buffers, False, digest=draft.digest)
        patched = self.patches.get(key)
        return None if patched is None else Staged(patched[0].attr, None, False, patch=patched[1])

    def staged_bytes(self, staged: Staged) -> bytes:
        """Return the bytes of a staged tensor; a spilled one is read back from its pending file."""
        return b"".join(staged_parts(staged, self.pending))

    def keys(self, prefix: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield (key, exists) for every staged key with this prefix, unordered."""
        for table in (self._where, self._large, self.references, self.patches):
            for key in table:
                if key.startswith(prefix):
                    yield key, True
        for key, change in self._changes.items():
            if key.startswith(prefix):
                yield key, change.attr is not None

    def looked_up(self) -> dict[bytes, bytes]:
        """Digests and keys of what was looked up and is stored with bytes."""
        where, large, found = self._where, self._large, self._digests
        if where.keys() >= set(found.values()):
            return found  # all of them are small, and still there
        return {digest: key for digest, key in found.items() if key in where or key in large}

    # --- committing -------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Return the records not yet in the pending segment; called once."""
        large = self._large.records()
        packs = self._packs.records()
        if not self.patches and not self._changes:
            return packs + large
        changes = records_of(self._changes.values())
        return [*packs, *large, *self.patches.records(), *changes]

    def discard(self) -> None:
        """Drop everything, the pending segment too; borrowed memory goes to the next transaction.

        Called once the commit has returned, or failed.
        """
        self._large.discard()
        self._packs.give_back()
