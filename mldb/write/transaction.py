"""Transactions: staged writes over one snapshot, committed all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from threading import current_thread, get_ident
from types import TracebackType
from typing import Any, Protocol

from mldb import keys
from mldb.errors import ClosedError, LimitError, TensorNotFoundError, UsageError
from mldb.history import relationships
from mldb.history.as_of import held
from mldb.history.kinds.relationships import relationship_created, relationship_deleted
from mldb.history.kinds.tensors import metadata_set, tensor_deleted
from mldb.history.relationships import Relationship
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.index.address import CommitRow, Lsn
from mldb.log.readers import Hold
from mldb.log.view import View
from mldb.names import check_name
from mldb.tensors.codec import (
    Prepared,
    pack_metadata,
    prepare_named,
    rebuild,
    unpack_descriptor,
    unpack_metadata,
    view_numpy,
)
from mldb.tensors.scope import Scope, read_array
from mldb.write.duplicates import Looked
from mldb.write.metric_plans import MetricRows, PackedRows
from mldb.write.patch_verbs import Found, stage_rows, stage_sum
from mldb.write.rules import ReadCheck, ReadSet
from mldb.write.staged import Staged
from mldb.write.staging import Staging


class Store(Protocol):
    """What a transaction needs of the database that made it."""

    def begin(self) -> Scope:
        """Return the newest head."""

    def metric_rows(self, values: Mapping[str, Any], step: int | None) -> PackedRows:
        """Return the rows of metrics that are logged now."""

    def new_staging(self, *, fix: bool) -> Staging:
        """Return an empty staging area."""

    def commit_staging(
        self, staging: Staging, epoch: int | None, validate: Callable[[View], None] | None
    ) -> CommitRow:
        """Commit what is staged, calling *validate* with the newest head first."""


class Transaction(MutableMapping[str, Any]):
    """The verbs of a database, staged; for one thread. Made by ``with db.transaction() as txn``.

    The thread that enters the block owns it; every call in another one raises UsageError. It is not
    handed over: let other threads return values and stage them here, or begin one in each.
    Reads see the newest commit at the beginning plus the transaction's own writes. Values are fixed
    at the call. Leaving the block commits and sets ``lsn``; an exception rolls back and is
    re-raised. Raises ConflictError at the end when another commit changed a name that was read
    here.
    """

    def __init__(self, store: Store, epoch: int | None) -> None:
        self.lsn: Lsn | None = None
        self._store = store
        self._epoch = epoch
        self._base = store.begin()
        self._staging = store.new_staging(fix=True)
        self._metrics = MetricRows()
        self._reads = ReadSet()
        self._open = False
        self._entered = False
        self._hold: Hold | None = None
        self._owner = 0
        self._owner_name = ""
        self._room: tuple[Any, ...] = ()  # where the compiled twin packs arrays, in its one thread

    # --- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Transaction:
        """Begin. Raises ClosedError the second time."""
        if self._entered:
            raise ClosedError("a transaction is entered once; db.transaction() begins another")
        self._owner, self._owner_name = get_ident(), current_thread().name
        self._open = self._entered = True
        self._room = self._staging.room(self._owner)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit, or roll back when the block raised, or ends in another thread."""
        self._room = ()
        self._open = False
        try:
            if kind is not None:
                return
            if get_ident() != self._owner:
                raise self._foreign("ended")
            if self._metrics:
                self._staging.change(*self._metrics.changes())
            if not self._staging:
                self.lsn = Lsn(self._base.commit.lsn)
                return
            check = ReadCheck(self._base.commit, self._reads)
            if check.is_large():
                check.look(self._store.begin().view)
            row = self._store.commit_staging(self._staging, self._epoch, check)
            self.lsn = Lsn(row.lsn)
        finally:
            self._staging.discard()
            if self._hold is not None:
                self._hold.release()

    def _check(self) -> Staging:
        if not self._open:
            raise ClosedError(
                "this transaction is over, or was not entered; use it inside: with "
                "db.transaction() as txn"
            )
        if get_ident() != self._owner:
            raise self._foreign("used")
        return self._staging

    def _foreign(self, what: str) -> UsageError:
        here = current_thread().name
        return UsageError(
            f"a transaction belongs to the thread that began it ({self._owner_name!r}) and was "
            f"{what} in thread {here!r}, which changed nothing. Let other threads return what is "
            "to be stored and stage it where the transaction began, or begin one in each of them: "
            "they commit one after another."
        )

    # --- writing ----------------------------------------------------------------------------------

    def store_tensor(self, name: str, data: Any, metadata: dict[str, Any] | None = None) -> None:
        """Stage a new version of *name*; see ``MLDatabase.store_tensor``.

        Cost: O(bytes).
        """
        twin = native.twin
        if twin is not None and metadata is None and twin.pack_array(name, data, self._room):
            return  # in one call: what is most common
        staging = self._check()
        key = check_name(name)
        prepared: Prepared = prepare_named(name, data)
        packed = None if metadata is None else pack_metadata(metadata)
        staging.put_tensor(key, prepared)
        if packed is not None:
            staging.change(metadata_set(key, packed))

    def _looker(self) -> Callable[[str, Prepared], Looked | None]:
        """Return what hashes a tensor that will be stored, and looks for its bytes.

        It returns None of one that is not looked for. Any thread calls it, one at a time, while the
        transaction is open; the bytes must stay until :meth:`_store_prepared` returned.
        """
        return self._check().looker()

    def _store_prepared(
        self, names: Sequence[str], prepared: Prepared, looked: Looked | None = None
    ) -> None:
        """Stage one tensor under several names, its bytes once; *looked* is of :meth:`_looker`."""
        staging = self._check()
        key, *others = [check_name(name) for name in names]
        staging.put_tensor(key, prepared, tuple(others), looked)

    def update_tensor(self, name: str, rows: Any, values: Any) -> None:
        """Stage new values for some rows of *name*; see ``MLDatabase.update_tensor``.

        Cost: O(bytes of the rows given).
        """
        stage_rows(self._found(name), rows, values)

    def add_to_tensor(self, name: str, delta: Any, scale: float = 1.0) -> None:
        """Stage *name* plus *scale* times *delta*; see ``MLDatabase.add_to_tensor``.

        Cost: O(bytes of the rows that change), or of the tensor where half of them do.
        """
        stage_sum(self._found(name), delta, scale)

    def _found(self, name: str) -> Found:
        """A tensor whose rows are to be changed; it counts as read."""
        staged = self._read(keys.TENSORS + check_name(name))
        return Found(self._staging, self._base, name, staged)

    def store_model_layer(self, layer_id: str, weights: Any, biases: Any) -> None:
        """Stage a layer; see ``MLDatabase.store_model_layer``.

        Cost: O(bytes); for a new layer also O(layers).
        """
        stage_layer(self, layer_id, weights, biases)

    def set_metadata(self, name: str, metadata: dict[str, Any]) -> None:
        """Stage new metadata of an existing tensor. Raises TensorNotFoundError."""
        staging = self._check()
        packed = pack_metadata(metadata)
        self._require(name)
        staging.change(metadata_set(check_name(name), packed))

    def delete_tensor(self, name: str) -> None:
        """Stage the end of *name* and its metadata. Raises TensorNotFoundError."""
        self._require(name)
        self._staging.change(*tensor_deleted(check_name(name)))

    def create_relationship(
        self, source: str, target: str, kind: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Stage source -> target of this kind, replacing its metadata when it exists."""
        staging = self._check()
        packed = pack_metadata(metadata or {})
        ends = check_name(source), check_name(target)
        staging.change(*relationship_created(*ends, check_name(kind), packed))

    def delete_relationship(self, source: str, target: str, kind: str) -> None:
        """Stage the end of a relationship. Raises MissingError."""
        staging = self._check()
        ended = relationship_deleted(check_name(source), check_name(target), check_name(kind))
        relationships.require_relationship(self._exists(ended[0].key), source, target, kind)
        staging.change(*ended)

    def log(self, values: Mapping[str, Any], *, step: int | None = None) -> None:
        """Stage metrics of this commit; see ``MLDatabase.log``.

        Several calls are several points. Raises LimitError from 1 MiB of points of the same names.
        """
        self._check()
        if not self._metrics.add(self._store.metric_rows(values, step)):
            raise LimitError(
                f"this transaction has as many points of {', '.join(values)[:80]!r} as one commit "
                f"holds ({fmt.ATTR_BYTES_MAX} bytes). This call was not staged; commit and go on "
                "in another transaction."
            )

    def __setitem__(self, name: str, data: Any) -> None:
        """``txn[name] = data`` is :meth:`store_tensor`."""
        self.store_tensor(name, data)

    def __delitem__(self, name: str) -> None:
        """``del txn[name]`` is :meth:`delete_tensor`."""
        self.delete_tensor(name)

    # --- reading ----------------------------------------------------------------------------------

    def _keep_base(self) -> None:
        """Register the snapshot at the first read, so that compaction keeps it."""
        if self._hold is None:
            self._base, self._hold = held(self._base)

    def _read(self, key: bytes) -> Staged | None:
        """Return what is staged for *key*; otherwise note that the base is read."""
        staged = self._check().read(key)
        if staged is None and key not in self._reads.keys:
            self._keep_base()
            entry = self._base.find(key)
            self._reads.keys[key] = 0 if entry is None else entry.commit_lsn
        return staged

    def _exists(self, key: bytes) -> bool:
        staged = self._read(key)
        return self._reads.keys[key] > 0 if staged is None else not staged.deleted

    def _require(self, name: str) -> None:
        if not self._exists(keys.TENSORS + check_name(name)):
            self._base.tensor_entry(name)  # raises with a suggestion when the base lacks it too
            raise TensorNotFoundError(f"tensor {name!r} was deleted in this transaction")

    def query_tensor(self, name: str) -> Any:
        """Return the staged or base version of *name*, read-only; raises TensorNotFoundError.

        Cost: as ``MLDatabase.query_tensor``; O(bytes) of what is staged.
        """
        key = keys.TENSORS + check_name(name)
        staged = self._read(key)
        if staged is None:
            return read_array(self._base, self._base.tensor_entry(name), name)
        if staged.deleted:
            raise TensorNotFoundError(f"tensor {name!r} was deleted in this transaction")
        what = unpack_descriptor(staged.attr)
        found = Found(self._staging, self._base, name, staged)
        data = self._staging.staged_bytes(staged) if staged.patch is None else found.bytes()
        data = memoryview(data).toreadonly()
        return view_numpy(what, data) if what.layout == "dense" else rebuild(what, data)

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of *name* as this transaction sees it. Raises TensorNotFoundError."""
        self._require(name)
        key = keys.METADATA + check_name(name)
        staged = self._read(key)
        if staged is not None:
            return {} if staged.deleted else unpack_metadata(staged.attr)
        return self._base.metadata(name)

    def __getitem__(self, name: str) -> Any:
        """``txn[name]`` is :meth:`query_tensor`."""
        return self.query_tensor(name)

    def __contains__(self, name: object) -> bool:
        """Whether the tensor exists in this transaction."""
        try:
            return isinstance(name, str) and self._exists(keys.TENSORS + check_name(name))
        except ValueError:
            return False

    def __iter__(self) -> Iterator[str]:
        """Yield the names of tensors in byte order; the set of names counts as read."""
        names = list(self._note_listing(keys.TENSORS).names())
        staged = {keys.name_of(key): has for key, has in self._staging.keys(keys.TENSORS)}
        if staged:
            kept = {name for name in names if staged.get(name, True)}
            kept.update(name for name, exists in staged.items() if exists)
            names = sorted(kept)  # text sorts as its bytes do
        return iter(names)

    def __len__(self) -> int:
        """How many tensors exist in this transaction; the set of names counts as read."""
        base = self._note_listing(keys.TENSORS)
        count = base.count_names()
        for key, exists in dict(self._staging.keys(keys.TENSORS)).items():
            count += exists - (base.find(key) is not None)
        return count

    def __eq__(self, other: object) -> bool:
        """A transaction equals itself only."""
        return self is other

    def __hash__(self) -> int:
        """By identity."""
        return id(self)

    def relationships(
        self, source: str | None = None, target: str | None = None, kind: str | None = None
    ) -> list[Relationship]:
        """Return the matching relationships as this transaction sees them.

        Cost: as ``MLDatabase.relationships``, and O(relationships staged).
        """
        prefix = relationships.prefix_of(source, target, kind)
        base = self._note_listing(prefix)
        found = {
            key: (entry.attr, entry.commit_lsn)
            for key, entry in relationships.matching(base, source, target, kind)
        }
        for key, exists in self._staging.keys(prefix):
            staged = self._staging.read(key)
            if not exists or staged is None:
                found.pop(key, None)
            elif relationships.matches(key, source, target, kind):
                found[key] = staged.attr, 0
        every = [relationships.relationship(key, *stored) for key, stored in found.items()]
        return sorted(every, key=lambda item: (item.source, item.kind, item.target))

    def _note_listing(self, prefix: bytes) -> Scope:
        """Note that the keys under *prefix* are read; return the snapshot to read them from."""
        self._check()
        self._keep_base()
        self._reads.listings.add(prefix)
        return self._base


def stage_layer(txn: Transaction, layer_id: str, weights: Any, biases: Any) -> None:
    """Stage ``{layer}_weights`` and ``{layer}_biases``, their metadata and their relationship.

    The metadata are type, layer and position: the one that the layer has, or the number of layers
    before it.
    """
    names = f"{layer_id}_weights", f"{layer_id}_biases"
    position = txn.metadata(names[0]).get("position") if names[0] in txn else None
    if position is None:
        position = len(txn.relationships(kind=LAYER_PARAMS))
    common = {"layer": layer_id, "position": position}
    txn.store_tensor(names[0], weights, {"type": "weights", **common})
    txn.store_tensor(names[1], biases, {"type": "biases", **common})
    txn.create_relationship(*names, LAYER_PARAMS)


LAYER_PARAMS = "layer_params"
