"""Batches of host memory, run by the compiled kernels on a few threads."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s
from mldb.gpu.checks import check_lengths
from mldb.gpu.cpu.chains import ChainBatch, load_chains
from mldb.gpu.cpu.threads import RowThreads, Running
from mldb.gpu.device import Chains, Dynamics, Energy, Pending, SelfEnergy
from mldb.gpu.reference import table_array
from mldb.noise.compiling import compile_lock
from mldb.noise.keys import Keys
from mldb.noise.philox_compiled import Kernels, first_words, kernel_input, stream_arguments


class CompiledEngine:
    """Runs checked requests over NumPy arrays; at most ``slots`` batches are under way.

    The chain kernels are compiled at the first ``langevin``, the others before this is made. What
    is passed in must not change until the batch is done. With ``copy`` results are new arrays;
    without, they are used again once ``slots`` further batches were started, which saves the system
    from handing out (and clearing) as much memory per batch as the batch has.
    """

    def __init__(
        self, kernels: Kernels, *, slots: int, copy: bool = True, threads: int | None = None
    ) -> None:
        self.threads = RowThreads(threads)
        self._kernels = kernels
        self._slots = slots
        self._under_way: deque[Running] = deque()
        self._buffers = None if copy else _no_buffers(slots)

    def normals(self, keys: Keys, step: int, dim: int) -> Float32s:
        """Return the normals [B, dim] of a step."""
        out = np.empty((len(keys), dim), np.float32)
        arguments = stream_arguments(keys, first_words(step, dim))
        guard = compile_lock().hold_unless_inside()
        if guard is not None:  # else this is inside of it
            with guard:
                self._kernels.normals(*arguments, 0, 0, out)  # compiled by its first call

        def run(first: int, end: int) -> None:
            self._kernels.normals(*arguments, first, end, out)

        for future in self.threads.start(run, len(keys)):
            future.result()
        return out

    def isotropic(self, x: Float32s, keys: Keys, strength: float) -> Pending:
        """Start the isotropic step of rows x [B, d]."""
        out, squares = self._output(x.shape), np.empty(len(x), np.float32)
        arguments = stream_arguments(keys, first_words(0, x.shape[1]))
        source = kernel_input(x)

        def run(first: int, end: int) -> None:
            self._kernels.isotropic(
                *arguments, first, end, source, np.float32(strength), squares, out
            )

        def finish() -> Chains:
            check_lengths(squares)
            return Chains(out, np.ones(len(out), np.int32))

        return self._start(Running(self._turn(run, len(x)), finish))

    def langevin(self, x: Float32s, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Start chains at rows x [B, d]; the first call compiles the kernels of chains."""
        kernels = load_chains(dynamics.form)
        if kernels is None:
            raise RuntimeError("numba was there when the device was opened and is gone")
        chains = kernels
        batch = ChainBatch(keys, x, *_neighbours(energy), self._output(x.shape))

        def run(first: int, end: int) -> None:
            batch.run(chains, dynamics, first, end)

        def finish() -> Chains:
            check_lengths(batch.squares)
            return Chains(batch.out, batch.accepted)

        return self._start(Running(self._turn(run, len(x)), finish))

    def rest(self) -> None:
        """Wait for what is under way, and let go of the memory of results: who has one keeps it."""
        while self._under_way:
            self._under_way.popleft().wait()
        if self._buffers is not None:
            self._buffers = _no_buffers(self._slots)

    def close(self) -> None:
        """Wait for what is under way and end the threads."""
        self.threads.close()
        self._under_way.clear()

    def _output(self, shape: tuple[int, ...]) -> Float32s:
        """Return memory for the results of a batch that is about to start."""
        if self._buffers is None:
            return np.empty(shape, np.float32)
        size = shape[0] * shape[1]
        buffer = self._buffers.popleft()
        if len(buffer) < size:
            buffer = np.empty(size, np.float32)
        self._buffers.append(buffer)
        return buffer[:size].reshape(shape)

    def _turn(self, run: Any, rows: int) -> Any:
        """Wait for a free slot, then start."""
        while len(self._under_way) >= self._slots:
            self._under_way.popleft().wait()
        return self.threads.start(run, rows)

    def _start(self, running: Running) -> Running:
        self._under_way.append(running)
        return running


def _no_buffers(slots: int) -> deque[Float32s]:
    return deque([np.empty(0, np.float32)] * (slots + 1))


def _neighbours(energy: Energy) -> tuple[Float32s, npt.NDArray[np.int32], Float32s, Float32s]:
    """Return table, index, kappas and log weights; its own splat is a row's only neighbour."""
    if isinstance(energy, SelfEnergy):
        mu, kappa = _host(energy.mu), _host(energy.kappa)[:, None]
        return mu, np.arange(len(mu), dtype=np.int32)[:, None], kappa, np.zeros_like(kappa)
    table = table_array(energy.table)
    return table, energy.index, _host(energy.kappa), _host(energy.log_weight)


def _host(values: Any) -> Float32s:
    """Return a NumPy view of an array, or of a tensor on the CPU."""
    host: Float32s = values.detach().numpy() if hasattr(values, "detach") else values
    return host
