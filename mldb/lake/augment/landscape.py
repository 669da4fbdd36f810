"""What walks and chains need to know of a lake: its rows as one table, its graph, its labels."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Float32s, Numbers
from mldb.errors import InvalidValueError
from mldb.gpu.device import Device, Dynamics, MixtureEnergy, Table
from mldb.lake.augment.gate import gate, gate_walk, nearest_labels
from mldb.lake.augment.graph_store import lake_firsts, lake_graph, lake_labels
from mldb.lake.augment.temperature import Trial, find_temperature
from mldb.lake.rows.live import Rows
from mldb.lake.stream.settings import Augmentation
from mldb.noise.keys import Keys
from mldb.sphere import langevin
from mldb.sphere.graph import Graph, lake_bandwidth, walk
from mldb.sphere.neighbours import Firsts

WALK_K: Final = 10
CHAIN_K: Final = 16
_BANDWIDTH: Final = "bandwidth"
_LABELS_AROUND: Final = "labels around"

_LEAST_ROWS: Final = {"isotropic": 0, "walk": 2, "langevin": 3}
_NUMBER_BYTES: Final = 64
_ALIKE: Final = np.float32(1 - 1e-4)  # so near are rows that are looked at once for all


def _nbytes(array: npt.NDArray[Any]) -> int:
    return array.nbytes


class Moved(NamedTuple):
    """Rows that were augmented [n, d], which of them changed, and which the gate took back."""

    rows: Any
    changed: Bools
    taken_back: Bools

    @classmethod
    def freely(cls, rows: Any) -> Moved:
        """Rows that no gate stood before."""
        return cls(rows, np.ones(len(rows), np.bool_), np.zeros(len(rows), np.bool_))


class Landscape:
    """The rows of one lake at one commit as a landscape. One thread at a time.

    What is derived (the graph, the bandwidth) is computed when first needed, and kept with the
    lake for the next who needs it. A label below 0 means that the row has none.
    """

    def __init__(self, rows: Rows, chosen: Augmentation) -> None:
        least = _LEAST_ROWS[chosen.mode]
        if len(rows) < least:
            raise InvalidValueError(
                f"lake {rows.name!r} has {len(rows)} rows; {chosen.mode} needs {least}: walks step "
                "to a neighbour, and chains need two to measure distances by. Add rows"
            )
        self._rows = rows
        self._chosen = chosen

    @cached_property
    def mu(self) -> Float32s:
        """All rows [N, d]: the mapped block itself where the lake is one, else a copy."""
        return self._rows.table()

    @cached_property
    def graph(self) -> Graph:
        """The neighbours of every row."""
        return lake_graph(self._rows, self.mu)

    @cached_property
    def kappa(self) -> float:
        """The bandwidth of the energy; see :func:`mldb.sphere.graph.lake_bandwidth`."""

        def make() -> float:
            return lake_bandwidth(self.graph, self.mu)

        return self._rows.derived(_BANDWIDTH, make, lambda _: _NUMBER_BYTES)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The label of every row, or None when no row has one."""
        if "label" not in self._rows.columns:
            return None
        every = slice(0, len(self._rows))
        labels = self._rows.derived("labels", lambda: self._rows.gather("label", every), _nbytes)
        return labels if (labels >= 0).any() else None

    @cached_property
    def _labelled(self) -> Numbers:
        assert self.labels is not None
        return np.flatnonzero(self.labels >= 0)

    @cached_property
    def _labels_around(self) -> npt.NDArray[np.int64]:
        """The label of the labelled row nearest to each row, itself included."""
        assert self.labels is not None
        if len(self._labelled) == len(self.labels):
            return self.labels

        def make() -> Numbers:
            return lake_labels(self._rows, len(self._rows), self._find_labels_around)

        return self._rows.derived(_LABELS_AROUND, make, _nbytes)

    def _find_labels_around(self) -> Numbers:
        assert self.labels is not None
        near = self.labels.copy()
        bare = np.flatnonzero(self.labels < 0)
        labelled = self._labelled
        near[bare] = nearest_labels(self.mu[bare], self.mu[labelled], self.labels[labelled])
        return near

    @cached_property
    def _labelled_mu(self) -> Float32s:
        """The rows that have a label: where all have one, no copy of them."""
        assert self.labels is not None
        if len(self._labelled) == len(self.labels):
            return self.mu
        return self._rows.derived("labelled rows", lambda: self.mu[self._labelled], _nbytes)

    @cached_property
    def _firsts(self) -> Firsts:
        """Which of the labelled rows a search looks at, where many are identical."""
        among = self._labelled_mu
        return lake_firsts(self._rows, "all" if among is self.mu else "labelled", among)

    def prepare(self) -> None:
        """Make now what other processes would each make for themselves.

        The graph is saved where that is allowed, and pinned to the rows with what takes a search:
        a forked process has it then, and another one gets what it cannot load. The rest is derived,
        for ``rows.sharing()``.
        """
        rows, chosen = self._rows, self._chosen
        pinned = rows.pinned
        lake_graph(rows, self.mu, save=True)
        if chosen.mode == "langevin":
            pinned[_BANDWIDTH] = self.kappa
            pinned[self._temperature_key] = self._temperature
            self._log_alpha  # noqa: B018 - it is kept
        if not chosen.gate or self.labels is None:
            return
        if chosen.mode == "walk":
            pinned[_LABELS_AROUND] = self._labels_around
        elif (self.graph.cosines[:, -1] > _ALIKE).any():  # else no search asks for it
            self._firsts.rows  # noqa: B018
        else:
            self._labelled_mu  # noqa: B018

    def walk(self, x: Float32s, rows: Numbers, keys: Keys) -> Moved:
        """Walk from *rows*, whose vectors are *x*; see :class:`Moved`."""
        chosen, labels = self._chosen, self.labels
        ends = walk(self.graph, rows, chosen.hops, keys, k=chosen.k or WALK_K)
        out: Float32s = self.mu[ends]
        back = np.zeros(len(rows), np.bool_)
        if chosen.gate and labels is not None:
            own = labels[rows]
            back = gate_walk(rows, ends, own, self._labels_around).taken_back & (own >= 0)
            out[back] = x[back]
        return Moved(out, (ends != rows) & ~back, back)

    def chains(self, device: Device, table: Table, x: Float32s, rows: Numbers, keys: Keys) -> Moved:
        """Run a Langevin chain from every row under the energy of the row and its neighbours.

        *table* is :attr:`mu` on *device*.
        """
        chosen, labels = self._chosen, self.labels
        moved = device.langevin(x, keys, self._energy(table, rows), self.dynamics()).result().x
        if not chosen.gate or labels is None:
            return Moved.freely(moved)
        host = moved if isinstance(moved, np.ndarray) else moved.cpu().numpy()
        own = labels[rows]
        among, firsts = self._labelled_mu, self._firsts
        passed = gate(x, host, own, among, labels[self._labelled], firsts=firsts)
        back = passed.taken_back & (own >= 0)
        return Moved(np.where(back[:, None], x, host), ~back, back)

    def _energy(self, table: Table, rows: Numbers) -> MixtureEnergy:
        width = min(self._chosen.k or CHAIN_K, self.graph.neighbours.shape[1] + 1)
        index = np.empty((len(rows), width), np.int32)
        index[:, 0] = rows
        index[:, 1:] = self.graph.neighbours[rows, : width - 1]
        kappa = np.full(index.shape, self.kappa, np.float32)
        mass = self._log_alpha[index]
        return MixtureEnergy(table, index, kappa, mass)

    @cached_property
    def _log_alpha(self) -> Float32s:
        every = slice(0, len(self._rows))

        def make() -> Float32s:
            return np.asarray(np.log(self._rows.gather("alpha", every)), np.float32)

        return self._rows.derived("log alpha", make, _nbytes)

    def dynamics(self) -> Dynamics:
        """The chains whose mean cosine to the rows they start at is the strength asked for."""
        return self._dynamics_at(self._temperature)

    def _dynamics_at(self, temperature: float) -> Dynamics:
        chosen = self._chosen
        return Dynamics(
            steps=chosen.steps,
            step_size=langevin.step_size(chosen.h, self.kappa, self._rows.dim, temperature),
            temperature=temperature,
            method=chosen.method,
            form=chosen.form,
        )

    @cached_property
    def _temperature(self) -> float:
        """Found by trial chains; see :mod:`mldb.lake.augment.temperature`."""
        chosen = self._chosen

        def make() -> float:
            trial = Trial(self.mu, self._energy, self._dynamics_at)
            start = langevin.temperature_for(chosen.strength, self.kappa, self._rows.dim)
            return find_temperature(trial.mean_cosine, chosen, start)

        return self._rows.derived(self._temperature_key, make, lambda _: _NUMBER_BYTES)

    @property
    def _temperature_key(self) -> tuple[object, ...]:
        """What the temperature depends on beside the rows."""
        chosen = self._chosen
        what = "temperature", chosen.strength, chosen.k, chosen.steps, chosen.h
        return *what, chosen.method, chosen.form
