"""The golden store of version 2: what it holds, and the history that writes it.

Run as a script, this file writes ``tests/golden/format-2`` and ``format-2-backup`` anew. Only a new
format may change them, and then it gets folders of its own beside these::

    python -m tests.golden.second
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import ml_dtypes
import numpy as np
import scipy.sparse as sp
import torch

import mldb
from mldb.history.kinds.changes import records_of
from mldb.history.kinds.lakes import lake_created
from mldb.history.splats import LakeInfo
from mldb.lake.lake import Lake
from mldb.log import batch
from mldb.log import format as fmt
from mldb.log.fs.posix import OsFileSystem
from mldb.write import handle
from tests.golden.stores import BACKUP, FORMAT_2, contents
from tests.support.seen import segments_of

WRITER = b"mldb 0.1.0"
START: Final = 1_700_000_000_000_000_000
SECOND: Final = 1_000_000_000
OPTIONS: dict[str, Any] = {"segment_bytes": 8_000, "spill_bytes": 65_600}

# --- tensors --------------------------------------------------------------------------------------

_ORDERED = ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_EXTENSIONS = (
    *("bfloat16", "complex32", "bcomplex32", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int1", "int2", "int4", "uint1", "uint2", "uint4"),
)


def of_every_dtype() -> dict[str, Any]:
    """A small tensor of each dtype that can be stored, by name."""
    found: dict[str, Any] = {
        "dtype/|b1": np.array([True, False, True]),
        "dtype/|i1": np.array([-128, 127], "i1"),
        "dtype/|u1": np.array([[0, 255]], "u1"),
        "dtype/|S5": np.array([b"abc", b"\xff"], "S5"),
        "dtype/texts little": np.array(["abc", "ü"], "<U3"),
        "dtype/texts big": np.array(["abc", "ü"], ">U3"),
        "dtype/times": np.array(["2024-02-29T00:00", "NaT"], "<M8[ns]"),
        "dtype/days": np.array(["1969-12-31"], ">M8[D]"),
        "dtype/spans": np.array([-3, 7], "<m8[25s]"),
        "dtype/no unit": np.array([5], "<m8"),
        "shape/scalar": np.array(42, "<u2"),
        "shape/empty": np.zeros((0, 7), "<f8"),
        "shape/one": np.ones((1, 1, 1, 1), "<f4"),
        "value/nan": np.array([0x7FC00001, 0xFF800000, 0x80000000], "<u4").view("<f4"),
    }
    for order, code in itertools.product("<>", _ORDERED):
        found[f"dtype/{code} {'little' if order == '<' else 'big'}"] = np.arange(1, 4).astype(
            order + code
        )
    for name in _EXTENSIONS:
        kind = getattr(ml_dtypes, name)
        bits = np.array([0, 1], "u1" if np.dtype(kind).itemsize == 1 else "u2")
        if np.dtype(kind).itemsize == 4:
            bits = np.array([0x3C003800, 0x00003C00], "<u4")
        found[f"dtype/{name}"] = bits.view(kind)
    found["torch/f4"] = torch.tensor([[1.5, -2.0]])
    found["torch/bf16"] = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    found["torch/fp8"] = torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn)
    found["torch/complex32"] = torch.tensor([1 + 2j], dtype=torch.complex32)
    found["torch/bool"] = torch.tensor([True, False])
    found["torch/fp4 pairs"] = torch.tensor([0x21, 0x43], dtype=torch.uint8).view(
        torch.float4_e2m1fn_x2
    )
    return found


_GRID = np.array([[0, 1.5, 0, 0], [0, 0, -2, 0], [4, 0, 0, 0], [0, 0, 3, 5]], "<f8")


def of_every_layout() -> dict[str, Any]:
    """A sparse tensor of each layout of SciPy and torch, by name."""
    found: dict[str, Any] = {}
    for layout, kind in itertools.product(
        ("csr", "csc", "bsr", "dia", "coo", "lil", "dok"), ("array", "matrix")
    ):
        made = getattr(sp, f"{layout}_{kind}")
        blocks = {"blocksize": (2, 2)} if layout == "bsr" else {}
        found[f"scipy/{layout} {kind}"] = made(_GRID, **blocks)
    found["scipy/coo line"] = sp.coo_array((np.array([1, 2], "i1"), (np.array([4, 0]),)), (6,))
    found["scipy/coo cube"] = sp.coo_array(np.arange(8).reshape(2, 2, 2))
    places, values = torch.tensor([[2, 0, 2], [1, 1, 1]]), torch.tensor([1.0, 2.0, 3.0])
    sparse = torch.sparse_coo_tensor(places, values, (4, 4), check_invariants=True)
    found["torch/coo"] = sparse
    found["torch/coo coalesced"] = sparse.coalesce()
    dense = torch.tensor(_GRID, dtype=torch.float32)
    for layout in ("csr", "csc"):
        found[f"torch/{layout}"] = getattr(dense, f"to_sparse_{layout}")()
    for layout in ("bsr", "bsc"):
        found[f"torch/{layout}"] = getattr(dense, f"to_sparse_{layout}")((2, 2))
    return found


ZONE: Final = timezone(timedelta(hours=5, minutes=30))
METADATA: dict[str, Any] = {
    "type": "weights",
    "position": 3,
    "scale": 0.5,
    "frozen": False,
    "note": None,
    "blob": b"\x00\xff",
    "axes": ["in", "out"],
    "nested": {"a": [1, {"b": "ü"}]},
    "made": datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=ZONE),
}
SINGLE: Final = np.arange(1200, dtype="<f4").reshape(30, 40) / 4
LARGE: Final = (np.arange(500, dtype="<i8") * 7919) % 1009
SPILLED: Final = np.arange(16_400, dtype="<u4")
SMOOTH: Final = np.repeat(np.arange(40, dtype="<f4"), 500)

# --- states of training ---------------------------------------------------------------------------


def state_of_numpy() -> dict[str, Any]:
    """A tree with every node that needs no torch."""
    shared = np.arange(4, dtype="<f8")
    return {
        "model": {"w": np.array([[1.0, 2.0], [3.0, 4.0]], "<f4"), "b": np.array([0.5], "<f8")},
        "tied": [shared, shared],
        "order": OrderedDict([("z", 1), ("a", 2)]),
        "big": -(1 << 80),
        "rate": 0.001,
        "complex": 1.5 - 2j,
        "scalar": np.float32(0.25),
        "names": ["a", ("b", 2), None, True, b"raw", "\ud800"],
        "flags": {1: True, (2, "x"): b"raw", None: -1, 1 << 70: "big key"},
    }


def state_of_torch() -> dict[str, Any]:
    """Views of shared memory, a state dict, a size, and a transposed tensor."""
    base = torch.arange(12, dtype=torch.float32)
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.copy_(torch.tensor([5.0, 6.0]))
    return {
        "model": layer.state_dict(),
        "views": (base[2:8], base.view(3, 4).t(), base[::2]),
        "size": torch.Size([3, 4]),
        "step": 7,
    }


# --- lakes ----------------------------------------------------------------------------------------

SPHERE_ROWS: Final = np.array(
    [[3, 4, 0, 0], [0, 0, 0, 2], [0, 0.6, 0, 0.8], [-1, 0, 0, 0], [0, 0, 5, 12]], "<f4"
)
FLAT_ROWS: Final = np.array([[1.5, -2.0], [0.25, 8.0], [3.0, 3.0]], "<f4")

# --- the history ----------------------------------------------------------------------------------


def write_history(folder: str, backup: str) -> None:
    """Everything that a store of format 2 may hold so far, over many segments."""
    with mldb.open(folder, **OPTIONS) as db:
        db.store_tensor("single", SINGLE[:10], METADATA, epoch=0)
        for values in (of_every_dtype(), of_every_layout()):
            with db.transaction(epoch=1) as txn:
                for name, value in values.items():
                    txn.store_tensor(name, value, {"type": "packed"})
        db.store_model_layer("layer1", np.eye(3, dtype="<f4"), np.zeros(3, dtype="<f4"), epoch=1)
        db.create_relationship("layer1", "layer2", "feeds", {"weight": 2})
        db.create_relationship("a name", "no tensor", "mentions")
        db.tag("early")
        db.pin(1)
        db.store_tensor("single", SINGLE, epoch=2)
        db.set_metadata("single", {"type": "weights", "position": 4})
        db.delete_tensor("dtype/|b1", epoch=3)
        db.delete_relationship("a name", "no tensor", "mentions")
        db.checkpoint(state_of_numpy(), epoch=3, step=30, metrics={"loss": 0.25})
        db.store_tensor("large", LARGE, epoch=4)
    with mldb.open(folder, **OPTIONS) as db:
        write_lakes(db)
        db.checkpoint(state_of_torch(), epoch=5, name="torch")
        with patch.object(handle, "is_forced", lambda: True):
            db.store_tensor("from a handler", np.array([15], "<i2"))
    with mldb.open(folder, compression="zstd", **OPTIONS) as db:
        db.store_tensor("smooth", SMOOTH, epoch=6)
        db.tag("late")
        db.tag("moved", 3)
        db.tag("moved", 4)
        db.tag("gone")
        db.untag("gone")
        db.pin(3)
        db.unpin(3)
    with mldb.open(folder, **OPTIONS) as db:
        db.rewind(2)
        db.store_tensor("single", SINGLE + 1, epoch=2)
        db.pin(2)  # tags and pins belong to the store, whatever lineage they are of
        db.tag("after", 2)
        db.store_tensor("after/rewind", np.array([7, 8, 9], dtype="<i4"), epoch=3)
        killed = shutil.copytree(folder, f"{folder} as a killed process leaves it")
    shutil.rmtree(folder)
    shutil.move(killed, folder)
    tear(folder)
    with mldb.open(folder, **OPTIONS) as db:
        db.store_tensor("after/tear", np.array([-1], dtype="|i1"), epoch=5)
        db.backup(backup)
        with db.transaction(epoch=6) as txn:
            txn.store_tensor("spilled", SPILLED)
            txn.store_tensor("beside", np.array([1.0]))
        db.store_tensor("last", np.array([2.0]))


def make_lake_alone(lake: Lake, epoch: int | None = None) -> None:
    """Commit a lake without rows, as writers did before its first rows made it."""
    info = LakeInfo(os.urandom(16), lake.dim, lake.geometry, 0)
    records = records_of([lake_created(lake.name.encode(), info)])
    lake._host.commit(records, epoch, None, None)


def write_lakes(db: mldb.MLDatabase) -> None:
    """A lake on the sphere with labels and a column, one in flat space; rows go and come back."""
    lake = db.lake("sphere", dim=4)
    make_lake_alone(lake, epoch=4)
    lake.add_splats(SPHERE_ROWS[:3], kappa=[2.0, 8.0, 16.0], alpha=[1.0, 2.0, 4.0], epoch=4)
    lake.remove([1])
    lake.add_splats(
        SPHERE_ROWS[3:],
        ids=[1, 77],
        labels=[5, -1],
        columns={"score": np.array([0.5, 0.25], "<f4"), "pair": np.array([[1, 2], [3, 4]], "<i2")},
    )
    flat = db.lake("flat", dim=2, geometry="euclid")
    make_lake_alone(flat)
    flat.add_splats(FLAT_ROWS, labels=[1, 2, 3])


def tear(folder: str) -> None:
    """Leave half a record behind the last commit, as a process does that is killed in a write."""
    with segments_of(Path(folder))[-1].open("ab") as file:
        file.write(fmt.FRAME_MAGIC + b"torn" * 10)


@contextmanager
def fixed() -> Iterator[None]:
    """Clock, random ids and name of the writer as they were when the golden store was written."""
    ticks = itertools.count(START, SECOND)
    draws = itertools.count()

    def random_bytes(count: int) -> bytes:
        return hashlib.shake_128(b"golden %d" % next(draws)).digest(count)

    batch._ids.clear()
    try:
        with (
            patch.object(OsFileSystem, "time_ns", lambda fs: next(ticks)),
            patch.object(os, "urandom", random_bytes),
            patch.object(fmt, "WRITER", WRITER),
        ):
            yield
    finally:
        batch._ids.clear()


def write_golden(target: Path, backup: Path) -> None:
    """Write both stores and keep what a copy keeps: neither locks nor empty folders."""
    with tempfile.TemporaryDirectory() as scratch:
        made, copied = Path(scratch, "store"), Path(scratch, "backup")
        with fixed():
            write_history(str(made), str(copied))
        for source, to in ((made, target), (copied, backup)):
            for name, data in contents(source).items():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                (to / name).write_bytes(data)


if __name__ == "__main__":
    for old in (FORMAT_2, BACKUP):
        shutil.rmtree(old, ignore_errors=True)
    write_golden(FORMAT_2, BACKUP)
    for new in (FORMAT_2, BACKUP):
        sys.stdout.write(f"{new}: {sum(map(len, contents(new).values()))} bytes\n")
