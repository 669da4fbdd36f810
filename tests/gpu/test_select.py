"""Which device opens, in which order, and what happens when none does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import Augmentation
from mldb.errors import GpuUnavailableError, InvalidTypeError, InvalidValueError
from mldb.gpu import capability, select
from mldb.gpu.capability import Needs
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.vulkan.instance import DeviceInfo, Limits
from mldb.gpu.vulkan.pipeline import ShaderMode, Variant
from mldb.gpu.vulkan.request import steps_at_once
from mldb.lake.augment import devices
from mldb.lake.states import LakeStates


class Fake:
    """A device that knows its name; ``kind`` is that of its Vulkan driver."""

    def __init__(self, name: str, kind: str = "discrete") -> None:
        self.name = name
        self.kind = kind


def driver(kind: str, lanes: int = 8) -> DeviceInfo:
    """What a Vulkan driver says of itself."""
    limits = Limits(1 << 27, 1 << 27, 1 << 30, 65535, 1024, 4096, 1 << 30)
    none = frozenset[str]()
    return DeviceInfo(
        0, "fake", kind, b"", (1, 3), "0x1", lanes, (lanes, lanes), none, limits, (), None
    )


def missing(*_: Any, **__: Any) -> Any:
    raise GpuUnavailableError("not here")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what this machine has; what is not set is missing."""

    def setup(
        *,
        shared: Fake | None = None,
        vulkan: Fake | None = None,
        cuda: Fake | None = None,
        cpu: Fake | None = None,
    ) -> None:
        found = {"cuda": cuda, "cpu": cpu}
        there = shared or vulkan
        kind = "discrete" if there is None else there.kind
        monkeypatch.setattr(select, "_warned", [])
        monkeypatch.setattr(select, "_described", lambda: driver(kind) if there else missing())
        monkeypatch.setattr(select, "_shared", lambda **_: shared or missing())
        monkeypatch.setattr(select, "_vulkan", lambda *_, **__: vulkan or missing())
        monkeypatch.setattr(select, "_torch", lambda name, **_: found[name] or missing())

    return setup


def opened() -> Any:
    return select.open_device()


def test_auto_takes_the_first_of_the_order(machine: Callable[..., None]) -> None:
    """A discrete Vulkan device that shares memory with CUDA, CUDA, other Vulkan, the CPU."""
    order = ("shared", "cuda", "vulkan", "cpu")
    there = {name: Fake(name) for name in order}
    for name in order:
        machine(**there)
        assert opened() is there.pop(name)


def test_the_last_resort_warns_once_with_its_reasons(machine: Callable[..., None]) -> None:
    machine()
    with pytest.warns(RuntimeWarning, match="not here") as caught:
        assert isinstance(select.open_device(), NumpyDevice)
    assert len(caught) == 1
    assert "mldb[torch,lake]" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(select.open_device(), NumpyDevice)


def test_whether_torch_on_the_cpu_would_open_is_told_without_opening(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that are forked then have its kernels; no device may be opened before that."""
    counts = {"cuda": 0}
    monkeypatch.setattr(select, "_has_cuda", lambda: bool(counts["cuda"]))
    chains, step = Needs(dim=8, chains=True), Needs(dim=8)
    lavapipe, discrete = Fake("vulkan", "cpu"), Fake("vulkan")
    for there, cuda, needs, told in (
        (None, 0, step, True),
        (None, 1, step, False),
        (lavapipe, 0, step, False),
        (lavapipe, 0, chains, True),
        (discrete, 0, chains, False),
    ):
        machine(vulkan=there, cuda=Fake("cuda") if cuda else None, cpu=Fake("cpu"))
        counts["cuda"] = cuda
        assert select.is_torch_on_cpu("auto", needs) is told
        assert (select.open_device(needs=needs).name == "cpu") is told
    for spec in ("torch", "cpu", "numpy", "vulkan", "cuda:1"):
        assert select.is_torch_on_cpu(spec) is (spec in ("torch", "cpu"))
    machine(cpu=Fake("cpu"))
    monkeypatch.setenv("MLDB_VK_DEVICE", "0")
    assert not select.is_torch_on_cpu("auto", step)
    with pytest.raises(InvalidValueError, match="'gpu'"):
        select.is_torch_on_cpu("gpu")


def test_an_explicit_choice_never_falls_back(machine: Callable[..., None]) -> None:
    machine()
    for spec in ("vulkan", "vulkan:NVIDIA", "torch", "cuda"):
        with pytest.raises(GpuUnavailableError):
            select.open_device(spec)


def test_auto_keeps_to_a_vulkan_device_that_was_chosen(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(cpu=Fake("cpu"))
    assert opened().name == "cpu"
    monkeypatch.setenv("MLDB_VK_DEVICE", "no such device")
    with pytest.raises(GpuUnavailableError):
        opened()


def test_selectors_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(select, "_vulkan", lambda name, *, copy: asked.append((name, copy)))
    monkeypatch.setattr(select, "_torch", lambda name, *, copy: asked.append((name, copy)))
    select.open_device("vulkan")
    select.open_device("vulkan:llvmpipe: 2", copy=False)
    select.open_device("cuda:1")
    select.open_device("torch", copy=False)
    assert asked == [(None, True), ("llvmpipe: 2", False), ("cuda:1", True), ("cpu", False)]


@pytest.mark.parametrize("spec", ["gpu", "cuda:x", "auto:1", "torch:0", "", "NUMPY", "numpy:1"])
def test_unknown_names_are_listed(spec: str) -> None:
    with pytest.raises(InvalidValueError, match=r"'auto', 'vulkan', .*'numpy'"):
        select.open_device(spec)


def test_a_name_is_a_string() -> None:
    with pytest.raises(InvalidTypeError):
        select.open_device(0)  # type: ignore[arg-type]


CHAINS = Needs(dim=64, chains=True, neighbours=16)


@pytest.mark.parametrize(
    ("needs", "taken"),
    [
        (None, "vulkan"),
        (Needs(dim=64), "vulkan"),
        (CHAINS, "vulkan"),
        (Needs(dim=8192), "cpu"),
        (Needs(dim=8192, chains=True, neighbours=16), "cpu"),
        (Needs(dim=64, chains=True, form="subspace", neighbours=16), "cpu"),
    ],
    ids=["anything", "noise", "chains", "large rows", "long chains", "subspace"],
)
def test_the_request_decides_which_device_is_taken(
    machine: Callable[..., None], needs: Needs | None, taken: str
) -> None:
    """A device that would refuse it is passed over: dim=8192 and the subspace form ended so."""
    machine(vulkan=Fake("vulkan"), cpu=Fake("cpu"))
    assert select.open_device(needs=needs).name == taken
    machine(vulkan=Fake("vulkan"), cuda=Fake("cuda"), cpu=Fake("cpu"))
    assert select.open_device(needs=needs).name == "cuda"
    machine(shared=Fake("shared"), cuda=Fake("cuda"))
    assert select.open_device(needs=needs).name == ("shared" if taken == "vulkan" else "cuda")


def test_a_cpu_driver_is_taken_only_where_it_measured_faster(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled kernels are faster in chains and for large rows; torch operations never are."""
    on_cpu = {"vulkan": Fake("vulkan", "cpu"), "cpu": Fake("cpu")}
    for has_numba in (True, False):
        monkeypatch.setattr(capability, "find_spec", lambda _, has=has_numba: has or None)
        machine(**on_cpu)
        assert select.open_device(needs=Needs(dim=640)).name == "vulkan"
        slower = "cpu" if has_numba else "vulkan"
        assert select.open_device(needs=Needs(dim=2048)).name == slower
        assert select.open_device(needs=CHAINS).name == slower
        machine(vulkan=on_cpu["vulkan"])  # without torch it is better than NumPy
        assert select.open_device(needs=CHAINS).name == "vulkan"


def test_where_no_device_can_the_error_names_each_and_why(machine: Callable[..., None]) -> None:
    machine(vulkan=Fake("vulkan", "cpu"), cpu=Fake("cpu"))
    needs = Needs(dim=12, chains=True, form="subspace", neighbours=16)
    with pytest.raises(InvalidValueError, match="no device can run this") as error:
        select.open_device(needs=needs)
    for name in ("vulkan", "cuda", "torch", "numpy"):
        assert f"{name}: form='subspace' with 16 neighbours needs 20 dimen" in str(error.value)


@pytest.mark.parametrize("lanes", [4, 8, 32])
def test_what_the_table_says_of_vulkan_is_what_its_device_refuses(lanes: int) -> None:
    info = driver("cpu", lanes)
    for dim in (2, 640, 4096, 8192, 16384, 16388, 40000):
        for chains in (False, True):
            needs = Needs(dim=dim, chains=chains, neighbours=16)
            variant = Variant(ShaderMode.MIXTURE if chains else ShaderMode.ISOTROPIC, dim, 16)
            refused = dim > 512 * lanes or (chains and steps_at_once(variant, lanes) < 1)
            assert (capability.lacks("vulkan", needs, info) is not None) == refused


REAL = {
    "large rows": (8192, Augmentation()),
    "large chains": (8192, Augmentation(mode="langevin", steps=2)),
    "exact large chains": (8192, Augmentation(mode="langevin", steps=2, method="mala")),
    "subspace": (48, Augmentation(mode="langevin", steps=2, form="subspace")),
    "small rows": (48, Augmentation()),
    "a walk": (48, Augmentation(mode="walk")),
}


@pytest.mark.parametrize("what", REAL)
def test_auto_runs_whatever_a_device_of_this_machine_can(
    what: str, store_path: Path, rng: np.random.Generator
) -> None:
    dim, chosen = REAL[what]
    with mldb.open(store_path) as db:
        lake = db.lake(dim=dim)
        lake.add_splats(rng.standard_normal((70, dim)))
        loader = lake.export_to_dataloader(32, generate_samples=chosen)
        assert sum(len(batch) for batch in loader) == 70
        settings = {name: getattr(chosen, name) for name in ("mode", "form", "method", "steps")}
        assert lake.augment(rng.standard_normal((3, dim)), **settings).shape == (3, dim)


def test_devices_that_wait_for_the_next_stream_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kind of request has its own device; all but the one that was used last are closed."""
    monkeypatch.setattr(devices, "_idle", {})
    user = LakeStates(0, saves=False)
    opened: list[Any] = []

    def numpy_device(spec: str, *, copy: bool, needs: Any) -> Any:
        opened.append(NumpyDevice())
        return opened[-1]

    monkeypatch.setattr(devices, "open_device", numpy_device)
    for dim in range(2, 9):
        needs = Needs(dim=dim)
        device = devices.borrow("auto", needs, user=user)
        devices.give_back("auto", device, os.getpid(), needs=needs)
    assert [device._closed for device in opened] == [True] * 6 + [False]
    assert devices.borrow("auto", Needs(dim=7), user=user) is opened[7]
    assert devices.borrow("auto", Needs(dim=8), user=user) is opened[6]
    assert devices.borrow("auto", Needs(dim=8), user=user) is opened[8]


def test_real_devices_open() -> None:
    for spec, kind in (("numpy", "numpy"), ("torch", "torch")):
        device = select.open_device(spec)
        assert device.kind == kind
        device.close()
    device = select.open_device()
    assert device.name
    device.close()
