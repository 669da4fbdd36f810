"""Which device opens, in which order, and what happens when none does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from mldb.errors import GpuUnavailableError, InvalidTypeError, InvalidValueError
from mldb.gpu import select
from mldb.gpu.reference import NumpyDevice


class Fake:
    """A device that knows its name."""

    def __init__(self, name: str) -> None:
        self.name = name


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
        monkeypatch.setattr(select, "_warned", [])
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


def test_real_devices_open() -> None:
    for spec, kind in (("numpy", "numpy"), ("torch", "torch")):
        device = select.open_device(spec)
        assert device.kind == kind
        device.close()
    device = select.open_device()
    assert device.name
    device.close()
