"""Batches as torch operations: on CUDA, and on the CPU where numba is missing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.errors import InvalidTypeError
from mldb.gpu import dynamics as formulas
from mldb.gpu import subspace
from mldb.gpu.checks import check_lengths
from mldb.gpu.device import Chains, Dynamics, Energy, Pending, SelfEnergy
from mldb.gpu.reference import chunks, keys_part, mixture_at
from mldb.noise.keys import Keys
from mldb.noise.philox_torch import TorchDraws

if TYPE_CHECKING:
    import torch

CHUNK_ROWS_CPU: Final = 256
CHUNK_ROWS_CUDA: Final = 4096
"""Rows whose neighbours are gathered at once: 10 and 160 MiB for 16 of 640 dimensions."""


class EagerEngine:
    """Runs checked requests with torch; on CUDA in a stream of its own.

    The caller's stream is waited for before a batch starts, and waits for the batch in ``result``.
    Host arrays go to CUDA through pinned memory, without waiting for the copy.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._cuda = device.type == "cuda"
        streams: Any = torch.cuda  # its classes have untyped constructors
        self._stream = streams.Stream(device) if self._cuda else None
        self._chunk = CHUNK_ROWS_CUDA if self._cuda else CHUNK_ROWS_CPU

    def isotropic(self, x: Any, keys: Keys, strength: float) -> Pending:
        """Start the isotropic step of rows x [B, d]."""
        import torch

        with self._in_stream():
            here = self._move(x)
            moved = torch.empty_like(here)
            for part in chunks(len(here), self._chunk):
                noise = TorchDraws(keys_part(keys, part), self._device).normals(0, here.shape[1])
                moved[part] = formulas.isotropic_step(here[part], noise, strength, xp=torch)
            accepted = torch.ones(len(here), dtype=torch.int32, device=self._device)
            return self._pending(here, moved, accepted)

    def langevin(self, x: Any, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Start chains at rows x [B, d]."""
        import torch

        with self._in_stream():
            here = self._move(x)
            moved = torch.empty_like(here)
            accepted = torch.full(
                (len(here),), dynamics.steps, dtype=torch.int32, device=self._device
            )
            for part in chunks(len(here), self._chunk):
                mu, kappa, weight = self._neighbours(energy, part)
                draws = TorchDraws(keys_part(keys, part), self._device)
                if dynamics.form == "subspace":
                    moved[part] = subspace.run_subspace(
                        here[part], mu, kappa, weight, draws, dynamics, xp=torch
                    )
                else:
                    at = mixture_at(mu, kappa, weight, xp=torch)
                    moved[part], accepted[part] = formulas.run_chain(
                        here[part], at, draws, dynamics, xp=torch
                    )
            return self._pending(here, moved, accepted)

    def close(self) -> None:
        """Wait for what is under way."""
        if self._stream is not None:
            self._stream.synchronize()

    def _in_stream(self) -> Any:
        """Enter the stream of this engine, after what the caller's stream has done so far."""
        import torch

        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def _move(self, values: Any) -> torch.Tensor:
        """Return an array or tensor as a contiguous tensor on the device."""
        import torch

        tensor = values if isinstance(values, torch.Tensor) else _copied(values)
        if self._cuda and not tensor.is_cuda:
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        elif tensor.device != self._device:
            raise InvalidTypeError(f"a tensor is on {tensor.device}, the device is {self._device}")
        elif self._stream is not None:
            tensor.record_stream(self._stream)
        return tensor.detach().contiguous()

    def _neighbours(self, energy: Energy, part: slice) -> tuple[Any, Any, Any]:
        """The neighbours [b, K, d] of some rows, their kappas and log weights [b, K]."""
        import torch

        if isinstance(energy, SelfEnergy):
            kappa = self._move(energy.kappa[part])[:, None]
            return self._move(energy.mu[part])[:, None], kappa, torch.zeros_like(kappa)
        rows = getattr(energy.table, "tensor", None)
        if rows is None:
            raise InvalidTypeError(
                f"the table is a {type(energy.table).__name__} of another device; load the rows "
                "with this one"
            )
        if self._stream is not None:
            rows.record_stream(self._stream)  # closing the table must not free it under this
        index = self._move(energy.index[part])
        mu = rows.index_select(0, index.reshape(-1)).reshape(*index.shape, -1)
        return mu, self._move(energy.kappa[part]), self._move(energy.log_weight[part])

    def _pending(self, x: torch.Tensor, moved: torch.Tensor, accepted: torch.Tensor) -> Pending:
        squares = (x * x).sum(1)
        event = None
        if self._stream is not None:
            event = self._stream.record_event()
        return _Launched(squares, Chains(moved, accepted), event)


class _Launched:
    """A batch that torch has done (CPU) or has in a stream (CUDA)."""

    def __init__(self, squares: torch.Tensor, chains: Chains, event: Any) -> None:
        self._squares, self._chains, self._event = squares, chains, event

    def result(self) -> Chains:
        """Wait for it. Raises InvalidValueError when a row of x was not of length 1."""
        import torch

        if self._event is not None:
            self._event.synchronize()
            stream = torch.cuda.current_stream(self._chains.x.device)
            for tensor in self._chains:
                tensor.record_stream(stream)
        check_lengths(self._squares.cpu().numpy())
        return self._chains


def _copied(values: Any) -> torch.Tensor:
    """Return a tensor of its own: torch warns about read-only arrays, and x may be reused."""
    import torch

    return torch.from_numpy(np.array(values))
