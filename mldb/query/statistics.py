"""Statistics of one tensor version: mean, std, min, max, norm, shares of zeros and NaN.

All come from one pass in blocks, in float64. Rules:

* NaN values count in ``nan_share`` alone; the others are over what is left. Infinities count as
  they are. With nothing left mean, std, min, max and norm are None; of an empty tensor all are.
* ``std`` is that of the population (NumPy's default, ddof=0); ``norm`` the Euclidean norm.
* A complex value counts by its magnitude; a bool as 0 or 1; an integer as the nearest float64.
* A sparse tensor counts as the dense one it stands for. Its values are read alone: coordinates
  that are told twice are added up in coordinate layouts, and count apiece in others.
* Texts, times and bytes have none (None).

Mean and variance of blocks are put together as in Chan, Golub and LeVeque, "Updating formulae and a
pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.deferred import dataclass
from mldb.tensors.codec import Descriptor
from mldb.tensors.descriptor import Component
from mldb.tensors.dtypes import dtype_of

_BLOCK: Final = 1 << 18
"""Elements that are taken at once: 2 MiB as float64."""
_PACKED_FP4: Final = "float4_e2m1fn_x2"
_FP4: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


class TensorStatistics(NamedTuple):
    """Statistics of one version; NaN stands for what there is none of."""

    mean: float
    std: float
    min: float
    max: float
    norm: float
    zero_share: float
    nan_share: float


NO_STATISTICS: Final = TensorStatistics(*[math.nan] * 7)


@dataclass(slots=True)
class _Pass:
    """What is known of the elements that were seen."""

    seen: int = 0
    nan: int = 0
    zero: int = 0
    count: int = 0
    mean: float = 0.0
    spread: float = 0.0
    """Sum of squared distances from the mean."""
    square: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Take in values; NaN are left out of all but the shares."""
        self.seen += len(values)
        is_nan = np.isnan(values)
        if is_nan.any():
            values = values[~is_nan]
            self.nan += int(is_nan.sum())
        if not len(values):
            return
        self.zero += len(values) - int(np.count_nonzero(values))
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        with np.errstate(all="ignore"):
            self.square += float(np.dot(values, values))
            mean = float(values.mean())
            self._join(len(values), mean, float(np.square(values - mean).sum()))

    def add_zeros(self, count: int) -> None:
        """Take in zeros that are stored nowhere."""
        if count <= 0:
            return
        self.seen += count
        self.zero += count
        self.low, self.high = min(self.low, 0.0), max(self.high, 0.0)
        self._join(count, 0.0, 0.0)

    def _join(self, count: int, mean: float, spread: float) -> None:
        both = self.count + count
        apart = mean - self.mean
        self.spread += spread + apart * apart * (self.count / both) * count
        self.mean += apart * (count / both)
        self.count = both

    def told(self) -> TensorStatistics:
        """Return the statistics of all that was taken in."""
        if not self.seen:
            return NO_STATISTICS
        shares = self.zero / self.seen, self.nan / self.seen
        if not self.count:
            return NO_STATISTICS._replace(zero_share=shares[0], nan_share=shares[1])
        if math.isinf(self.low) or math.isinf(self.high):
            # NumPy's answers: the mean of one infinity is infinite, of two kinds it is NaN.
            mean = self.low + self.high if math.isinf(self.low + self.high) else math.nan
            return TensorStatistics(mean, math.nan, self.low, self.high, math.inf, *shares)
        std = math.sqrt(max(self.spread, 0.0) / self.count)
        return TensorStatistics(
            self.mean, std, self.low, self.high, math.sqrt(self.square), *shares
        )


def statistics_of(
    what: Descriptor, data: memoryview, check: Callable[[], None]
) -> TensorStatistics:
    """Return the statistics of a version from its decoded bytes.

    *check* is called between blocks and may raise, to end it. O(bytes); some MiB of memory besides
    *data*, and of coordinates that are not in order as much as they take.
    """
    found = _Pass()
    if what.layout == "dense":
        size = math.prod(what.shape)
        values = _elements(data, Component("", what.dtype, what.shape, 0))
        if values is None:
            return NO_STATISTICS
        _add_all(found, values, check)
        return found.told() if size else NO_STATISTICS
    values = _sparse_values(what, data)
    if values is None:
        return NO_STATISTICS
    _add_all(found, values, check)
    found.add_zeros(math.prod(what.shape) - found.seen)
    return found.told()


def _add_all(found: _Pass, values: npt.NDArray[Any], check: Callable[[], None]) -> None:
    for block in _blocks(values):
        check()
        found.add(block)


def _blocks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        if block.dtype.kind == "c":
            yield np.abs(block.astype(np.complex128))
        else:
            yield block.astype(np.float64)


def _elements(data: memoryview, part: Component) -> npt.NDArray[Any] | None:
    """The elements of a dense part, flat; None of a type that has no numbers."""
    raw = data[part.offset : part.offset + part.nbytes]
    if part.dtype == _PACKED_FP4:
        packed = np.frombuffer(raw, np.uint8)
        halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        unpacked: npt.NDArray[Any] = _FP4[halves]
        return unpacked
    dtype = dtype_of(part.dtype)
    if dtype.kind in "SUmM":
        return None
    if dtype.kind == "V" and dtype.names is not None:  # complex numbers of half width
        return None
    return np.frombuffer(raw, dtype)


def _sparse_values(what: Descriptor, data: memoryview) -> npt.NDArray[Any] | None:
    """The stored values that count, flat."""
    parts = {part.name: part for part in what.components}
    last = what.components[-1]
    values = _elements(data, last)
    if values is None:
        return None
    if what.layout == "dia":
        return _inside(what, parts, data, values)
    if what.layout in ("coo", "lil", "dok") and what.variant != "coalesced":
        return _added_up(what, parts, data, values)
    return values


def _inside(
    what: Descriptor, parts: dict[str, Component], data: memoryview, values: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """The values of diagonals that lie inside the matrix."""
    offsets = _elements(data, parts["offsets"])
    assert offsets is not None, "offsets are numbers"
    columns = np.arange(parts["data"].shape[1])
    rows = columns[None, :] - offsets.astype(np.int64)[:, None]
    mask = (rows >= 0) & (rows < what.shape[0]) & (columns[None, :] < what.shape[1])
    found: npt.NDArray[Any] = values.reshape(parts["data"].shape)[mask]
    return found


def _added_up(
    what: Descriptor, parts: dict[str, Component], data: memoryview, values: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """The values of coordinates, those of the same place added up."""
    if "indices" in parts:
        flat = _elements(data, parts["indices"])
        assert flat is not None, "indices are numbers"
        table = flat.reshape(parts["indices"].shape)
    else:
        axes = [_elements(data, part) for name, part in parts.items() if name.startswith("coords")]
        table = np.array(axes)
    count = table.shape[1]
    if count < 2:
        return values
    order = np.lexsort(table)
    table = table[:, order]
    begins = np.append(True, (table[:, 1:] != table[:, :-1]).any(axis=0))
    if begins.all():
        return values
    wide = np.complex128 if values.dtype.kind == "c" else np.float64
    rows = values.astype(wide).reshape(count, -1)[order]
    found: npt.NDArray[Any] = np.add.reduceat(rows, np.flatnonzero(begins), axis=0).reshape(-1)
    return found
