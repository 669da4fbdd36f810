"""Which device is taken, and what is said when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from mldb.errors import GpuUnavailableError, InvalidValueError
from mldb.gpu.vulkan.device import open_vulkan
from mldb.gpu.vulkan.instance import ENVIRONMENT, DeviceInfo, Limits, select
from tests.support.vulkan import opened

LIMITS = Limits(1 << 27, 1 << 31, 1 << 31, 65535, 1024, 4096, 1 << 31)


def _device(index: int, name: str, kind: str, missing: tuple[str, ...] = ()) -> DeviceInfo:
    return DeviceInfo(
        index,
        name,
        kind,
        bytes(16),
        (1, 2),
        "0x1",
        32,
        (32, 32),
        frozenset(),
        LIMITS,
        missing,
        None,
    )


DEVICES = [
    _device(0, "llvmpipe", "cpu"),
    _device(1, "Radeon 780M", "integrated"),
    _device(2, "NVIDIA H100 PCIe", "discrete"),
    _device(3, "NVIDIA Kepler", "discrete", ("timelineSemaphore",)),
]


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def test_the_best_device_that_can_be_used_is_taken() -> None:
    assert select(DEVICES).index == 2
    assert select(DEVICES[:2]).index == 1
    assert select(DEVICES[:1]).index == 0


@pytest.mark.parametrize("choice", ["0", 0, "llvm", "LLVMPIPE"])
def test_a_choice_by_index_or_name_wins(choice: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select(DEVICES, choice).index == 0
    monkeypatch.setenv(ENVIRONMENT, str(choice))
    assert select(DEVICES).index == 0
    assert select(DEVICES, "h100").index == 2


@pytest.mark.parametrize("choice", ["7", "nvidia", "voodoo", "-1"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_choice_that_fits_no_or_several_devices_never_falls_back(
    choice: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv(ENVIRONMENT, choice)
    with pytest.raises(GpuUnavailableError) as caught:
        select(DEVICES, None if by == "environment" else choice)
    for device in DEVICES:
        assert f"{device.index}: {device.name} ({device.kind})" in str(caught.value)
    assert (ENVIRONMENT in str(caught.value)) == (by == "environment")


def test_a_chosen_device_without_what_is_needed_is_refused() -> None:
    with pytest.raises(GpuUnavailableError, match="timelineSemaphore"):
        select(DEVICES, 3)
    with pytest.raises(GpuUnavailableError, match="timelineSemaphore"):
        select(DEVICES[3:])


def test_the_environment_chooses_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(batch_rows=64):
        monkeypatch.setenv(ENVIRONMENT, "no such device")
        with pytest.raises(GpuUnavailableError, match="no such device"):
            open_vulkan()


def test_settings_that_make_no_ring_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="slots"):
        open_vulkan(slots=1)
    with pytest.raises(InvalidValueError, match="batch_rows"):
        open_vulkan(batch_rows=0)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vulkan", None)
    with pytest.raises(GpuUnavailableError, match=r"pip install mldb\[vulkan\]"):
        open_vulkan()


OPEN = """
import sys
from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan.device import open_vulkan
try:
    open_vulkan()
except GpuUnavailableError as error:
    print(error)
else:
    sys.exit("a device was opened")
"""


def _fresh(**environment: str) -> str:
    """Open a device in a process of its own and return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_driver_the_packages_and_variables_are_named() -> None:
    with opened(batch_rows=64):
        pass
    hidden = {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    text = _fresh(**hidden)
    assert "mesa-vulkan-drivers" in text
    assert "NVIDIA_DRIVER_CAPABILITIES" in text
    for name in hidden:
        assert f"{name}=/nonexistent" in text


def test_without_the_loader_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLoader:
        """What the package's import does where libvulkan.so.1 is missing."""

        def find_spec(self, name: str, *_: Any) -> None:
            if name == "vulkan":
                raise OSError("Cannot find Vulkan SDK version")

    for name in [name for name in sys.modules if name.partition(".")[0] == "vulkan"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoLoader(), *sys.meta_path])
    with pytest.raises(GpuUnavailableError, match="libvulkan1"):
        open_vulkan()
