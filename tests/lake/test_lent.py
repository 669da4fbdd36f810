"""Rows in their order are lent from private windows: what they cost, and when they are copied."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import StorageIOError
from mldb.lake.rows import lent
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.lent import Lender

DIM = 32


@pytest.fixture
def rows(store_path: Path, rng: np.random.Generator) -> Any:
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        for count in (700, 500):
            lake.add_splats(rng.standard_normal((count, DIM)))
        yield lake.rows()


def mapped(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """Note every window that is mapped."""
    windows: list[slice] = []
    private = MappedBlock.private_mu

    def note(block: MappedBlock, part: slice) -> Any:
        windows.append(part)
        return private(block, part)

    monkeypatch.setattr(MappedBlock, "private_mu", note)
    return windows


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 300])
def test_batches_are_lent_from_windows_of_a_bounded_size(
    rows: Any, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the rows, can be written to, and no write reaches another pass or the file."""
    monkeypatch.setattr(lent, "WINDOW_BYTES", 100 * 4 * DIM)
    windows = mapped(monkeypatch)
    want = rows.gather("mu", slice(0, 1200))
    for _ in range(2):
        lender, copied = Lender(rows), 0
        for first in range(0, 1200, batch):
            part = slice(first, min(first + batch, 1200))
            found = lender.take(part)
            if found is None:  # the end of one block and the beginning of the next
                assert part.start < 700 < part.stop
                copied += part.stop - part.start
                continue
            assert found.tobytes() == want[part].tobytes()
            found[:] = 0
        assert lender.lent_bytes == 4 * DIM * (1200 - copied)
    assert max(part.stop - part.start for part in windows) <= max(100, batch)
    assert len(windows) <= 2 * (1200 // max(100 - batch, batch) + 3)
    assert rows.gather("mu", slice(0, 1200)).tobytes() == want.tobytes()


def test_a_batch_keeps_its_window_when_the_next_one_is_mapped(
    rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lent, "WINDOW_BYTES", 100 * 4 * DIM)
    want = rows.gather("mu", slice(0, 700))
    lender = Lender(rows)
    held = [lender.take(slice(first, first + 70)) for first in range(0, 700, 70)]
    held[3][:] = 5
    for number, batch in enumerate(held):
        if number != 3:
            assert batch.tobytes() == want[70 * number : 70 * number + 70].tobytes()


@pytest.mark.parametrize(
    "error", [MemoryError(), StorageIOError("no", errno=errno.ENOMEM)], ids=["heap", "mapping"]
)
def test_where_no_more_can_be_mapped_batches_are_copied(
    rows: Any, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    lender = Lender(rows)
    monkeypatch.setattr(MappedBlock, "private_mu", fail)
    assert lender.take(slice(0, 10)) is None
    monkeypatch.undo()
    assert lender.take(slice(10, 20)) is None, "the rest of the pass does not try again"


def test_an_error_of_the_disk_is_told(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise StorageIOError("bad disk", errno=errno.EIO)

    monkeypatch.setattr(MappedBlock, "private_mu", fail)
    with pytest.raises(StorageIOError, match="bad disk"):
        Lender(rows).take(slice(0, 10))


_LIMITED = """
import resource, sys
import torch
import mldb
store, mebibytes = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
with mldb.open(store, mode="r") as db:
    lake = db.lake()
    parts = [slice(first, first + 4096) for first in range(0, 49152, 4096)]
    total = sum(float(lake.rows().gather("mu", part).sum()) for part in parts)
    systematic = mldb.Importance(replacement="systematic")
    orders = {
        "of the file": dict(shuffle=False),
        "permutation": dict(order="permutation"),
        "windows": dict(order="windowed", window_rows=8192),
        "by weight": dict(importance_sampling=True),
        "systematic": dict(importance_sampling=systematic, draws=9000),
    }
    for batch in lake.export_to_dataloader(4096, shuffle=False, prefetch=1):
        break
    used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
    limit = (used << 10) + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for name, options in orders.items():
        rows, found = 0, 0.0
        for batch in lake.export_to_dataloader(256, prefetch=2, **options):
            rows += len(batch)
            found += float(batch.sum(dtype=torch.float64))
            batch.mul_(0)  # a step that writes to every batch
        print(name, rows, abs(found - total) < 1 if rows == 49152 and "by" not in name else "")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers mmap on Linux only")
@pytest.mark.parametrize("mebibytes", [24, 64], ids=["no room for a window", "for two windows"])
def test_a_lake_larger_than_memory_streams_in_every_order(
    mebibytes: int, store_path: Path, rng: np.random.Generator
) -> None:
    """One block of 96 MiB; the process may take much less, and writes to every batch."""
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=512, geometry="euclid")
        lake.add_splats(rng.random((49152, 512), np.float32))
        assert lake.rows().blocks == 1
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(store_path), str(mebibytes)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "of the file 49152 True",
        "permutation 49152 True",
        "windows 49152 True",
        "by weight 49152 ",
        "systematic 9000 ",
    ]
