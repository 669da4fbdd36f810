"""The writing verbs: tensors, metadata, layers, relationships, and the transactions they run in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mldb import keys
from mldb.errors import ConflictError, InvalidValueError
from mldb.history.kinds import TENSOR_STORED
from mldb.history.kinds.tensors import metadata_set, small_tensor_stored, tensor_stored
from mldb.integers import integer
from mldb.log import native
from mldb.log.frame import Record
from mldb.log.index.address import Lsn
from mldb.names import check_name
from mldb.tensors.codec import Prepared, known_arrays, pack_metadata, prepare_named
from mldb.write.handle import Handle
from mldb.write.rules import check_epoch

if TYPE_CHECKING:
    import numpy.typing as npt

    from mldb.log.pending import PendingSegment
    from mldb.tensors.casting import Casting
    from mldb.write.tensor_writer import TensorWriter
    from mldb.write.transaction import Transaction

_Result = TypeVar("_Result")


class WriteVerbs(Handle):
    """What changes tensors and relationships. Any thread; commits queue at the commit lock."""

    def transaction(self, epoch: int | None = None) -> Transaction:
        """Return a transaction: ``with db.transaction() as txn``; all or nothing.

        *epoch* labels the commit; None takes the head's epoch. Raises EpochOrderError,
        ConflictError, LockedError, StorageFullError at the end of the block; then nothing is
        stored.

        Cost: O(bytes stored); the commit O(names read), and O(what others committed since it began)
        where names were listed.
        """
        from mldb.write.transaction import Transaction

        self._guard()
        return Transaction(self, check_epoch(epoch))

    def transact(
        self, fn: Callable[[Transaction], _Result], *, retries: int = 10, epoch: int | None = None
    ) -> _Result:
        """Run ``fn(txn)`` in a transaction, again after a ConflictError, and return its result.

        The last of *retries* further attempts lets the ConflictError through. *fn* must have no
        effects of its own that may not happen twice. Raises what *fn* and the commit raise.
        """
        retries = integer("retries", retries)
        if retries < 0:
            raise InvalidValueError(f"retries={retries} is below 0")
        for attempt in range(retries + 1):
            try:
                with self.transaction(epoch) as txn:
                    return fn(txn)
            except ConflictError:
                if attempt == retries:
                    raise
                # Spread the retries of competing writers; the pid makes processes differ.
                time.sleep(
                    0.0005 * (1 + (os.getpid() + threading.get_ident()) % 7) * min(attempt + 1, 8)
                )
        raise AssertionError("unreachable")

    def store_tensor(
        self,
        name: str,
        data: Any,
        metadata: dict[str, Any] | None = None,
        *,
        epoch: int | None = None,
    ) -> Lsn:
        """Store a new version of tensor *name*; return the LSN of its commit.

        *data*: NumPy array or scalar, torch tensor (any device), SciPy or torch sparse, ml_dtypes
        array, list of numbers; dtype, byte order, shape and layout are kept. *metadata*: a dict of
        plain values; None leaves it as it is, {} clears it. Bytes that the store has already are
        not stored again (``Options.deduplicate``). Raises InvalidNameError, InvalidTypeError,
        LimitError, EpochOrderError, StorageFullError, LockedError, ReadOnlyError, ClosedError; then
        nothing is stored.

        Cost: O(bytes): a hash and a write of them, from their own memory where they are contiguous.
        """
        if self._background.busy():
            self._settle_background()
        twin = native.twin
        if twin is not None and metadata is None:
            below = self._plain_below
            small = twin.small_record(TENSOR_STORED, name, data, known_arrays, Record, below)
            if small is not None:
                return Lsn(self._commit([small], epoch).lsn)
        key = check_name(name)
        prepared = prepare_named(name, data)
        packed = None if metadata is None else pack_metadata(metadata)
        if prepared.nbytes > self.options.segment_bytes or self.options.compression is not None:
            return self._store_staged(key, prepared, packed, epoch)
        if prepared.nbytes >= self._duplicates.least:
            return self._store_looked_up(key, prepared, packed, epoch)
        record = small_tensor_stored(key, prepared) if packed is None else None
        if record is None:
            record = tensor_stored(key, prepared, metadata=packed)
        return Lsn(self._commit([record], epoch).lsn)

    def _store_looked_up(
        self, name: bytes, prepared: Prepared, packed: bytes | None, epoch: int | None
    ) -> Lsn:
        """Store a tensor, or a reference to the version that has its bytes already."""
        from mldb.write.references import References

        key, view, duplicates = keys.TENSORS + name, self._state.head(), self._duplicates
        buffers, nbytes = prepared.buffers, prepared.nbytes
        looked = duplicates.look_at_newest(view, key, buffers, nbytes)
        owner = looked.owner
        if owner is None:
            looked = looked.with_hash(buffers, nbytes)
            owner = duplicates.find(view, key, buffers, nbytes, looked.digest, looked)
        if owner is not None:
            references = References(self._duplicates, view)
            references.add(key, prepared, owner, packed)
            return Lsn(self._commit_referring(references, [], epoch).lsn)
        hashed = looked.checks, looked.digest
        record = tensor_stored(name, prepared, metadata=packed, hashed=hashed)
        row = self._commit([record], epoch)
        duplicates.note({looked.digest: key}, row.lsn)
        return Lsn(row.lsn)

    def _store_staged(
        self, key: bytes, prepared: Prepared, packed: bytes | None, epoch: int | None
    ) -> Lsn:
        staging = self.new_staging(fix=False)
        try:
            staging.put_tensor(key, prepared)
            if packed is not None:
                staging.change(metadata_set(key, packed))
            return Lsn(self.commit_staging(staging, epoch).lsn)
        finally:
            staging.discard()

    def __setitem__(self, name: str, data: Any) -> None:
        """``db[name] = data`` is :meth:`store_tensor`."""
        self.store_tensor(name, data)

    def create_tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        metadata: dict[str, Any] | None = None,
        *,
        casting: Casting = "safe",
        epoch: int | None = None,
    ) -> TensorWriter:
        """Return a writer of a tensor that may exceed RAM: ``with ... as w: w[a:b] = rows``.

        It is committed when the block ends. *dtype*: a NumPy, ml_dtypes or torch dtype, or the name
        of one. *casting* says which other dtypes the rows may have, as in NumPy ("no", "equiv",
        "safe", "same_kind", "unsafe"); but for "unsafe" no value may become another one, so what
        would be infinite, wrap or be cut is refused. Numbers and lists of them have no dtype: they
        are taken when they fit. Raises LimitError, InvalidTypeError, InvalidValueError,
        ReadOnlyError.

        Cost: O(bytes written).
        """
        from mldb.write.tensor_writer import TensorWriter

        self._guard()
        self._log.sequencer  # noqa: B018 - raises ReadOnlyError before any work is done
        epoch = check_epoch(epoch)

        def publish(pending: PendingSegment, prepared: Prepared, packed: bytes | None) -> Lsn:
            self._settle_background()
            return self._publish_created(pending, prepared, packed, epoch)

        return TensorWriter(
            name,
            shape,
            dtype,
            casting=casting,
            metadata=None if metadata is None else pack_metadata(metadata),
            open_pending=self._log.pending_segment,
            publish=publish,
        )

    def _publish_created(
        self, pending: PendingSegment, prepared: Prepared, packed: bytes | None, epoch: int | None
    ) -> Lsn:
        """Commit what was written piece by piece, or a reference to where its bytes are already."""
        from mldb.write.references import OwnersGone, References

        key, *_, digest = pending.records[0].drafts[0][:6]
        if prepared.nbytes < self._duplicates.least:
            return Lsn(self._commit([], epoch, None, pending).lsn)
        references = References(self._duplicates)
        owner = references.find(key, prepared.buffers, prepared.nbytes, digest)
        if owner is not None:
            references.add(key, prepared, owner, packed)
            try:
                check = references.confirming(None)
                return Lsn(self._commit(references.records(), epoch, check).lsn)
            except OwnersGone:
                self._duplicates.owners_gone += 1
        row = self._commit([], epoch, None, pending)
        self._duplicates.note({digest: key}, row.lsn)
        return Lsn(row.lsn)

    def update_tensor(self, name: str, rows: Any, values: Any, *, epoch: int | None = None) -> Lsn:
        """Give some rows of *name* new values; only they are stored.

        *rows*: numbers of steps of the first axis, each once, in any order (an int, a slice, a
        list, an array). *values*: ``[len(rows), *shape[1:]]``, of the dtype of the tensor. Every
        step stays readable (``as_of``); a read lays the changed rows over the version below, and
        copies the pages that they touch. Raises TensorNotFoundError, InvalidTypeError for another
        dtype and for sparse tensors, InvalidValueError for rows that are not there or stand twice
        and for another shape, and what :meth:`store_tensor` raises; then nothing is stored.

        Cost: O(bytes of the rows given).
        """
        return self._transact(lambda txn: txn.update_tensor(name, rows, values), epoch)

    def add_to_tensor(
        self, name: str, delta: Any, scale: float = 1.0, *, epoch: int | None = None
    ) -> Lsn:
        """Add *scale* times *delta*, of the tensor's shape, dense or sparse, to *name*.

        Of floats and complex numbers, the product is rounded to the tensor's dtype and then the
        sum; those narrower than float32 are computed in float32 and rounded once. Integers are
        exact. Sums follow one another in the order of their commits; entries of a sparse delta that
        stand more than once are first added up in the order in which they stand. Only rows that
        change are stored, and all of them where half of the rows do. Two that add at once are
        committed one after another: neither is lost. Raises as :meth:`update_tensor` does, and
        InvalidValueError for an integer that leaves its range.

        Cost: O(entries of *delta*), and O(bytes of the rows that change), or of the tensor where
        half of them do.
        """
        return self._transact(lambda txn: txn.add_to_tensor(name, delta, scale), epoch)

    def delete_tensor(self, name: str, *, epoch: int | None = None) -> Lsn:
        """End *name* and its metadata from here on.

        Earlier versions stay readable. Raises TensorNotFoundError.
        """
        return self._transact(lambda txn: txn.delete_tensor(name), epoch)

    def __delitem__(self, name: str) -> None:
        """``del db[name]`` is :meth:`delete_tensor`."""
        self.delete_tensor(name)

    def set_metadata(self, name: str, metadata: dict[str, Any], *, epoch: int | None = None) -> Lsn:
        """Replace the metadata of an existing tensor.

        Raises TensorNotFoundError, InvalidTypeError, LimitError.
        """
        return self._transact(lambda txn: txn.set_metadata(name, metadata), epoch)

    def store_model_layer(
        self, layer_id: str, weights: Any, biases: Any, *, epoch: int | None = None
    ) -> Lsn:
        """Store ``{layer}_weights`` and ``{layer}_biases`` as one transaction.

        Their metadata are type ("weights", "biases"), layer and position; the relationship
        ``layer_params`` leads from the weights to the biases.

        Cost: O(bytes); for a new layer also O(layers).
        """
        return self._transact(lambda txn: txn.store_model_layer(layer_id, weights, biases), epoch)

    def _transact(self, fn: Callable[[Transaction], None], epoch: int | None) -> Lsn:
        def run(txn: Transaction) -> Transaction:
            fn(txn)
            return txn

        done = self.transact(run, epoch=epoch)
        assert done.lsn is not None
        return done.lsn

    def create_relationship(
        self,
        source: str,
        target: str,
        kind: str,
        metadata: dict[str, Any] | None = None,
        *,
        epoch: int | None = None,
    ) -> Lsn:
        """Relate two names, tensors or not; an existing relationship gets the new metadata."""
        return self._transact(
            lambda txn: txn.create_relationship(source, target, kind, metadata), epoch
        )

    def delete_relationship(
        self, source: str, target: str, kind: str, *, epoch: int | None = None
    ) -> Lsn:
        """End a relationship from here on. Raises MissingError."""
        return self._transact(lambda txn: txn.delete_relationship(source, target, kind), epoch)
