"""Tensor handles, which read lazily."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from mldb.errors import CorruptError, InvalidTypeError
from mldb.html import html_of, html_pairs, html_table
from mldb.log.index.address import Entry, Lsn, to_time
from mldb.printable import shown_bytes, shown_shape, shown_time
from mldb.tensors.codec import Descriptor, rebuild, unpack_descriptor, view_numpy, view_torch
from mldb.tensors.decode import plain_mode
from mldb.tensors.dtypes import dtype_of
from mldb.tensors.encoding import encoding_name
from mldb.tensors.scope import Scope, holder, own_bytes, read_array, stored_bytes
from mldb.tensors.slicing import index_array, slice_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device


class TensorHandle:
    """One version of a tensor, read when asked. Made by ``db.tensor(name)``.

    Any thread. The version is fixed when the handle is made and stays readable as long as the
    handle lives, whatever is stored later. ``np.asarray``, ``torch.as_tensor`` and ``from_dlpack``
    take it.
    """

    __slots__ = ("_descriptor", "_dtype", "_entry", "_held", "_key", "_row_bytes", "_scope", "name")

    def __init__(self, scope: Scope, name: str, entry: Entry) -> None:
        self._scope = scope
        self._entry = entry
        what = self._descriptor = unpack_descriptor(entry.attr)
        self.name = name
        self._key, held = holder(scope, entry, name)
        self._held = held  # the version that has the bytes
        is_raw = scope.source.door.is_raw(held)
        if is_raw and held.length != what.nbytes:
            raise CorruptError(
                f"the descriptor of this version means {what.nbytes} bytes, stored are "
                f"{held.length}. Other names and versions stay readable.",
                file=scope.source.door.file(scope.view, held),
                offset=held.frame,
                key=name,
            )
        # Bytes of one step of the first axis, when a slice of it may be read in place; otherwise 0.
        sliceable = what.layout == "dense" and what.nbytes and scope.source.door.has_pieces(held)
        self._row_bytes = what.nbytes // what.shape[0] if sliceable and what.shape else 0
        self._dtype = dtype_of(what.dtype)

    @property
    def descriptor(self) -> Descriptor:
        """All of what is known of the type, the parts of a sparse tensor among it."""
        return self._descriptor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self._descriptor.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy (or ml_dtypes) dtype."""
        return self._dtype

    @property
    def layout(self) -> str:
        """The layout: "dense", or the sparse one stored ("coo", "csr", ...)."""
        return self._descriptor.layout

    @property
    def nbytes(self) -> int:
        """Decoded size in bytes."""
        return self._descriptor.nbytes

    @property
    def stored_bytes(self) -> int:
        """What it takes on disk; 0 where another version has the same bytes for both."""
        return self._entry.length

    @property
    def encoding(self) -> str:
        """How it is stored: "raw", "zstd", "reference" to another version, "delta", "patch"."""
        return encoding_name(self._entry.encoding)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the name at this snapshot."""
        return self._scope.metadata(self.name)

    @property
    def lsn(self) -> Lsn:
        """The commit that stored this version."""
        return Lsn(self._entry.commit_lsn)

    @property
    def epoch(self) -> int:
        """The epoch of that commit."""
        row = self._scope.view.commit_at(self._entry.commit_lsn)
        return 0 if row is None else row.epoch

    @property
    def time(self) -> datetime:
        """The time of that commit (UTC)."""
        row = self._scope.view.commit_at(self._entry.commit_lsn)
        return to_time(0 if row is None else row.time)

    def numpy(self) -> Any:
        """Return what ``query_tensor`` returns: a read-only array, or the sparse layout stored.

        It shares its memory with other readers. torch takes no notice of the flag: for a tensor
        that is written to, take :meth:`torch`. See ``MLDatabase.query_tensor``.
        """
        return read_array(self._scope, self._entry, self.name)

    def decoded(self) -> memoryview:
        """Return the bytes that were stored, read-only; of a sparse tensor its parts, as described.

        A view of the log, or of the cache where they are encoded. Raises CorruptError.
        """
        return stored_bytes(self._scope, self._entry, self.name)

    def flat_values(self) -> np.ndarray[Any, Any]:
        """Return the values as one axis, read-only: all, or those that a sparse layout stores.

        In stored order, where sparse layouts may have explicit zeros, duplicates that are summed
        when it is used (COO), and padding (DIA). Views of the log where :meth:`numpy` is one.
        """
        what = self._descriptor
        if what.layout == "dense":
            return np.ndarray((math.prod(what.shape),), self._dtype, self.decoded())
        part = what.components[-1]
        values = self.decoded()[part.offset : part.offset + part.nbytes]
        return np.ndarray((math.prod(part.shape),), dtype_of(part.dtype), values)

    def torch(self, device: str | Device | None = None) -> Tensor:
        """Return a torch tensor that may be written to; what is written reaches no other reader.

        Dense tensors are private copy-on-write mappings of the log (copies when small), moved to
        *device* if given. They are plain tensors, which can be trained, under any mode of torch.
        Raises InvalidTypeError for a dtype torch lacks, UsageError without torch.
        """
        what = self._descriptor
        if what.layout != "dense":
            tensor: Tensor = self._sparse()
        else:
            tensor = view_torch(what, self._writable())
        if device is None:
            return tensor
        with plain_mode():
            return tensor.to(device)

    def _sparse(self) -> Tensor:
        if self._descriptor.framework == "torch":
            data = stored_bytes(self._scope, self._entry, self.name)
            tensor: Tensor = rebuild(self._descriptor, data)
            return tensor
        import torch

        with plain_mode():
            return torch.from_numpy(np.array(self.numpy().todense()))

    def _writable(self) -> memoryview | bytearray:
        """Writable bytes that belong to the caller alone."""
        return own_bytes(self._scope, self._entry, self.name)

    def __getitem__(self, key: Any) -> Any:
        """Return ``array[key]``, reading only the bytes that the leading indices pick.

        Read-only as :meth:`numpy` is; a view of the log when the part is large. Raises
        InvalidValueError for an index that does not fit.
        """
        if type(key) is slice and self._row_bytes and (key.step is None or key.step == 1):
            return self._rows(key)
        part = None
        if self._scope.source.door.has_pieces(self._held):
            part = slice_bytes(self._descriptor, key)
        if part is None:
            return index_array(self.numpy(), key)
        data = self._part(part.start, part.stop)
        return index_array(view_numpy(part.descriptor, data), part.residual)

    def _rows(self, key: slice) -> Any:
        """The common case, rows a:b: straight from the mapping."""
        shape = self._descriptor.shape
        try:
            start, stop, _ = key.indices(shape[0])
        except TypeError as error:
            raise InvalidTypeError(f"{key!r:.80} is no slice of integers: {error}") from None
        count = max(stop - start, 0)
        low = start * self._row_bytes
        size = count * self._row_bytes
        data = self._part(low, low + size)
        return np.ndarray((count, *shape[1:]), self._dtype, data)

    def _part(self, low: int, high: int) -> memoryview:
        """Bytes low..high for an array: of the mapping where there is one anyway, or copied."""
        key, held = self._key, self._held
        source, view, commit, _ = self._scope
        source.note_read(commit, self._entry, self.name)
        if source.door.is_own(held):
            nbytes = self._descriptor.nbytes
            return source.door.part(view, key, held, nbytes, low, high, self.name)
        size, small = self._descriptor.nbytes, high - low < source.border.value
        if source.private and not small and source.is_mapped(view, held):
            own = source.door.private(view, key, held, size, self.name, low=low, high=high)
            return memoryview(own).toreadonly()
        data = source.door.part(view, key, held, size, low, high, self.name)
        if source.private or (small and not source.is_mapped(view, held)):
            return memoryview(bytes(data))
        return data

    def __iter__(self) -> Iterator[Any]:
        """Yield the steps of the first axis, each read when it is reached."""
        for index in range(len(self)):
            yield self[index]

    def __len__(self) -> int:
        """Length of the first axis."""
        if not self.shape:
            raise InvalidTypeError(f"{self.name!r} has no axes, so it has no len()")
        return self.shape[0]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        """NumPy's protocol. Raises InvalidTypeError for a sparse tensor."""
        if self._descriptor.layout != "dense":
            raise InvalidTypeError(
                f"{self.name!r} is sparse ({self.layout}), which no array can hold; take "
                ".numpy(), which gives it in its layout, and convert that."
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        """DLPack, over private memory: a consumer may write without reaching the file."""
        return self.torch().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        """DLPack: always host memory."""
        return (1, 0)

    def __reduce__(self) -> NoReturn:
        """A handle belongs to an open store, which does not travel between processes."""
        raise InvalidTypeError(
            f"the handle of {self.name!r} is not pickled; send the path of the store, the name and "
            f"as_of={self.lsn!r}, and open the store where they are used"
        )

    def __repr__(self) -> str:
        """One line: name, shape, dtype and commit."""
        return (
            f"<TensorHandle {self.name!r} shape={self.shape} dtype={self._descriptor.dtype} "
            f"epoch={self.epoch} lsn={self.lsn}>"
        )

    def _repr_html_(self) -> str:
        """The form of notebooks: what it is and the metadata of its name. Reads no value."""
        return html_of(self, self._html)

    def _html(self) -> str:
        pairs: dict[str, object] = {
            "dtype": self._descriptor.dtype,
            "shape": shown_shape(self.shape),
            "layout": self.layout,
            "epoch": self.epoch,
            "commit": self.lsn,
            "time": shown_time(self.time),
            "bytes": shown_bytes(self.nbytes),
            "stored": f"{shown_bytes(self.stored_bytes)}, {self.encoding}",
        }
        figures = html_pairs(pairs, caption=self.name)
        metadata = self.metadata
        return figures + html_table(("key", "value"), metadata.items()) if metadata else figures
