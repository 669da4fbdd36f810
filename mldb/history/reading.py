"""The read surface: what can be asked of the head, of a snapshot and of a transaction alike.

Each of them says what it sees (:class:`~mldb.tensors.scope.Scope`); everything else is here once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from mldb import keys
from mldb.history.as_of import AsOf
from mldb.names import check_name
from mldb.tensors.scope import Scope, read_named


class ReadSurface:
    """Everything that reads. Subclasses say what is seen."""

    @abstractmethod
    def _scope(self, as_of: AsOf = None) -> Scope:
        """The snapshot that *as_of* means, seen from here."""

    def _read(self, name: str, as_of: AsOf = None) -> Any:
        """Return tensor *name* as of *as_of*; what :meth:`query_tensor` says."""
        return read_named(self._scope(as_of), name)

    def query_tensor(self, name: str, *, as_of: AsOf = None) -> Any:
        """Return tensor *name* as of *as_of* (epoch, Lsn, datetime, tag, checkpoint; None is now).

        A dense tensor comes as a read-only NumPy array: a zero-copy view of the mapped log when it
        is large, a copy when small; bfloat16 and fp8 as ml_dtypes arrays. A sparse one comes in the
        layout given. Any thread; the array lives as long as it is held, also after close.

        Large arrays share one mapping that nobody can write. torch takes no notice of the flag:
        writing through ``torch.from_numpy(db[name])`` ends the process by SIGSEGV, and never
        reaches the file. For a tensor to write to, take ``db.tensor(name).torch()``,
        ``state_dict()`` or ``np.array(db[name])``; or open the store with ``arrays="private"``,
        where each array has memory of its own. Raises
        TensorNotFoundError (a KeyError), CorruptError, VersionGoneError, ClosedError.

        Cost: O(bytes) for a copy, and for what is read for the first time, whose checksums are
        verified; a view of what is verified costs a lookup. Patches, deltas and packed tensors are
        put together first, O(bytes), and kept in the cache.
        """
        return self._read(name, as_of)

    def __getitem__(self, name: str) -> Any:
        """``db[name]`` is :meth:`query_tensor`: read-only; read there before torch gets it."""
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        """Whether a tensor of this name exists; a name that is not allowed does not."""
        if not isinstance(name, str):
            return False
        try:
            key = check_name(name)
        except ValueError:
            return False
        return self._scope().find(keys.TENSORS + key) is not None

    def __iter__(self) -> Iterator[str]:
        """Yield the names of tensors in byte order, of the snapshot at the call.

        Cost: O(names), those that were deleted included.
        """
        return self._scope().names()

    def __len__(self) -> int:
        """How many tensors exist: counted once, then from what was committed since.

        Cost: O(names) once, then O(names stored or deleted since).
        """
        return self._scope().count_names()

    def count(self, prefix: str = "", *, as_of: AsOf = None) -> int:
        """Return how many names of tensors start with *prefix*; cheaper than ``len(names())``.

        Cost: O(names with the prefix) once, then O(those stored or deleted since).
        """
        return self._scope(as_of).count_names(prefix)

    def names(self, prefix: str = "", *, as_of: AsOf = None) -> list[str]:
        """Return the names of tensors that start with *prefix*, in byte order.

        Cost: O(names with the prefix), those that were deleted included.
        """
        return list(self._scope(as_of).names(prefix))

    def metadata(self, name: str, *, as_of: AsOf = None) -> dict[str, Any]:
        """Return the metadata of tensor *name*, {} when it has none. Raises TensorNotFoundError."""
        scope = self._scope(as_of)
        scope.tensor_entry(name)
        return scope.metadata(name)
