"""A checkpoint whose tensors several processes write side by side, and one of them commits.

It is one pending segment. The process that makes it reserves a place for every tensor, and the
others, which need no handle on the store, write into its file where they are told: nobody waits for
a lock, and no byte is copied between them. Until the one commit that publishes the file nothing of
it is there for any reader. When the process that made it drops it, or dies, all of it is gone with
the file: the next writer sweeps what a dead process left in ``pending/``.

Who writes all of a tensor hashes it meanwhile. Where several wrote parts of one, the whole is
hashed at the commit, while the disk takes the file in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from mldb.errors import ClosedError, InvalidValueError
from mldb.history.checkpoints import Checkpoint
from mldb.history.kinds.tensors import tensor_reserved, tensor_stored
from mldb.log import format as fmt
from mldb.log.aside import BESIDE_BYTES, Aside
from mldb.log.batch import Placed
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import Record, hashed_drafts
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import Buffer, File
from mldb.log.index.address import CommitRow
from mldb.log.pending import WRITEBACK_BYTES, PendingSegment
from mldb.names import check_name
from mldb.state.checkpointing import CheckpointJob, Naming, checkpoint_of
from mldb.tensors.codec import Prepared, dense_descriptor, pack_descriptor, prepare_named
from mldb.tensors.dtypes import code_of

WriteShared: TypeAlias = Callable[[CheckpointJob, list[Record], PendingSegment | None], CommitRow]
"""Commits a checkpoint: these records, and what a pending segment has, where there is one."""

_HASHERS: Final = 2


class SharedCheckpoint:
    """A checkpoint on its way that several processes write. Made by ``db.shared_checkpoint``.

    For one thread of the process that made it. ``file`` is what the others write into, with a
    :class:`SharedFile` each, at the offsets that :meth:`reserve` returned. A context manager that
    discards what was not committed.
    """

    def __init__(
        self,
        pending: PendingSegment,
        write: WriteShared,
        head_epoch: Callable[[], int],
        *,
        epoch: int | None,
        step: int | None,
        name: str | None,
        metrics: dict[str, Any],
        appended_up_to: int,
    ) -> None:
        self.file: Final = pending.name
        self._pending: PendingSegment | None = pending
        self._write = write
        self._head_epoch = head_epoch
        self._epoch, self._step, self._name = epoch, step, name
        self._metrics = metrics
        self._appended_up_to = appended_up_to
        self._placed: dict[str, Placed] = {}
        self._what: dict[str, Prepared] = {}

    def reserve(self, name: str, shape: Sequence[int], dtype: Any) -> int:
        """Reserve the place of a dense tensor and return where in the file its bytes start.

        *dtype*: of NumPy, ml_dtypes or torch, or a name of one. What is never written is zero.
        Raises InvalidNameError, InvalidTypeError, LimitError, InvalidValueError for a second
        tensor of a name.
        """
        if name in self._placed:
            raise InvalidValueError(f"the tensor {name!r} is in this checkpoint already")
        what = dense_descriptor(shape, code_of(dtype), framework="torch")
        record = tensor_reserved(check_name(name), what, None)
        placed = self._open().reserve(record)
        self._placed[name] = placed
        self._what[name] = Prepared(what, pack_descriptor(what), (), what.nbytes, owned=True)
        return placed.payload

    def allocate(self) -> None:
        """Ask for the space of all that is reserved, before others write into it.

        Without it each part is allocated when its writer happens to be there: 256 MiB of two
        writers came to lie in 38 to 45 extents, with it in 5 to 12.
        """
        pending = self._open()
        if pending.tail > self._appended_up_to:
            pending.file.allocate(pending.tail)

    def note_hashed(self, name: str, checks: bytes, digest: bytes) -> None:
        """Take the hashes of a tensor that one process wrote, as :meth:`SharedFile.fill` gave them.

        Raises InvalidValueError when they are not of its size.
        """
        record = self._placed[name].record
        blocks = fmt.block_count(record.payload_length, record.block_log2)
        if len(checks) != 8 * blocks or len(digest) != fmt.DIGEST_SIZE:
            raise InvalidValueError(f"what is told of tensor {name!r} are no hashes of its size")
        record.checks = checks
        record.drafts = hashed_drafts(record.drafts, digest)

    def commit(self, skeleton: bytes, extra: Mapping[str, Any] | None = None) -> Checkpoint:
        """Store all of it as one checkpoint, atomically; every process is done writing.

        *skeleton* is that of its state, *extra* are small tensors of this process to go with it.
        Raises what ``db.checkpoint`` raises; then nothing is stored, and it is discarded.
        """
        started = time.perf_counter()
        pending = self._open()
        more = {key: prepare_named(key, value) for key, value in (extra or {}).items()}
        try:
            appended = pending.tail <= self._appended_up_to
            data = self._hash(pending, syncs=not appended)
            records = [tensor_stored(check_name(key), value) for key, value in more.items()]
            if appended:
                records = [*self._held(data), *records]
            epoch = self._head_epoch() if self._epoch is None else self._epoch
            job = CheckpointJob(
                Naming(self._name, epoch, self._step),
                epoch,
                self._step,
                self._metrics,
                skeleton,
                {**self._what, **more},
                {},
            )
            row = self._write(job, records, None if appended else pending)
        finally:
            self.discard()
        return checkpoint_of(job, row, (time.perf_counter() - started) * 1e3)

    def _held(self, data: memoryview) -> list[Record]:
        """The records as others are, with the bytes that were written: too few for a segment."""
        records = []
        for placed in self._placed.values():
            record = placed.record
            length = record.payload_length
            record.written = False
            record.payload = (data[placed.payload : placed.payload + length],) if length else ()
            records.append(record)
        return records

    def _hash(self, pending: PendingSegment, *, syncs: bool) -> memoryview:
        """Hash what nobody hashed, beside the disk that takes the file in; return the file."""
        if pending.file.size() < pending.tail:
            pending.file.pwritev([bytes(1)], pending.tail - 1)
        data = pending.file.map(pending.tail)
        open_ones = [item for item in self._placed.values() if item.record.checks is None]
        open_ones.sort(key=lambda item: item.record.payload_length, reverse=True)
        shares = [open_ones[number::_HASHERS] for number in range(_HASHERS)]
        hashing = [Aside(partial(_hash_all, share, data)) for share in shares if share]
        try:
            if syncs:
                pending.file.sync()
        finally:
            for each in hashing:
                each.result()
        for placed in self._placed.values():
            placed.record.written = placed.record.payload_length > 0
        return data

    def discard(self) -> None:
        """Drop what was not committed; a later call does nothing."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.discard()

    def _open(self) -> PendingSegment:
        if self._pending is None:
            raise ClosedError("this shared checkpoint was committed or discarded; make a new one")
        return self._pending

    def __enter__(self) -> SharedCheckpoint:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Discard what was not committed."""
        self.discard()


class SharedFile:
    """The file of a shared checkpoint, written by any process of the machine. One thread.

    It is opened by the path of the store and needs no handle on it. Raises StorageIOError when the
    checkpoint was discarded meanwhile. A context manager.
    """

    def __init__(self, path: str, file: str) -> None:
        self._file: File = OsFileSystem(path).open(file, "rw")

    def fill(self, offset: int, buffers: Sequence[Buffer], nbytes: int) -> tuple[bytes, bytes]:
        """Write all bytes of a tensor; return the hashes for :meth:`SharedCheckpoint.note_hashed`.

        Raises StorageFullError, StorageIOError.
        """
        if nbytes < BESIDE_BYTES:
            hashed = checks_and_digest(buffers, fmt.BLOCK_LOG2)
            self.write(offset, buffers)
            return hashed
        hashing = Aside(partial(checks_and_digest, buffers, fmt.BLOCK_LOG2))
        try:
            self.write(offset, buffers)
        finally:
            hashed = hashing.result()  # nobody may change the payload before
        return hashed

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write some bytes. Raises StorageFullError, StorageIOError."""
        count = self._file.pwritev(buffers, offset)
        if count >= WRITEBACK_BYTES:
            self._file.start_writeback(offset, count)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> SharedFile:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the file."""
        self.close()


def _hash_all(places: list[Placed], data: memoryview) -> None:
    for record, _, payload, _ in places:
        part = data[payload : payload + record.payload_length]
        record.checks, digest = checks_and_digest([part] if len(part) else [], record.block_log2)
        record.drafts = hashed_drafts(record.drafts, digest)
