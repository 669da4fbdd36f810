"""The promises, each as a function of an empty folder that says what it saw or raises."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeAlias

import numpy as np

import mldb
from mldb.errors import CorruptError, VersionGoneError
from mldb.gpu.reference import NumpyDevice
from mldb.log import native
from mldb.log.checksum import check64, digest128
from mldb.noise.keys import Keys
from mldb.tools.selftest.outcomes import BrokenPromise, NotHere, require
from mldb.tools.selftest.writer import value_of

Check: TypeAlias = Callable[[str], str]

_KILLS: Final = (3_000, 40_000, 111_111)
_CHILD_SECONDS: Final = 60


def digests(_: str) -> str:
    """Checksums and random numbers are those of their authors, on this machine too."""
    # The vectors of xxHash for nothing, and Random123's for a counter and key of zeros.
    require(check64(b"") == 0x2D06800538D394C2, "xxh3-64 of nothing is another one")
    found = digest128(b"").hex()
    require(found == "99aa06d3014798d86001c324468d497f", f"xxh3-128 of nothing is {found}")
    keys = Keys(0, 0, np.zeros(1, np.uint64), np.zeros(1, np.uint16))
    words = NumpyDevice(np.float32).words(keys, 0, 1)[0, 0]
    shown = " ".join(f"{word:08x}" for word in words)
    require(shown == "6627e8d5 e169c58d bc57ac4c 9b00dbd8", f"Philox gives {shown}")
    return "xxh3-64, xxh3-128 and Philox give their known answers"


def crash(folder: str) -> str:
    """What was acknowledged is there after a process was killed in the middle of a write."""
    acknowledged = 0
    for count in _KILLS:
        path = os.path.join(folder, f"after-{count}")
        last = _killed(path, count)
        with _quiet(), mldb.open(path, background_compaction=False) as db:
            require(db.epoch in (last, last + 1), f"{last} were told, epoch {db.epoch} is there")
            for epoch in range(1, db.epoch + 1):
                found = db.query_tensor("w", as_of=epoch)
                require(np.array_equal(found, value_of(epoch)), f"commit {epoch} has other values")
                both = int(db.query_tensor("number", as_of=epoch)) == epoch
                require(both, f"commit {epoch} is there by half")
            db["after"] = np.ones(3)
            report = db.verify()
            require(report.ok, f"verify finds {report.problems[:1]}")
        acknowledged += last
    return f"{len(_KILLS)} processes killed, {acknowledged} acknowledged commits, all there"


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave unsaid what a recovery says to the log of the program: it is meant to happen here."""
    log, silent = logging.getLogger("mldb"), logging.NullHandler()
    log.addHandler(silent)
    try:
        yield
    finally:
        log.removeHandler(silent)


def _killed(path: str, count: int) -> int:
    """Run a writer until it dies; return the last commit that it was told of."""
    command = [sys.executable, "-m", "mldb.tools.selftest.writer", path, str(count)]
    paths = os.pathsep.join(os.path.abspath(item) for item in sys.path)
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if done.returncode != -signal.SIGKILL:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise BrokenPromise(f"the writer ended with {done.returncode} and said {said[0]:.200}")
    lines = done.stdout.split()
    return int(lines[-1]) if lines else 0


def time_travel(folder: str) -> str:
    """Every epoch reads as it was, also behind a rewind and a retention."""
    with mldb.open(folder, durability="os", background_compaction=False) as db:
        for epoch in range(1, 21):
            db.store_tensor("w", value_of(epoch), epoch=epoch)
        db.tag("ten", 10)
        left = db.lsn
        for epoch in range(1, 21):
            found = db.query_tensor("w", as_of=epoch)
            require(np.array_equal(found, value_of(epoch)), f"epoch {epoch} has other values")
        db.rewind(12)
        db.store_tensor("w", value_of(99), epoch=13)
        require(np.array_equal(db["w"], value_of(99)), "the head has other values after a rewind")
        found = db.query_tensor("w", as_of=left)
        require(np.array_equal(found, value_of(20)), "what was rewound is not readable any more")
        with db.at("ten") as snapshot:
            db.retention.set(last=2, abandoned=timedelta(0))
            db.compact(cold="all")
            require(np.array_equal(snapshot["w"], value_of(10)), "a snapshot lost its values")
        try:
            db.query_tensor("w", as_of=5)
        except VersionGoneError as error:
            require(error.below is None or error.above is not None, "no kept commit is named")
        else:
            raise BrokenPromise("epoch 5 reads something after it was pruned")
        require(np.array_equal(db["w"], value_of(99)), "compaction changed the head")
    return "20 epochs, a rewind, a snapshot held over a compaction, a pruned epoch refused"


def damage(folder: str) -> str:
    """One bit that was turned on the disk is found, and the rest stays readable."""
    values = np.random.default_rng(0).random(200_000)
    with mldb.open(folder, background_compaction=False) as db:
        db["good"], db["bad"] = values[:1000], values
        (name,) = os.listdir(os.path.join(folder, "segments"))
    with open(os.path.join(folder, "segments", name), "r+b") as file:
        at = file.read().index(values[150_000:150_100].tobytes())
        file.seek(at)
        file.write(bytes([values.tobytes()[150_000 * 8] ^ 1]))
    with mldb.open(folder, mode="r") as db:
        require(not db.verify().ok, "verify finds nothing")
        require(np.array_equal(db["good"], values[:1000]), "what is whole is not readable")
        try:
            db.query_tensor("bad")
        except CorruptError:
            return "a turned bit is found by verify and by the read, the rest is readable"
    raise BrokenPromise("a damaged tensor was handed out")


def types(folder: str) -> str:
    """Every dtype comes back bit by bit, in its byte order and shape."""
    import ml_dtypes

    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")
    given: list[np.dtype[Any]] = [np.dtype(getattr(ml_dtypes, name)) for name in names]
    given += map(np.dtype, ("?", "<i8", ">i4", "<f2", ">f8", "<c16", "<M8[ns]", "<U4"))
    rng = np.random.default_rng(1)
    with mldb.open(folder, durability="os", background_compaction=False) as db:
        for number, dtype in enumerate(given):
            for shape in ((), (0, 3), (5, 7)):
                array = rng.integers(0, 2, shape).astype(dtype)
                db[f"t{number}"] = array
                found = db[f"t{number}"]
                same = (found.dtype, found.shape) == (array.dtype, array.shape)
                require(same and found.tobytes() == array.tobytes(), f"{dtype} of {shape} differs")
    return f"{len(given)} dtypes in 3 shapes"


def lake(folder: str) -> str:
    """A lake hands out every row once a pass, and says what it was before."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((3000, 32), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with mldb.open(folder, durability="os", background_compaction=False) as db:
        points = db.lake("points", dim=32)
        ids = points.add_splats(rows, epoch=1)
        whole_lake = db.lsn
        points.remove(ids[:100])
        with points.at(whole_lake) as before:
            require(len(before) == len(rows), "a removed row is missing in the past")
        require(len(points) == len(rows) - 100, "a removed row is counted")
        error = float(np.abs(points.get(ids[100:])["mu"] - rows[100:]).max())
        require(error < 1e-6, f"directions differ by {error}")
        try:
            import torch
        except ImportError:
            return "rows added, removed, read now and before (a loader needs torch)"
        loader = points.export_to_dataloader(256, device="cpu", seed=3, fields=["id"])
        found = torch.cat([_ids_of(batch) for batch in loader]).numpy()
        whole = np.array_equal(np.sort(found), np.sort(ids[100:]))
        require(whole, f"a pass handed out {len(np.unique(found))} of {len(ids) - 100} rows")
    return f"{len(rows)} rows, 100 removed, one pass over the rest, each row once"


def _ids_of(batch: Any) -> Any:
    return batch.id if hasattr(batch, "id") else batch


def checkpoint(folder: str) -> str:
    """A training goes on from its checkpoint as if nothing had been."""
    try:
        import torch
    except ImportError:
        raise NotHere("torch is not installed: pip install 'mldb[torch]'") from None

    def training() -> tuple[Any, Any]:
        torch.manual_seed(4)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)

    def train(model: Any, optimizer: Any, steps: range) -> None:
        for step in steps:
            x = torch.sin(torch.arange(32.0).reshape(4, 8) * (step + 1))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    model, optimizer = training()
    train(model, optimizer, range(5))
    with mldb.open(folder, durability="os", background_compaction=False) as db:
        db.checkpoint({"model": model, "optimizer": optimizer, "step": 5}, epoch=1)
    train(model, optimizer, range(5, 10))
    other, again = training()
    train(other, again, range(1))  # a start of its own, which the checkpoint takes the place of
    with mldb.open(folder, mode="r") as db:
        report = db.load({"model": other, "optimizer": again, "step": 0})
    train(other, again, range(report["step"], 10))
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        require(torch.equal(one, two), f"{name} differs after five more steps")
    return "ten steps, and ten with a checkpoint and a new start after five: equal bit by bit"


def gpu(_: str) -> str:
    """The Vulkan device computes what the reference does."""
    from mldb.errors import GpuUnavailableError, UsageError
    from mldb.gpu.selftest.items import run_items

    try:
        found = run_items(None, lambda line: None)
    except (GpuUnavailableError, UsageError) as error:
        raise NotHere(str(error)) from None
    failed = [line for line in found if line.status == "FAIL"]
    require(not failed, "; ".join(f"{line.item}: {line.text}" for line in failed[:3]))
    passed = sum(line.status == "PASS" for line in found)
    return f"{passed} items of mldb.gpu.selftest passed"


def both_modes(folder: str) -> str:
    """The compiled module and Python alone store and read the same."""
    if native.twin is None:
        raise NotHere(f"the compiled module is {native.status}")
    status = native.status
    paths = [os.path.join(folder, name) for name in ("compiled", "python")]
    with native.switched_off():
        _many(paths[1])
    _many(paths[0])
    found = [_all_of(path) for path in paths]
    with native.switched_off():
        alone = [_all_of(path) for path in paths]
    require(found[0] == found[1], "what it stored differs from what Python alone stored")
    require(found == alone, "what it read differs from what Python alone read")
    return f"{len(found[0])} values stored by both and read by both ({status})"


def _many(path: str) -> None:
    """A store of small and larger tensors, in batches and one by one, and of a lake."""
    rng = np.random.default_rng(5)
    with mldb.open(path, durability="os", background_compaction=False, segment_entries=64) as db:
        for epoch in range(1, 13):
            with db.transaction(epoch=epoch) as txn:
                for number in range(20):
                    values = rng.standard_normal((epoch, number), np.float32)
                    txn.store_tensor(f"many/{number}", values, {"epoch": epoch})
            db.store_tensor("large", rng.standard_normal(40_000), epoch=epoch)
        db.delete_tensor("many/7")
        db.lake("points", dim=8).add_splats(rng.standard_normal((500, 8), np.float32))


def _all_of(path: str) -> list[tuple[Any, ...]]:
    """Every value of every epoch, first by a handle that verifies and then by one that does not."""
    found: list[tuple[Any, ...]] = []
    for verify in ("always", "never"):
        with mldb.open(path, mode="r", verify=verify) as db:
            for epoch in range(1, db.epoch + 1):
                for name in db.names(as_of=epoch):
                    array = db.query_tensor(name, as_of=epoch)
                    what = (array.dtype.str, array.shape, digest128(array.tobytes()))
                    found.append((verify, epoch, name, *what, db.metadata(name, as_of=epoch)))
            rows = db.lake("points").get(np.arange(499, -1, -7))["mu"]
            found.append((verify, "points", rows.shape, digest128(rows.tobytes())))
    return found


CHECKS: Final[tuple[Check, ...]] = (
    digests,
    both_modes,
    types,
    time_travel,
    crash,
    damage,
    lake,
    checkpoint,
)
