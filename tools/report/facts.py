"""What a report shows, gathered from a store: frozen columns and names, nothing drawn yet.

Made by the ``gather_*`` modules, read by the ``section_*`` modules; any thread, and they hold
nothing of the store that they came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

NumberColumn: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric. ``x`` (steps or epochs, float64) ascends as logged, ``y`` is float64."""

    name: str
    x: NumberColumn
    y: NumberColumn
    x_label: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The run: its commits as columns of equal length, in log order, and what marks them."""

    path: str
    moment: str
    lsn: int
    epoch: int
    time: datetime
    lsns: NumberColumn
    epochs: NumberColumn
    times: NumberColumn
    is_kept: NumberColumn
    """Whether the lineage of the moment leads through the commit."""
    rewinds: list[tuple[int, int]]
    """Commit and the older one that it continues from."""
    checkpoints: list[Any]
    tags: dict[str, int]
    compactions: list[tuple[int, int, int]]
    """First LSN, last LSN and bytes of each compacted segment."""
    curves: list[Curve]
    curves_in_all: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One tensor over the epochs shown; columns have one value an epoch, NaN where it is not."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nbytes: int
    figures: dict[str, NumberColumn]
    """norm, ratio, mean, std, min, max, zeros and not finite as shares."""
    edges: NumberColumn
    histogram: NumberColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """The tensors of a layer taken together; ``tensors`` are those that are drawn one by one."""

    name: str
    tensors: list[TensorFacts]
    count: int
    size: int
    nbytes: int
    figures: dict[str, NumberColumn]
    """norm, ratio."""
    edges: NumberColumn
    histogram: NumberColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterFacts:
    """All layers, the epochs that are shown of those that there are, and what was not readable."""

    epochs: list[int]
    epochs_in_all: int
    layers: list[LayerFacts]
    tensors: int
    measured: int
    """How many of the tensors were read at all."""
    size: int
    nbytes: int
    read_bytes: int
    problems: tuple[str, ...]
    is_sampled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """Edges (source, target, kind) that are shown, of how many, and which ends are tensors."""

    edges: list[tuple[str, str, str]]
    edges_in_all: int
    names_in_all: int
    tensors: frozenset[str]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFacts:
    """Bytes of versions on every lineage. *Decoded* is what they would take each by itself."""

    file_bytes: int
    versions: int
    by_name: list[tuple[str, int, int, int]]
    """Name, versions, decoded and stored bytes; most stored first."""
    by_epoch: list[tuple[int, int, int]]
    """Epoch, decoded and stored bytes, ascending."""
    by_encoding: dict[str, tuple[int, int, int]]
    """Versions, decoded and stored bytes of each encoding."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFacts:
    """One consolidation of a lake. ``sizes`` are sources of each splat made, int64."""

    lsn: int
    epoch: int
    method: str
    sources: int
    made: int
    sizes: NumberColumn
    avalanches: NumberColumn
    """How many avalanches of the sizes 0, 1, 2-3, 4-7 ... topplings; empty where not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeFacts:
    """One lake at the moment shown."""

    name: str
    rows: int
    dim: int
    geometry: str
    mass: float
    kappa: NumberColumn
    alpha: NumberColumn
    merges: list[MergeFacts]
    growth: list[tuple[int, int, int]]
    """Commit, epoch and live rows after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LakesFacts:
    """The lakes that are shown, of how many, and what was not readable."""

    lakes: list[LakeFacts]
    lakes_in_all: int
    problems: tuple[str, ...]


NO_COLUMN: NumberColumn = np.empty(0)
