"""S7 and S8: how long a new loader takes to its next batch, and whether that is the right one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch

from tests.bench.children import Result, Task
from tests.bench_lake.loaders import Loaders, parts

_COMPARED = 5
"""How many batches behind a resume are compared with those of the stream that went on."""


class Start:
    """Makes loaders in one process over one open store; the first turn is the first in it."""

    def __init__(self, task: Task) -> None:
        self._loaders = Loaders(task)
        self._maker, self._kind = task["maker"], task["kind"]
        if self._maker == "mldb":
            import mldb.lake.stream.loader  # noqa: F401 - imports are not what is measured

            self._loaders.lake()
        self.ready: Result = {}

    def turn(self, message: Task) -> Result:
        """Start a loader, at ``message["state"]`` where given; the milliseconds to its batch.

        With ``message["done"]`` instead: let that many batches pass, and return the state and the
        digests of the batches behind it.
        """
        begin = time.perf_counter()
        loader = self._loaders.make(self._maker, self._kind)
        if "state" in message:
            loader.load_state_dict(message["state"])
        stream = iter(loader)
        first = next(stream)
        milliseconds = (time.perf_counter() - begin) * 1e3
        if "done" not in message:
            digests = [_digest(first), *_digests(stream, _COMPARED - 1)]
            return {"milliseconds": milliseconds, "digests": digests}
        for _ in range(message["done"] - 1):
            next(stream)
        state = loader.state_dict()
        return {"state": state, "digests": _digests(stream, _COMPARED)}

    def close(self) -> None:
        """Close the store."""
        self._loaders.close()


def _digests(stream: Iterator[Any], count: int) -> list[str]:
    return [_digest(item) for item in islice(stream, count)]


def _digest(item: Any) -> str:
    digest = blake2b(digest_size=16)
    for part in parts(item):
        if isinstance(part, torch.Tensor):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
