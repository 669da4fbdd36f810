"""Devices of PyTorch: the CPU, by compiled kernels where numba is installed, and CUDA.

``TorchDevice("cpu")`` gives batches to a few threads that run compiled kernels. Without numba, and
on CUDA, the formulas of ``mldb.gpu.dynamics`` and ``mldb.gpu.subspace`` run as torch operations
with batched products. Results are tensors on the device.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import ClosedError, GpuUnavailableError, InvalidTypeError, LimitError
from mldb.gpu.checks import (
    check_blocks,
    check_dim,
    check_dynamics,
    check_energy,
    check_rows,
    check_strength,
    check_usable,
)
from mldb.gpu.cpu.chains import load_chains
from mldb.gpu.cpu.engine import CompiledEngine
from mldb.gpu.cuda.engine import EagerEngine
from mldb.gpu.device import Chains, Dynamics, Energy, Form, Pending
from mldb.gpu.reference import ArrayTable, check_table
from mldb.noise.keys import Keys, check_keys
from mldb.noise.philox import words as numpy_words
from mldb.noise.philox_compiled import load_kernels
from mldb.noise.philox_torch import TorchDraws

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger(__name__)

SLOTS: Final = 3


class TensorTable(ArrayTable):
    """Rows on a CUDA device: a copy, or on the CPU a tensor over the same memory."""

    def __init__(self, rows: npt.NDArray[np.float32], tensor: torch.Tensor) -> None:
        super().__init__(rows)
        self.imported = not tensor.is_cuda
        self._tensor: torch.Tensor | None = tensor

    @property
    def tensor(self) -> torch.Tensor:
        """The rows [N, d] on the device. Raises ClosedError after ``close``."""
        if self._tensor is None:
            raise ClosedError("this table is closed. Load the rows again; the device works on.")
        return self._tensor

    def close(self) -> None:
        """Give the memory back."""
        super().close()
        self._tensor = None


class TorchDevice:
    """The ``Device`` on PyTorch.

    device:    "cpu", "cuda" or "cuda:1".
    copy:      False lets compiled kernels use the memory of a result again once ``slots`` further
               batches were started.
    compiled:  on the CPU: None takes the compiled kernels where numba is installed, True requires
               them, False runs torch operations. Opening then compiles for two to four seconds,
               the first ``langevin`` for some more; ``compile_seconds`` says how long it took.
    threads:   of the compiled kernels; None is one per core.
    Raises GpuUnavailableError when torch, the CUDA device, or with ``compiled=True`` numba is
    missing. One thread at a time; what is passed in must not change until the batch is done.
    """

    slots = SLOTS
    usable = True

    def __init__(
        self,
        device: str = "cpu",
        *,
        copy: bool = True,
        compiled: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self._closed = False
        self._pid = os.getpid()
        self.device = torch_device_of(device)
        self.kind = "cuda" if self.device.type == "cuda" else "torch"
        self._engine: CompiledEngine | EagerEngine
        kernels = load_kernels() if self.kind == "torch" and compiled is not False else None
        if kernels is not None:
            self._engine = CompiledEngine(kernels, slots=SLOTS, copy=copy, threads=threads)
            _logger.info("compiled the kernels in %.1f s", kernels.seconds)
        elif compiled:
            raise GpuUnavailableError(
                f"compiled kernels were asked for on {device}. They are for the CPU and need numba:"
                " pip install mldb[lake]; compiled=None goes without them."
            )
        else:
            self._engine = EagerEngine(self.device)
        self.compiled = kernels is not None
        self.compile_seconds = kernels.seconds if kernels is not None else 0.0
        self.name = _name(self.kind, self.device, compiled=self.compiled)

    def prepare(self, form: Form = "direct") -> float:
        """Compile the kernel of a form of chains now, and return how many seconds that takes."""
        self._check_usable()
        chains = load_chains(form) if self.compiled else None
        return 0.0 if chains is None else chains.seconds[form]

    def load(self, rows: npt.NDArray[np.float32]) -> TensorTable:
        """Reference rows [N, d] on the CPU, copy them to CUDA.

        On the CPU the array must live and not change until the table is closed. Raises LimitError
        when CUDA has too little free memory, InvalidTypeError, InvalidValueError.
        """
        self._check_usable()
        rows = check_table(rows)
        with warnings.catch_warnings():
            # torch has no read-only tensors and says so; nothing here writes to a table.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = _tensor(rows)
        if self.kind == "cuda":
            _check_memory(rows.nbytes, self.device)
            tensor = tensor.to(self.device)
        return TensorTable(rows, tensor)

    def words(self, keys: Keys, step: int, blocks: int) -> npt.NDArray[np.uint32]:
        """Return the noise words u32 [B, blocks, 4] of a step."""
        self._check_usable()
        check_keys(keys, step)
        check_blocks(blocks)
        if self.compiled:
            return numpy_words(keys, step, blocks)
        found = TorchDraws(keys, self.device).words(step, blocks)
        return np.stack([word.cpu().numpy() for word in found], -1).astype(np.uint32)

    def normals(self, keys: Keys, step: int, dim: int) -> torch.Tensor:
        """Return the normals float32 [B, dim] of a step."""
        self._check_usable()
        check_keys(keys, step)
        check_dim(dim)
        if isinstance(self._engine, CompiledEngine):
            return _tensor(self._engine.normals(keys, step, dim))
        return TorchDraws(keys, self.device).normals(step, dim)

    def isotropic(self, x: Any, keys: Keys, strength: float) -> Pending:
        """Start x' = rho x + sqrt(1 - rho^2) u. The result raises InvalidValueError for bad x."""
        self._check_usable()
        check_rows(x, keys)
        check_strength(strength)
        if isinstance(self._engine, CompiledEngine):
            return _Tensors(self._engine.isotropic(_array(x), keys, strength))
        return self._engine.isotropic(x, keys, strength)

    def langevin(self, x: Any, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Start chains. Raises InvalidValueError, InvalidTypeError; so may the result."""
        self._check_usable()
        check_rows(x, keys)
        check_dynamics(dynamics)
        check_energy(energy, x, dynamics)
        if isinstance(self._engine, CompiledEngine):
            return _Tensors(self._engine.langevin(_array(x), keys, energy, dynamics))
        return self._engine.langevin(x, keys, energy, dynamics)

    def answers(self) -> bool:
        """Whether it is usable: what torch lost, it says with the next batch."""
        return self.usable

    def rest(self) -> None:
        """Let go of the memory of results of compiled kernels; who has one keeps it."""
        if isinstance(self._engine, CompiledEngine):
            self._engine.rest()

    def close(self) -> None:
        """Wait for what is under way. Results that were handed out stay valid."""
        if not self._closed and self._pid == os.getpid():
            self._engine.close()
        self._closed = True

    def _check_usable(self) -> None:
        check_usable(self.name, closed=self._closed, pid=self._pid, current_pid=os.getpid())


class _Tensors:
    """A batch of arrays, handed out as tensors over the same memory."""

    def __init__(self, arrays: Pending) -> None:
        self._arrays = arrays

    def result(self) -> Chains:
        """Wait for it. Raises InvalidValueError when a row of x was not of length 1."""
        x, accepted = self._arrays.result()
        return Chains(_tensor(x), _tensor(accepted))


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    import torch

    return torch.from_numpy(array)


def _array(x: Any) -> npt.NDArray[np.float32]:
    """Return x as a NumPy array without a copy where that is possible."""
    if getattr(x, "is_cuda", False):
        raise InvalidTypeError("x is on a CUDA device and this device is the CPU; pass x.cpu()")
    rows: npt.NDArray[np.float32] = x.detach().numpy() if hasattr(x, "detach") else x
    return rows


def torch_device_of(name: str) -> torch.device:
    """Return "cpu", "cuda" or "cuda:N" of torch. Raises GpuUnavailableError if it is not there."""
    try:
        import torch
    except ImportError as error:
        raise GpuUnavailableError(
            f"device {name!r} needs PyTorch: pip install mldb[torch]. device='numpy' needs nothing."
        ) from error
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise GpuUnavailableError(f"torch knows no device {name!r}: {error}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise GpuUnavailableError(
                f"device {name!r} is not there: torch {torch.__version__} sees {count} CUDA "
                "devices. Check nvidia-smi and that torch is a CUDA build, or use device='auto'."
            )
        device = torch.device("cuda", device.index or 0)
    return device


def _name(kind: str, device: torch.device, *, compiled: bool) -> str:
    if kind == "torch":
        return f"torch (cpu, {'numba' if compiled else 'eager'})"
    import torch

    return f"torch ({device}, {torch.cuda.get_device_name(device)})"


def _check_memory(asked: int, device: torch.device) -> None:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    if asked > free:
        raise LimitError(
            f"a table of {asked} bytes does not fit on {device}, which has {free} of {total} bytes "
            "free. Load fewer rows, or use device='torch', which reads them in place."
        )
