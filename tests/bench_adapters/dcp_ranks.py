"""What a rank of the benchmark does: save and load by turns, and tell how long each took."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from mldb.adapters.dcp import StorageReader, StorageWriter
from mldb.log.fs.posix_file import start_writeback
from tests.bench.limits import STEP_BYTES

_COLUMNS = 1024


def measure(
    rank: int, world: int, folder: str, mib: float, tensors: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds from the moment all ranks are ready until all are done, by what was done.

    The first round, which loads modules, is not told. *raw* is one process that writes the bytes of
    all and syncs them, *early* one that starts their writeback as it goes: what the disk takes.
    They go in another order each round, each on a disk that has nothing left to write.
    """
    mesh = init_device_mesh("cpu", (world,))
    rows = int(mib * (1 << 20)) // (4 * _COLUMNS * tensors * world)
    torch.manual_seed(rank)
    state: dict[str, Any] = {
        f"layer{number}.weight": DTensor.from_local(torch.randn(rows, _COLUMNS), mesh, [Shard(0)])
        for number in range(tensors)
    }
    loaded: dict[str, Any] = {
        name: DTensor.from_local(torch.zeros(rows, _COLUMNS), mesh, [Shard(0)]) for name in state
    }
    timed: dict[str, list[float]] = {}

    def clock(what: str, call: Callable[[], object]) -> None:
        dist.barrier()
        started = time.perf_counter()
        call()
        dist.barrier()
        timed.setdefault(what, []).append(time.perf_counter() - started)

    for number in range(rounds + 1):
        for kind in random.Random(number).sample(("raw", "early", "mldb", "files"), 4):
            path = Path(folder) / f"{kind}-{number}"
            if rank == 0:
                os.sync()
            if kind in ("raw", "early"):
                clock(f"{kind} save", partial(_write_raw, path, state, rank, world, kind))
                path.unlink(missing_ok=True)
                continue
            writer: Any = StorageWriter(path) if kind == "mldb" else dcp.FileSystemWriter(path)
            clock(f"{kind} save", partial(dcp.save, state, storage_writer=writer))
            reader: Any = StorageReader(path) if kind == "mldb" else dcp.FileSystemReader(path)
            clock(f"{kind} load", partial(dcp.load, loaded, storage_reader=reader))
            for name, tensor in loaded.items():
                local = tensor.to_local()
                assert torch.equal(local, state[name].to_local())
                local.zero_()
            dist.barrier()
            if rank == 0:
                shutil.rmtree(path)
    return {what: seconds[1:] for what, seconds in timed.items()}


def _write_raw(path: Path, state: dict[str, Any], rank: int, world: int, kind: str) -> None:
    """Let one rank write as many bytes as all of them have, and sync them."""
    if rank:
        return
    offset = 0
    with path.open("wb", buffering=0) as file:
        for _ in range(world):
            for tensor in state.values():
                data = tensor.to_local().numpy().data.cast("B")
                for at in range(0, len(data), STEP_BYTES):
                    count = os.pwrite(file.fileno(), data[at : at + STEP_BYTES], offset)
                    if kind == "early":
                        start_writeback(file.fileno(), offset, count)
                    offset += count
        os.fsync(file.fileno())
