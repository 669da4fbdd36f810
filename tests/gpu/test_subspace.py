"""The subspace form: its parts, its law against the direct form, and degenerate neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from mldb.gpu import subspace
from mldb.gpu.cpu import chains as compiled
from mldb.gpu.cpu.chains import ChainBatch, load_chains
from mldb.gpu.cpu.subspace import chain_blocks
from mldb.gpu.device import Dynamics, MixtureEnergy
from mldb.gpu.reference import KeyDraws, NumpyDevice
from mldb.noise.keys import Keys

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Setting:
    """Rows near their first neighbour, each with K neighbours of a table."""

    x: Array
    table: Array
    index: npt.NDArray[np.int32]
    kappa: Array
    log_weight: Array
    keys: Keys

    def run(self, device: Any, dynamics: Dynamics) -> Array:
        table = device.load(self.table)
        energy = MixtureEnergy(table, self.index, self.kappa, self.log_weight)
        found = np.asarray(device.langevin(self.x, self.keys, energy, dynamics).result().x)
        table.close()
        return found

    def compiled(self, dynamics: Dynamics) -> Array:
        kernels = load_chains(dynamics.form)
        assert kernels is not None
        batch = ChainBatch(self.keys, self.x, self.table, self.index, self.kappa, self.log_weight)
        batch.run(kernels, dynamics, 0, len(self.x))
        return batch.out


def unit(x: Array) -> Array:
    return np.ascontiguousarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def make_setting(
    rng: np.random.Generator, rows: int, dim: int, neighbours: int = 16, kappa: float = 60.0
) -> Setting:
    centre = rng.standard_normal(dim)
    table = unit(centre + 1.2 * rng.standard_normal((40, dim)))
    index = np.stack([rng.permutation(40)[:neighbours] for _ in range(rows)]).astype(np.int32)
    near = table[index[:, 0]] + 0.3 / np.sqrt(dim) * rng.standard_normal((rows, dim))
    return Setting(
        unit(near),
        table,
        index,
        np.full((rows, neighbours), kappa, np.float32),
        rng.normal(size=(rows, neighbours)).astype(np.float32),
        Keys(7, 1, np.arange(rows, dtype=np.uint64), np.zeros(rows, np.uint16)),
    )


def same_start(rng: np.random.Generator, rows: int, dim: int, neighbours: int) -> Setting:
    """One row many times, so that only the noise differs."""
    one = make_setting(rng, 1, dim, neighbours)
    return Setting(
        np.repeat(one.x, rows, 0),
        one.table,
        np.repeat(one.index, rows, 0),
        np.repeat(one.kappa, rows, 0),
        np.repeat(one.log_weight, rows, 0),
        Keys(7, 1, np.arange(rows, dtype=np.uint64), np.zeros(rows, np.uint16)),
    )


def differences(first: Array, second: Array) -> Array:
    """How many standard errors apart means and deviations are, for each column of two samples."""
    count = len(first)
    means, deviations = (
        [f(sample, axis=0) for sample in (first, second)] for f in (np.mean, np.std)
    )
    spread = np.sqrt((deviations[0] ** 2 + deviations[1] ** 2) / 2)
    means_apart = (means[0] - means[1]) / (spread * np.sqrt(2 / count))
    spreads_apart = (deviations[0] - deviations[1]) / (spread * np.sqrt(1 / count))
    apart: Array = np.abs(np.stack([means_apart, spreads_apart]))
    return apart


def looks(setting: Setting, ends: Array, fixed: Array) -> Array:
    """Cosines [B, 4] to the start, to two neighbours and to a fixed direction."""
    near, other = setting.table[setting.index[0, :2]]
    cosines: Array = ends @ np.stack([setting.x[0], near, other, fixed], 1)
    return cosines


@pytest.mark.parametrize(("dim", "neighbours"), [(64, 16), (640, 16), (12, 3)])
def test_both_forms_have_the_same_law(dim: int, neighbours: int, rng: np.random.Generator) -> None:
    rows = 8000
    setting = same_start(rng, rows, dim, neighbours)
    fixed = unit(rng.standard_normal(dim))
    dynamics = Dynamics(5, 0.05 / (60 + dim))
    direct = looks(setting, setting.compiled(dynamics), fixed)
    forms = replace(dynamics, form="subspace")
    assert differences(looks(setting, setting.compiled(forms), fixed), direct).max() < 4
    # A step size 5 % off must be seen, or the comparison would not see an error of that size.
    other = replace(forms, step_size=dynamics.step_size * 1.05)
    assert differences(looks(setting, setting.compiled(other), fixed), direct).max() > 6


def test_reference_has_the_same_law(rng: np.random.Generator) -> None:
    setting, fixed = same_start(rng, 3000, 48, 8), unit(rng.standard_normal(48))
    dynamics = Dynamics(5, 5e-4)
    device = NumpyDevice()
    direct = setting.run(device, dynamics)
    ends = setting.run(device, replace(dynamics, form="subspace"))
    assert differences(looks(setting, ends, fixed), looks(setting, direct, fixed)).max() < 4


@pytest.mark.parametrize(("dim", "neighbours"), [(640, 16), (641, 15), (66, 16), (20, 16), (5, 1)])
def test_compiled_form_is_the_reference(
    dim: int, neighbours: int, rng: np.random.Generator
) -> None:
    """At 20 dimensions the gamma draw has shape 1 and one row in twenty takes further tries."""
    setting = make_setting(rng, 600, dim, neighbours)
    dynamics = Dynamics(6, 0.05 / (60 + dim), 1.3, form="subspace")
    expected = setting.run(NumpyDevice(np.float64), dynamics)
    found = setting.compiled(dynamics)
    error = np.linalg.norm(found - expected, axis=1)
    assert np.median(error) < (5e-7 if dim > 20 else 2e-6)
    # Rounding of the Gram matrix grows with the inverse of its smallest pivot.
    assert np.quantile(error, 0.99) < (3e-6 if dim > 64 else 1e-4)
    assert error.max() < 1e-2
    assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 3e-7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cholesky_and_its_inverse(dtype: Any, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((30, 9, 50)).astype(dtype) / np.sqrt(50)
    gram = vectors @ vectors.swapaxes(1, 2)
    factor, inverse = subspace.cholesky(gram)
    accuracy = 1e-5 if dtype == np.float32 else 1e-13
    assert np.abs(factor @ factor.swapaxes(1, 2) - gram).max() < accuracy
    assert np.array_equal(factor, np.tril(factor))
    inverted = subspace.invert(factor, inverse)
    assert np.abs(inverted @ factor - np.eye(9)).max() < accuracy * 10


@pytest.mark.parametrize("freedom", [2, 5, 622])
def test_chi_square_numbers(freedom: int) -> None:
    rows = 20_000
    keys = Keys(3, 0, np.arange(rows, dtype=np.uint64), np.zeros(rows, np.uint16))
    draws = KeyDraws(keys, np.float64)
    found = subspace.chi_square(np.full(rows, float(freedom)), draws, 1)
    assert stats.kstest(found, stats.chi2(freedom).cdf).pvalue > 1e-3
    # The same draw without rejection (Wilson and Hilferty's approximation) is not exact.
    shape = freedom / 2 - 1 / 3
    normal, _ = draws.trial(1, 0)
    rough = 2 * shape * (1 + normal / np.sqrt(9 * shape)) ** 3
    assert (stats.kstest(rough, stats.chi2(freedom).cdf).pvalue < 1e-6) == (freedom == 2)


@pytest.mark.parametrize(
    "run",
    [lambda setting, dynamics: setting.run(NumpyDevice(), dynamics), Setting.compiled],
    ids=["reference", "compiled"],
)
def test_degenerate_neighbours_are_harmless(
    run: Callable[[Setting, Dynamics], Array], rng: np.random.Generator
) -> None:
    """Duplicates, x equal to a neighbour, all neighbours equal: the law of the direct form."""
    setting = same_start(rng, 4000, 40, 8)
    index = setting.index.copy()
    index[:, 3:] = index[:, 2:3]
    near = setting.table[index[0, 0]] + 1e-5 * rng.standard_normal(40)
    table = np.concatenate([setting.table, unit(near)[None]])
    index[:, 1] = len(setting.table)
    x = np.repeat(setting.table[index[:1, 0]], len(index), 0)
    setting = replace(setting, x=x, table=table, index=index)
    fixed = unit(rng.standard_normal(40))
    dynamics = Dynamics(4, 5e-4, form="subspace")
    direct = setting.compiled(replace(dynamics, form="direct"))
    found = run(setting, dynamics)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 3e-7
    assert differences(looks(setting, found, fixed), looks(setting, direct, fixed)).max() < 4

    alone = replace(setting, index=np.zeros_like(index), x=np.repeat(table[:1], len(index), 0))
    assert np.isfinite(run(alone, dynamics)).all()


def test_no_steps_leave_rows_where_they_are(rng: np.random.Generator) -> None:
    setting = make_setting(rng, 9, 64)
    dynamics = Dynamics(0, 1e-3, form="subspace")
    for found in (setting.run(NumpyDevice(), dynamics), setting.compiled(dynamics)):
        assert np.abs(found - setting.x).max() < 3e-7


def test_blocks_of_a_chain_never_meet() -> None:
    blocks = chain_blocks(steps=7, neighbours=16, dim=640)
    assert len(np.unique(blocks)) == len(blocks) == 7 * 6 + 160
    assert (blocks >> np.uint32(31) == 1).all()  # none is of the direct form


def test_chains_can_be_asked_for_inside_the_call_that_compiles_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a signal handler would; it gets kernels of its own, and the outer call keeps its."""
    inner: list[Any] = []

    def compiling(chains: Any, form: Any) -> float:
        if not inner:
            inner.append(None)
            inner[0] = load_chains(form)
        return 0.5

    monkeypatch.setattr(compiled, "load_kernels", object)
    monkeypatch.setattr(compiled, "_made", lambda kernels: compiled.ChainKernels(min, max, {}))
    monkeypatch.setattr(compiled, "_compile", compiling)
    monkeypatch.setattr(compiled, "_loaded", [])
    outer = load_chains("direct")
    assert outer is load_chains("direct") is compiled._loaded[0]
    assert outer is not inner[0]
    assert outer.seconds == inner[0].seconds == {"direct": 0.5}
