"""torch ignores NumPy's read-only flag. What it is handed by mldb survives that, and so do files.

Each story is a child process, as what goes wrong ends the process by a signal.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mldb

NAMES = ("sealed", "active", "small", "zstd_large", "zstd_small")

CHILD = """
import sys, warnings
import numpy as np, torch, mldb
from mldb.history.checkpoints import state_of

path, arrays, ways = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
warnings.simplefilter("ignore")  # torch warns that the array is not writable
db = mldb.open(path, arrays=arrays, map_bytes=1 << 16)


def loaded(name):
    target = {"model": {name: torch.zeros(db.tensor(name).shape)}}
    db.load(target, strict=False)
    return target["model"][name]


WAYS = {
    "torch": lambda name: db.tensor(name).torch(),
    "state_dict": lambda name: db.state_dict(prefix="model/")[name],
    "tree": lambda name: state_of(db._scope())["model"][name],
    "load": loaded,
    "snapshot": lambda name: db.at(epoch=1).tensor(name).torch(),
    "as_tensor": lambda name: torch.as_tensor(db.tensor(name)),
    "dlpack": lambda name: torch.from_dlpack(db.tensor(name)),
    "array": lambda name: torch.from_numpy(db[name]),
    "query": lambda name: torch.as_tensor(db.query_tensor(name, as_of=1)),
    "numpy": lambda name: torch.from_numpy(np.asarray(db.tensor(name))),
    "rows": lambda name: torch.from_numpy(db.tensor(name)[1:]),
    "some": lambda name: torch.from_numpy(db.tensor(name)[0:3, ::2]),
    "row": lambda name: torch.from_numpy(next(iter(db.tensor(name)))),
    "transaction": lambda name: torch.from_numpy(taken(name)),
}


def taken(name):
    with db.transaction() as txn:
        return txn[name]


for way in ways:
    for name in NAMES:
        before = np.array(db[name])
        assert not db[name].flags.writeable and not db.tensor(name)[1:].flags.writeable
        WAYS[way](name).add_(1)
        np.testing.assert_array_equal(db[name], before, err_msg=f"{way} of {name}")
        np.testing.assert_array_equal(db.tensor(name).torch().numpy(), before)
print("survived")
""".replace("NAMES", repr(NAMES))

OWN = ("torch", "state_dict", "tree", "load", "snapshot", "as_tensor", "dlpack")
ARRAYS = ("array", "query", "numpy", "rows", "some", "row", "transaction")


@pytest.fixture
def store(store_path: Path) -> Path:
    """A store of raw and compressed tensors, large and small, in sealed segments and the active."""
    rng = np.random.default_rng(0)
    large = rng.integers(0, 99, (256, 512)).astype(np.float32)
    small = large[:4, :6].copy()
    values = dict(zip(NAMES, (large, large + 1, small, large + 2, small + 2), strict=True))
    with mldb.open(store_path, durability="os", segment_bytes=1 << 16) as db:
        db.store_tensor("sealed", values["sealed"], epoch=1)
    with mldb.open(store_path, durability="os", compression="zstd") as db:
        db.store_tensor("zstd_large", values["zstd_large"])
        db.store_tensor("zstd_small", values["zstd_small"])
        assert db.history("zstd_large")[0].stored_bytes < large.nbytes
        assert db.history("zstd_large")[0].stored_bytes > 1 << 16
    with mldb.open(store_path, durability="os") as db:
        assert len(list((store_path / "segments").iterdir())) > 1
        db["active"], db["small"] = values["active"], values["small"]
        model = {name: torch.from_numpy(value) for name, value in values.items()}
        db.checkpoint({"model": model}, epoch=1)
    return store_path


def stored_bytes(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (store / "segments").iterdir()}


def child(store: Path, arrays: str, ways: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(store), arrays, ",".join(ways)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arrays", "ways"), [("shared", OWN), ("private", OWN + ARRAYS)], ids=["shared", "private"]
)
def test_writing_through_torch_neither_ends_the_process_nor_reaches_anybody(
    store: Path, arrays: str, ways: tuple[str, ...]
) -> None:
    before = stored_bytes(store)
    done = child(store, arrays, ways)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]
    after = stored_bytes(store)
    assert {name: after[name][: len(data)] for name, data in before.items()} == before
    with mldb.open(store, mode="r") as db:
        assert db.verify().ok


@pytest.mark.parametrize("way", ["array", "rows"])
def test_a_shared_array_that_is_written_to_ends_the_process_and_not_the_data(
    store: Path, way: str
) -> None:
    """The contract of ``arrays="shared"``, as the docstring of ``db[name]`` says it."""
    before = stored_bytes(store)
    done = child(store, "shared", (way,))
    assert done.returncode == -signal.SIGSEGV, done.stderr[-2000:]
    assert stored_bytes(store) == before
    with mldb.open(store, mode="r") as db:
        assert db.verify().ok


def test_private_arrays_share_memory_with_nobody(store: Path) -> None:
    with mldb.open(store, mode="r", arrays="private", map_bytes=1 << 16) as db:
        for name in NAMES:
            handle = db.tensor(name)
            parts = [db[name], db[name], handle[:], handle[0:3], handle.numpy()]
            for one, other in itertools.pairwise(parts):
                assert not np.shares_memory(one, other)
            for part in parts:
                np.testing.assert_array_equal(part, db[name][: len(part)])
                assert not part.flags.writeable
    with mldb.open(store, mode="r", map_bytes=1 << 16) as db:
        assert np.shares_memory(db["sealed"], db["sealed"])


def test_private_mappings_leave_descriptors_for_others(store: Path) -> None:
    """Each holds one. Three hundred of them in a process that may have 100: the rest are copies."""
    code = """
import resource, sys, mldb, numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
db = mldb.open(sys.argv[1], arrays="private", map_bytes=1 << 16)
kept = [db["sealed"] for _ in range(300)]
kept += [db.tensor("active").torch() for _ in range(300)]
with open("/dev/null") as another:
    assert another.fileno() < 100
db["more"] = np.ones(3)
assert all(np.array_equal(array, kept[0]) for array in kept[:300])
print("ok")
"""
    command = [sys.executable, "-c", code, str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-2000:]
