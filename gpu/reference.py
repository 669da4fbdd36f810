"""The reference device: NumPy, the formulas as they stand; all others are compared with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Floats
from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError
from mldb.gpu import dynamics as formulas
from mldb.gpu import subspace
from mldb.gpu.checks import (
    check_blocks,
    check_dim,
    check_dynamics,
    check_energy,
    check_lengths,
    check_rows,
    check_strength,
    check_usable,
)
from mldb.gpu.device import Chains, Dynamics, Energy, Pending, SelfEnergy, Table
from mldb.noise import philox
from mldb.noise.keys import Keys, check_keys

REFERENCE_CHUNK_ROWS: Final = 256
"""Rows worked on at once: their 16 neighbours of 640 dimensions take 10 MiB."""


class ArrayTable:
    """Rows in an array, referenced: the array must live and not change until ``close``."""

    imported = True

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self.rows, self.dim = rows.shape
        self._array: npt.NDArray[np.float32] | None = rows

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The rows [N, d]. Raises ClosedError after ``close``."""
        if self._array is None:
            raise ClosedError("this table is closed. Load the rows again; the device works on.")
        return self._array

    def close(self) -> None:
        """Let the array go."""
        self._array = None


def check_table(rows: Any) -> npt.NDArray[np.float32]:
    """Return rows that kernels can read: float32 [N, d], C-contiguous and aligned, else copied.

    Raises InvalidTypeError, InvalidValueError, LimitError.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32:
        raise InvalidTypeError(
            f"a table is a float32 NumPy array, not {getattr(rows, 'dtype', type(rows).__name__)}"
        )
    if rows.ndim != 2:
        raise InvalidValueError(f"a table has 2 dimensions, rows and components, not {rows.ndim}")
    check_dim(rows.shape[1])
    return np.require(rows, requirements=["C", "A"])


def table_array(table: Table) -> npt.NDArray[np.float32]:
    """Return the rows of a table that lies in memory. Raises InvalidTypeError for any other."""
    if not isinstance(table, ArrayTable):
        raise InvalidTypeError(
            f"the table is a {type(table).__name__} of another device; load the rows with this one"
        )
    return table.array


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A batch that was done when it was started."""

    chains: Chains

    def result(self) -> Chains:
        """Return it."""
        return self.chains


class KeyDraws:
    """The noise of a batch for the formulas, in one float type."""

    def __init__(self, keys: Keys, dtype: type[np.floating[Any]]) -> None:
        self._keys = keys
        self._dtype = dtype

    def normals(self, step: int, dim: int) -> Floats:
        """Return the normals [B, dim]; in float64 they are not rounded to float32 first."""
        exact = self._dtype == np.float64
        source = philox.normals_float64 if exact else philox.normals
        return source(self._keys, step, dim)

    def uniforms(self, step: int) -> Floats:
        """Return the uniforms [B] of MALA."""
        return philox.accept_uniforms(self._keys, step).astype(self._dtype)

    def trial(self, step: int, number: int) -> tuple[Floats, Floats]:
        """Return the normal [B] and the uniform [B] of a try of the gamma draw."""
        raw = philox.words(self._keys, step, 1, first=philox.GAMMA_BLOCK + number)[:, 0]
        normal = philox.box_muller(raw)[:, 0].astype(self._dtype)
        return normal, philox.uniforms(raw[:, 2]).astype(self._dtype)


class NumpyDevice:
    """The ``Device`` that defines the others. Slow: it is for tests and as the last resort.

    ``dtype`` float32 rounds as every device does. float64 is for tests: results are float64 as
    well, computed without those roundings. A batch is done when the call that starts it returns.
    """

    kind = "numpy"
    slots = 1
    usable = True

    def __init__(self, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.name = f"numpy ({np.dtype(dtype).name})"
        self._dtype = dtype
        self._closed = False
        self._pid = os.getpid()

    def load(self, rows: npt.NDArray[np.float32]) -> ArrayTable:
        """Reference rows [N, d]. Raises InvalidTypeError, InvalidValueError, LimitError."""
        self._check_usable()
        return ArrayTable(check_table(rows))

    def words(self, keys: Keys, step: int, blocks: int) -> npt.NDArray[np.uint32]:
        """Return the noise words u32 [B, blocks, 4] of a step."""
        self._check_usable()
        check_keys(keys, step)
        check_blocks(blocks)
        return philox.words(keys, step, blocks)

    def normals(self, keys: Keys, step: int, dim: int) -> Any:
        """Return the normals [B, dim] of a step."""
        self._check_usable()
        check_keys(keys, step)
        check_dim(dim)
        return KeyDraws(keys, self._dtype).normals(step, dim)

    def isotropic(self, x: Any, keys: Keys, strength: float) -> Pending:
        """Return x' = rho x + sqrt(1 - rho^2) u, done."""
        self._check_usable()
        check_rows(x, keys)
        check_strength(strength)
        check_lengths(np.einsum("ij,ij->i", x, x))
        moved = np.empty(x.shape, self._dtype)
        for part in chunks(len(x)):
            draws = KeyDraws(keys_part(keys, part), self._dtype)
            here = x[part].astype(self._dtype)
            noise = draws.normals(0, x.shape[1])
            moved[part] = formulas.isotropic_step(here, noise, strength)
        return Ready(Chains(moved, np.ones(len(x), np.int32)))

    def langevin(self, x: Any, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Return chains that were run at once. Raises InvalidValueError, InvalidTypeError."""
        self._check_usable()
        check_rows(x, keys)
        check_dynamics(dynamics)
        check_energy(energy, x, dynamics)
        check_lengths(np.einsum("ij,ij->i", x, x))
        moved = np.empty(x.shape, self._dtype)
        accepted = np.full(len(x), dynamics.steps, np.int32)
        for part in chunks(len(x)):
            mu, kappa, weight = self._neighbours(energy, part)
            draws = KeyDraws(keys_part(keys, part), self._dtype)
            here = x[part].astype(self._dtype)
            if dynamics.form == "subspace":
                moved[part] = subspace.run_subspace(here, mu, kappa, weight, draws, dynamics)
            else:
                at = mixture_at(mu, kappa, weight)
                moved[part], accepted[part] = formulas.run_chain(here, at, draws, dynamics)
        return Ready(Chains(moved, accepted))

    def answers(self) -> bool:
        """Whether it is usable: there is nothing to be lost."""
        return self.usable

    def rest(self) -> None:
        """Do nothing: batches need no memory of its own."""

    def close(self) -> None:
        """Refuse further calls; there is nothing to give back."""
        self._closed = True

    def _check_usable(self) -> None:
        check_usable(self.name, closed=self._closed, pid=self._pid, current_pid=os.getpid())

    def _neighbours(self, energy: Energy, part: slice) -> tuple[Any, Any, Any]:
        """The neighbours [b, K, d] of some rows, their kappas and log weights [b, K]."""
        if isinstance(energy, SelfEnergy):
            mu, kappa = energy.mu[part, None], energy.kappa[part, None]
            weight = np.zeros_like(kappa)
        else:
            mu = table_array(energy.table)[energy.index[part]]
            kappa, weight = energy.kappa[part], energy.log_weight[part]
        return mu.astype(self._dtype), kappa.astype(self._dtype), weight.astype(self._dtype)


def mixture_at(mu: Any, kappa: Any, log_weight: Any, *, xp: Any = np) -> formulas.EnergyAt:
    """Return the mixture energy as a function of x."""
    return lambda x: formulas.mixture_energy(x, mu, kappa, log_weight, xp=xp)


def chunks(rows: int, size: int = REFERENCE_CHUNK_ROWS) -> Iterator[slice]:
    """Cut ``rows`` rows into slices of at most ``size``."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def keys_part(keys: Keys, part: slice) -> Keys:
    """Return the keys of some rows of a batch."""
    return Keys(keys.seed, keys.pass_number, keys.rows[part], keys.augmentations[part])
