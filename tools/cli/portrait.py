"""One tensor put together for a person: what it is, its statistics, its values, its past.

What cannot be read is left out and named; the rest is told. Values are taken in blocks; a tensor
that is stored raw is a mapping, so that memory stays bounded whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from mldb.errors import MldbError, VersionGoneError
from mldb.tools.cli.charts import Bins

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mldb.history.relationships import Relationship
    from mldb.history.snapshot import StateSnapshot
    from mldb.history.versions import Version
    from mldb.query.statistics import TensorStatistics
    from mldb.tensors.handle import TensorHandle
    from mldb.tools.cli.progress import Advance

CurveFigure = Literal["norm", "mean", "std", "min", "max"]

BINS: Final = 12
FIRST: Final = 100
"""Values that are shown of a tensor with more."""
_BLOCK: Final = 1 << 18
_EXACT: Final = 2.0**53
"""Up to here every integer is a float64."""
_PACKED: Final = "float4_e2m1fn_x2"  # two values a byte, which NumPy sees as bytes

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A figure of one version; NaN where it could not be read or has none."""

    lsn: int
    epoch: int
    value: float


@dataclass(slots=True)
class Portrait:
    """What was found of one tensor. For one thread; it holds no store open."""

    name: str
    version: Version
    versions: int
    first_epoch: int
    layout: str | None = None
    encoding: str | None = None
    size: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    relationships: list[Relationship] = field(default_factory=list)
    statistics: TensorStatistics | None = None
    stored_values: int | None = None
    """Of a sparse tensor: those that are stored, which the histogram counts; None for dense."""
    bins: Bins | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    first: npt.NDArray[Any] | None = None
    """The first values, flat; the whole tensor in its shape where it is small and dense."""
    problems: list[str] = field(default_factory=list)

    def told(self, what: str, make: Callable[[], _Found]) -> _Found | None:
        """Return what *make* returns; None where it raises, and then a problem more is known."""
        try:
            return make()
        except MldbError as error:
            self.problems.append(f"{what}: {error}")
            return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a portrait beside what is known without reading values."""

    values: bool = False
    brief: bool = False
    points: int = 40
    figure: CurveFigure = "norm"


def portrait_of(snapshot: StateSnapshot, name: str, wanted: Wanted, moved: Advance) -> Portrait:
    """Look at tensor *name*; *moved* is told the bytes that were looked at, and those there are.

    Raises TensorNotFoundError, which proposes a name, InvalidNameError.
    """
    entry_exists = name in snapshot
    versions = snapshot.history(name) if entry_exists else []
    if not versions:
        snapshot.tensor(name)  # says that there is none, and which name is near
    found = Portrait(name, versions[-1], len(versions), versions[0].epoch)
    found.size = math.prod(found.version.shape)
    found.metadata = found.told("metadata", lambda: snapshot.metadata(name)) or {}
    found.relationships = found.told("relationships", lambda: _relationships(snapshot, name)) or []
    handle = found.told("tensor", lambda: snapshot.tensor(name))
    if handle is not None:
        found.layout, found.encoding = handle.layout, handle.encoding
    sampled = [] if wanted.brief else sampled_versions(versions, wanted.points)
    meter = _Meter(moved, 2 * found.version.nbytes + sum(item.nbytes for item in sampled))
    if handle is not None and not wanted.brief:
        found.told("values", lambda: _look(found, handle, meter))
    if handle is not None and wanted.values and not found.problems:
        found.first = found.told("values", lambda: _first(handle))
    if len(sampled) > 1:
        found.curve = [_point(found, snapshot, item, wanted.figure, meter) for item in sampled]
    return found


def _relationships(snapshot: StateSnapshot, name: str) -> list[Relationship]:
    return [
        *snapshot.relationships(source=name),
        *(item for item in snapshot.relationships(target=name) if item.source != name),
    ]


def sampled_versions(versions: Sequence[Version], count: int) -> list[Version]:
    """Return the last version of each epoch, *count* of them at most, evenly, with both ends."""
    by_epoch = list({version.epoch: version for version in versions}.values())
    if len(by_epoch) <= count or count < 1:
        return by_epoch if count > 0 else []
    if count == 1:
        return by_epoch[-1:]
    last = len(by_epoch) - 1
    return [by_epoch[round(place * last / (count - 1))] for place in range(count)]


class _Meter:
    """Bytes that were looked at. For one thread."""

    def __init__(self, moved: Advance, total: int) -> None:
        self._moved, self._total = moved, total
        self._done = 0

    def steps(self, nbytes: int, itemsize: int) -> Callable[[], None]:
        """A function to call at each block of a tensor of *nbytes*."""
        left = [nbytes]

        def step() -> None:
            now = min(left[0], _BLOCK * itemsize)
            left[0] -= now
            self._done += now
            self._moved(self._done, self._total)

        return step


def _look(found: Portrait, handle: TensorHandle, meter: _Meter) -> None:
    """Take the statistics and the histogram."""
    found.statistics = _statistics(handle, meter)
    values = handle.flat_values()
    if handle.layout != "dense":
        found.stored_values = values.size
    if _has_numbers(handle):
        found.bins = bins_of(values, meter.steps(values.nbytes, values.itemsize))


def _statistics(handle: TensorHandle, meter: _Meter) -> TensorStatistics:
    from mldb.query.statistics import statistics_of

    what = handle.descriptor
    return statistics_of(what, handle.decoded(), meter.steps(what.nbytes, what.itemsize))


def _has_numbers(handle: TensorHandle) -> bool:
    """Whether a histogram of the elements says something."""
    dtype = handle.dtype
    if handle.descriptor.dtype == _PACKED or dtype.names is not None:
        return False
    return dtype.kind not in "SUmM"


def bins_of(values: npt.NDArray[Any], step: Callable[[], None], count: int = BINS) -> Bins | None:
    """Return the histogram of a flat array; of complex numbers that of their magnitudes.

    NaN are left out. None without a finite value. Two passes, the first for the limits. Integers of
    a span below *count* get a bin each, so that no bin has one value more than the others.
    """
    import numpy as np

    low, high = math.inf, -math.inf
    below = above = 0
    for block in _floats(values):
        finite = block[np.isfinite(block)]
        below += int(np.count_nonzero(block == -np.inf))
        above += int(np.count_nonzero(block == np.inf))
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        return None
    single = values.dtype.kind in "biu" and high - low < count and max(-low, high) < _EXACT
    edges = _edges(low, high, count, single)
    counts = np.zeros(len(edges) - 1, np.int64)
    for block in _floats(values):
        step()
        counts += np.histogram(block[np.isfinite(block)], edges)[0]
    return Bins(tuple(edges.tolist()), tuple(counts.tolist()), single, below, above)


def _edges(low: float, high: float, count: int, single: bool) -> npt.NDArray[np.float64]:
    import numpy as np

    if single:
        return np.arange(low, high + 2)
    if low == high:
        return np.array([low, high])
    shares = np.linspace(0.0, 1.0, count + 1)
    edges = low * (1 - shares) + high * shares  # high - low may be beyond the largest float
    edges[0], edges[-1] = low, high
    return np.unique(edges)


def _floats(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    import numpy as np

    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        with np.errstate(all="ignore"):
            if block.dtype.kind == "c":
                yield np.abs(block.astype(np.complex128))
            else:
                yield block.astype(np.float64)


def _first(handle: TensorHandle) -> npt.NDArray[Any]:
    flat = handle.flat_values()
    if handle.layout == "dense" and flat.size <= FIRST:
        return flat.reshape(handle.shape)
    return flat[:FIRST]


def _point(
    found: Portrait, snapshot: StateSnapshot, version: Version, figure: CurveFigure, meter: _Meter
) -> CurvePoint:
    """A point of the curve; one that cannot be read is a gap, and named unless it is just gone."""
    lsn, epoch = int(version.lsn), version.epoch
    value = math.nan
    if found.statistics is not None and lsn == int(found.version.lsn):
        value = getattr(found.statistics, figure)
        meter.steps(version.nbytes, 1 << 40)()
    else:
        try:
            handle = snapshot.tensor_version(found.name, lsn)
            value = getattr(_statistics(handle, meter), figure)
        except VersionGoneError:
            pass  # retention took it since the history was read
        except MldbError as error:
            found.problems.append(f"version of epoch {epoch} (lsn:{lsn}): {error}")
    return CurvePoint(lsn, epoch, value)
