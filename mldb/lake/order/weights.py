"""How likely a row is to be sampled, and the weight that keeps a named risk unbiased.

A row i of N has mass alpha_i (how many ingested rows it stands for) and perhaps a salience s_i::

    p_i = (1 - u) alpha_i^beta s_i^gamma / sum + u / N           u is the floor
    w_i = q_i / p_i,  q_i = alpha_i / sum alpha ("rows") or 1 / N ("distinct")

so the mean of w f over draws is, on average, the mean of f over all ingested rows, or over the rows
that are distinct. With the floor, no weight of "distinct" exceeds 1/u. The risk must be named:
without one the weights are 1 and the sample is biased towards likely rows, on purpose. ``anneal``
takes weights to a power, as prioritised replay does while its exponent grows to 1 (Schaul et al.
2016).

How much the weights cost is told by Kish's effective sample size (Kish 1965, 11.7; 1992): n draws
of weights w are worth (sum w)^2 / sum w^2 draws of equal weight. Over draws with chances p it is,
as a share of n, (sum p w)^2 / sum p w^2. A sample without replacement of m rows has its own chances
pi_i / m, where pi_i is the probability that row i is in it (Horvitz and Thompson 1952): weights are
q_i / (pi_i / m), and without annealing the share is 1 / (m sum q_i^2 / pi_i). A row that is in
every sample has pi = 1, however likely it was: heavy rows cost less than with replacement.

Nothing here is random. Arrays are float64 [N]; N may be a lake of millions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import settle_numbers
from mldb.lake.checks import check_choice, check_share
from mldb.lake.on_host import to_host
from mldb.lake.order.sampling import everywhere, inclusion, rank_inclusion

Target = Literal["rows", "distinct"]
Replacement = Literal["with", "systematic", "bottom_k"]
LowEss = Literal["refuse", "raise_floor"]

EXPONENT_MAX: Final = 8.0
_TRIES: Final = 60
_CLOSE: Final = 1e-9  # of the effective sample size, as a share of the least one


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How rows are weighted and drawn.

    beta:        0 is uniform over what is distinct, 1 as often as ingested; at most 8.
    gamma:       exponent of the salience, at most 8; 0 ignores it.
    floor:       the share u of uniform draws, in [0, 1]; where beta or gamma make others.
    target:      the risk that weights keep unbiased: "rows", "distinct", or None for no weights.
    anneal:      weights are taken to this power, in [0, 1].
    replacement: "with" draws one row at a time; "systematic" and "bottom_k" take a row once.
    least_ess:   the least effective sample size, as a share of the draws, in [0, 1].
    low_ess:     what happens below it: "refuse", or "raise_floor" to the least floor that suffices.

    Without a target there are no weights, so *anneal*, *least_ess* and *low_ess* are refused.
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
        self._check_heard()

    @property
    def is_once_by_chance(self) -> bool:
        """Whether rows are taken once, some likelier than others."""
        return self.replacement != "with" and bool(self.beta or self.gamma)

    def _check_heard(self) -> None:
        """Refuse what would be ignored. A least_ess of 0 asks for nothing, with or without."""
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        idle = given & {"anneal", "least_ess", "low_ess"}
        if self.target is None and idle - ({"least_ess"} if self.least_ess == 0 else set()):
            raise InvalidValueError(
                f"{' and '.join(sorted(idle))} are about weights, and target=None makes none. Give "
                "target='rows' or 'distinct', or leave them out"
            )
        if self.low_ess == "raise_floor" and self.least_ess == 0:
            raise InvalidValueError(
                "low_ess='raise_floor' does nothing with least_ess=0, which nothing is below; "
                "leave one of them out"
            )
        preferred = " and ".join(sorted(given & {"beta", "gamma"}))
        if "floor" in given and not preferred:
            raise InvalidValueError(
                f"floor={self.floor} does nothing with beta=0 and gamma=0: all draws are uniform. "
                "Leave it out, or give one of them"
            )
        if self.floor == 1 and preferred:
            raise InvalidValueError(
                f"with floor=1 all draws are uniform, and {preferred} does nothing; leave one out"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Chances:
    """What every row's chance is, and what its weight is when drawn with replacement.

    ``p`` and ``weights`` are float64 [N], read-only where all rows have one value; ``p`` sums to 1.
    ``target`` is q, or None. ``floor`` is the one in use. ``ess`` is the effective sample size to
    expect under the design, as a share of the draws.
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
    importance: Importance,
    alpha: npt.ArrayLike,
    salience: npt.ArrayLike | None = None,
    *,
    draws: int | None = None,
) -> Chances:
    """Return the chances of rows of mass *alpha* [N] > 0 and *salience* [N] >= 0.

    The salience is read only where gamma is not 0. *draws* is the size of a sample without
    replacement, which its effective sample size depends on; None is a few of many rows, whose is
    that of draws with replacement. Raises InvalidValueError when the arrays cannot
    be used, when a row of the target could never be drawn, and when the effective sample size is
    below ``importance.least_ess`` and may not or cannot be raised.
    """
    mass = _masses(alpha)
    chosen = _preferences(importance, mass, salience)
    target = _target(importance.target, mass)

    def at_floor(floor: float) -> Chances:
        return _at_floor(importance, chosen, target, floor, draws)

    found = at_floor(importance.floor)
    if found.ess < importance.least_ess:
        found = _raised(importance, at_floor, found)
    return found


def ratios(target: Float64s | None, chance: Float64s, anneal: float) -> Float64s:
    """Return (target / chance)^anneal, or ones without a target. *chance* is p, or pi / m."""
    if target is None or anneal == 0:
        return everywhere(1.0, len(chance))
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
    if not importance.beta and not importance.gamma:
        return everywhere(1 / len(mass), len(mass))
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
    return mass / mass.sum() if name == "rows" else everywhere(1 / len(mass), len(mass))


def _at_floor(
    importance: Importance,
    chosen: Float64s,
    target: Float64s | None,
    floor: float,
    draws: int | None,
) -> Chances:
    p = chosen  # with nothing to prefer the floor changes nothing
    if importance.beta or importance.gamma:
        p = (1 - floor) * chosen + floor / len(chosen)
    if target is not None and not p.all():
        raise InvalidValueError(
            f"a row has no chance of being drawn, so no weights keep target={importance.target!r} "
            "unbiased. Give a floor above 0, or a salience above 0 everywhere"
        )
    weights = ratios(target, p, importance.anneal)
    ess = 1.0 if target is None else _ess(importance, p, target, draws)
    return Chances(p, target, weights, floor, ess)


def _ess(importance: Importance, p: Float64s, target: Float64s, draws: int | None) -> float:
    """Return the effective sample size to expect, as a share of the draws; see the module."""
    shares = p
    if draws and importance.replacement != "with":
        design = inclusion if importance.replacement == "systematic" else rank_inclusion
        shares = design(p, draws) / draws
    weights = ratios(target, shares, importance.anneal)
    mean = float(np.vdot(shares, weights))
    return mean * mean / float(np.vdot(shares, weights * weights))


def _raised(
    importance: Importance, at_floor: Callable[[float], Chances], found: Chances
) -> Chances:
    """Return the chances at the least floor that gives the effective sample size asked for.

    With replacement and without annealing 1/ess is sum q^2/p, convex in the floor, so between a
    floor that fails and 1, which does not, lies exactly one border; else it is one of perhaps
    several.
    """
    advice = "; beta nearer to 1 follows the masses more closely" if importance.beta < 1 else ""
    if importance.target == "rows" and importance.replacement != "with":
        advice += "; a heavy row can come once only: draw fewer, or with replacement"
    shares = f"{found.ess:.3g} of the draws, below least_ess={importance.least_ess:g}"
    if importance.low_ess == "refuse":
        raise InvalidValueError(
            f"the effective sample size is {shares}. Give low_ess='raise_floor', or other beta, "
            f"gamma or salience{advice}"
        )
    best = at_floor(1.0)
    if best.ess < importance.least_ess:
        raise InvalidValueError(
            f"the effective sample size is {shares}, and uniform draws give {best.ess:.3g} for "
            f"target={importance.target!r}{advice}"
        )
    failed, least = found, importance.least_ess
    for number in range(_TRIES):
        if best.ess <= least * (1 + _CLOSE):
            break
        share = 0.5  # every third time, should the line between the ends mislead
        if number % 3 != 2:
            share = (least * (1 + _CLOSE / 2) - failed.ess) / (best.ess - failed.ess)
        middle = at_floor(failed.floor + share * (best.floor - failed.floor))
        if middle.ess < least:
            failed = middle
        else:
            best = middle
    return best
