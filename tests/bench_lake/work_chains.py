"""S6 and VULKAN: Langevin chains on a device of mldb, and the same steps as torch operations."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mldb.errors import GpuUnavailableError
from mldb.gpu.device import Dynamics, Energy, MixtureEnergy, Pending, SelfEnergy
from mldb.gpu.select import open_device
from mldb.noise.keys import Keys
from mldb.sphere import langevin
from tests.bench.children import Result, Task
from tests.bench.workloads import generator
from tests.bench_lake.loaders import Sink
from tests.bench_lake.setting import KAPPA, Data, Floats
from tests.bench_lake.worker import AbsentError

_STRENGTH, _H = 0.9, 0.3
_CACHED_ROWS = 64  # with 16 neighbours of 640 float32 each: 2.6 MB
_UNDER_WAY = 2  # batches that a device is given before the first is asked for


class Chains:
    """What is to be moved: rows of the table, the neighbours of each, and how they move.

    Neighbours are random rows behind the row itself: they are as far apart in memory as true ones.
    """

    def __init__(self, task: Task) -> None:
        data = Data(**task["data"])
        rng = generator(21)
        self.table = data.mapped()
        self.batch, self.rows = task["batch"], min(task["rows"], data.rows)
        self.numbers = rng.permutation(data.rows)[: self.rows]
        others = rng.integers(0, data.rows, (self.rows, task["neighbours"] - 1))
        self.index = np.concatenate([self.numbers[:, None], others], 1).astype(np.int32)
        self.kappa = np.full(self.index.shape, KAPPA, np.float32)
        self.log_weight = np.log(data.masses())[self.index]
        temperature = langevin.temperature_for(_STRENGTH, KAPPA, data.dim)
        self.dynamics = Dynamics(
            steps=task["steps"],
            step_size=langevin.step_size(_H, KAPPA, data.dim, temperature),
            temperature=temperature,
            form=task.get("form", "direct"),
        )
        self.sink = Sink(task["batch"], data.dim)
        self.cosine = 0.0

    def parts(self) -> list[slice]:
        """The rows of every batch."""
        return [slice(s, min(s + self.batch, self.rows)) for s in range(0, self.rows, self.batch)]

    def keep(self, part: slice, moved: torch.Tensor) -> None:
        """Copy a finished batch to the buffer."""
        self.sink.drain([moved])

    def note(self, part: slice, moved: torch.Tensor) -> None:
        """Add the cosines of a finished batch to its start."""
        start = self.table[self.numbers[part]]
        self.cosine += float(np.einsum("ij,ij->", start, moved.cpu().numpy(), dtype=np.float64))


class ChainRun:
    """Moves all rows once per turn. ``device`` is one of mldb, or "eager" for torch operations.

    ``energy`` is "self" or "mixture", ``form`` "direct" or "subspace".
    """

    def __init__(self, task: Task) -> None:
        if "threads" in task:
            torch.set_num_threads(task["threads"])
        self._chains = Chains(task)
        if task["device"] == "eager":
            self._mover: Eager | OnDevice = Eager(self._chains, task["energy"])
        else:
            try:
                self._mover = OnDevice(self._chains, task["energy"], task["device"])
            except GpuUnavailableError as error:
                raise AbsentError(str(error).splitlines()[0]) from error
        self._mover.move(self._chains.note)
        cosine = self._chains.cosine / self._chains.rows
        self.ready: Result = {"how": self._mover.name, "cosine": cosine}

    def turn(self, message: Task) -> Result:
        """Move all rows; every batch ends in the buffer of the host."""
        begin = time.perf_counter()
        self._mover.move(self._chains.keep)
        return {"rate": self._chains.rows / (time.perf_counter() - begin)}

    def close(self) -> None:
        """Close the device."""
        self._mover.close()


class OnDevice:
    """Chains on a device of mldb, a second batch being under way while one is copied out."""

    def __init__(self, chains: Chains, energy: str, spec: str) -> None:
        self._chains, self._energy = chains, energy
        self._device = open_device(spec, copy=False)
        self.name = self._device.name
        self._table = self._device.load(chains.table)

    def move(self, done: Any) -> None:
        """Move all rows, and tell *done* of every batch."""
        under_way: deque[tuple[slice, Pending]] = deque()
        for part in self._chains.parts():
            under_way.append((part, self._start(part)))
            if len(under_way) >= min(_UNDER_WAY, self._device.slots):
                self._finish(under_way, done)
        while under_way:
            self._finish(under_way, done)

    def _start(self, part: slice) -> Pending:
        chains = self._chains
        numbers = chains.numbers[part]
        x = chains.table[numbers]
        keys = Keys(7, 0, numbers.astype(np.uint64), np.zeros(len(x), np.uint16))
        return self._device.langevin(x, keys, self._energy_of(part, x), chains.dynamics)

    def _energy_of(self, part: slice, x: Floats) -> Energy:
        chains = self._chains
        if self._energy == "self":
            return SelfEnergy(x, np.ascontiguousarray(chains.kappa[part, 0]))
        index: npt.NDArray[np.int32] = chains.index[part]
        return MixtureEnergy(self._table, index, chains.kappa[part], chains.log_weight[part])

    def _finish(self, under_way: deque[tuple[slice, Pending]], done: Any) -> None:
        part, pending = under_way.popleft()
        done(part, torch.as_tensor(pending.result().x))

    def close(self) -> None:
        """Close the device."""
        self._table.close()
        self._device.close()


class Eager:
    """The direct form as torch operations: one gather per batch, two batched products per step.

    With one thread for torch, Python's threads share a batch in pieces whose neighbours stay in
    the cache; otherwise torch's own threads share every operation.
    """

    def __init__(self, chains: Chains, energy: str) -> None:
        self._chains = chains
        self._mixture = energy == "mixture"
        self._table = torch.from_numpy(chains.table)
        self._index = torch.from_numpy(chains.index)
        self._kappa = torch.from_numpy(chains.kappa)
        self._log_weight = torch.from_numpy(chains.log_weight)
        alone = torch.get_num_threads() == 1
        threads = (os.cpu_count() or 1) if alone else 1
        self._piece = _CACHED_ROWS if alone else chains.batch
        self.name = f"{threads} threads of Python, {torch.get_num_threads()} of torch"
        self._pool = ThreadPoolExecutor(threads)
        self._out = torch.empty((chains.batch, chains.table.shape[1]))
        self._local = threading.local()
        self._seeds = itertools.count(7)

    def move(self, done: Any) -> None:
        """Move all rows, and tell *done* of every batch."""
        for part in self._chains.parts():
            starts = range(part.start, part.stop, self._piece)
            pieces = [slice(s, min(s + self._piece, part.stop)) for s in starts]
            for piece, moved in zip(pieces, self._pool.map(self._run, pieces), strict=True):
                self._out[piece.start - part.start : piece.stop - part.start] = moved
            done(part, self._out[: part.stop - part.start])

    @torch.inference_mode()
    def _run(self, part: slice) -> torch.Tensor:
        noise_of = self._generator()
        index, dynamics = self._index[part], self._chains.dynamics
        x = self._table.index_select(0, index[:, 0])
        neighbours = x
        if self._mixture:
            flat = self._table.index_select(0, index.reshape(-1))
            neighbours = flat.view(*index.shape, -1)
        noise = torch.empty_like(x)
        spread = (2 * dynamics.step_size * dynamics.temperature) ** 0.5
        for _ in range(dynamics.steps):
            force = self._force(part, x, neighbours)
            v = noise.normal_(generator=noise_of).mul_(spread).add_(force, alpha=dynamics.step_size)
            v.addcmul_(x, (v * x).sum(1, keepdim=True), value=-1)
            size = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            x = (torch.cos(size) * x).addcmul_(v, torch.sin(size) / size)
            x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True))
        return x

    def _force(self, part: slice, x: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        kappa = self._kappa[part]
        if not self._mixture:
            return kappa[:, :1] * mu
        # As a row times a matrix: a matrix times a column takes twice as long.
        cosines = torch.bmm(x[:, None], mu.transpose(1, 2))[:, 0]
        exponents = self._log_weight[part].addcmul(kappa, cosines - 1)
        pull = torch.softmax(exponents, 1).mul_(kappa)
        return torch.bmm(pull[:, None], mu)[:, 0]

    def _generator(self) -> torch.Generator:
        """One for each thread: they would wait for each other at a shared one."""
        found = getattr(self._local, "generator", None)
        if found is None:
            found = self._local.generator = torch.Generator().manual_seed(next(self._seeds))
        assert isinstance(found, torch.Generator)
        return found

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
