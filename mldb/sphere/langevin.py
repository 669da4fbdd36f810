"""The time scales of a Langevin walk on the sphere.

The walk is dX = -grad E dt + sqrt(2 T) dB. Under one splat of concentration kappa its stationary
law is von Mises-Fisher with kappa / T, and the cosine to the mean relaxes at a known rate, so that
a step size and a temperature follow from numbers that mean the same for every d and kappa: h, the
part of a relaxation time that one step covers, and the strength, a mean cosine.

All functions are pure. They raise InvalidTypeError and InvalidValueError.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s
from mldb.errors import InvalidValueError
from mldb.sphere import vmf

STRENGTH_RANGE: Final = (1e-6, 1 - 1e-9)


def relaxation_rate(kappa: float, dim: int, temperature: float) -> float:
    """Return lam, the rate, per unit of time, at which mu.x relaxes under one splat.

    From the mean-field drift t' = kappa (1 - t^2) - T (d-1) t: lam = kappa sqrt(b^2 + 4) with
    b = T (d-1) / kappa.
    """
    return float(kappa * np.hypot(_drag(kappa, dim, temperature), 2.0))


def step_size(h: float, kappa: float, dim: int, temperature: float) -> float:
    """Return the step eps = h / lam. h < 2 is stable; keep h <= 0.2 where exactness matters."""
    _check_positive("h", h)
    return h / relaxation_rate(kappa, dim, temperature)


def expected_cosine(time: npt.ArrayLike, kappa: float, dim: int, temperature: float) -> Float64s:
    """Return E[mu.x] after a *time* of the walk that started at x = mu, in the shape of *time*.

    The drift of ``relaxation_rate`` is a Riccati equation, solved here from t(0) = 1; the error is
    O(1/d). n steps of size eps take the time n eps, which adds an error of O(h).
    """
    times = vmf.real_numbers("time", time)
    if not np.all(times >= 0):
        raise InvalidValueError("time holds a negative number or NaN; a walk starts at 0")
    rate = relaxation_rate(kappa, dim, temperature)
    drag = _drag(kappa, dim, temperature)
    root = float(np.hypot(drag, 2.0))
    attracting, repelling = 2 / (drag + root), -(drag + root) / 2
    c = (1 - attracting) / (1 - repelling) * np.exp(-rate * times)
    return np.asarray((attracting - repelling * c) / (1 - c))


def temperature_for(strength: float, bandwidth: float, dim: int) -> float:
    """Return T = bandwidth / A_d^-1(strength).

    At that temperature the stationary law of one splat of concentration *bandwidth* has the mean
    cosine *strength*, from 1e-6 to 1 - 1e-9.
    """
    _check_positive("bandwidth", bandwidth)
    low, high = STRENGTH_RANGE
    if not low <= strength <= high:
        raise InvalidValueError(f"strength is {strength}; give a mean cosine between 0 and 1")
    return bandwidth / float(vmf.concentration(strength, dim, clamp=STRENGTH_RANGE))


def _drag(kappa: float, dim: int, temperature: float) -> float:
    """Return b, the pull of the noise towards the equator in units of that of the splat."""
    _check_positive("kappa", kappa)
    _check_positive("temperature", temperature)
    return temperature * (vmf.checked_dim(dim) - 1) / kappa


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise InvalidValueError(f"{name} is {value}; give a number above 0")
