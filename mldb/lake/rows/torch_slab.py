"""Strata in the memory of a torch device: the hot tier."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class TorchSlab:
    """A slab on a torch device. One thread at a time.

    On CUDA, host rows go through pinned memory, so that copying overlaps what the device does.
    """

    def __init__(self, rows: int, dim: int, device: Any) -> None:
        self._device = torch.device(device)
        self._memory = torch.empty((rows, dim), device=self._device)

    def fill(self, row: int, data: npt.NDArray[np.float32]) -> None:
        """Copy rows in."""
        self._memory[row : row + len(data)].copy_(self._sent(data))

    def take(
        self, rows: npt.NDArray[np.int64], out: Any, places: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Gather rows to *out*, a tensor of the device."""
        index = self._sent(rows)
        if places is None:
            torch.index_select(self._memory, 0, index, out=out)
        else:
            out[self._sent(places)] = self._memory[index]

    def put(self, data: npt.NDArray[np.float32], out: Any, places: npt.NDArray[np.int64]) -> None:
        """Write rows to *places*."""
        out[self._sent(places)] = self._sent(data)

    def _sent(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)
