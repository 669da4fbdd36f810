"""A Vulkan device whose results are CUDA tensors: shader and training share one GPU's memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.errors import GpuUnavailableError
from mldb.gpu.cuda.runtime import CudaBindings, CudaRuntime
from mldb.gpu.device import Chains, Dynamics, Energy, Pending, Table
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan import instance as vk_instance
from mldb.gpu.vulkan.cuda import CudaOutput
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.gpu.vulkan.instance import ENVIRONMENT
from mldb.gpu.vulkan.pending import VulkanPending
from mldb.noise.keys import Keys

ToDevice = Callable[[npt.NDArray[np.float32], int], Any]


class SharedVulkanDevice:
    """The ``Device`` of Vulkan, with results handed to CUDA without a way through the host.

    As its Vulkan device otherwise. A tensor is a copy in torch's own memory (a copy inside the GPU
    costs about a microsecond) unless ``copy=False``; then it is valid until ``slots`` further
    batches were started. A batch that is cut into several comes through the host.
    """

    kind = "vulkan"

    def __init__(
        self,
        device: VulkanDevice,
        output: CudaOutput,
        *,
        copy: bool = True,
        to_device: ToDevice | None = None,
    ) -> None:
        self.name = f"{device.name} shared with cuda:{output.ordinal}"
        self.slots = device.slots
        self.ordinal = output.ordinal
        self._device = device
        self._output = output
        self._copy = copy
        self._to_device = _to_cuda if to_device is None else to_device

    def load(self, rows: npt.NDArray[np.float32]) -> Table:
        """Make rows [N, d] available; see ``VulkanDevice.load``."""
        return self._device.load(rows)

    def words(self, keys: Keys, step: int, blocks: int) -> npt.NDArray[np.uint32]:
        """Return the raw noise words of one step, u32 [B, blocks, 4]."""
        return self._device.words(keys, step, blocks)

    def normals(self, keys: Keys, step: int, dim: int) -> Any:
        """Return the standard normals of one step as a CUDA tensor [B, dim]."""
        return self._to_device(self._device.normals(keys, step, dim), self._output.ordinal)

    def isotropic(self, x: Any, keys: Keys, strength: float) -> Pending:
        """Start x' = rho x + sqrt(1 - rho^2) u."""
        return self._shared(self._device.isotropic(x, keys, strength))

    def langevin(self, x: Any, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Start chains at x [B, d], unit rows."""
        return self._shared(self._device.langevin(x, keys, energy, dynamics))

    def _shared(self, pending: Pending) -> Pending:
        return _SharedPending(pending, self._output, self._to_device, copy=self._copy)

    @property
    def usable(self) -> bool:
        """Whether the Vulkan device is."""
        return self._device.usable

    def answers(self) -> bool:
        """Whether the Vulkan device does."""
        return self._device.answers()

    def rest(self) -> None:
        """Do nothing: the memory stays, for CUDA has mapped it."""
        self._device.rest()

    def stats(self) -> dict[str, Any]:
        """Counters of the Vulkan device."""
        return self._device.stats()

    def close(self) -> None:
        """Give CUDA's side back, then Vulkan's. Closing twice is harmless."""
        try:
            self._output.close()
        finally:
            self._device.close()


class _SharedPending:
    """A batch on its way to CUDA."""

    def __init__(
        self, pending: Pending, output: CudaOutput, to_device: ToDevice, *, copy: bool
    ) -> None:
        self._pending = pending
        self._output = output
        self._to_device = to_device
        self._copy = copy
        self._chains: Chains | None = None

    def result(self) -> Chains:
        """Wait for it; raises what the Vulkan device's batch does."""
        pending = self._pending
        if self._chains is not None and not self._copy and isinstance(pending, VulkanPending):
            pending.place()  # refuses a view whose slot was used again
        if self._chains is None:
            if isinstance(pending, VulkanPending) and not pending.copies:
                self._chains = self._output.chains(pending, copy=self._copy)
            else:  # of several slots, out of which it was copied
                host = pending.result()
                x = self._to_device(host.x, self._output.ordinal)
                self._chains = Chains(x, host.accepted)
        return self._chains


def _of_current_cuda(runtime: CudaRuntime) -> str | None:
    """The number of the Vulkan device that is torch's current CUDA device, if there is one."""
    import torch

    if not torch.cuda.is_available():
        return None
    api = vk_errors.load_vulkan()
    instance = vk_instance.create_instance(api)
    try:
        wanted = runtime.uuids()[torch.cuda.current_device()]
        found = [one for one in vk_instance.list_devices(api, instance) if one.uuid == wanted]
        return str(found[0].index) if found else None
    finally:
        api.vkDestroyInstance(instance, None)


def _to_cuda(array: npt.NDArray[np.float32], ordinal: int) -> Any:
    import torch

    return torch.from_numpy(array).to(f"cuda:{ordinal}")


def open_shared(selector: str | None = None, *, copy: bool = True) -> SharedVulkanDevice:
    """Open a discrete Vulkan device whose results CUDA reads in place.

    Without *selector* it is the one that is torch's current CUDA device. Raises GpuUnavailableError
    when there is none, without cuda-bindings, and when CUDA does not know the device or refuses its
    memory.
    """
    runtime = CudaBindings()
    if selector is None and not os.environ.get(ENVIRONMENT):
        selector = _of_current_cuda(runtime)
    device = open_vulkan(selector, copy=False, exported=True)
    try:
        kind = str(device.stats()["device"])
        if not kind.startswith("discrete"):
            raise GpuUnavailableError(f"the Vulkan device is no discrete GPU: {kind}")
        return SharedVulkanDevice(device, CudaOutput(device, runtime), copy=copy)
    except BaseException:
        device.close()
        raise
