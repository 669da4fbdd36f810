"""One contract for every device: the same noise, the same floats within 1e-6, the same refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from mldb.errors import (
    ClosedError,
    GpuUnavailableError,
    InvalidTypeError,
    InvalidValueError,
    LimitError,
    MldbError,
)
from mldb.gpu.device import Device, Dynamics, Form, MixtureEnergy, SelfEnergy
from mldb.gpu.reference import NumpyDevice
from mldb.noise import philox
from mldb.noise.keys import Keys

Array = npt.NDArray[Any]
Ends = tuple[Array, Array]


def _numpy() -> Device:
    return NumpyDevice()


def _float64() -> Device:
    return NumpyDevice(np.float64)


def _compiled() -> Device:
    from mldb.gpu.torch_device import TorchDevice

    return TorchDevice("cpu", compiled=True)


def _eager() -> Device:
    from mldb.gpu.torch_device import TorchDevice

    return TorchDevice("cpu", compiled=False)


def _cuda() -> Device:
    from mldb.gpu.torch_device import TorchDevice

    return TorchDevice("cuda")


def _vulkan(*, copy: bool = True) -> Device:
    from mldb.gpu.vulkan.device import open_vulkan

    return open_vulkan(copy=copy)


OPENERS: dict[str, Callable[[], Device]] = {
    "numpy": _numpy,
    "float64": _float64,
    "torch": _compiled,
    "torch-eager": _eager,
    "cuda": _cuda,
    "vulkan": _vulkan,
}
OPTIONAL = {"cuda", "vulkan"}


def open_or_skip(name: str) -> Device:
    """Open a device; one that this machine lacks skips the test, and fails it where required."""
    try:
        return OPENERS[name]()
    except GpuUnavailableError as error:
        if name not in OPTIONAL or (name == "vulkan" and os.environ.get("CI_REQUIRE_VULKAN")):
            raise
        pytest.skip(f"no {name} device here: {error}")


@pytest.fixture(scope="module", params=list(OPENERS))
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = open_or_skip(request.param)
    yield opened
    opened.close()


@pytest.fixture(params=list(OPENERS))
def own_device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device that the test may spoil."""
    opened = open_or_skip(request.param)
    yield opened
    opened.close()


REFERENCE = NumpyDevice(np.float64)


def host(values: Any) -> Array:
    """Return a result as a NumPy array, wherever it lies."""
    return np.array(values.cpu().numpy() if hasattr(values, "cpu") else values)


def make_keys(rng: np.random.Generator, count: int) -> Keys:
    return Keys(
        int(rng.integers(0, 1 << 64, dtype=np.uint64)),
        int(rng.integers(0, 1 << 32)),
        rng.integers(0, 1 << 48, count, dtype=np.uint64),
        rng.integers(0, 1 << 16, count).astype(np.uint16),
    )


def some_keys(keys: Keys, rows: Any) -> Keys:
    return replace(keys, rows=keys.rows[rows], augmentations=keys.augmentations[rows])


def unit_rows(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    x: Any = rng.standard_normal(shape)
    rows: npt.NDArray[np.float32] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return rows.astype(np.float32)


class Work:
    """Chains of B rows under a mixture of K neighbours, for any device."""

    def __init__(self, rng: np.random.Generator, rows: int, dim: int, neighbours: int) -> None:
        self.table = unit_rows(rng, 50, dim)
        self.index = rng.integers(0, 50, (rows, neighbours)).astype(np.int32)
        self.x = unit_rows(rng, rows, dim)
        self.kappa = rng.uniform(20, 60 + dim, (rows, neighbours)).astype(np.float32)
        self.log_weight = rng.normal(size=(rows, neighbours)).astype(np.float32)
        self.keys = make_keys(rng, rows)
        self.step_size = 0.1 / (60 + 2 * dim)

    def run(
        self, device: Device, dynamics: Dynamics, rows: Any = slice(None)
    ) -> tuple[Array, Array]:
        table = device.load(self.table)
        energy = MixtureEnergy(table, self.index[rows], self.kappa[rows], self.log_weight[rows])
        pending = device.langevin(self.x[rows], some_keys(self.keys, rows), energy, dynamics)
        chains = pending.result()
        found = host(chains.x), host(chains.accepted)
        table.close()
        return found


def check_agreement(
    found: tuple[Array, Array], expected: tuple[Array, Array], bound: float
) -> None:
    """Compare where chains decided alike: a uniform may fall between two roundings of a ratio."""
    same = found[1] == expected[1]
    assert found[1].dtype == np.int32
    assert same.mean() >= 0.99
    assert np.linalg.norm(found[0] - expected[0], axis=1)[same].max() <= bound
    assert np.abs(np.linalg.norm(found[0].astype(np.float64), axis=1) - 1).max() <= 3e-7


def test_words_are_bit_equal(device: Device, rng: np.random.Generator) -> None:
    keys = make_keys(rng, 33)
    for step, blocks in ((0, 1), (5, 160), (0x8003, 7)):
        found = device.words(keys, step, blocks)
        assert found.dtype == np.uint32
        assert np.array_equal(found, philox.words(keys, step, blocks))


def test_normals_are_equal(device: Device, rng: np.random.Generator) -> None:
    keys = make_keys(rng, 70)
    for dim in (2, 37, 640, 1021):
        found = host(device.normals(keys, 4, dim))
        assert found.shape == (70, dim)
        assert np.abs(found - philox.normals_float64(keys, 4, dim)).max() <= 2e-6
        if device.kind == "torch":
            assert np.array_equal(found, philox.normals(keys, 4, dim))


@pytest.mark.parametrize("dim", [2, 3, 64, 130, 640])
def test_isotropic_agrees(device: Device, dim: int, rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 300, dim), make_keys(rng, 300)
    for strength in (0.0, 0.9, 1.0):
        expected = REFERENCE.isotropic(x, keys, strength).result()
        chains = device.isotropic(x, keys, strength).result()
        # In two or three dimensions little may be left beside x, and rounding has a larger share.
        found, wanted = host(chains.x), host(expected.x)
        error = np.linalg.norm(found - wanted, axis=1)
        assert np.quantile(error, 0.9 if dim < 4 else 1.0) <= 1e-6
        assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() <= 3e-7
        assert host(chains.accepted).tolist() == [1] * 300


@pytest.mark.parametrize(("dim", "neighbours"), [(640, 16), (64, 16), (30, 5), (3, 2), (640, 1)])
@pytest.mark.parametrize("method", ["ula", "mala"])
def test_mixture_chains_agree(
    device: Device, dim: int, neighbours: int, method: Any, rng: np.random.Generator
) -> None:
    work = Work(rng, 130, dim, neighbours)
    eps = work.step_size * (6 if method == "mala" and dim == 640 else 1)
    dynamics = Dynamics(5, eps, 0.8, method)
    found, expected = work.run(device, dynamics), work.run(REFERENCE, dynamics)
    check_agreement(found, expected, 1e-6)
    if method == "ula":
        assert (found[1] == 5).all()
    elif dim == 640 and neighbours == 16:
        assert 0 < found[1].mean() < 5  # both answers occurred


@pytest.mark.parametrize("method", ["ula", "mala"])
def test_self_energy_chains_agree(device: Device, method: Any, rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 100, 640), make_keys(rng, 100)
    kappa = rng.uniform(100, 900, 100).astype(np.float32)
    dynamics = Dynamics(4, 1e-4, 1.5, method)
    energies = SelfEnergy(x, kappa), SelfEnergy(unit_rows(rng, 100, 640), kappa)
    for energy in energies:
        found, expected = (
            opened.langevin(x, keys, energy, dynamics).result() for opened in (device, REFERENCE)
        )
        check_agreement((host(found.x), host(found.accepted)), tuple(expected), 1e-6)


def test_subspace_chains_agree_or_are_refused(device: Device, rng: np.random.Generator) -> None:
    work = Work(rng, 130, 640, 16)
    work.index = np.stack([rng.permutation(50)[:16] for _ in range(130)]).astype(np.int32)
    dynamics = Dynamics(5, work.step_size, form="subspace")
    if device.kind == "vulkan":
        with pytest.raises(InvalidValueError, match="subspace"):
            work.run(device, dynamics)
        return
    check_agreement(work.run(device, dynamics), work.run(REFERENCE, dynamics), 2e-6)
    energy = SelfEnergy(work.x, work.kappa[:, 0].copy())
    found, expected = (
        opened.langevin(work.x, work.keys, energy, dynamics).result()
        for opened in (device, REFERENCE)
    )
    check_agreement((host(found.x), host(found.accepted)), tuple(expected), 2e-6)


def test_no_steps_return_the_rows(device: Device, rng: np.random.Generator) -> None:
    work = Work(rng, 20, 64, 4)
    found, accepted = work.run(device, Dynamics(0, 0.1))
    assert np.abs(found - work.x).max() <= 1e-7
    assert (accepted == 0).all()


def test_empty_batches_are_empty(device: Device, rng: np.random.Generator) -> None:
    work = Work(rng, 0, 64, 4)
    found, accepted = work.run(device, Dynamics(3, 0.001))
    assert found.shape == (0, 64)
    assert accepted.shape == (0,)
    assert host(device.isotropic(work.x, work.keys, 0.5).result().x).shape == (0, 64)


@pytest.mark.parametrize("method", ["ula", "mala"])
def test_a_row_does_not_depend_on_its_batch(
    device: Device, method: Any, rng: np.random.Generator
) -> None:
    """Neither on order, size nor place; bytes equal on one device, but for torch's own products."""
    work = Work(rng, 300, 130, 6)
    dynamics = Dynamics(3, work.step_size, method=method)
    whole, accepted = work.run(device, dynamics)
    some = rng.permutation(300)[:77]
    moved, moved_accepted = work.run(device, dynamics, some)
    exact = device.name not in ("numpy (float64)", "numpy (float32)", "torch (cpu, eager)")
    if exact and device.kind != "cuda":
        assert np.array_equal(moved, whole[some])
        assert np.array_equal(moved_accepted, accepted[some])
    else:
        check_agreement((moved, moved_accepted), (whole[some], accepted[some]), 1e-6)
    steps = [
        host(device.isotropic(work.x[rows], some_keys(work.keys, rows), 0.7).result().x)
        for rows in (np.arange(300), some)
    ]
    assert np.array_equal(steps[0][some], steps[1])


def test_the_same_call_gives_the_same_bytes(device: Device, rng: np.random.Generator) -> None:
    work = Work(rng, 150, 640, 16)
    forms: tuple[Form, ...] = ("direct",) if device.kind == "vulkan" else ("direct", "subspace")
    for form in forms:
        dynamics = Dynamics(3, work.step_size, form=form)
        first, second = work.run(device, dynamics), work.run(device, dynamics)
        assert first[0].tobytes() == second[0].tobytes()


@pytest.mark.parametrize("field", ["seed", "pass_number", "rows", "augmentations"])
def test_other_keys_give_other_rows(device: Device, field: str, rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 40, 64), make_keys(rng, 40)
    other = replace(keys, **{field: getattr(keys, field) ^ 1})
    first, second = (host(device.isotropic(x, k, 0.5).result().x) for k in (keys, other))
    assert np.abs(first - second).max(1).min() > 1e-3


def test_isotropic_law(device: Device, rng: np.random.Generator) -> None:
    rows, dim, strength = 2000, 640, 0.9
    x, keys = np.repeat(unit_rows(rng, 1, dim), rows, 0), make_keys(rng, rows)
    moved = host(device.isotropic(x, keys, strength).result().x).astype(np.float64)
    assert abs((moved @ x[0]).mean() - strength) < 0.002
    for _ in range(2):
        e = rng.standard_normal(dim)
        e -= (e @ x[0]) / (x[0] @ x[0]) * x[0]
        tangent = moved @ (e / np.linalg.norm(e)) / np.sqrt(1 - strength**2)
        # A component of a uniform direction among the d - 1 that are orthogonal to x.
        law = stats.beta((dim - 2) / 2, (dim - 2) / 2)
        assert stats.kstest((1 + tangent) / 2, law.cdf).pvalue > 1e-3
        assert stats.kstest((1 + 1.2 * tangent) / 2, law.cdf).pvalue < 1e-2


BAD_KEYS: list[tuple[type[MldbError], Callable[[Keys], Keys]]] = [
    (InvalidTypeError, lambda k: replace(k, rows=k.rows.astype(np.int64))),
    (InvalidTypeError, lambda k: replace(k, augmentations=k.augmentations.astype(np.int32))),
    (InvalidValueError, lambda k: replace(k, rows=k.rows[:, None])),
    (InvalidValueError, lambda k: replace(k, augmentations=k.augmentations[1:])),
    (InvalidValueError, lambda k: some_keys(k, slice(1, None))),
    (InvalidValueError, lambda k: replace(k, rows=k.rows | np.uint64(1 << 48))),
    (InvalidValueError, lambda k: replace(k, seed=1 << 64)),
    (InvalidValueError, lambda k: replace(k, pass_number=-1)),
]


@pytest.mark.parametrize(("error", "spoil"), BAD_KEYS)
def test_bad_keys_are_refused(
    device: Device, error: type[MldbError], spoil: Callable[[Keys], Keys], rng: np.random.Generator
) -> None:
    x, keys = unit_rows(rng, 5, 16), make_keys(rng, 5)
    with pytest.raises(error):
        device.isotropic(x, spoil(keys), 0.5)
    assert np.isfinite(host(device.isotropic(x, keys, 0.5).result().x)).all()


@pytest.mark.parametrize(
    ("error", "spoil"),
    [
        (InvalidTypeError, lambda x: x.astype(np.float64)),
        (InvalidTypeError, lambda x: x.tolist()),
        (InvalidValueError, lambda x: x[0]),
        (InvalidValueError, lambda x: x[:-1]),
        (InvalidValueError, lambda x: x[:, :1]),
        (InvalidValueError, lambda x: np.where(np.arange(5)[:, None] == 3, np.float32(np.nan), x)),
        (InvalidValueError, lambda x: np.where(np.arange(5)[:, None] == 4, 2 * x, x)),
        (InvalidValueError, np.zeros_like),
        (LimitError, lambda x: np.zeros((5, philox.DIM_MAX + 1), np.float32)),
    ],
    ids=["dtype", "list", "1-d", "fewer", "one-dim", "nan", "length", "zeros", "limit"],
)
def test_bad_rows_are_refused(
    device: Device, error: type[MldbError], spoil: Callable[[Any], Any], rng: np.random.Generator
) -> None:
    x, keys = unit_rows(rng, 5, 16), make_keys(rng, 5)
    bad = spoil(x)
    with pytest.raises(error):
        device.isotropic(bad, keys, 0.5).result()
    energy = SelfEnergy(x, np.ones(5, np.float32))
    with pytest.raises(error):
        device.langevin(bad, keys, energy, Dynamics(2, 0.01)).result()
    assert np.isfinite(host(device.isotropic(x, keys, 0.5).result().x)).all()


@pytest.mark.parametrize("strength", [-0.1, 1.001, float("nan")])
def test_bad_strengths_are_refused(
    device: Device, strength: float, rng: np.random.Generator
) -> None:
    with pytest.raises(InvalidValueError, match="strength"):
        device.isotropic(unit_rows(rng, 2, 8), make_keys(rng, 2), strength)


@pytest.mark.parametrize(
    "dynamics",
    [
        Dynamics(-1, 0.1),
        Dynamics(1 << 15, 0.1),
        Dynamics(1, 0.0),
        Dynamics(1, float("nan")),
        Dynamics(1, 0.1, -1.0),
        Dynamics(1, 0.1, float("inf")),
        Dynamics(1, 0.1, 0.0, "mala"),
        Dynamics(1, 0.1, 1.0, "mala", "subspace"),
        Dynamics(1, 0.1, 1.0, "hmc"),  # type: ignore[arg-type]
    ],
)
def test_bad_dynamics_are_refused(
    device: Device, dynamics: Dynamics, rng: np.random.Generator
) -> None:
    work = Work(rng, 4, 32, 3)
    with pytest.raises(InvalidValueError):
        work.run(device, dynamics)


@pytest.mark.parametrize(
    ("error", "field", "spoil"),
    [
        (InvalidTypeError, "index", lambda v: v.astype(np.int64)),
        (InvalidValueError, "index", lambda v: v + 50),
        (InvalidValueError, "index", lambda v: v - 60),
        (InvalidValueError, "index", lambda v: v[:, :2]),
        (InvalidTypeError, "kappa", lambda v: v.astype(np.float64)),
        (InvalidValueError, "kappa", lambda v: v[1:]),
        (InvalidValueError, "log_weight", lambda v: v[:, 0]),
    ],
)
def test_bad_energies_are_refused(
    device: Device,
    error: type[MldbError],
    field: str,
    spoil: Callable[[Any], Any],
    rng: np.random.Generator,
) -> None:
    work = Work(rng, 4, 32, 3)
    setattr(work, field, spoil(getattr(work, field)))
    with pytest.raises(error):
        work.run(device, Dynamics(1, 0.01))


def test_bad_tables_are_refused(device: Device, rng: np.random.Generator) -> None:
    refused: list[tuple[Any, type[MldbError]]] = [
        (unit_rows(rng, 4, 8).astype(np.float64), InvalidTypeError),
        (unit_rows(rng, 4, 8)[0], InvalidValueError),
    ]
    for bad, error in refused:
        with pytest.raises(error):
            device.load(bad)
    work = Work(rng, 4, 32, 3)
    work.table = unit_rows(rng, 50, 31)
    with pytest.raises(InvalidValueError):
        work.run(device, Dynamics(1, 0.01))


def test_a_closed_table_is_refused(device: Device, rng: np.random.Generator) -> None:
    work = Work(rng, 4, 32, 3)
    table = device.load(work.table)
    assert (table.rows, table.dim) == (50, 32)
    table.close()
    table.close()
    energy = MixtureEnergy(table, work.index, work.kappa, work.log_weight)
    with pytest.raises(ClosedError):
        device.langevin(work.x, work.keys, energy, Dynamics(1, 0.01)).result()


def test_results_stay_valid(device: Device, rng: np.random.Generator) -> None:
    """With copy=True, the default: whatever comes later."""
    x, keys = unit_rows(rng, 64, 64), make_keys(rng, 64)
    first = device.isotropic(x, keys, 0.5)
    others = [
        device.isotropic(x, replace(keys, pass_number=n), 0.5) for n in range(3 * device.slots)
    ]
    kept = first.result().x
    before = host(kept)
    ends = [host(other.result().x) for other in others]
    assert np.array_equal(host(kept), before)
    assert np.array_equal(before, host(device.isotropic(x, keys, 0.5).result().x))
    for number, end in enumerate(ends):
        again = device.isotropic(x, replace(keys, pass_number=number), 0.5).result().x
        assert np.array_equal(end, host(again))


def test_arguments_are_not_changed(device: Device, rng: np.random.Generator) -> None:
    """They may be read-only as well, as what is mapped is."""
    work = Work(rng, 30, 64, 4)
    arrays: list[Array] = [work.x, work.table, work.index, work.kappa, work.log_weight]
    before = [array.copy() for array in arrays]
    more: list[Array] = [work.keys.rows, work.keys.augmentations]
    for array in arrays + more:
        array.flags.writeable = False
    work.run(device, Dynamics(3, 0.001))
    device.isotropic(work.x, work.keys, 0.5).result()
    for array, old in zip(arrays, before, strict=True):
        assert np.array_equal(array, old)


def test_a_closed_device_is_refused(own_device: Device, rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 5, 16), make_keys(rng, 5)
    kept = own_device.isotropic(x, keys, 0.5).result().x
    before = host(kept)
    own_device.close()
    own_device.close()
    for call in (
        lambda: own_device.isotropic(x, keys, 0.5),
        lambda: own_device.normals(keys, 0, 8),
        lambda: own_device.words(keys, 0, 8),
        lambda: own_device.load(x),
    ):
        with pytest.raises(ClosedError, match=r"closed"):
            call()
    assert np.array_equal(host(kept), before)


def test_a_forked_child_is_refused(own_device: Device, rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 5, 16), make_keys(rng, 5)
    own_device.isotropic(x, keys, 0.5).result()
    reader, writer = os.pipe()
    child = _fork()
    if child == 0:
        try:
            own_device.isotropic(x, keys, 0.5)
            answer = "no error"
        except ClosedError as error:
            answer = str(error)
        finally:
            own_device.close()
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    assert os.waitpid(child, 0)[1] == 0
    assert "fork" in answer
    assert "open" in answer  # the remedy
    assert np.isfinite(host(own_device.isotropic(x, keys, 0.5).result().x)).all()


def _fork() -> int:
    import warnings

    with warnings.catch_warnings():
        # Python warns that other threads do not survive; that is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
