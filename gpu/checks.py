"""What every device refuses, in the same words: shapes, dtypes and values of a request.

Pure functions over what a request is made of. Each raises before anything was started, so the
device stays usable. A row that is not of length 1 (or holds NaN) is found by ``check_lengths``,
which a device may call as late as in ``Pending.result``.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError, LimitError
from mldb.gpu.device import Dynamics, Energy, MixtureEnergy, SelfEnergy, Table
from mldb.noise.keys import STEPS_MAX, Keys, check_keys
from mldb.noise.philox import ACCEPT_BLOCK, DIM_MAX

LENGTH_ERROR_MAX: Final = 1e-3
"""How far from 1 the length of a row may be; renormalising hides less than this."""

SUBSPACE_SPARE: Final = 3
"""The subspace form needs this many dimensions outside the span of x and its neighbours."""


def check_usable(what: str, *, closed: bool, pid: int, current_pid: int) -> None:
    """Refuse a closed device, and one that was opened by the parent of this process.

    Raises ClosedError.
    """
    if closed:
        raise ClosedError(f"the device {what} is closed. Open it again with open_device().")
    if pid != current_pid:
        raise ClosedError(
            f"the device {what} was opened in process {pid} and this is process {current_pid}, a "
            "fork of it. Threads and drivers do not survive a fork: call open_device() in the "
            "child, or load data with num_workers=0."
        )


def check_dim(dim: int) -> None:
    """Refuse dimensions that have no sphere or no noise. Raises InvalidValueError, LimitError."""
    if dim < 2:
        raise InvalidValueError(f"rows have {dim} dimensions; a direction needs at least 2")
    if dim > DIM_MAX:
        raise LimitError(f"rows have {dim} dimensions; the noise counter reaches {DIM_MAX}")


def check_blocks(blocks: int) -> None:
    """Refuse more blocks than a counter has. Raises LimitError."""
    if not 0 < blocks <= ACCEPT_BLOCK + 1:
        raise LimitError(f"blocks={blocks} is not from 1 to {ACCEPT_BLOCK + 1}")


def check_rows(x: Any, keys: Keys) -> None:
    """Refuse rows that are not float32 [B, d] with one key each.

    Raises InvalidTypeError, InvalidValueError, LimitError.
    """
    check_keys(keys)
    _array("x", x, np.float32, 2)
    check_dim(x.shape[1])
    if len(x) != len(keys):
        raise InvalidValueError(f"x has {len(x)} rows and keys have {len(keys)}")


def check_strength(strength: float) -> None:
    """Refuse cosines outside [0, 1]. Raises InvalidValueError."""
    if not 0 <= strength <= 1:
        raise InvalidValueError(f"strength={strength} is a cosine to the row, from 0 to 1")


def check_dynamics(dynamics: Dynamics) -> None:
    """Refuse chains that cannot be run. Raises InvalidValueError."""
    if dynamics.method not in ("ula", "mala"):
        raise InvalidValueError(f"method={dynamics.method!r} is not one of 'ula', 'mala'")
    if dynamics.form not in ("direct", "subspace"):
        raise InvalidValueError(f"form={dynamics.form!r} is not one of 'direct', 'subspace'")
    if not 0 <= dynamics.steps <= STEPS_MAX:
        raise InvalidValueError(f"steps={dynamics.steps} is not from 0 to {STEPS_MAX}")
    if not (isfinite(dynamics.step_size) and dynamics.step_size > 0):
        raise InvalidValueError(f"step_size={dynamics.step_size} is not a positive number")
    if not (isfinite(dynamics.temperature) and dynamics.temperature >= 0):
        raise InvalidValueError(f"temperature={dynamics.temperature} is not a number from 0 up")
    if dynamics.method == "mala" and dynamics.temperature == 0:
        raise InvalidValueError("temperature=0 has no law for MALA to keep; use method='ula'")
    if dynamics.method == "mala" and dynamics.form == "subspace":
        raise InvalidValueError("the subspace form is ULA only; use form='direct' with MALA")


def check_energy(energy: Energy, x: Any, dynamics: Dynamics) -> None:
    """Refuse energies that do not fit the rows. Raises InvalidTypeError, InvalidValueError."""
    count, dim = x.shape
    if isinstance(energy, SelfEnergy):
        _array("energy.mu", energy.mu, np.float32, 2)
        _array("energy.kappa", energy.kappa, np.float32, 1)
        _shape("energy.mu", energy.mu, (count, dim))
        _shape("energy.kappa", energy.kappa, (count,))
        neighbours = 1
    elif isinstance(energy, MixtureEnergy):
        neighbours = _check_mixture(energy, count, dim)
    else:
        raise InvalidTypeError(
            f"energy is a {type(energy).__name__}, not a SelfEnergy or a MixtureEnergy"
        )
    if dynamics.form == "subspace" and dim < neighbours + 1 + SUBSPACE_SPARE:
        raise InvalidValueError(
            f"the subspace form of {neighbours} neighbours needs {neighbours + 1 + SUBSPACE_SPARE} "
            f"dimensions, rows have {dim}; use form='direct'"
        )


def _check_mixture(energy: MixtureEnergy, count: int, dim: int) -> int:
    _array("energy.index", energy.index, np.int32, 2)
    neighbours: int = energy.index.shape[1]
    if neighbours < 1:
        raise InvalidValueError("energy.index names no neighbours; each row needs at least one")
    for name, value in (("kappa", energy.kappa), ("log_weight", energy.log_weight)):
        _array(f"energy.{name}", value, np.float32, 2)
        _shape(f"energy.{name}", value, (count, neighbours))
    _shape("energy.index", energy.index, (count, neighbours))
    table: Table = energy.table
    if table.dim != dim:
        raise InvalidValueError(f"the table has rows of {table.dim} dimensions, x has {dim}")
    if count:
        lowest, highest = int(energy.index.min()), int(energy.index.max())
        if lowest < 0 or highest >= table.rows:
            raise InvalidValueError(
                f"energy.index reaches from {lowest} to {highest}; the table has rows 0 to "
                f"{table.rows - 1}"
            )
    return neighbours


def check_lengths(squares: npt.NDArray[np.floating[Any]]) -> None:
    """Refuse rows whose squared length [B] is not about 1, NaN among them.

    Raises InvalidValueError.
    """
    bad = ~(np.abs(squares - 1) <= 2 * LENGTH_ERROR_MAX)
    if bad.any():
        row = int(np.argmax(bad))
        raise InvalidValueError(
            f"row {row} of x has the squared length {float(squares[row])}, not 1 ({int(bad.sum())} "
            "such rows). Normalise rows and leave out those with NaN; no result was returned."
        )


def _array(name: str, value: Any, dtype: type[np.generic], dims: int) -> None:
    """Accept NumPy arrays, and torch tensors whose dtype has the same name."""
    wanted = np.dtype(dtype).name
    found = str(getattr(value, "dtype", None)).removeprefix("torch.")
    if found != wanted:
        raise InvalidTypeError(f"{name} is {_kind(value)}, not {wanted}")
    if value.ndim != dims:
        raise InvalidValueError(f"{name} has {value.ndim} dimensions, not {dims}")


def _kind(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"a {type(value).__name__}" if dtype is None else str(dtype)


def _shape(name: str, value: Any, wanted: tuple[int, ...]) -> None:
    if tuple(value.shape) != wanted:
        raise InvalidValueError(f"{name} has the shape {tuple(value.shape)}, not {wanted}")
