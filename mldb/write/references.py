"""The references of one batch: staged, confirmed under the commit lock, or stored after all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mldb import keys
from mldb.errors import MldbError, StorageIOError
from mldb.history.kinds.tensors import tensor_referring, tensor_stored, tensors_referring
from mldb.log import format as fmt
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import DraftFields, Record, hash_record
from mldb.log.fs.protocol import Buffer
from mldb.log.pending import PendingSegment
from mldb.log.view import View
from mldb.tensors.codec import Prepared
from mldb.write.duplicates import Duplicates, Looked, Owner, is_owner


class OwnersGone(Exception):
    """Owners of references are there no more: store their bytes. Internal: reaches no user."""


class Reference(NamedTuple):
    """A tensor that has its bytes from *owner*. *prepared* has them too, alive until the commit."""

    draft: DraftFields
    owner: Owner
    prepared: Prepared
    metadata: bytes | None


class References:
    """The references of one batch by key, found in one view. Used by one thread.

    An owner may go between the look and the commit, since only a commit keeps it: a compactor
    prunes it, or a failed sync takes it back. Each of these makes a manifest, so that under the
    lock nothing is to be asked while the manifest is the one of the look. Otherwise each owner is
    looked up again, and where one is gone the bytes are stored: they are still at hand.
    """

    def __init__(self, duplicates: Duplicates | None, view: View | None = None) -> None:
        """Look in *view*, or the head at the first look; without *duplicates* nothing is."""
        self._duplicates = duplicates
        self._view = view
        self._found: dict[bytes, Reference] = {}
        self._instead: list[Record] = []  # of those that were given up

    def __len__(self) -> int:
        """How many there are."""
        return len(self._found)

    def __contains__(self, key: bytes) -> bool:
        """Whether this key is one of them."""
        return key in self._found

    def __iter__(self) -> Iterator[bytes]:
        """The keys."""
        return iter(self._found)

    def get(self, key: bytes) -> Reference | None:
        """Return the reference of *key*."""
        return self._found.get(key)

    def pop(self, key: bytes) -> None:
        """Drop that of *key*, if there is one."""
        self._found.pop(key, None)

    def _looking(self) -> tuple[Duplicates, View]:
        """Return what is asked, and the view of this batch, taken at its first look."""
        duplicates, view = self._duplicates, self._view
        assert duplicates is not None
        if view is None:
            view = self._view = duplicates.head()
        return duplicates, view

    def find(
        self,
        key: bytes,
        buffers: Sequence[Buffer],
        nbytes: int,
        digest: bytes,
        looked: Looked | None = None,
    ) -> Owner | None:
        """Return who has these bytes already in the view of this batch."""
        duplicates, view = self._looking()
        return duplicates.find(view, key, buffers, nbytes, digest, looked)

    def look_at_newest(self, key: bytes, buffers: Sequence[Buffer], nbytes: int) -> Looked:
        """Return who has these bytes, if that is the newest version of *key*; not hashed yet."""
        duplicates, view = self._looking()
        return duplicates.look_at_newest(view, key, buffers, nbytes)

    def take_view(self) -> None:
        """Look in what is the head now; before several threads look."""
        self._looking()

    def look(self, key: bytes, buffers: Sequence[Buffer], nbytes: int) -> Looked:
        """Return the same, and the bytes hashed where nobody has them. Any thread.

        Checksums too: when they are needed the bytes will not be in the cache any more.
        """
        looked = self.look_at_newest(key, buffers, nbytes)
        if looked.owner is not None:
            return looked
        return Looked(looked.newest, None, *checks_and_digest(buffers, fmt.BLOCK_LOG2))

    def note_shared(self, nbytes: int) -> None:
        """Count a tensor whose bytes another one of the batch has."""
        assert self._duplicates is not None
        self._duplicates.note_shared(nbytes)

    def rival(self, key: bytes, nbytes: int) -> bytes | None:
        """Return the digest of the one version that so few bytes are compared with.

        It is empty where there is none; None where there may be more: then ask :meth:`find`.
        """
        duplicates, view = self._duplicates, self._view
        if duplicates is None or nbytes >= duplicates.least:
            return None
        return duplicates.rival(self._looking()[1] if view is None else view, key)

    def compared(self, most: int) -> tuple[View | None, int]:
        """Return the view that rivals are looked for in, and below how many bytes; *most* at most.

        Without duplicates there is no view.
        """
        if self._duplicates is None:
            return None, 0
        duplicates, view = self._looking()
        duplicates.begin(view)
        return view, min(most, duplicates.least)

    def note_new(self, count: int = 1) -> None:
        """Count tensors that were compared with their :meth:`rival`, and are others."""
        if count:
            assert self._duplicates is not None
            self._duplicates.looked_up += count

    def add(
        self, key: bytes, prepared: Prepared, owner: Owner, metadata: bytes | None = None
    ) -> None:
        """Let *key* refer to *owner*. The buffers of *prepared* live and stay until the commit."""
        draft = tensor_referring(key, prepared.attr, owner.key, owner.lsn, owner.digest)
        self._found[key] = Reference(draft, owner, prepared, metadata)

    # --- committing -------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Return the records of all references, and what is stored instead of some."""
        if not self._found:
            return list(self._instead)
        return [
            *tensors_referring((item.draft, item.metadata) for item in self._found.values()),
            *self._instead,
        ]

    def confirming(self, validate: Callable[[View], None] | None) -> Callable[[View], None] | None:
        """Return what checks a head under the commit lock: *validate*, then the owners.

        It raises OwnersGone.
        """
        if not self._found:
            return validate  # a plain commit decides faster without

        def check(view: View) -> None:
            if validate is not None:
                validate(view)
            if self._view is None or view.number != self._view.number:
                self._view = view
                if any(not _has_owner(view, item.owner) for item in self._found.values()):
                    raise OwnersGone

        return check

    def give_up(self, pending: PendingSegment | None) -> None:
        """Store the bytes of those whose owner was not there: in *pending* where there is one.

        Raises StorageIOError when these bytes are no longer what they were.
        """
        duplicates, view = self._duplicates, self._view
        assert duplicates is not None
        assert view is not None
        gone = [item for item in self._found.values() if not _has_owner(view, item.owner)]
        records = list(map(_with_bytes, gone))
        for item in gone:
            del self._found[item.draft[0]]
        duplicates.owners_gone += len(gone)
        if pending is None:
            self._instead += records
        else:
            pending.add(records)


def _with_bytes(item: Reference) -> Record:
    """Return a record with the bytes of a reference, hashed again and compared.

    A mapped file whose sync failed may lose what was in it.
    """
    key = item.draft[0]
    name = key[len(keys.TENSORS) :]
    record = tensor_stored(name, item.prepared, metadata=item.metadata)
    hash_record(record)
    if record.drafts[0][5] != item.owner.digest:
        raise StorageIOError(
            f"the bytes of {keys.name_of(key)[:80]!r} were to be those of commit {item.owner.lsn}, "
            "which was taken back, and cannot be read any more. Nothing was stored; store it again."
        )
    return record


def _has_owner(view: View, owner: Owner) -> bool:
    try:
        return is_owner(view.version_at(owner.key, owner.lsn), owner.digest)
    except MldbError:  # of a damaged index: a reader would not find it either
        return False
