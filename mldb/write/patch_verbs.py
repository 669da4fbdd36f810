"""Rows of a tensor in a transaction: what ``update_tensor`` and ``add_to_tensor`` stage."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb import keys
from mldb.arrays import Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, TensorNotFoundError
from mldb.history.kinds.patches import PatchedVersion
from mldb.log.index.address import Entry
from mldb.log.patch import Patch, apply_patch
from mldb.names import check_name
from mldb.tensors.codec import (
    Descriptor,
    Prepared,
    pack_descriptor,
    unpack_descriptor,
    view_numpy,
)
from mldb.tensors.patching import added, make_patch, set_rows, touched_rows
from mldb.tensors.scope import Scope, holder, own_bytes, stored_rows
from mldb.write.staged import Staged
from mldb.write.staging import Staging

PATCH_ROWS_MOST: Final = 0.5
"""From this share of the rows on a sum is stored whole: a patch of it would save little."""


@dataclass(frozen=True)
class Found:
    """A tensor as a transaction sees it: what is staged of it, or else its version in the base."""

    staging: Staging
    scope: Scope
    name: str
    staged: Staged | None

    @cached_property
    def key(self) -> bytes:
        """Its key."""
        return keys.TENSORS + check_name(self.name)

    @cached_property
    def entry(self) -> Entry:
        """Its version in the base. Raises TensorNotFoundError."""
        return self.scope.tensor_entry(self.name)

    @cached_property
    def what(self) -> Descriptor:
        """What its bytes are. Raises TensorNotFoundError."""
        staged = self.staged
        if staged is not None and staged.deleted:
            raise TensorNotFoundError(f"tensor {self.name!r} was deleted in this transaction")
        return unpack_descriptor(self.entry.attr if staged is None else staged.attr)

    def bytes(self) -> memoryview | bytearray:
        """All of its bytes, writable memory of the caller's own."""
        staged = self.staged
        if staged is not None and staged.patch is None:
            return bytearray(self.staging.staged_bytes(staged))
        data = own_bytes(self.scope, self.entry, self.name)
        if staged is not None and staged.patch is not None:
            apply_patch(staged.patch, data)
        return data

    def rows(self, numbers: Numbers) -> npt.NDArray[Any]:
        """Some of its rows; where they are in the log, only they are read."""
        what = self.what
        if self.staged is None:
            data = stored_rows(self.scope, self.entry, self.name, numbers)
            return view_numpy(Descriptor(what.dtype, (len(numbers), *what.shape[1:])), data)
        whole = view_numpy(Descriptor(what.dtype, what.shape), self.bytes())
        rows: npt.NDArray[Any] = whole[numbers]
        return rows


def stage_rows(found: Found, rows: Any, values: Any) -> None:
    """Stage *values* for *rows*. Raises what ``MLDatabase.update_tensor`` raises."""
    _stage(found, set_rows(found.name, found.what, rows, values))


def stage_sum(found: Found, delta: Any, scale: float) -> None:
    """Stage the tensor plus *scale* times *delta*. Raises what ``add_to_tensor`` raises."""
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.number):
        raise InvalidTypeError(f"scale is a {type(scale).__name__}, not a number")
    what = found.what
    numbers, values = touched_rows(found.name, what, delta)
    if not len(numbers):
        return
    sums = added(found.name, what, found.rows(numbers), values, float(scale))
    patch = make_patch(what, numbers, sums)
    if len(numbers) < PATCH_ROWS_MOST * what.shape[0]:
        _stage(found, patch)
    else:
        _stage_whole(found, patch)


def _stage(found: Found, patch: Patch) -> None:
    """Stage a patch: as one, or into what is staged whole."""
    if not len(patch.rows):
        return
    staged = found.staged
    if staged is not None and staged.patch is None:
        _stage_whole(found, patch)
        return
    entry = found.entry
    key, held = holder(found.scope, entry, found.name)
    owner = b"" if key is None or key == found.key else key
    found.staging.note_seen(found.key)
    below = PatchedVersion(held.commit_lsn, owner, entry.attr)
    found.staging.patches.put(found.key, below, patch)


def _stage_whole(found: Found, patch: Patch) -> None:
    what, data = found.what, found.bytes()
    apply_patch(patch, data)
    whole = Prepared(what, pack_descriptor(what), (memoryview(data),), len(data), owned=True)
    found.staging.put_tensor(check_name(found.name), whole)
