"""One history, done by the compiled module and by Python alone: what is stored, told and read.

Everything that could differ by chance is fixed: ids follow a seed, and the clock stands still but
between two steps. A step that cannot be done is part of the history, with its error.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias
from unittest.mock import patch

import ml_dtypes
import numpy as np
import scipy.sparse as sp
from hypothesis import strategies as st

import mldb
from mldb.database import MLDatabase  # now, and not where one half is switched off
from mldb.log import batch, native
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.support.directories import made_at_once
from tests.support.hints import hints_every

Step: TypeAlias = tuple[str, int, int, int]
"""What is done, and three numbers that say with what."""

NAMES: Final = ("a", "b/c", "ü" * 40, "n" * 250, "d.e", "f")
DTYPES: Final = (
    *("<f4", "<f8", "<f2", ">f4", "<i8", ">i2", "|u1", "|b1", "<c16", "<M8[ns]", "<U3", "|S2"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
)
SHAPES: Final = (
    *((), (0,), (0, 7), (1,), (3, 5), (64,), (32, 32), (1023,), (1024,), (1025,), (16, 257)),
    *((1000, 17), (40_000,), (1, 1, 2, 1)),
)
OPTIONS: Final[dict[str, Any]] = {
    "durability": "os",
    "background_compaction": False,
    "segment_entries": 60,
    "segment_bytes": 300_000,
    "spill_bytes": 100_000,
    "map_bytes": 4096,
    "deduplicate": 600,
}
_KINDS: Final = (
    *["store", "batch"] * 6,
    *["equal", "mixed", "read"] * 3,
    *["splats"] * 5,
    *["strided", "delete", "metadata", "relate", "checkpoint", "patch", "metrics"] * 2,
    *["rewind", "compact", "reopen", "refused"] * 2,
    *("sparse", "model layer", "remove", "consolidate", "tag", "pin", "seal", "retain", "kill"),
    "rolled back",
)
steps: Final[st.SearchStrategy[list[Step]]] = st.lists(
    st.tuples(st.sampled_from(_KINDS), *[st.integers(0, 255)] * 3),
    min_size=5,
    max_size=25,
)


def value(one: int, two: int) -> Any:
    """A tensor of any dtype and shape that can be stored."""
    dtype, shape = np.dtype(DTYPES[one % len(DTYPES)]), SHAPES[two % len(SHAPES)]
    numbers = np.random.default_rng(one * 256 + two).integers(0, 2, shape)
    return numbers.astype(dtype)


# --- what is fixed --------------------------------------------------------------------------------


@contextmanager
def fixed(seed: int) -> Iterator[Callable[[], None]]:
    """Ids follow *seed*, and the clock stands; yields what lets it go on by a second."""
    clock = [1_700_000_000_000_000_000]
    draws = random.Random(seed)

    def advance() -> None:
        clock[0] += 1_000_000_000

    def now(_: FileSystem) -> int:
        return clock[0]

    with ExitStack() as stack:
        stack.enter_context(patch.object(os, "urandom", draws.randbytes))
        stack.enter_context(patch.object(OsFileSystem, "time_ns", now))
        stack.enter_context(patch.object(MemoryFileSystem, "time_ns", now))
        # Nothing is made by a thread, which would draw ids in between.
        stack.enter_context(made_at_once(due=2))
        stack.enter_context(hints_every(30))
        batch._ids.clear()
        stack.callback(batch._ids.clear)
        yield advance


@contextmanager
def running(compiled: bool) -> Iterator[None]:
    """Run the compiled module, or Python alone."""
    if compiled:
        assert native.twin is not None, native.status
        yield
    else:
        with native.switched_off():
            yield


class RolledBack(Exception):
    """Ends a transaction."""


def told(call: Callable[[], Any]) -> Any:
    """What a call returns, as plain values, or the error that it raises: no other may be raised."""
    try:
        return plain(call())
    except (mldb.MldbError, RolledBack) as error:
        return f"{type(error).__name__}: {error}"


def plain(found: Any) -> Any:
    """Values that can be compared with ``==``: arrays by everything that a caller sees of them."""
    if isinstance(found, np.ndarray):
        seen = (found.dtype.str, str(found.dtype), found.shape, found.strides)
        return (*seen, found.flags.writeable, found.tobytes())
    if sp.issparse(found):
        return (type(found).__name__, plain(found.tocoo().toarray()), found.dtype.str)
    if hasattr(found, "numpy"):  # a tensor of torch
        return (str(found.dtype), tuple(found.shape), found.numpy().tobytes())
    if isinstance(found, dict):
        return {key: plain(item) for key, item in found.items()}
    if isinstance(found, list | tuple):
        return [plain(item) for item in found]
    return repr(found)


# --- a history ------------------------------------------------------------------------------------


class Run:
    """A store on which steps are done. One thread. ``told`` is what each of them said."""

    def __init__(self, root: Path | None) -> None:
        """In the folder *root*, or in memory."""
        self.root = root
        self.fs: FileSystem = MemoryFileSystem()
        self.told: list[Any] = []
        self.open()

    def open(self) -> None:
        """Open it anew."""
        if self.root is not None:
            OsFileSystem.prepare_root(str(self.root), create=True)
            self.fs = OsFileSystem(self.root)
        self.db = MLDatabase.on(self.fs, **OPTIONS)

    def do(self, step: Step) -> None:
        """Do one step and keep what it said."""
        kind, *numbers = step
        act = getattr(self, "_" + kind.replace(" ", "_"))
        self.told.append((step, told(lambda: act(*numbers))))

    def files(self) -> dict[str, bytes]:
        """Every file and what is in it; locks and registrations hold nothing."""
        if isinstance(self.fs, MemoryFileSystem):
            image = self.fs.image()
            return {name: image.contents[number] for name, number in image.files.items()}
        assert self.root is not None
        found = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def _name(self, number: int) -> str:
        return NAMES[number % len(NAMES)]

    def _epoch(self, number: int) -> int | None:
        return self.db.epoch + 1 if number % 3 else None

    def _lsn(self, number: int) -> mldb.Lsn:
        found = [event.lsn for event in self.db.events()]
        return mldb.Lsn(found[number % len(found)] if found else 0)

    def _store(self, one: int, two: int, three: int) -> Any:
        metadata = {"n": one, "type": "weights"} if two % 2 else None
        data = value(one, two)
        return self.db.store_tensor(self._name(three), data, metadata, epoch=self._epoch(one))

    def _batch(self, one: int, two: int, three: int) -> Any:
        """Many small tensors: what the compiled encoder is for."""
        with self.db.transaction(self._epoch(three)) as txn:
            for number in range(1 + one % 70):
                data = np.full(two % 70 * 16, number + three, np.float32)
                txn.store_tensor(f"many/{number:03}", data, {"n": number} if three % 2 else None)
        return txn.lsn

    def _equal(self, one: int, two: int, three: int) -> Any:
        """Names that come again in one batch, and bytes that the store has."""
        with self.db.transaction() as txn:
            for number in range(2 + one % 9):
                txn.store_tensor(self._name(number), np.full(200 + two % 2, three % 4, np.int64))
            txn.store_tensor(self._name(two), value(one, three))
            return [self._name(two) in txn, list(txn), txn.query_tensor(self._name(two))]

    def _mixed(self, one: int, two: int, three: int) -> Any:
        """Everything that a transaction can hold, of every size."""
        with self.db.transaction(self._epoch(one)) as txn:
            for number in range(1 + one % 12):
                txn.store_tensor(self._name(number + two), value(one + number, two + 3 * number))
            txn.store_tensor("gone", value(two, three))
            txn.delete_tensor("gone")
            txn.create_relationship("a", self._name(three), "mixed", {"n": one})
            if "a" in txn:
                txn.set_metadata("a", {"n": [one, two, {"three": three}]})
        return txn.lsn

    def _strided(self, one: int, two: int, three: int) -> Any:
        base = np.arange(60 + one, dtype=DTYPES[two % 5]).reshape(-1, 1)
        data = (base * np.ones((1, 1 + three % 7), base.dtype)).T[:, :: 1 + two % 3]
        return self.db.store_tensor(self._name(one), data)

    def _sparse(self, one: int, two: int, three: int) -> Any:
        grid = sp.random(5 + one % 9, 7, 0.3, ("csr", "coo", "csc")[two % 3], rng=three)
        return self.db.store_tensor(self._name(two), grid)

    def _model_layer(self, one: int, two: int, three: int) -> Any:
        return self.db.store_model_layer(f"layer{one % 3}", value(0, two), value(1, three))

    def _delete(self, one: int, two: int, three: int) -> Any:
        return self.db.delete_tensor(self._name(one))

    def _metadata(self, one: int, two: int, three: int) -> Any:
        return self.db.set_metadata(self._name(one), {"k": two, "x": "y" * three})

    def _relate(self, one: int, two: int, three: int) -> Any:
        if three % 3 == 0:
            return self.db.delete_relationship("a", self._name(one), "is")
        return self.db.create_relationship("a", self._name(one), "is", {"n": two})

    def _checkpoint(self, one: int, two: int, three: int) -> Any:
        state = {"w": value(one, two), "b": [value(number, 4) for number in range(three % 9)]}
        epoch = self.db.epoch + one % 2
        made = {"m": state, "step": one}
        point = self.db.checkpoint(made, epoch=epoch, metrics={"loss": two / 7})
        return replace(point, stall_ms=0.0)

    def _patch(self, one: int, two: int, three: int) -> Any:
        name = "patched"
        if name not in self.db or two % 5 == 0:
            return self.db.store_tensor(name, np.zeros((64, 200), np.float32))
        if three % 2:
            return self.db.add_to_tensor(name, np.full((64, 200), one, np.float32), scale=0.5)
        rows = np.arange(one % 60, one % 60 + 3)
        return self.db.update_tensor(name, rows, np.full((3, 200), two, np.float32))

    def _metrics(self, one: int, two: int, three: int) -> Any:
        for number in range(1 + one % 9):
            self.db.log({"loss": two / 3, "rate": number * 0.5}, step=three + number, buffer=True)
        return self.db.log({"acc": one / 7}, epoch=self._epoch(two))

    def _splats(self, one: int, two: int, three: int) -> Any:
        rng = np.random.default_rng(one)
        rows = rng.standard_normal((1 + two * 2, 16), np.float32)
        labels = rng.integers(0, 3, len(rows)) if three % 2 else None
        return self.db.lake("l", dim=16).add_splats(rows, labels=labels, epoch=self._epoch(three))

    def _remove(self, one: int, two: int, three: int) -> Any:
        lake = self.db.lake("l", dim=16)
        return lake.remove(lake.ids()[one % 5 :: 7 + two % 9])

    def _consolidate(self, one: int, two: int, three: int) -> Any:
        report = self.db.lake("l", dim=16).consolidate(min_cos=0.5 + one / 1024, seed=two)
        return len(self.db.lake("l", dim=16)), report.lsn

    def _tag(self, one: int, two: int, three: int) -> Any:
        return self.db.tag(f"tag{one % 2}", self._lsn(two))

    def _pin(self, one: int, two: int, three: int) -> Any:
        return self.db.pin(self._lsn(two))

    def _rewind(self, one: int, two: int, three: int) -> Any:
        return self.db.rewind(one % (self.db.epoch + 1) if two % 2 else self._lsn(three))

    def _seal(self, one: int, two: int, three: int) -> Any:
        """More entries than a segment takes."""
        with self.db.transaction() as txn:
            for number in range(61):
                txn.store_tensor(f"sealed/{number}", np.int32(number + one))
        return txn.lsn

    def _retain(self, one: int, two: int, three: int) -> Any:
        rules: dict[str, Any] = {"last": 1 + one % 4} if two % 3 else {}
        return self.db.retention.set(**rules, abandoned=timedelta(0))

    def _compact(self, one: int, two: int, three: int) -> Any:
        return replace(self.db.compact(cold="all" if one % 2 else "none"), seconds=0.0)

    def _reopen(self, one: int, two: int, three: int) -> Any:
        self.db.close()
        self.open()
        return self.db.lsn

    def _kill(self, one: int, two: int, three: int) -> Any:
        """Another handle finds what one that is not closed leaves."""
        self.db.sync()
        with MLDatabase.on(self.fs, **OPTIONS) as other:
            found = [other.lsn, other.names(), other.store_tensor("other", value(one, two))]
        return [*found, self.db.lsn, self.db["other"]]

    def _refused(self, one: int, two: int, three: int) -> Any:
        """What nobody may store: of an older epoch, of no type, under no name, too much of it."""
        data = value(two, three)
        refused: list[Callable[[], Any]] = [
            lambda: self.db.store_tensor("a", data, epoch=-1 - one),
            lambda: self.db.store_tensor("a", np.array([object()])),
            lambda: self.db.store_tensor("", data),
            lambda: self.db.store_tensor("a", data, {"bad": object()}),
            lambda: self.db.store_tensor("x" * 5000, data),
            lambda: self.db.store_tensor("\ud800", data),
            lambda: self.db.query_tensor("none at all"),
        ]
        return refused[one % len(refused)]()

    def _rolled_back(self, one: int, two: int, three: int) -> Any:
        with self.db.transaction() as txn:
            for number in range(one % 9):
                txn.store_tensor(self._name(number), value(two, three))
            raise RolledBack

    def _read(self, one: int, two: int, three: int) -> Any:
        """Reads in between, which fill the caches of the handle."""
        epoch = one % (self.db.epoch + 2)
        names = self.db.names(as_of=epoch)[two % 5 :: 1 + three % 4]
        found = {name: self.db.query_tensor(name, as_of=epoch) for name in names}
        return found, [self.db.history(name) for name in names[:5]]


def done(history: list[Step], seed: int, root: Path | None, *, compiled: bool) -> Run:
    """Do a history in one of the two modes, and close the store."""
    with running(compiled), fixed(seed) as advance:
        run = Run(root)
        for step in history:
            advance()
            run.do(step)
        advance()
        run.told.append(told(run.db.close))
    return run
