"""ADAM: one checkpoint of a thousand small tensors. DISK: bytes on disk above the raw bytes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.peer import Peer, Store
from tests.bench.peer_mldb import MLDB, Mldb
from tests.bench.report import Outcome, Table
from tests.bench.setting import Setting
from tests.bench.timing import Contender, Samples, folder_bytes, interleave
from tests.bench.workloads import State, generator, small_tensors

_ADAM_ROUNDS = 15
_SIDE = 16  # parameters of 256 values


class _Adam:
    """Parameters of 256 values under Adam: 4 tensors per parameter in model and optimizer."""

    def __init__(self, parameters: int) -> None:
        import torch

        torch.manual_seed(0)
        self.model = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.randn(_SIDE, _SIDE)) for _ in range(parameters)]
        )
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.step()

    def step(self) -> None:
        """Change every tensor, those of the optimizer too."""
        for parameter in self.model:
            parameter.grad = parameter.detach().clone()
        self.optimizer.step()


def adam(setting: Setting) -> Outcome:
    """Measure one unsynced checkpoint of a model and its Adam, for mldb and torch.save."""
    import torch

    trainer = _Adam(setting.scale.adam_parameters)
    folder = setting.workspace.fresh("adam")
    store = Mldb(folder, "lazy") if setting.has(MLDB) else None
    epoch = 0

    def timed(save: Any) -> float:
        nonlocal epoch
        trainer.step()
        epoch += 1
        begin = time.perf_counter()
        save()
        return (time.perf_counter() - begin) * 1e3

    def save_torch() -> None:
        state = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
        torch.save(state, folder / "state.pt")

    contenders: dict[str, Contender] = {"torch.save": lambda: timed(save_torch)}
    if store is not None:
        database = store.database
        parts = {"model": trainer.model, "optimizer": trainer.optimizer}
        contenders[MLDB] = lambda: timed(lambda: database.checkpoint(parts, epoch=epoch))
    rounds = _ADAM_ROUNDS if setting.scale.rounds > 1 else 1
    table = Table(
        workload="ADAM",
        title=f"checkpoint of {4 * setting.scale.adam_parameters:,} small tensors, no fsync",
        unit="ms",
        samples=interleave("ADAM", contenders, rounds),
        higher_is_better=False,
    )
    if store is not None:
        store.close()
    setting.workspace.drop(folder)
    outcome = Outcome([table])
    outcome.keep("adam.checkpoint", table, MLDB)
    return outcome


def _large_tensors(count: int) -> State:
    """Return fp32 tensors of 1 to 8 MB whose sizes are no multiples of a page."""
    rng = generator(11)
    return {
        f"large.{number:03d}": rng.standard_normal(250_001 + (number % 8) * 250_003, np.float32)
        for number in range(count)
    }


def disk(setting: Setting) -> Outcome:
    """Measure what closed stores take on disk above the raw bytes, by length and by blocks."""
    large = _large_tensors(setting.scale.large_tensors)
    names, values = small_tensors(setting.scale)
    small = dict(zip(names, values, strict=True))
    batch = setting.scale.batch
    percent: Samples = {}
    per_tensor: Samples = {}
    for peer in setting.able("batch"):
        if peer.name == MLDB or peer.name in ("lmdb", "sqlite", "h5py"):
            extra = _overheads(setting, peer, large, 1)
            raw = sum(value.nbytes for value in large.values())
            percent |= {name: [100 * value / raw] for name, value in extra.items()}
            extra = _overheads(setting, peer, small, batch)
            per_tensor |= {name: [value / len(small)] for name, value in extra.items()}
    outcome = Outcome()
    for title, unit, samples, key in (
        ("overhead of tensors of 1 to 8 MB", "%", percent, "disk.large"),
        (f"overhead per 4 KiB tensor, batches of {batch}", "bytes", per_tensor, "disk.small"),
    ):
        table = Table(
            workload="DISK", title=title, unit=unit, samples=samples, higher_is_better=False
        )
        outcome.tables.append(table)
        if MLDB in samples:
            outcome.measures[key] = max(samples[MLDB][0], samples[f"{MLDB}, blocks"][0])
    return outcome


def _overheads(setting: Setting, peer: Peer, state: State, batch: int) -> dict[str, float]:
    folder_of = setting.build([peer], "durable", partial(_write_batches, state, batch))
    raw = sum(np.asarray(value).nbytes for value in state.values())
    length, blocks = folder_bytes(Path(folder_of[peer.name]))
    setting.drop(folder_of)
    return {peer.name: length - raw, f"{peer.name}, blocks": blocks - raw}


def _write_batches(state: State, batch: int, store: Store) -> None:
    items = list(state.items())
    for first in range(0, len(items), batch):
        store.put_batch(dict(items[first : first + batch]))
