"""The temperature at which chains end at the mean cosine asked for: found by trial chains.

Under one splat the temperature of a mean cosine is known (``mldb.sphere.langevin``). Among
neighbours it is not: their pulls overlap, a chain of few steps has not forgotten its start, and a
step is not infinitely short, so that asked for .3 a chain ended at .12 to .26. Trial chains from
some rows of the lake, run by the reference under noise of their own, measure it, and it falls as
the temperature rises: a root is looked for on the logarithm of the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Final, NamedTuple

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.errors import InvalidValueError
from mldb.gpu.device import Dynamics, MixtureEnergy, Table
from mldb.gpu.reference import NumpyDevice
from mldb.lake.order.permutation import permutation
from mldb.lake.stream.settings import Augmentation
from mldb.noise.keys import Keys

TRIAL_ROWS: Final = 256
"""The mean over these is within .01 or so of that over all."""

_FACTOR: Final = log(4)  # the temperature is quartered or taken by four until it lies between two
_CHANGES: Final = 8
_TRIALS: Final = 24
_DONE: Final = 1e-4  # of a cosine
_TRIAL_SEED: Final = 0
_DIGITS: Final = 3  # behind the first: sums of other orders then give the same number


class Trial:
    """Chains from some rows of a lake, the same at every temperature. One thread."""

    def __init__(
        self,
        mu: Float32s,
        energy: Callable[[Table, Numbers], MixtureEnergy],
        dynamics_at: Callable[[float], Dynamics],
    ) -> None:
        """*mu* [N, d] are the rows of the lake, *energy* that of some of them by their numbers."""
        count = min(len(mu), TRIAL_ROWS)
        rows = permutation(len(mu), seed=_TRIAL_SEED, pass_number=0).at(np.arange(count))
        self._device = NumpyDevice()
        self._energy = energy(self._device.load(mu), rows)
        self._dynamics_at = dynamics_at
        self._keys = Keys(_TRIAL_SEED, 0, rows.astype(np.uint64), np.zeros(count, np.uint16))
        self._x = mu[rows]

    def mean_cosine(self, temperature: float) -> float:
        """Return the mean cosine of the rows to where their chains end."""
        dynamics = self._dynamics_at(temperature)
        ends = self._device.langevin(self._x, self._keys, self._energy, dynamics).result().x
        return float(np.einsum("ij,ij->", self._x, ends, dtype=np.float64) / len(ends))


def find_temperature(
    mean_cosine: Callable[[float], float], chosen: Augmentation, start: float
) -> float:
    """Return the temperature at which *mean_cosine* is the strength chosen, to four digits.

    The search begins at *start*. Raises InvalidValueError where no temperature gives it.
    """

    def over(logarithm: float) -> float:
        return mean_cosine(exp(logarithm)) - chosen.strength

    colder = warmer = _Point(log(start), over(log(start)))
    for _ in range(_CHANGES):
        if colder.over < -_DONE:
            warmer, colder = colder, _point(over, colder.at - _FACTOR)
        elif warmer.over > _DONE:
            colder, warmer = warmer, _point(over, warmer.at + _FACTOR)
    if colder.over < -_DONE or warmer.over > _DONE:
        raise _unreached(chosen, colder if colder.over < 0 else warmer)
    return float(f"{exp(_root(over, colder, warmer)):.{_DIGITS}e}")


class _Point(NamedTuple):
    """The logarithm of a temperature, and by how much the mean cosine is above the one wanted."""

    at: float
    over: float


def _point(over: Callable[[float], float], at: float) -> _Point:
    return _Point(at, over(at))


def _root(over: Callable[[float], float], colder: _Point, warmer: _Point) -> float:
    """Return where *over* is 0 between two points, of which it is above 0 at the colder one.

    Regula falsi, where an end that stays twice counts half (Illinois: Dowell and Jarratt 1971).
    """
    best = min(colder, warmer, key=lambda point: abs(point.over))
    moved = None
    for _ in range(_TRIALS):
        if abs(best.over) <= _DONE or warmer.at - colder.at <= _DONE:
            break
        slope = (warmer.over - colder.over) / (warmer.at - colder.at)
        last = _point(over, warmer.at - warmer.over / slope)
        best = min(best, last, key=lambda point: abs(point.over))
        if last.over > 0:
            if moved == "colder":
                warmer = warmer._replace(over=warmer.over / 2)
            colder, moved = last, "colder"
        else:
            if moved == "warmer":
                colder = colder._replace(over=colder.over / 2)
            warmer, moved = last, "warmer"
    return best.at


def _unreached(chosen: Augmentation, end: _Point) -> InvalidValueError:
    reached = chosen.strength + end.over
    chains = f"chains of steps={chosen.steps} and h={chosen.h:g}"
    if end.over < 0:
        return InvalidValueError(
            f"strength={chosen.strength:g}: {chains} in this lake end at a mean cosine of "
            f"{reached:.4g} at most, since neighbours pull; lower strength, or fewer steps"
        )
    return InvalidValueError(
        f"strength={chosen.strength:g}: {chains} are too short to leave a row so far, and end at a "
        f"mean cosine of {reached:.4g} at least; raise strength, steps or h"
    )
