"""How likely a row is to be sampled, and the weight that keeps a named risk unbiased.

A row i of N has mass alpha_i (how many ingested rows it stands for) and perhaps a salience s_i::

    p_i = (1 - u) alpha_i^beta s_i^gamma / sum + u / N           u is the floor
    w_i = q_i / p_i,  q_i = alpha_i / sum alpha ("rows") or 1 / N ("distinct")

so the mean of w f over draws is, on average, the mean of f over all ingested rows, or over the rows
that are distinct. With the floor, no weight of "distinct" exceeds 1/u. The risk must be named:
without one the weights are 1 and the sample is biased towards likely rows, on purpose. ``anneal``
takes weights to a power, as prioritised replay does while its exponent grows to 1 (Schaul et al.
2016).

Nothing here is random. Arrays are float64 [N]; N may be a lake of millions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import settle_numbers
from mldb.lake.checks import check_choice, check_share
from mldb.lake.on_host import to_host

Target = Literal["rows", "distinct"]
Replacement = Literal["with", "systematic", "bottom_k"]
LowEss = Literal["refuse", "raise_floor"]

EXPONENT_MAX: Final = 8.0
_HALVINGS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How rows are weighted and drawn.

    beta:        0 is uniform over what is distinct, 1 as often as ingested; at most 8.
    gamma:       exponent of the salience, at most 8; 0 ignores it.
    floor:       the share u of uniform draws, in [0, 1].
    target:      the risk that weights keep unbiased: "rows", "distinct", or None for no weights.
    anneal:      weights are taken to this power, in [0, 1].
    replacement: "with" draws one row at a time; "systematic" and "bottom_k" take a row once.
    least_ess:   the least effective sample size, as a share of the draws, in [0, 1].
    low_ess:     what happens below it: "refuse", or "raise_floor" to the least floor that suffices.
    """

    beta: float = 0.0
    gamma: float = 0.0
    floor: float = 0.1
    target: Target | None = None
    anneal: float = 1.0
    replacement: Replacement = "with"
    least_ess: float = 0.1
    low_ess: LowEss = "refuse"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises InvalidTypeError, InvalidValueError."""
        settle_numbers(self)
        if self.target is not None:
            check_choice("target", self.target, Target)
        check_choice("replacement", self.replacement, Replacement)
        check_choice("low_ess", self.low_ess, LowEss)
        for name in ("beta", "gamma"):
            check_share(name, getattr(self, name), EXPONENT_MAX)
        for name in ("floor", "anneal", "least_ess"):
            check_share(name, getattr(self, name))


@dataclass(frozen=True, slots=True, eq=False)
class Chances:
    """What every row's chance is, and what its weight is when drawn with replacement.

    ``p`` and ``weights`` are float64 [N]; ``p`` sums to 1. ``target`` is q, or None. ``floor`` is
    the one in use. ``ess`` is the effective sample size to expect, as a share of the draws.
    """

    p: Float64s
    target: Float64s | None
    weights: Float64s
    floor: float
    ess: float

    def __len__(self) -> int:
        """The number of rows N."""
        return len(self.p)


def chances(
    importance: Importance, alpha: npt.ArrayLike, salience: npt.ArrayLike | None = None
) -> Chances:
    """Return the chances of rows of mass *alpha* [N] > 0 and *salience* [N] >= 0.

    The salience is read only where gamma is not 0. Raises InvalidValueError when the arrays cannot
    be used, when a row of the target could never be drawn, and when the effective sample size is
    below ``importance.least_ess`` and may not or cannot be raised.
    """
    mass = _masses(alpha)
    chosen = _preferences(importance, mass, salience)
    target = _target(importance.target, mass)
    found = _at_floor(importance, chosen, target, importance.floor)
    if found.ess < importance.least_ess:
        found = _raised(importance, chosen, target, found)
    return found


def ratios(target: Float64s | None, chance: Float64s, anneal: float) -> Float64s:
    """Return (target / chance)^anneal, or ones without a target. *chance* is p, or pi / m."""
    if target is None or anneal == 0:
        return np.ones(len(chance))
    values = target / chance
    return values if anneal == 1 else values**anneal


def _masses(alpha: npt.ArrayLike) -> Float64s:
    mass = np.asarray(alpha, np.float64)
    if mass.ndim != 1 or not len(mass):
        raise InvalidValueError(
            f"alpha has shape {mass.shape}; give one mass per row, for >= 1 row"
        )
    if not (np.isfinite(mass.sum()) and (mass > 0).all()):
        raise InvalidValueError(
            "alpha holds a mass that is not a positive number, or their sum is beyond all numbers"
        )
    return mass


def _preferences(
    importance: Importance, mass: Float64s, salience: npt.ArrayLike | None
) -> Float64s:
    """Return p before the floor. In logarithms: powers of masses may leave the range of floats."""
    logs = importance.beta * np.log(mass)
    if importance.gamma:
        logs = logs + importance.gamma * _log_salience(salience, len(mass))
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


def _log_salience(salience: npt.ArrayLike | None, rows: int) -> Float64s:
    if salience is None:
        raise InvalidValueError("gamma is not 0 and no salience was given; give one per row")
    try:
        values: Float64s = to_host(salience, "salience").astype(np.float64, casting="safe")
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"salience is not numeric: {error}") from None
    if values.shape != (rows,):
        raise InvalidValueError(f"salience has shape {values.shape} for {rows} rows")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise InvalidValueError(
            "salience holds a value that is negative or no number, or is 0 everywhere"
        )
    with np.errstate(divide="ignore"):  # a salience of 0 is a chance of 0, before the floor
        return np.log(values)


def _target(name: Target | None, mass: Float64s) -> Float64s | None:
    if name is None:
        return None
    return mass / mass.sum() if name == "rows" else np.full(len(mass), 1 / len(mass))


def _at_floor(
    importance: Importance, chosen: Float64s, target: Float64s | None, floor: float
) -> Chances:
    p = (1 - floor) * chosen + floor / len(chosen)
    if target is not None and not p.all():
        raise InvalidValueError(
            f"a row has no chance of being drawn, so no weights keep target={importance.target!r} "
            "unbiased. Give a floor above 0, or a salience above 0 everywhere"
        )
    weights = ratios(target, p, importance.anneal)
    mean = float(np.vdot(p, weights))
    ess = mean * mean / float(np.vdot(p, weights * weights))
    return Chances(p, target, weights, floor, ess)


def _raised(
    importance: Importance, chosen: Float64s, target: Float64s | None, found: Chances
) -> Chances:
    """Return the chances at the least floor that gives the effective sample size asked for.

    Without annealing 1/ess is sum q^2/p, convex in the floor, so between a floor that fails and 1,
    which does not, lies exactly one border.
    """
    advice = "; beta nearer to 1 follows the masses more closely" if importance.beta < 1 else ""
    shares = f"{found.ess:.3g} of the draws, below least_ess={importance.least_ess:g}"
    if importance.low_ess == "refuse":
        raise InvalidValueError(
            f"the effective sample size is {shares}. Give low_ess='raise_floor', or other beta, "
            f"gamma or salience{advice}"
        )
    best = _at_floor(importance, chosen, target, 1.0)
    if best.ess < importance.least_ess:
        raise InvalidValueError(
            f"the effective sample size is {shares}, and uniform draws give {best.ess:.3g} for "
            f"target={importance.target!r}{advice}"
        )
    low, high = found.floor, 1.0
    for _ in range(_HALVINGS):
        middle = _at_floor(importance, chosen, target, (low + high) / 2)
        if middle.ess < importance.least_ess:
            low = middle.floor
        else:
            high, best = middle.floor, middle
    return best
