"""The loaders that are compared: mldb's, and what PyTorch offers over a mapped file.

PyTorch's rows are asked for by the batch, never one by one, which would cost it a factor of ten.
"torch" does so as its documentation says, with a ``BatchSampler`` and ``batch_size=None``;
"stateful" is the same under torchdata's ``StatefulDataLoader``. "own" is what an expert writes
instead: samplers that yield slices (so that batches are views of the file) or whole arrays of row
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

import mldb
from tests.bench.children import Task
from tests.bench_lake.setting import LAKE, Data, Floats
from tests.bench_lake.worker import AbsentError

Maker = Literal["mldb", "torch", "own", "stateful"]
Kind = Literal["sequential", "shuffled", "windowed", "weighted", "augmented"]

IMPORTANCE = mldb.Importance(beta=0.5, floor=0.1, target="rows")
WEIGHTED_FIELDS = ("mu", "weight")


class Loaders:
    """Makes loaders over the rows of a task, with its ``workers``, ``device`` and ``prefetch``.

    A lake's store is opened once and closed with this.
    """

    def __init__(self, task: Task) -> None:
        self.data, self.batch = Data(**task["data"]), int(task["batch"])
        self._workers = task.get("workers", 0)
        self._device = task.get("device", "auto")
        self._window = {"window_rows": task["window"]} if "window" in task else {}
        self._options = {"prefetch": task["prefetch"]} if "prefetch" in task else {}
        self._db: mldb.MLDatabase | None = None

    def make(self, maker: Maker, kind: Kind) -> Any:
        """Return a new loader. Raises AbsentError."""
        if maker == "mldb":
            return self._mldb(kind)
        return self._torch(maker, kind)

    def lake(self) -> Any:
        """The lake, in a store that stays open."""
        if self._db is None:
            self._db = mldb.open(self.data.store)
        return self._db.lake(LAKE)

    def close(self) -> None:
        """Close the store."""
        if self._db is not None:
            self._db.close()

    def _mldb(self, kind: Kind) -> Any:
        options: dict[Kind, dict[str, Any]] = {
            "sequential": {"shuffle": False},
            "shuffled": {},
            "windowed": {"order": "windowed", **self._window},
            "weighted": {"importance_sampling": IMPORTANCE, "fields": WEIGHTED_FIELDS},
            "augmented": {"shuffle": False, "generate_samples": True, "device": self._device},
        }
        return self.lake().export_to_dataloader(
            self.batch, num_workers=self._workers, **options[kind], **self._options
        )

    def _torch(self, maker: Maker, kind: Kind) -> Any:
        chance, weight = chances_and_weights(self.data) if kind == "weighted" else (None, None)
        dataset = MappedRows(self.data.mapped(), weight)
        if maker == "own":
            sampler: Sampler[Any] = OwnSampler(kind, len(dataset), self.batch, chance)
        else:
            sampler = BatchSampler(_row_sampler(kind, dataset, chance), self.batch, False)
        loader = _stateful_class() if maker == "stateful" else DataLoader
        return loader(dataset, batch_size=None, sampler=sampler, num_workers=self._workers)


class MappedRows(Dataset[Any]):
    """Rows of a mapped file; an item is a whole batch, with weights where there are any."""

    def __init__(self, rows: Floats, weights: Floats | None) -> None:
        self._rows, self._weights = rows, weights

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: Any) -> Any:
        mu = torch.from_numpy(self._rows[chosen])
        if self._weights is None:
            return mu
        return mu, torch.from_numpy(self._weights[chosen])


class OwnSampler(Sampler[Any]):
    """Yields a slice or an array of row numbers for every batch, made for a pass at once."""

    def __init__(self, kind: Kind, rows: int, batch: int, chance: Any) -> None:
        self._kind, self._rows, self._batch, self._chance = kind, rows, batch, chance

    def __len__(self) -> int:
        return len(range(0, self._rows, self._batch))

    def __iter__(self) -> Iterator[Any]:
        starts = range(0, self._rows, self._batch)
        if self._kind == "sequential":
            return (slice(start, start + self._batch) for start in starts)
        if self._kind == "weighted":
            order = torch.multinomial(self._chance, self._rows, True).numpy()
        else:
            order = torch.randperm(self._rows).numpy()
        return (order[start : start + self._batch] for start in starts)


def _row_sampler(kind: Kind, dataset: MappedRows, chance: Any) -> Sampler[int]:
    if kind == "sequential":
        return SequentialSampler(dataset)
    if kind == "weighted":
        return WeightedRandomSampler(chance, len(dataset), replacement=True)
    return RandomSampler(dataset)


def _stateful_class() -> Any:
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        raise AbsentError("not installed: pip install torchdata") from None
    return StatefulDataLoader


def chances_and_weights(data: Data) -> tuple[torch.Tensor, Floats]:
    """What IMPORTANCE makes of the masses: chances for torch, and the weights of all rows."""
    mass = data.masses().astype(np.float64)
    powers = mass**IMPORTANCE.beta
    chance = (1 - IMPORTANCE.floor) * powers / powers.sum() + IMPORTANCE.floor / len(mass)
    weights = mass / mass.sum() / chance
    return torch.from_numpy(chance), weights.astype(np.float32)


def parts(item: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of a batch, and its weights where it has any."""
    return (item[0], item[1]) if isinstance(item, tuple | list) else (item, None)


class Sink:
    """The reused buffer that every batch is copied to, on the device where batches are.

    On the host one thread copies: torch would use its pool, whose threads wait for each other, and
    the rate would fall many times as soon as another process needs a core.
    """

    def __init__(self, batch: int, dim: int) -> None:
        self._rows, self._weights = torch.zeros((batch, dim)), torch.zeros(batch)

    @property
    def array(self) -> Floats:
        """The buffer of the host."""
        array: Floats = self._rows.numpy()
        return array

    def drain(self, batches: Iterable[Any]) -> int:
        """Copy every batch; return the number of rows, once all of them have arrived."""
        count = 0
        for item in batches:
            mu, weights = parts(item)
            self._rows = _copied(mu, self._rows)
            if weights is not None:
                self._weights = _copied(weights, self._weights)
            count += len(mu)
            # Held over the next step, a batch's memory could not be used again.
            del item, mu, weights
        if self._rows.is_cuda:
            torch.cuda.synchronize()
        return count


def _copied(source: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    if source.device != buffer.device:
        buffer = buffer.to(source.device)
    if source.is_cuda:
        buffer[: len(source)].copy_(source)
    else:
        np.copyto(buffer.numpy()[: len(source)], source.numpy())
    return buffer


def row_numbers(loaders: Loaders, maker: Maker, batches: int) -> list[Any]:
    """The row numbers of the first batches of a shuffled pass; all batches are full ones."""
    if maker == "mldb":
        # Ids were given out in the order of rows.
        loader = loaders.lake().export_to_dataloader(loaders.batch, fields=("id",))
        taken: Callable[[Any], Any] = lambda item: item.id.numpy()  # noqa: E731
    else:
        loader = loaders.make(maker, "shuffled").sampler
        taken = np.asarray
    numbers = (taken(item) for _, item in zip(range(batches), loader, strict=False))
    return [batch for batch in numbers if len(batch) == loaders.batch]
