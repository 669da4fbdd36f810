"""Write one tensor piece by piece, for tensors that do not fit in RAM."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError, UsageError
from mldb.history.kinds.tensors import tensor_reserved
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import hashed_drafts
from mldb.log.index.address import Lsn
from mldb.log.pending import PendingSegment
from mldb.names import check_name
from mldb.tensors.casting import Casting, cast, check_casting, is_plain
from mldb.tensors.codec import Prepared, dense_descriptor, pack_descriptor, prepare, view_numpy
from mldb.tensors.dtypes import code_of, dtype_of
from mldb.tensors.slicing import slice_bytes

_NOT_WRITTEN: Final = "These rows were not written."

Publish = Callable[[PendingSegment, Prepared, bytes | None], Lsn]
"""Commits the tensor in a pending segment; told its bytes there, and its new metadata."""


class TensorWriter:
    """Writes one tensor piece by piece, for arrays larger than RAM. Made by ``db.create_tensor``.

    A context manager for one thread: ``with db.create_tensor("x", (n, d), "float32") as w: w[0:10]
    = rows``. Rows never written are zero. Leaving the block commits; an exception in it stores
    nothing. ``lsn`` is set afterwards.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        casting: Casting,
        metadata: bytes | None,
        open_pending: Callable[[], PendingSegment],
        publish: Publish,
    ) -> None:
        self.name = name
        self.lsn: Lsn | None = None
        self._key = check_name(name)
        self._descriptor = dense_descriptor(shape, code_of(dtype))
        self._casting: Casting = check_casting(casting)
        self._metadata = metadata
        self._open_pending = open_pending
        self._publish = publish
        self._pending: PendingSegment | None = None

    def __enter__(self) -> TensorWriter:
        """Reserve the place. Raises UsageError inside a block of the same writer."""
        if self._pending is not None:
            raise UsageError(
                f"the writer of {self.name!r} is open already: a with block inside another of the "
                "same writer would commit half of it. Write in the outer block, or make a writer "
                "of its own. Nothing was stored."
            )
        record = tensor_reserved(self._key, self._descriptor, self._metadata)
        pending = self._open_pending()
        try:
            pending.reserve(record)
        except BaseException:
            pending.discard()
            raise
        self._pending = pending
        return self

    def __setitem__(self, key: Any, values: Any) -> None:
        """Write a contiguous run of leading rows.

        *key* is an int, a slice of step 1, ``...``, or leading ints and a slice. *values* are
        broadcast to the rows, as NumPy does, and cast to the tensor's dtype as the ``casting`` of
        ``create_tensor`` allows. Raises InvalidTypeError for a dtype that it does not allow,
        InvalidValueError for a value that would become another one and for a wrong index or shape;
        then these rows are not written.
        """
        if self._pending is None:
            raise ClosedError(f"the writer of {self.name!r} is used outside its with block")
        what = self._descriptor
        part = slice_bytes(what, key)
        if part is None:
            if not self._is_whole(key):
                raise self._not_rows(key)
            target, start = what, 0
        elif part.residual:
            raise self._not_rows(key)
        else:
            target, start = part.descriptor, part.start
        array = self._rows(values, target.shape)
        if target.nbytes:
            buffers = prepare(array).buffers
            self._pending.file.pwritev(buffers, self._pending.placed[0].payload + start)

    def _is_whole(self, key: Any) -> bool:
        """Whether an index that no run of rows describes means the whole tensor."""
        shape = self._descriptor.shape
        if shape == ():
            return key is Ellipsis or key == ()
        return key is Ellipsis or (
            isinstance(key, slice) and key.indices(shape[0]) == (0, shape[0], 1)
        )

    def _rows(self, values: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return *values*, anything that ``store_tensor`` takes, as rows of the tensor's dtype."""
        given = prepare(values)
        if given.descriptor.layout != "dense":
            raise InvalidTypeError(f"sparse values are not rows of {self.name!r}; pass them dense")
        array = view_numpy(given.descriptor, given.buffers[0])
        try:
            np.broadcast_to(array, shape)
        except ValueError as error:
            raise InvalidValueError(
                f"values of shape {array.shape} and dtype {array.dtype} do not fit rows of shape "
                f"{shape} of {self.name!r}: {error}. {_NOT_WRITTEN}"
            ) from error
        made = cast(
            array,
            dtype_of(self._descriptor.dtype),
            self._casting,
            plain=is_plain(values),
            what=repr(self.name),
            outcome=_NOT_WRITTEN,
        )
        return np.ascontiguousarray(np.broadcast_to(made, shape)).reshape(shape)

    def _not_rows(self, key: Any) -> InvalidValueError:
        return InvalidValueError(
            f"index {key!r:.80} is not one run of leading rows of shape {self._descriptor.shape}. "
            "Write with w[a:b] = rows, w[i] = row or w[i, a:b] = part."
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit, or drop everything when the block raised."""
        pending, self._pending = self._pending, None
        assert pending is not None
        try:
            if kind is None:
                self.lsn = self._publish(pending, self._finish(pending), self._metadata)
        finally:
            pending.discard()

    def _finish(self, pending: PendingSegment) -> Prepared:
        """Hash what was written, page by page through the mapping; return it as it is there."""
        placed = pending.placed[0]
        record = placed.record
        end = placed.payload + record.payload_length
        if pending.file.size() < placed.end:
            pending.file.pwritev([bytes(1)], placed.end - 1)
        data = pending.file.map(end)[placed.payload : end]
        record.checks, digest = checks_and_digest([data] if len(data) else [], record.block_log2)
        record.drafts = hashed_drafts(record.drafts, digest)
        record.written = True
        what = self._descriptor
        return Prepared(what, pack_descriptor(what), (data,), what.nbytes, owned=True)
