"""The Vulkan device against the NumPy reference, and against itself in other forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError, LimitError
from mldb.gpu.device import ChainMethod, Dynamics, MixtureEnergy, SelfEnergy
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.vulkan import device as vk_device
from mldb.gpu.vulkan.device import WORK_MAX, VulkanDevice
from mldb.noise.keys import Keys
from tests.support.vulkan import (
    batch_of,
    device_of,
    keys_of,
    largest_error,
    opened,
    results_of,
    unit_rows,
)

X_ERROR_MAX = 1e-6


@pytest.fixture(scope="module")
def device() -> VulkanDevice:
    """One device for the tests that do not change it; it closes when it is collected."""
    return device_of(batch_rows=64)


def _steps(count: int, dim: int) -> Dynamics:
    return Dynamics(count, 0.05 / dim)


@pytest.mark.parametrize(("dim", "neighbours"), [(2, 1), (3, 5), (64, 16), (37, 2), (640, 3)])
def test_every_mode_equals_the_reference(
    device: VulkanDevice, rng: np.random.Generator, dim: int, neighbours: int
) -> None:
    batch = batch_of(rng, rows=9, dim=dim, neighbours=neighbours)
    expected, found = results_of(NumpyDevice(), batch), results_of(device, batch)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert value.flags.c_contiguous, name
        if name == "words" or name.endswith("accepted"):
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
        elif name == "normals":
            assert np.abs(value - expected[name]).max() <= 2e-6
        else:
            assert largest_error(value, expected[name]) <= X_ERROR_MAX, name


def test_normals_are_the_reference_bit_for_bit_on_lavapipe(
    device: VulkanDevice, rng: np.random.Generator
) -> None:
    if "llvmpipe" not in device.name:
        pytest.skip("square roots are not rounded exactly on every device")
    keys = keys_of(rng, 100)
    expected = NumpyDevice().normals(keys, 7, 640)
    assert device.normals(keys, 7, 640).tobytes() == expected.tobytes()


def test_mala_refuses_some_steps_and_the_same_ones(
    device: VulkanDevice, rng: np.random.Generator
) -> None:
    batch = batch_of(rng, rows=64, dim=16, neighbours=3)
    dynamics = Dynamics(20, 0.05, method="mala")
    ends = []
    for other in (device, NumpyDevice()):
        energy = MixtureEnergy(other.load(batch.rows), batch.index, batch.kappas, batch.log_weight)
        ends.append(other.langevin(batch.x, batch.keys, energy, dynamics).result())
    assert 0 < ends[1].accepted.mean() < 20
    # One borderline decision may fall the other way; more would be another law.
    same = ends[0].accepted == ends[1].accepted
    assert same.sum() >= 63
    assert largest_error(ends[0].x[same], ends[1].x[same]) <= 20 * X_ERROR_MAX


@pytest.mark.parametrize("mode", ["staging", "many pieces", "two slots"])
def test_form_of_the_ring_does_not_change_bits(
    device: VulkanDevice, rng: np.random.Generator, mode: str
) -> None:
    batch = batch_of(rng, rows=50, dim=64, neighbours=4)
    forms: dict[str, dict[str, Any]] = {
        "staging": {"direct": False},
        "many pieces": {"batch_rows": 1},
        "two slots": {"slots": 2, "batch_rows": 7},
    }
    expected = results_of(device, batch)
    with opened(**forms[mode]) as other:
        found = results_of(other, batch)
    for name, value in found.items():
        assert value.tobytes() == expected[name].tobytes(), name


def test_rows_do_not_depend_on_their_batch(device: VulkanDevice, rng: np.random.Generator) -> None:
    batch = batch_of(rng, rows=20, dim=64, neighbours=1)
    dynamics = _steps(3, 64)
    whole = device.langevin(batch.x, batch.keys, SelfEnergy(batch.mu, batch.kappa), dynamics)
    order = rng.permutation(20)
    keys = Keys(
        batch.keys.seed,
        batch.keys.pass_number,
        batch.keys.rows[order],
        batch.keys.augmentations[order],
    )
    energy = SelfEnergy(batch.mu[order], batch.kappa[order])
    shuffled = device.langevin(batch.x[order], keys, energy, dynamics)
    assert whole.result().x[order].tobytes() == shuffled.result().x.tobytes()


def test_batches_in_flight_come_back_each_with_its_own(
    device: VulkanDevice, rng: np.random.Generator
) -> None:
    x = unit_rows(rng, 10, 32)
    batches = [keys_of(rng, 10) for _ in range(8)]
    pending = [device.isotropic(x, keys, 0.8) for keys in batches]
    for keys, one in reversed(list(zip(batches, pending, strict=True))):
        assert one.result().x.tobytes() == device.isotropic(x, keys, 0.8).result().x.tobytes()


def test_commands_are_recorded_once_for_a_shape(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    with opened(batch_rows=64) as device:
        for count in (10, 10, 10, 10, 4, 4, 4):
            part = Keys(keys.seed, keys.pass_number, keys.rows[:count], keys.augmentations[:count])
            device.isotropic(x[:count], part, 0.8).result()
        # One for the splat that warms the pipeline up, then one for each slot and shape.
        assert device.stats()["recordings"] == 1 + 3 + 3


def test_long_chains_run_as_several_batches(
    device: VulkanDevice, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(rng, rows=40, dim=32, neighbours=1)
    energy = SelfEnergy(batch.mu, batch.kappa)
    counted, ends = [], []
    for work_max in (4_000_000, 100):
        monkeypatch.setitem(WORK_MAX, "cpu", work_max)
        monkeypatch.setattr("mldb.gpu.vulkan.device.WORK_MAX_GPU", work_max)
        before = device.stats()["batches"]
        ends.append(device.langevin(batch.x, batch.keys, energy, _steps(50, 32)).result().x)
        counted.append(device.stats()["batches"] - before)
    assert counted[1] == 3
    assert ends[0].tobytes() == ends[1].tobytes()


@pytest.mark.parametrize("dim", [32, 33])
def test_views_last_until_the_slots_come_round(rng: np.random.Generator, dim: int) -> None:
    x = unit_rows(rng, 10, dim)
    batches = [keys_of(rng, 10) for _ in range(5)]
    with opened(copy=False, batch_rows=64) as device:
        device.prepare("isotropic", dim)
        pending = [device.isotropic(x, keys, 0.8) for keys in batches]
        views = [one.result().x for one in pending[2:]]
        copies = [view.copy() for view in views]
        if dim % 4 == 0:
            with pytest.raises(ClosedError, match="slots"):
                pending[0].result()
            assert views[0].base is not None
            device.isotropic(x, batches[0], 0.8).result()
            assert views[0].tobytes() != copies[0].tobytes()
        else:
            # Padded rows cannot be handed out in place: they are copies, which last.
            pending[0].result()
        assert views[2].tobytes() == copies[2].tobytes()
    # The memory outlives the device for as long as somebody looks at it.
    assert views[2].tobytes() == copies[2].tobytes()


def test_copies_outlive_their_slot_and_their_device(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    with opened(batch_rows=64) as device:
        first = device.isotropic(x, keys, 0.8)
        expected = first.result().x.copy()
        pending = [device.isotropic(x, keys, 0.8) for _ in range(7)]
    for one in (first, *pending):
        assert one.result().x.tobytes() == expected.tobytes()


def test_no_rows_are_no_work(device: VulkanDevice) -> None:
    none = Keys(1, 2, np.empty(0, np.uint64), np.empty(0, np.uint16))
    assert device.words(none, 0, 3).shape == (0, 3, 4)
    assert device.normals(none, 0, 7).shape == (0, 7)
    ends = device.isotropic(np.empty((0, 8), np.float32), none, 0.5).result()
    assert ends.x.shape == (0, 8)
    assert ends.accepted.shape == (0,)


def test_no_steps_leave_rows_as_they_are(device: VulkanDevice, rng: np.random.Generator) -> None:
    batch = batch_of(rng, rows=5, dim=64, neighbours=1)
    ends = device.langevin(
        batch.x, batch.keys, SelfEnergy(batch.mu, batch.kappa), _steps(0, 64)
    ).result()
    assert ends.x.tobytes() == batch.x.tobytes()
    assert not ends.accepted.any()


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, 2.0, 0.0])
@pytest.mark.parametrize("direct", [None, False])
def test_a_row_that_is_not_of_length_one_is_found(
    rng: np.random.Generator, spoiled: float, direct: bool | None
) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    bad = x.copy()
    bad[7] = spoiled
    with opened(batch_rows=4, direct=direct) as device:
        refused = device.isotropic(bad, keys, 0.8)
        good = device.isotropic(x, keys, 0.8)
        with pytest.raises(InvalidValueError, match="length"):
            refused.result()
        good.result()


def test_what_it_does_not_do_is_refused_with_what_does(
    device: VulkanDevice, rng: np.random.Generator
) -> None:
    batch = batch_of(rng, rows=5, dim=64, neighbours=2)
    own = SelfEnergy(batch.mu, batch.kappa)
    with pytest.raises(InvalidValueError, match="torch"):
        device.langevin(batch.x, batch.keys, own, Dynamics(3, 1e-3, form="subspace"))
    foreign = NumpyDevice().load(batch.rows)
    energy = MixtureEnergy(foreign, batch.index, batch.kappas, batch.log_weight)
    with pytest.raises(InvalidTypeError, match="load"):
        device.langevin(batch.x, batch.keys, energy, _steps(1, 64))
    table = device.load(batch.rows)
    table.close()
    energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
    with pytest.raises(ClosedError, match="table"):
        device.langevin(batch.x, batch.keys, energy, _steps(1, 64))


def test_a_row_that_no_slot_holds_is_refused(rng: np.random.Generator) -> None:
    with opened(batch_rows=1) as device:
        keys = keys_of(rng, 2)
        assert device.words(keys, 0, 160).shape == (2, 160, 4)
        with pytest.raises(LimitError, match="batch_rows"):
            device.words(keys, 0, 161)
        wide = 4 * 128 * 32 * 4 + 4
        with pytest.raises(LimitError):
            device.prepare("isotropic", wide * 4)


def test_counter_words_differ_wherever_a_field_does(device: VulkanDevice) -> None:
    base = {"seed": 1, "pass_number": 1, "rows": 1, "augmentations": 1, "step": 1}
    seen = set()
    for changes in itertools.product((0, 1), repeat=len(base)):
        field = {
            name: value + change
            for (name, value), change in zip(base.items(), changes, strict=True)
        }
        keys = Keys(
            field["seed"],
            field["pass_number"],
            np.array([field["rows"]], np.uint64),
            np.array([field["augmentations"]], np.uint16),
        )
        seen.add(device.words(keys, field["step"], 1).tobytes())
    assert len(seen) == 2 ** len(base)


# --- what a CPU driver runs to its end ------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "neighbours", "steps", "method"),
    [
        *((64, 16, 3700, "ula"), (64, 64, 1000, "mala"), (1028, 4, 90, "ula")),
        *((1536, 1, 300, "ula"), (3072, 16, 20, "ula"), (4096, 4, 12, "mala")),
    ],
)
def test_long_and_wide_chains_run_to_their_end(
    rng: np.random.Generator, dim: int, neighbours: int, steps: int, method: ChainMethod
) -> None:
    """llvmpipe ends all loops after 65,535 rounds without a word: rows were cut short, or inf."""
    batch = batch_of(rng, rows=2, dim=dim, neighbours=neighbours, table=8)
    dynamics = Dynamics(steps, 0.01 / dim, method=method)
    ends = []
    with opened(batch_rows=64) as device:
        for one in (device, NumpyDevice(np.float32)):
            table = one.load(batch.rows)
            energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
            ends.append(one.langevin(batch.x, batch.keys, energy, dynamics).result())
            table.close()
    assert largest_error(ends[0].x, ends[1].x) < 2e-5
    if method == "ula":
        assert (ends[0].accepted == steps).all()


def test_loops_that_the_driver_ended_are_an_error(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(batch_rows=64) as device:
        if not str(device.stats()["device"]).startswith("cpu"):
            pytest.skip("GPUs run loops to their end")
        x, keys = unit_rows(rng, 2, 4096), keys_of(rng, 2)
        energy = SelfEnergy(x, np.full(2, 500, np.float32))
        rows = device.load(x)
        wide = MixtureEnergy(rows, *(np.zeros((2, 200), kind) for kind in ("i4", "f4", "f4")))
        with pytest.raises(LimitError, match="ends loops"):
            device.langevin(x, keys, wide, Dynamics(1, 1e-6))
        rows.close()
        monkeypatch.setattr(vk_device, "steps_at_once", lambda variant, lanes: 10_000)
        with pytest.raises(LimitError, match="ended the loops"):
            device.langevin(x, keys, energy, Dynamics(300, 1e-6)).result()
        assert device.usable


def test_a_new_kind_of_batch_takes_no_slot_of_its_own(rng: np.random.Generator) -> None:
    """Compiling took one, and the oldest view expired a batch too early."""
    x, keys = unit_rows(rng, 4, 32), keys_of(rng, 4)
    with opened(copy=False, batch_rows=64) as device:
        first = device.isotropic(x, keys, 0.8)
        kept = [device.isotropic(x, keys, 0.8) for _ in range(device.slots - 2)]
        kept.append(
            device.langevin(x, keys, SelfEnergy(x, np.ones(4, np.float32)), Dynamics(2, 1e-3))
        )
        assert first.result().x.shape == (4, 32)
