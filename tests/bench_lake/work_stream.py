"""S2 to S5 and S9: one pass over all rows, every batch copied to one buffer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from mldb.errors import GpuUnavailableError
from mldb.lake.order.plan import shuffle_quality
from tests.bench.children import Result, Task
from tests.bench.workloads import touch
from tests.bench_lake.loaders import Kind, Loaders, Sink, parts, row_numbers
from tests.bench_lake.setting import Data, Floats
from tests.bench_lake.worker import AbsentError

STRENGTH = 0.9
"""Mean cosine of a row to its augmentation; mldb's default."""

_UINT64_MASK = (1 << 64) - 1
_QUALITY_BATCHES = 200


class StreamPass:
    """Makes a pass per turn, over what ``maker`` and ``kind`` say.

    ``limit`` as a maker, and ``noise``, are the loops of this module. ``threads`` are torch's.
    ``batches`` cuts a pass short, for who is very slow.
    """

    def __init__(self, task: Task) -> None:
        data = Data(**task["data"])
        if "threads" in task:
            torch.set_num_threads(task["threads"])
        self._loaders = Loaders(task)
        self._sink = Sink(task["batch"], data.dim)
        self._loader: Any = None
        maker, kind = task["maker"], task["kind"]
        if maker == "limit":
            made, how = _LIMITS[kind], _LIMIT_HOW[kind]
            if task.get("copied"):
                made, how = _gather_and_copy, _GATHER_AND_COPY_HOW
            self._run = made(data.mapped(), task["batch"], self._sink.array)
            self.ready: Result = {"how": how}
            return
        if task.get("noise"):
            self._loader = Noisy(self._loaders.make(maker, "sequential"), task["batch"], data.dim)
        else:
            self._loader = self._loaders.make(maker, kind)
        batches = task.get("batches")
        self._run = lambda: self._sink.drain(islice(self._loader, batches))
        try:
            self.ready = checked(islice(self._loader, batches), kind, data, batches)
        except GpuUnavailableError as error:
            raise AbsentError(str(error).splitlines()[0]) from error
        self.ready["how"] = task.get("how") or self._device()
        if kind == "shuffled":
            numbers = row_numbers(self._loaders, maker, _QUALITY_BATCHES)
            quality = shuffle_quality(numbers, data.rows)
            self.ready["how"] = f"mix {quality.mix:.2f}, spread {quality.spread:.2f}"

    def turn(self, message: Task) -> Result:
        """Make one pass, begun anew."""
        begin = time.perf_counter()
        rows = self._run()
        return {"rate": rows / (time.perf_counter() - begin)}

    def close(self) -> None:
        """Close the store."""
        self._loaders.close()

    def _device(self) -> str:
        """What augmented the rows, where mldb did."""
        stats = getattr(self._loader, "stats", None)
        return str(stats()["device"] or "") if stats is not None else ""


def checked(loader: Iterable[Any], kind: Kind, data: Data, batches: int | None = None) -> Result:
    """Make an untimed pass and check what came; RuntimeError says what is wrong.

    With *batches* the loader is cut after so many: the number of rows is then not checked.
    """
    rows, total, weight, cosine, place = data.mapped(), 0, 0.0, 0.0, 0
    for item in loader:
        mu, weights = parts(item)
        array = mu.cpu().numpy()
        if kind == "augmented":
            here = rows[place : place + len(array)]
            cosine += float(np.einsum("ij,ij->", here, array, dtype=np.float64))
        else:
            total += touch(array)
        weight += 0.0 if weights is None else float(weights.sum())
        place += len(array)
        del item, mu
    if batches is None:
        _agree("rows", place, data.rows)
    if kind == "augmented":
        _near("the mean cosine to the row", cosine / place, STRENGTH, 0.02)
    elif kind == "weighted":
        _near("the mean weight", weight / place, 1.0, 0.2)
    else:
        _agree("the sum of all bytes", total & _UINT64_MASK, data.total())
    return {}


def _agree(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise RuntimeError(f"{what}: {got}, expected {expected}: no figures")


def _near(what: str, got: float, expected: float, tolerance: float) -> None:
    if not abs(got - expected) <= tolerance:
        raise RuntimeError(f"{what} is {got:.4f}, expected {expected}: no figures")


class Noisy:
    """Gaussian noise around the rows of another stream, then normalised; in reused memory."""

    def __init__(self, source: Iterable[Any], batch: int, dim: int) -> None:
        self._source = source
        self._noise, self._out = torch.empty((batch, dim)), torch.empty((batch, dim))
        # The cosine to the row is 1 / sqrt(1 + dim sigma^2), but for fluctuations.
        self._sigma = ((1 / STRENGTH**2 - 1) / dim) ** 0.5

    def __iter__(self) -> Iterator[torch.Tensor]:
        for x in self._source:
            yield self.apply(x)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return the noisy rows of one batch, in this object's memory."""
        noise, out = self._noise[: len(x)], self._out[: len(x)]
        noise.normal_()
        torch.add(x, noise, alpha=self._sigma, out=out)
        return out.div_(torch.linalg.vector_norm(out, dim=1, keepdim=True))


def _limit_copy(rows: Floats, batch: int, buffer: Floats) -> Callable[[], int]:
    def run() -> int:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            np.copyto(buffer[: len(part)], part)
        return len(rows)

    return run


def _limit_gather(rows: Floats, batch: int, buffer: Floats) -> Callable[[], int]:
    order = np.random.default_rng(0).permutation(len(rows))

    def run() -> int:
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            # mode="raise" would write to a buffer of NumPy's own first.
            np.take(rows, chosen, 0, out=buffer[: len(chosen)], mode="clip")
        return len(rows)

    return run


def _gather_and_copy(rows: Floats, batch: int, buffer: Floats) -> Callable[[], int]:
    """What one thread does at least: gather a batch into memory it has, and copy it as all do."""
    order = np.random.default_rng(0).permutation(len(rows))
    held = np.empty_like(buffer)

    def run() -> int:
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            part = held[: len(chosen)]
            np.take(rows, chosen, 0, out=part, mode="clip")
            np.copyto(buffer[: len(chosen)], part)
        return len(rows)

    return run


def _limit_noise(rows: Floats, batch: int, buffer: Floats) -> Callable[[], int]:
    noisy = Noisy((), batch, rows.shape[1])
    x = torch.from_numpy(rows[:batch].copy())

    def run() -> int:
        for _ in range(0, len(rows), batch):
            noisy.apply(x)
        return len(rows)

    return run


_LIMITS: dict[Kind, Callable[[Floats, int, Floats], Callable[[], int]]] = {
    "sequential": _limit_copy,
    "shuffled": _limit_gather,
    "weighted": _limit_gather,
    "augmented": _limit_noise,
}
_GATHER_AND_COPY_HOW = "one thread, order known: np.take, then the copy that all contenders make"
_LIMIT_HOW: dict[Kind, str] = {
    "sequential": "np.copyto of every batch",
    "shuffled": "np.take of every batch, rows in random order",
    "weighted": "np.take of every batch, rows in random order",
    "augmented": "torch.randn and normalisation of one resident batch",
}
