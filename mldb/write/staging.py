"""Staged writes: the last write per key, turned into records at commit.

Small tensors are packed: many share one payload of at most 1 MiB, so that a batch of hundreds costs
a few frames and a read verifies one block. Larger ones get a frame of their own; above
``spill_bytes`` their bytes go to a pending segment at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mldb import keys
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.history.kinds.tensors import metadata_set, tensor_compressed, tensor_stored
from mldb.log.batch import Placed, place
from mldb.log.checksum import digest128
from mldb.log.frame import Draft, Record
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import Prepared, pack_metadata
from mldb.write.buffers import BufferPool
from mldb.write.duplicates import OFF, Duplicates, Owner, have_equal_bytes
from mldb.write.hashing import Hashed, hash_large, hash_to_look, hashed_to_store
from mldb.write.packs import PACK_BELOW, PACK_ENTRIES, Packs
from mldb.write.references import References
from mldb.write.staged import Asked, Staged, draft_of, drafts_like, staged_parts, with_names
from mldb.write.staged_patches import StagedPatches

OpenPending = Callable[[], PendingSegment]


class Staging:
    """The writes of one transaction or checkpoint, in order of first mention. Used by one thread.

    ``fix`` says that values must be fixed at the call (a transaction's promise): buffers that alias
    the caller's memory are copied. Without it they must stay unchanged until the commit returns.
    Tensors of *least* bytes or more are looked up in *duplicates*: of those that the store has
    already, ``references`` are staged, and equal ones of this batch share their bytes.
    """

    def __init__(
        self,
        new_pending: OpenPending,
        spill_bytes: int,
        *,
        fix: bool,
        compression: str | None = None,
        buffers: BufferPool | None = None,
        duplicates: Duplicates | None = None,
        least: int = OFF,
    ) -> None:
        self._new_pending = new_pending
        self._buffers = buffers or BufferPool()
        self._borrowed: dict[int, list[memoryview]] = {}  # by the id of the record that holds them
        self._seen: set[bytes] = set()  # keys that were staged at some time
        self._compression = compression
        self._spill_bytes = spill_bytes
        self._fix = fix
        self._large: dict[bytes, Record] = {}
        self._spilled: dict[bytes, Placed] = {}
        self._outdated = False  # an entry of a spilled record was dropped; its place does not fit
        self._changes: dict[bytes, KeyChange] = {}
        self._least = OFF if duplicates is None else least
        self._packs = Packs(self._buffers, self._seen, min(PACK_BELOW, self._least))
        self._where = self._packs.where
        self._digests: dict[bytes, bytes] = {}  # of what was looked up: to the first key with it
        self._copied = 0  # bytes of owners that are held in memory
        self.references = References(duplicates)
        self.patches = StagedPatches()
        self.pending: PendingSegment | None = None

    def __bool__(self) -> bool:
        """Whether anything is staged."""
        stored = self._where or self._large or self._spilled
        return bool(stored or self.references or self.patches or self._changes)

    # --- staging ----------------------------------------------------------------------------------

    def put_array(self, name: str, data: object) -> bool:
        """Stage what is most common in few steps: a small array, and no name that came before.

        False, and nothing is done, where it is not that, or no valid name: :meth:`put_tensor`.
        """
        return self._packs.put_array(name, data)

    def put_tensor(
        self,
        name: bytes,
        prepared: Prepared,
        aliases: tuple[bytes, ...] = (),
        hashed: Hashed | None = None,
    ) -> None:
        """Stage a tensor under a checked name, and under aliases of the same bytes.

        *hashed* is what :meth:`hash_ahead` said of it.
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
            self._put_large(names, prepared, hashed)

    def hash_ahead(self, tensors: Sequence[Prepared]) -> list[Hashed | None]:
        """Hash the large ones of tensors that will be put; None for what is left to each call.

        Where nothing is looked up they are hashed while they are written.
        """
        if self._fix or self._least == OFF:
            return [None] * len(tensors)
        return hash_large(tensors)

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
        self, names: tuple[bytes, ...], prepared: Prepared, hashed: Hashed | None
    ) -> None:
        fixed, copies = self._fixed(prepared)
        record = None
        if prepared.nbytes >= self._least:
            hashed = self._looked_up(Asked(names, prepared, fixed.buffers), hashed)
            if hashed is None:
                self._give(copies)
                return
        if self._compression is not None:
            digest = None if hashed is None else hashed[1]
            record = tensor_compressed(names[0], fixed, names[1:], digest=digest)
        if record is not None:
            self._give(copies)
        else:
            record = tensor_stored(names[0], fixed, names[1:], hashed=hashed)
            if copies:
                self._borrowed[id(record)] = copies
        if record.payload_length >= self._spill_bytes:
            placed = self._spill(record)
            self._spilled.update({keys.TENSORS + item: placed for item in names})
        else:
            self._large.update({keys.TENSORS + item: record for item in names})

    def _fixed(self, prepared: Prepared) -> tuple[Prepared, list[memoryview]]:
        """Return a value that stays as it is, and the memory that was taken for it."""
        copies: list[memoryview] = []
        if not self._fix or prepared.owned or prepared.nbytes >= self._spill_bytes:
            return prepared, copies
        for part in prepared.buffers:
            copy = self._buffers.take(len(part))
            copy[:] = part
            copies.append(copy)
        return prepared._replace(buffers=tuple(copies)), copies

    # --- bytes that are there already -------------------------------------------------------------

    def _looked_up(self, asked: Asked, hashed: Hashed | None) -> Hashed | None:
        """Return what a large tensor is hashed to; None where it is staged without bytes."""
        names, prepared, buffers = asked
        if hashed is None:
            key = keys.TENSORS + names[0]
            owner = self.references.find_unchanged(key, buffers, prepared.nbytes)
            if owner is not None and self._refer(asked, owner):
                self._digests.setdefault(owner.digest, key)
                return None
        looked = hashed or hash_to_look(buffers, prepared.nbytes)
        return None if self._is_here(asked, looked[1]) else hashed_to_store(looked, buffers)

    def _is_here(self, asked: Asked, digest: bytes) -> bool:
        """Stage names without bytes where the batch or the store has them already.

        The bytes are compared as they are in the buffers, which may be used for others afterwards.
        """
        key, nbytes = keys.TENSORS + asked.names[0], asked.prepared.nbytes
        holder = self._digests.get(digest)
        if holder is not None and self._share(holder, asked, digest):
            self.references.note_shared(nbytes)
            return True
        self._digests[digest] = key
        owner = self.references.find(key, asked.buffers, nbytes, digest)
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
        pack, record = self._where.get(holder), self._large.get(holder)
        if reference is not None:
            for key in added:
                same = reference.prepared._replace(attr=attr)
                self.references.add(key, same, reference.owner)
        elif pack is not None and pack.has_room(0, len(names)):
            pack.drafts.update(drafts_like(pack.drafts[holder], added, attr))
            self._where.update(dict.fromkeys(added, pack))
        elif record is not None and len(record.drafts) + len(added) <= PACK_ENTRIES:
            record.drafts = with_names(record, holder, added, attr)
            self._large.update(dict.fromkeys(added, record))
        else:
            return self._share_spilled(holder, added, attr)
        return True

    def _share_spilled(self, holder: bytes, added: list[bytes], attr: bytes) -> bool:
        """Name bytes that are written already once more, if the longer frame still ends there.

        What is spilled starts on a page, so that some 2 KiB are free in front of it, mostly.
        """
        placed = self._spilled.get(holder)
        if placed is None:
            return False
        record = placed.record
        before, record.drafts = record.drafts, with_names(record, holder, added, attr)
        if place(record, placed.offset) != placed:
            record.drafts = before
            return False
        self._spilled.update(dict.fromkeys(added, placed))
        return True

    def _give(self, copies: list[memoryview]) -> None:
        for part in copies:
            self._buffers.give(part)

    def _give_back(self, record: Record) -> None:
        self._give(self._borrowed.pop(id(record), []))

    def _spill(self, record: Record) -> Placed:
        pending = self.open_pending()
        pending.add([record])
        return pending.placed[-1]

    def open_pending(self) -> PendingSegment:
        """Return the pending segment of this transaction, opened when first needed."""
        if self.pending is None:
            self.pending = self._new_pending()
        return self.pending

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
        record = self._large.pop(key, None)
        if record is None:
            placed = self._spilled.pop(key, None)
            record = None if placed is None else placed.record
            self._outdated |= placed is not None
        if record is not None:
            record.drafts = [draft for draft in record.drafts if draft[0] != key]
            if not record.drafts:
                self._give_back(record)

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
        record = self._large.get(key)
        if record is not None:
            draft = draft_of(record, key)
            data = tuple(record.payload)
            return Staged(draft.attr, data, False, None, draft.encoding, draft.digest)
        placed = self._spilled.get(key)
        if placed is not None:
            draft = draft_of(placed.record, key)
            return Staged(draft.attr, None, False, placed, draft.encoding, draft.digest)
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
        for table in (self._where, self._large, self._spilled, self.references, self.patches):
            for key in table:
                if key.startswith(prefix):
                    yield key, True
        for key, change in self._changes.items():
            if key.startswith(prefix):
                yield key, change.attr is not None

    def looked_up(self) -> dict[bytes, bytes]:
        """Digests and keys of what was looked up and is stored with bytes."""
        where, large, spilled = self._where, self._large, self._spilled
        return {
            digest: key
            for digest, key in self._digests.items()
            if key in where or key in large or key in spilled
        }

    # --- committing -------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Return the records not yet in the pending segment; called once."""
        if self._outdated:
            self._spill_again()
        packs = self._packs.records()
        large = {id(record): record for record in self._large.values()}.values()
        changes = records_of(self._changes.values())
        return [*packs, *large, *self.patches.records(), *changes]

    def _spill_again(self) -> None:
        """Move what is left of the spilled records to another pending segment.

        A frame's body decides where its payload starts, and the payloads are in place already: a
        record that lost an entry needs another place, and one that lost all of them needs none.
        """
        old, self.pending = self.pending, None
        assert old is not None
        try:
            if self._spilled:
                self.open_pending().take_over(old)
        finally:
            old.discard()

    def discard(self) -> None:
        """Drop everything, the pending segment too; borrowed memory goes to the next transaction.

        Called once the commit has returned, or failed.
        """
        if self.pending is not None:
            self.pending.discard()
        for record in list(self._large.values()):
            self._give_back(record)
        self._packs.give_back()
