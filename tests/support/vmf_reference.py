"""Reference values for the modules of mldb.sphere, from formulas that the package does not use.

The tables were computed with 60 digits and rounded once, to float64. Run as a script (mpmath is
needed), this file prints them again::

    python -m tests.support.vmf_reference
"""

from __future__ import annotations

from importlib import import_module
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.sphere.geometry import Geometry

DIGITS = 60  # 1 - A^2 - (d-1) A / kappa cancels up to 20 of them
LAW_DIMS = (2, 3, 16, 39, 64, 640, 4096)
LAW_KAPPAS = (1e-6, 0.5, 10.0, 426.4, 3e4, 1e7)
INVERSE_DIMS = (2, 3, 16, 64, 640, 4096)
INVERSE_MEAN_COS = (0.02, 0.5, 0.9, 0.9995)
MIXTURE_DIMS = {3: 5.0, 64: 140.0, 640: 1000.0}  # and the largest kappa of each
POINTS = 2
GRADIENT_HEAD = 3


class Law(NamedTuple):
    """What one law is; log C_d in nats."""

    dim: int
    kappa: float
    mean_cosine: float
    slope: float
    log_normalizer: float


class Inverse(NamedTuple):
    """The kappa of a mean cosine."""

    dim: int
    mean_cos: float
    kappa: float


class Point(NamedTuple):
    """The energy at one point of ``mixture``, the first components and the length of grad E."""

    dim: int
    geometry: Geometry
    normalized: bool
    number: int
    energy: float
    gradient: tuple[float, ...]
    length: float


class Mixture(NamedTuple):
    """x [2, d], unit rows mu [4, d], kappa [4], alpha [4]."""

    x: npt.NDArray[np.float64]
    mu: npt.NDArray[np.float64]
    kappa: npt.NDArray[np.float64]
    alpha: npt.NDArray[np.float64]


def mixture(dim: int, geometry: Geometry) -> Mixture:
    """Four splats that overlap. Made of whole numbers, and so of the same bits on every machine."""
    i, j = np.arange(POINTS + 4)[:, None], np.arange(dim)
    whole = 3 * (j * j % 13 - 6) + (i * i * (j + 1) + 3 * i * j + j * j) % 11 - 5
    rows = whole / np.sqrt((whole * whole).sum(axis=1, keepdims=True))
    x = rows[:POINTS] * (1.0 if geometry == "sphere" else 1.5)
    kappa = MIXTURE_DIMS[dim] * np.array([0.5, 0.625, 0.75, 1.0])
    return Mixture(x, rows[POINTS:], kappa, np.array([40.0, 1.0, 2.0, 5.0]))


def compute_law(dim: int, kappa: float) -> Law:
    """One row of LAWS, by modified Bessel functions and the Riccati equation."""
    mp = _mpmath()
    with mp.workdps(DIGITS):
        k, order = mp.mpf(kappa), mp.mpf(dim) / 2 - 1
        mean = _bessel(mp, order + 1, k) / _bessel(mp, order, k)
        slope = 1 - mean**2 - (dim - 1) * mean / k
        return Law(dim, kappa, float(mean), float(slope), float(_log_c(mp, dim, k)))


def compute_inverse(dim: int, mean_cos: float) -> Inverse:
    """One row of INVERSES, by a secant search around a guess that is a few percent off."""
    mp = _mpmath()
    with mp.workdps(DIGITS):
        order, wanted = mp.mpf(dim) / 2 - 1, mp.mpf(mean_cos)

        def excess(kappa: Any) -> Any:
            return _bessel(mp, order + 1, kappa) / _bessel(mp, order, kappa) - wanted

        guess = wanted * (dim - wanted**2) / (1 - wanted**2)
        return Inverse(dim, mean_cos, float(mp.findroot(excess, (guess, guess * 1.001))))


def compute_point(dim: int, geometry: Geometry, normalized: bool, number: int) -> Point:
    """One row of ENERGIES, term by term; the sum of exponentials fits the range of mpmath."""
    mp = _mpmath()
    given = mixture(dim, geometry)
    with mp.workdps(DIGITS):
        x = [mp.mpf(value) for value in given.x[number].tolist()]
        total, force = mp.mpf(0), [mp.mpf(0)] * dim
        for row, kappa, alpha in zip(given.mu.tolist(), given.kappa, given.alpha, strict=True):
            mu, k, mass = [mp.mpf(value) for value in row], mp.mpf(kappa), mp.mpf(alpha)
            if geometry == "sphere":
                height, pull = k * (mp.fdot(mu, x) - 1), mu
                peak = _log_c(mp, dim, k) + k
            else:
                pull = [m - v for m, v in zip(mu, x, strict=True)]
                height = -k / 2 * mp.fdot(pull, pull)
                peak = mp.mpf(dim) / 2 * mp.log(k / (2 * mp.pi))
            if normalized:
                mass *= mp.exp(peak) / mp.mpf(given.alpha.sum())
            weight = mass * mp.exp(height)
            total += weight
            force = [f + weight * k * p for f, p in zip(force, pull, strict=True)]
        gradient = [-f / total for f in force]
        if geometry == "sphere":
            along = mp.fdot(gradient, x) / mp.fdot(x, x)
            gradient = [g - along * v for g, v in zip(gradient, x, strict=True)]
        head = tuple(float(g) for g in gradient[:GRADIENT_HEAD])
        length = float(mp.sqrt(mp.fdot(gradient, gradient)))
        return Point(dim, geometry, normalized, number, float(-mp.log(total)), head, length)


def _log_c(mp: Any, dim: int, kappa: Any) -> Any:
    order = mp.mpf(dim) / 2 - 1
    constant = order * mp.log(kappa) - mp.mpf(dim) / 2 * mp.log(2 * mp.pi)
    return constant - mp.log(_bessel(mp, order, kappa))


def _bessel(mp: Any, order: Any, kappa: Any) -> Any:
    return mp.besseli(order, kappa, maxterms=1_000_000)  # the series needs about 2 kappa of them


def _mpmath() -> Any:
    return import_module("mpmath")


def main() -> None:
    """Print the tables."""
    tables: dict[str, list[Any]] = {
        "LAWS: tuple[Law, ...]": [compute_law(d, k) for d in LAW_DIMS for k in LAW_KAPPAS],
        "INVERSES: tuple[Inverse, ...]": [
            compute_inverse(d, r) for d in INVERSE_DIMS for r in INVERSE_MEAN_COS
        ],
        "ENERGIES: tuple[Point, ...]": [
            compute_point(dim, geometry, normalized, number)
            for dim in MIXTURE_DIMS
            for geometry in ("sphere", "euclid")
            for normalized in (False, True)
            for number in range(POINTS)
        ],
    }
    for name, rows in tables.items():
        print(f"{name} = (")
        for row in rows:
            text = f"{type(row).__name__}({', '.join(map(repr, row))}),".replace("'", '"')
            print(fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 8))
        print(")\n")


# fmt: off
LAWS: tuple[Law, ...] = (
    Law(2, 1e-06, 4.999999999999375e-07, 0.4999999999998125, -1.8378770664095956),
    Law(2, 0.5, 0.24249961258080194, 0.4561947127365571, -1.8994267855948268),
    Law(2, 10.0, 0.9485998259548459, 0.005298387602951359, -9.780849149528041),
    Law(2, 426.4, 0.998826702997171, 2.7532545731316004e-06, -424.291543093344),
    Law(2, 30000.0, 0.9999833331944398, 5.555648152778099e-10, -29995.76446636962),
    Law(2, 10000000.0, 0.9999999499999987, 5.000000250000038e-15, -9999992.85989072),
    Law(3, 1e-06, 3.333333333333111e-07, 0.33333333333326665, -2.5310242469694573),
    Law(3, 0.5, 0.16395341373865285, 0.3173056231688307, -2.572349101582209),
    Law(3, 10.0, 0.9000000041223073, 0.009999991755385476, -9.535291971354146),
    Law(3, 426.4, 0.9976547842401501, 5.500036960248374e-06, -422.1824991935577),
    Law(3, 30000.0, 0.9999666666666667, 1.111111111111111e-09, -29991.528924405764),
    Law(3, 10000000.0, 0.9999999, 1e-14, -9999985.719781416),
    Law(16, 1e-06, 6.249999999999979e-08, 0.06249999999999935, -1.3258249062897636),
    Law(16, 0.5, 0.03122291557263105, 0.06233766236421286, -1.3336340189750449),
    Law(16, 10.0, 0.4876216679793914, 0.030792606947909102, -4.057299047268216),
    Law(16, 426.4, 0.982545251650612, 4.061932478498579e-05, -394.711513414299),
    Law(16, 30000.0, 0.9997500270842358, 8.33152768754289e-09, -29936.466120529698),
    Law(16, 10000000.0, 0.9999992500002437, 7.499995124999268e-14, -9999892.89835818),
    Law(39, 1e-06, 2.5641025641025623e-08, 0.02564102564102559, 14.845706554337836),
    Law(39, 0.5, 0.01281850896001565, 0.025629004866852583, 14.84250167664017),
    Law(39, 10.0, 0.24204895681910257, 0.021626266590194478, 13.6008629894163),
    Law(39, 426.4, 0.9563831743331618, 0.00010007792217144466, -345.866044694128),
    Law(39, 30000.0, 0.9993668566729823, 2.1098443813475954e-08, -29839.043863614712),
    Law(39, 10000000.0, 0.99999810000171, 1.899996579999487e-13, -9999728.675829794),
    Law(64, 1e-06, 1.5624999999999996e-08, 0.01562499999999999, 40.767720025574555),
    Law(64, 0.5, 0.007812037665568766, 0.015622226205847238, 40.76576695836858),
    Law(64, 10.0, 0.15271190419708314, 0.014594077874877145, 39.99544582191428),
    Law(64, 426.4, 0.9287704880266521, 0.0001608478651080641, -292.4213162307661),
    Law(64, 30000.0, 0.9989505337676501, 3.4964414906377135e-08, -29733.14510601614),
    Law(64, 10000000.0, 0.9999968500048038, 3.149990392498559e-13, -9999550.173066549),
    Law(640, 1e-06, 1.5625e-09, 0.0015625, 1156.8910464535288),
    Law(640, 0.5, 0.0007812495246488925, 0.0015624971478956614, 1156.8908511410882),
    Law(640, 10.0, 0.015621199030720045, 0.001561360077831724, 1156.8129309574883),
    Law(640, 426.4, 0.4999998307471953, 0.0007039876217774662, 1035.7170862331177),
    Law(640, 30000.0, 0.9894065340363973, 3.512311079633728e-07, -27291.795322855498),
    Law(640, 10000000.0, 0.9999680505088038, 3.194898239234788e-12, -9995437.465074198),
    Law(4096, 1e-06, 2.44140625e-10, 0.000244140625, 11219.226399984545),
    Law(4096, 0.5, 0.0001220703106818984, 0.0002441406140913906, 11219.226369466967),
    Law(4096, 10.0, 0.0024413917053599473, 0.00024413626164262683, 11219.214192989657),
    Law(4096, 426.4, 0.10299772547776187, 0.00023648301302375816, 11197.150449504761),
    Law(4096, 30000.0, 0.9340752677352802, 2.1201593989893653e-06, -12585.661804699512),
    Law(4096, 10000000.0, 0.9997952709510456, 2.0470809790709256e-11, -9970761.042937689),
)

INVERSES: tuple[Inverse, ...] = (
    Inverse(2, 0.02, 0.040008002667680405),
    Inverse(2, 0.5, 1.1593199207501383),
    Inverse(2, 0.9, 5.304689062957719),
    Inverse(2, 0.9995, 1000.2501877349198),
    Inverse(3, 0.02, 0.06001440543310944),
    Inverse(3, 0.5, 1.7967559847237131),
    Inverse(3, 0.9, 9.999999587768954),
    Inverse(3, 0.9995, 2000.0000000002203),
    Inverse(16, 0.02, 0.32011382634258484),
    Inverse(16, 0.5, 10.410275920096915),
    Inverse(16, 0.9, 71.5533585311506),
    Inverse(16, 0.9995, 14996.749078876626),
    Inverse(64, 0.02, 1.2804966888326748),
    Inverse(64, 0.5, 42.40244218375379),
    Inverse(64, 0.9, 298.919112252693),
    Inverse(64, 0.9995, 62984.74606542909),
    Inverse(640, 0.02, 12.80510609856243),
    Inverse(640, 0.5, 426.4002404202135),
    Inverse(640, 0.9, 3027.3394236421577),
    Inverse(640, 0.9995, 638840.7100529124),
    Inverse(4096, 0.02, 81.95276512023553),
    Inverse(4096, 0.5, 2730.4000375102546),
    Inverse(4096, 0.9, 19397.8656712282),
    Inverse(4096, 0.9995, 4093976.493998949),
)

ENERGIES: tuple[Point, ...] = (
    Point(3, "sphere", False, 0, -3.854207081106307, (-0.02391141012242198, 0.09400186988384752,
        -0.1765818707110568), 0.20146777444424913),
    Point(3, "sphere", False, 1, -3.7927095509919884, (-0.10237327749308203, 0.4253020574412272,
        -0.4113351888143751), 0.6004654574289633),
    Point(3, "sphere", True, 0, 0.8212000791408276, (-0.03616632279186491, 0.13480490753584065,
        -0.24706683128115423), 0.28376466502956676),
    Point(3, "sphere", True, 1, 0.8963143033358351, (-0.11123730540830822, 0.4875578769619186,
        -0.48650995094267546), 0.6976950292702099),
    Point(3, "euclid", False, 0, -3.502282801816627, (-1.0504047011453883, -0.7731335224440052,
        -0.46417677756656345), 1.3843935714048539),
    Point(3, "euclid", False, 1, -3.4183699857449428, (-1.2189068142889923, -0.31527701960830484,
        -0.8365272368454402), 1.5115922859678474),
    Point(3, "euclid", True, 0, 1.6037983515396808, (-1.178454706446842, -0.8098370290395813,
        -0.5926188635000664), 1.5478335266192158),
    Point(3, "euclid", True, 1, 1.7143561608224844, (-1.3420317841694578, -0.3075712077353366,
        -0.9763651435119003), 1.6878798094099725),
    Point(64, "sphere", False, 0, -1.5985746440058335, (-2.5460407225751736, -1.8359502959334764,
        -1.3560519881580035), 16.96178719426079),
    Point(64, "sphere", False, 1, 0.19239542012722338, (-1.1913002205127705, 1.8430328061768702,
        -2.333399229029251), 22.989643500503472),
    Point(64, "sphere", True, 0, -89.24306282442149, (-2.660252600852125, 2.3521432652499525,
        -7.3156308028702695), 47.29980342947005),
    Point(64, "sphere", True, 1, -90.76387904662081, (-0.9159324948833143, 9.060794989928821,
        -9.897781225277233), 47.13211368409716),
    Point(64, "euclid", False, 0, 8.223385464730598, (-10.733946918181333, -8.665272046032266,
        -3.785163034600159), 40.83996233066819),
    Point(64, "euclid", False, 1, 10.887357335742982, (-9.28061107023603, -3.319137230975391,
        -5.6312852497338834), 45.17408263346017),
    Point(64, "euclid", True, 0, -69.08887179037852, (-17.515429699002063, -10.543806481238152,
        -9.61626236351415), 61.12431629497595),
    Point(64, "euclid", True, 1, -67.30769899895101, (-17.127252060627963, -1.3082146805287995,
        -16.47120061102917), 90.88688696462891),
    Point(640, "sphere", False, 0, 12.39501144507873, (-4.83247473893119, -3.531137624255778,
        -2.6555515905280966), 125.79717726026307),
    Point(640, "sphere", False, 1, 23.71040488140024, (-2.3094390401161924, 4.447112791192895,
        -5.141539177012599), 163.24387753711002),
    Point(640, "sphere", True, 0, -1598.6657793254244, (-4.566019277403475, 6.66835712172484,
        -16.65857644759516), 365.99785827959045),
    Point(640, "sphere", True, 1, -1610.6590310408808, (-1.9331797686153818, 20.59948379000284,
        -22.347664252566272), 333.8987536210741),
    Point(640, "euclid", False, 0, 82.9369997125025, (-23.30223947324316, -18.789018656982687,
        -8.276533602777919), 294.3227466007621),
    Point(640, "euclid", False, 1, 99.91004704917701, (-20.544994886565405, -7.157331838414508,
        -12.60153929607623), 321.86787118830443),
    Point(640, "euclid", True, 0, -1398.0473099396074, (-38.02892483898708, -22.219946463048316,
        -21.547124206618108), 440.12917086936704),
    Point(640, "euclid", True, 1, -1409.0126817375888, (-38.57471525250271, -2.717856972470921,
        -37.33738331415655), 649.7485408790552),
)
# fmt: on

if __name__ == "__main__":
    main()
