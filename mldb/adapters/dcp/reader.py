"""The storage reader: parts of tensors, for any number of ranks, straight from the store."""

from __future__ import annotations

import os
from contextlib import closing
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

import mldb
from mldb.adapters.dcp.document import DOCUMENT, DOCUMENT_BYTES_MAX, Document, decode_document
from mldb.adapters.dcp.interface import (
    TESTED,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    DefaultLoadPlanner,
    Future,
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    Metadata,
    ReadItem,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
    TorchReader,
    set_element,
    torch,
)
from mldb.adapters.dcp.layout import Box, BoxedTensor
from mldb.adapters.dcp.values import decode_value, opaque_of
from mldb.adapters.dcp.writer import is_checkpoint_name
from mldb.errors import (
    ConflictError,
    CorruptError,
    InvalidTypeError,
    InvalidValueError,
    MissingError,
    MldbError,
    TensorNotFoundError,
    UsageError,
)
from mldb.history.as_of import AsOf
from mldb.history.checkpoints import Checkpoint
from mldb.tensors.codec import dense_descriptor, view_torch
from mldb.tensors.dtypes import torch_dtype

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.query.surface import Snapshot
    from mldb.tensors.handle import TensorHandle

# Bits are copied, as integers of the size of an element: that works for every dtype.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StorageReader(TorchReader):
    """Reads checkpoints of torch.distributed.checkpoint from the store at *path*.

    Every rank makes its own. ``checkpoint_id`` of a load is the name of a checkpoint; without, it
    is the newest at *as_of* (an epoch, a commit, a time, a tag; the head). All ranks must find the
    same one, or each raises ConflictError: name it where others save meanwhile. It loads under any
    number of ranks, also in one process (``no_dist=True``), and tensors of another dtype are cast,
    as torch does. *options* are those of ``mldb.open``.

    Raised by every rank, as torch's CheckpointException with each rank's own error: MissingError
    for a checkpoint that is not there, CorruptError, VersionGoneError.
    """

    def __init__(self, path: str | os.PathLike[str], *, as_of: AsOf = None, **options: Any) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.as_of = as_of
        self.options = options
        self.checkpoint_id: str | None = None
        self._open: _Load | None = None
        self._failed: MldbError | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a load of the checkpoint of this name; without, of the newest at ``as_of``."""
        self.close()
        self.checkpoint_id = None if checkpoint_id is None else os.fspath(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Open the store and return what the checkpoint holds. Raises MissingError, CorruptError.

        torch asks a second time, for a checkpoint of one *rank*, when the first time raised; then
        the error is kept for :meth:`set_up_storage_reader`, which raises it as it is.
        """
        self.close()
        if "rank" in kwargs and self._failed is not None:
            return Metadata({})
        self._failed = None
        try:
            self._open = _Load(self)
        except MldbError as error:
            self._failed = error
            raise
        return _metadata_of(self._open.document)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Take part in a load. Raises what :meth:`read_metadata` raised before."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Note in the plan which commit this rank reads."""
        plan.storage_data = self._load().lsn
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """On the coordinator: refuse ranks that found different checkpoints."""
        found = sorted({int(plan.storage_data) for plan in plans})
        if len(found) > 1:
            raise ConflictError(
                f"the ranks found different checkpoints, of commits {found}: another was stored "
                "meanwhile. Name one with checkpoint_id, or load again."
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of this rank and hand over its values. Raises CorruptError."""
        load = self._load()
        future: Future[None] = Future()
        try:
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    _give_value(load.document, item, planner)
                else:
                    load.fill(item, planner)
        finally:
            self.close()
        future.set_result(None)
        return future

    def close(self) -> None:
        """Close the store; harmless when it is not open."""
        load, self._open = self._open, None
        if load is not None:
            load.db.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it may be the name of a checkpoint."""
        return is_checkpoint_name(checkpoint_id)

    def _load(self) -> _Load:
        if self._open is None:
            raise UsageError("the reader is not in a load: dcp.load begins with read_metadata()")
        return self._open

    def __getstate__(self) -> dict[str, Any]:
        """What it was given; an open store stays here."""
        return {**self.__dict__, "_open": None, "_failed": None}


def list_checkpoints(
    path: str | os.PathLike[str], *, as_of: AsOf = None, **options: Any
) -> list[Checkpoint]:
    """Return the distributed checkpoints of a store, oldest first; not those of ``db.checkpoint``.

    Costs a look at every checkpoint. *options* are those of ``mldb.open``.
    """
    with mldb.open(path, mode="r", **options) as db, db.at(as_of) as snapshot:
        return _distributed(snapshot)


def _distributed(snapshot: Snapshot) -> list[Checkpoint]:
    lsns = {version.lsn for version in snapshot.history(DOCUMENT)} if DOCUMENT in snapshot else ()
    return [each for each in snapshot.checkpoints() if each.lsn in lsns]


class _Load:
    """One load on one rank: the open store, and the document of the checkpoint."""

    def __init__(self, reader: StorageReader) -> None:
        self.db: MLDatabase = mldb.open(reader.path, mode="r", **reader.options)
        try:
            name = reader.checkpoint_id
            self._snapshot = self._found(reader.as_of if name is None else name, name)
            self.document = decode_document(bytes(self._document.decoded()))
            self._handles: dict[str, TensorHandle] = {}
            for fqn, what in self.document.tensors.items():
                for box, stored in what.boxes:
                    self._handles[stored] = self._checked(fqn, what, box, stored)
        except BaseException:
            self.db.close()
            raise

    def _found(self, as_of: AsOf, name: str | None) -> Snapshot:
        with closing(self.db.at(as_of)) as at:
            try:
                self._document = at.tensor(DOCUMENT)
            except TensorNotFoundError:
                self._refuse(at, "there is none of torch.distributed.checkpoint")
            self.lsn = self._document.lsn
            if name is not None and int(self.lsn) != int(at.lsn):
                self._refuse(at, f"{name!r} is none of torch.distributed.checkpoint")
            if self._document.nbytes > DOCUMENT_BYTES_MAX:
                raise CorruptError(f"{self._document.nbytes} bytes of metadata", key=DOCUMENT)
        return self.db.at(lsn=int(self.lsn))

    def _refuse(self, at: Snapshot, problem: str) -> None:
        shown = [each.name for each in _distributed(at)[-8:]]
        there = f"There are, newest last: {', '.join(shown)}" if shown else "It has no such at all"
        raise MissingError(f"no checkpoint to load in {self.db.path}: {problem}. {there}.")

    def _checked(self, fqn: str, what: BoxedTensor, box: Box, name: str) -> TensorHandle:
        """The handle of a tensor or part; torch allocates by what the document says of it."""
        try:
            handle = self._snapshot.tensor(name)
        except TensorNotFoundError as error:
            raise CorruptError(
                f"tensor {fqn!r:.300} of the checkpoint of commit {self.lsn} is not in the store. "
                "The others stay readable under their names.",
                key=name,
            ) from error
        found = handle.descriptor
        if found.layout != "dense" or (found.dtype, found.shape) != (what.dtype, box.sizes):
            raise CorruptError(
                f"tensor {fqn!r:.300} is stored as {found.dtype} of shape {found.shape}, the "
                f"metadata of its checkpoint says {what.dtype} of shape {box.sizes}.",
                key=name,
            )
        return handle

    def fill(self, item: ReadItem, planner: LoadPlanner) -> None:
        """Read one part into the tensor that the planner gives."""
        target = planner.resolve_tensor(item).detach()
        fqn = item.storage_index.fqn
        what = self.document.tensors[fqn]
        start = tuple(item.storage_index.offset or ())
        name = next((name for box, name in what.boxes if box.offsets == start), what.boxes[0][1])
        handle = self._handles[name]
        lengths = tuple(item.lengths)
        if tuple(target.shape) != lengths:
            raise InvalidValueError(
                f"{fqn!r:.300} has {lengths} to load, the planner gave {tuple(target.shape)}"
            )
        if target.numel():
            box = zip(item.storage_offsets, lengths, strict=True)
            key = tuple(slice(at, at + length) for at, length in box)
            _copy(handle[key] if key else handle.numpy(), what.dtype, target)
        planner.commit_tensor(item, target)


def _copy(array: np.ndarray[Any, Any], dtype: str, target: torch.Tensor) -> None:
    """Copy bits where the dtype is the same and the memory the host's; cast otherwise."""
    bits = _BITS.get(target.element_size())
    same = target.dtype == torch_dtype(dtype)
    if same and target.is_cpu and bits is not None:
        numbers = target.view(bits).numpy()
        np.copyto(numbers, array.view(numbers.dtype))
        return
    data = bytearray(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    target.copy_(view_torch(dense_descriptor(array.shape, dtype), data))


def _metadata_of(document: Document) -> Metadata:
    entries: dict[str, Any] = {fqn: BytesStorageMetadata() for fqn in document.values}
    for fqn, what in document.tensors.items():
        entries[fqn] = TensorStorageMetadata(
            TensorProperties(dtype=torch_dtype(what.dtype)),
            torch.Size(what.shape),
            [
                ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
                for box, _ in what.boxes
            ],
        )
    paths = None if document.paths is None else dict(document.paths)
    return Metadata(entries, planner_data=paths, storage_meta=StorageMeta())


def _give_value(document: Document, item: ReadItem, planner: LoadPlanner) -> None:
    """Put a plain value where torch's own planners put what they unpickle, without a pickle."""
    fqn, plain = item.dest_index.fqn, DefaultLoadPlanner
    stored = document.values[item.storage_index.fqn]
    opaque = opaque_of(stored)
    own = isinstance(planner, plain) and type(planner).load_bytes is plain.load_bytes
    if own and opaque is None:
        assert isinstance(planner, plain)
        value = decode_value(fqn, stored)
        if planner.flatten_state_dict:
            set_element(planner.original_state_dict, planner.mappings[fqn], value)
        else:
            planner.state_dict[fqn] = value
    elif not own and opaque is not None:
        planner.load_bytes(item, BytesIO(opaque))
    else:
        saved = "plain values" if opaque is None else "bytes of a planner's own"
        raise InvalidTypeError(
            f"{fqn!r:.300} was saved as {saved}, which {type(planner).__name__} of torch "
            f"{torch.__version__} (tested: {TESTED}) does not load: nothing is unpickled. Load "
            "with a planner that goes with the one that saved."
        )
