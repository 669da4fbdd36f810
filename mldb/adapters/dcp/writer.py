"""The storage writer: ranks write side by side into one file, the coordinator commits it."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Final, NamedTuple

import mldb
from mldb.adapters.dcp.document import DOCUMENT, Document, encode_document
from mldb.adapters.dcp.interface import (
    DefaultSavePlanner,
    Future,
    Metadata,
    SavePlan,
    SavePlanner,
    TorchWriter,
    WriteItem,
    WriteItemType,
    WriteResult,
    torch,
)
from mldb.adapters.dcp.layout import Box, BoxedTensor, place_tensor, runs
from mldb.adapters.dcp.tree import skeleton_of_document
from mldb.adapters.dcp.values import encode_opaque, encode_value
from mldb.errors import InvalidTypeError, InvalidValueError, UsageError
from mldb.log.fs.machine import boot_id
from mldb.names import check_name
from mldb.options import Durability
from mldb.tensors.codec import prepare_named
from mldb.tensors.dtypes import code_of, itemsize_of
from mldb.write.shared_checkpoint import SharedCheckpoint, SharedFile

_NOTHING: Final = "Nothing was stored."


class _Place(NamedTuple):
    """Where the item of a plan goes: the tensor's shape, its box there, and the file offset."""

    name: str
    offset: int
    shape: tuple[int, ...]
    box: Box


class _Places(NamedTuple):
    """What the coordinator tells a rank: the file, its machine, and the place of each tensor."""

    file: str
    machine: str
    items: dict[Any, _Place]  # by MetadataIndex


class _Written(NamedTuple):
    """What a rank tells of one item: hashes of a tensor that it wrote all of, or a plain value."""

    name: str = ""
    checks: bytes = b""
    digest: bytes = b""
    value: bytes | None = None


class _Save:
    """One save on the coordinator: the open store, the shared checkpoint, and its tensors."""

    def __init__(self, writer: StorageWriter, ranks: int) -> None:
        self.db = mldb.open(writer.path, durability=writer.durability, **writer.options)
        self.ranks = ranks
        self.tensors: dict[str, BoxedTensor] = {}
        self.shared: SharedCheckpoint | None = None
        try:
            self.shared = self.db.shared_checkpoint(
                epoch=writer.epoch,
                step=writer.step,
                name=writer.checkpoint_id,
                metrics=writer.metrics,
            )
        except BaseException:
            self.db.close()
            raise

    def drop(self) -> None:
        """Discard what is not committed, and close."""
        shared, self.shared = self.shared, None
        if shared is not None:
            shared.discard()
        self.db.close()


class StorageWriter(TorchWriter):
    """Writes checkpoints of torch.distributed.checkpoint into the store at *path*.

    Every rank makes its own, of the same arguments; one may be used for many saves, one at a time,
    sync or async. It holds only what it was given and opens the store in a save, so that it
    travels to the process of an async save. ``checkpoint_id`` of a save is the name of the
    checkpoint, ``epoch-3`` without; *epoch* (that of the head), *step* and *metrics* are as in
    ``db.checkpoint`` and may be set between saves. *options* are further ones of ``mldb.open``.

    What goes wrong on a rank is raised by every rank, as torch's CheckpointException, which has
    each rank's own error: StorageFullError, EpochOrderError, InvalidTypeError for what cannot be
    stored. Then nothing is stored, and the file is gone with the next save, :meth:`close`, or the
    writer. That of a coordinator that was killed goes with the next save of anybody.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        epoch: int | None = None,
        step: int | None = None,
        metrics: dict[str, Any] | None = None,
        durability: Durability = "commit",
        **options: Any,
    ) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.epoch, self.step, self.metrics = epoch, step, metrics
        self.durability: Durability = durability
        self.options = options
        self.checkpoint_id: str | None = None
        self._save: _Save | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a save: drop what is left of an earlier one. *checkpoint_id* is its name."""
        self.close()
        self.checkpoint_id = None if checkpoint_id is None else os.fspath(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take part in a save. Raises UsageError for one without collectives."""
        self.close()
        if not kwargs.get("use_collectives", True):
            raise UsageError(
                "a save without collectives (use_collectives=False) has no moment at which all "
                f"ranks are done, so it cannot be one commit. Leave it out. {_NOTHING}"
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is, once its items can be stored."""
        for item in plan.items:
            if item.tensor_data is None:
                continue
            properties = item.tensor_data.properties
            layout = getattr(properties, "layout", torch.strided)
            if layout is not torch.strided:
                raise InvalidTypeError(
                    f"{item.index.fqn!r:.300} is a tensor of layout {layout}, which torch's "
                    f"planners do not take apart. Save its indices and values. {_NOTHING}"
                )
            code_of(properties.dtype)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: open the store, reserve a place for everything, tell each rank."""
        for plan in plans:
            _refuse_cached(plan.usable)
        self.close()
        save = self._save = _Save(self, len(plans))
        try:
            assert save.shared is not None
            tensors = _tensors_of(plans)
            offsets: dict[str, int] = {}
            for fqn, what in tensors.items():
                for box, name in what.boxes:
                    offsets[name] = save.shared.reserve(name, box.sizes, what.dtype)
                save.tensors[fqn] = what
            save.shared.allocate()
            file = save.shared.file
            return [
                dataclasses.replace(
                    plan, storage_data=_Places(file, boot_id(), _places(plan, tensors, offsets))
                )
                for plan in plans
            ]
        except BaseException:
            self.close()
            raise

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the items of this rank. Raises what a rank raises; the others learn of it."""
        future: Future[list[WriteResult]] = Future()
        try:
            _refuse_cached(not getattr(planner, "_enable_plan_caching", False))
            places = plan.storage_data
            if not isinstance(places, _Places):
                raise InvalidValueError(f"the planner dropped storage_data of the plan. {_NOTHING}")
            if places.machine != boot_id():
                raise UsageError(
                    f"this rank runs on another machine than the coordinator, and {self.path} is "
                    f"written through the memory of one. {_NOTHING} Save from one machine."
                )
            with SharedFile(self.path, places.file) as file:
                future.set_result([_write(file, item, planner, places) for item in plan.items])
        except BaseException:
            self.close()
            raise
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: the one commit. Raises what ``db.checkpoint`` raises."""
        save = self._save
        if save is None or save.shared is None:
            raise UsageError(f"finish() without a save that was prepared. {_NOTHING}")
        try:
            values = _take(save, [result for part in results for result in part])
            entries = save.tensors.keys() | values.keys()
            missing = sorted(metadata.state_dict_metadata.keys() - entries)
            if missing:
                raise InvalidValueError(
                    f"no rank wrote {missing[0]!r:.300} and {len(missing) - 1} more. {_NOTHING}"
                )
            paths = metadata.planner_data
            if paths is not None:
                paths = {fqn: tuple(path) for fqn, path in paths.items() if fqn in entries}
            document = Document(
                torch.__version__, save.ranks, save.tensors, dict(sorted(values.items())), paths
            )
            extra = {DOCUMENT: encode_document(document)}
            save.shared.commit(skeleton_of_document(document), extra)
        finally:
            self.close()

    def close(self) -> None:
        """Drop what is left of a save that failed; harmless otherwise. The next save may follow."""
        save, self._save = self._save, None
        if save is not None:
            save.drop()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it may be the name of a checkpoint."""
        return is_checkpoint_name(checkpoint_id)

    def __getstate__(self) -> dict[str, Any]:
        """What it was given; an open save stays here."""
        return {**self.__dict__, "_save": None}


def is_checkpoint_name(checkpoint_id: object) -> bool:
    """Whether this may be the name of a checkpoint."""
    try:
        check_name(os.fspath(checkpoint_id))  # type: ignore[call-overload]
    except (TypeError, UsageError):
        return False
    return True


def _refuse_cached(usable: bool) -> None:
    if not usable:
        raise UsageError(
            "a planner with enable_plan_caching=True keeps where an earlier save wrote; every save "
            f"here has places of its own. Leave it out. {_NOTHING}"
        )


def _tensors_of(plans: list[SavePlan]) -> dict[str, BoxedTensor]:
    """The tensors of all plans, in the order of their names."""
    found: dict[str, tuple[Any, tuple[int, ...], list[Box]]] = {}
    for plan in plans:
        for item in plan.items:
            data = item.tensor_data
            if data is None:
                continue
            shape = tuple(data.size)
            known = found.setdefault(item.index.fqn, (data.properties.dtype, shape, []))
            if known[:2] != (data.properties.dtype, shape):
                raise InvalidValueError(
                    f"the ranks do not agree on {item.index.fqn!r:.300}: {known[0]} of shape "
                    f"{known[1]}, and {data.properties.dtype} of shape {shape}. {_NOTHING}"
                )
            known[2].append(_box_of_item(item))
    tensors = {}
    for fqn, (dtype, shape, boxes) in sorted(found.items()):
        code = code_of(dtype)
        tensors[fqn] = place_tensor(fqn, code, shape, sorted(boxes), itemsize_of(code))
    return tensors


def _box_of_item(item: WriteItem) -> Box:
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


def _places(
    plan: SavePlan, tensors: dict[str, BoxedTensor], offsets: dict[str, int]
) -> dict[Any, _Place]:
    places = {}
    for item in plan.items:
        if item.tensor_data is None:
            continue
        what, box = tensors[item.index.fqn], _box_of_item(item)
        if what.is_whole:
            name = what.boxes[0][1]
            places[item.index] = _Place(name, offsets[name], what.shape, box)
        else:
            name = next(name for each, name in what.boxes if each == box)
            whole = Box((0,) * len(box.sizes), box.sizes)
            places[item.index] = _Place(name, offsets[name], box.sizes, whole)
    return places


def _write(file: SharedFile, item: WriteItem, planner: SavePlanner, places: _Places) -> WriteResult:
    """Write one item, or take its value along."""
    fqn = item.index.fqn
    if item.type == WriteItemType.BYTE_IO:
        value = _value_of(item, planner)
        return WriteResult(item.index, len(value), _Written(value=value))
    name, offset, shape, box = places.items[item.index]
    prepared = prepare_named(fqn, planner.resolve_data(item))
    what = prepared.descriptor
    itemsize = itemsize_of(what.dtype)
    if prepared.nbytes != box.elements * itemsize or what.layout != "dense":
        raise InvalidValueError(
            f"{fqn!r:.300} was planned with shape {box.sizes}, the planner gave {what.shape} of "
            f"{what.dtype}. {_NOTHING}"
        )
    if box.sizes == shape:
        checks, digest = file.fill(offset, prepared.buffers, prepared.nbytes)
        return WriteResult(item.index, prepared.nbytes, _Written(name, checks, digest))
    data = prepared.buffers[0]
    for at, start, length in runs(shape, box, itemsize):
        file.write(offset + at, (data[start : start + length],))
    return WriteResult(item.index, prepared.nbytes, _Written())


def _value_of(item: WriteItem, planner: SavePlanner) -> bytes:
    """The value of an item that is no tensor; torch's own planners would give a pickle of it."""
    if isinstance(planner, DefaultSavePlanner):
        kind, plain = type(planner), DefaultSavePlanner
        as_it_is = kind.resolve_data is plain.resolve_data
        if as_it_is and kind.transform_object is plain.transform_object:
            return encode_value(item.index.fqn, planner.lookup_object(item.index))
    made: Any = planner.resolve_data(item)
    return encode_opaque(made.getvalue())


def _take(save: _Save, results: list[WriteResult]) -> dict[str, bytes]:
    """Tell the shared checkpoint what the ranks hashed; return the plain values."""
    assert save.shared is not None
    values: dict[str, bytes] = {}
    counts = dict.fromkeys(save.tensors, 0)
    for result in results:
        told, fqn = result.storage_data, result.index.fqn
        if told.value is not None:
            values[fqn] = told.value
            continue
        counts[fqn] += result.size_in_bytes
        if told.digest:
            save.shared.note_hashed(told.name, told.checks, told.digest)
    for fqn, count in counts.items():
        what = save.tensors[fqn]
        itemsize = itemsize_of(what.dtype)
        wanted = sum(math.prod(box.sizes) for box, _ in what.boxes) * itemsize
        if count != wanted:
            raise InvalidValueError(
                f"the ranks wrote {count} bytes of {fqn!r:.300}, it has {wanted}. {_NOTHING}"
            )
    return values
