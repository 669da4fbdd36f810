"""The same histories through the compiled twin and through Python alone: the same bytes in files.

Clock, random ids and data are fixed, so that nothing but the code may differ.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import MldbError
from mldb.log import batch as batch_module
from mldb.log import native
from mldb.log.fs.memory import MemoryFileSystem
from mldb.tensors.codec import known_arrays

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

ASIDE = "hints/directory"  # made when a thread gets to it, of what there is then

Options = dict[str, Any]
OPTIONS: dict[str, Options] = {
    "plain": {},
    "durable": {"durability": "commit"},
    "small segments": {"segment_entries": 40, "segment_bytes": 1 << 16},
    "everything looked up": {"deduplicate": 1},
    "nothing looked up": {"deduplicate": False},
    "compressed": {"compression": "zstd"},
    "spilled": {"spill_bytes": 1 << 17},
}


class Counted:
    """The compiled module, and how often each function had an answer of its own."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.answers: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            answer = found(*args)
            self.answers[name] += answer is not None and answer is not False
            return answer

        return call


def value(rng: np.random.Generator) -> Any:
    """A tensor of any usual kind; few values, so that some are the same."""
    size = int(rng.choice([0, 1, 7, 64, 1024, 1024, 1024, 16_384, 40_000]))
    data: Any = np.full(size, rng.integers(4), np.float32) + np.arange(size, dtype=np.float32)
    turn = int(rng.integers(12))
    changes: dict[int, Callable[[], Any]] = {
        0: lambda: data[::2],
        1: lambda: data.astype(">f8"),
        2: data.tolist,
        3: lambda: np.float32(size),
        4: lambda: data.reshape(1, -1).T,
        5: lambda: data.astype("S4") if size < 9 else data > 3,
    }
    return changes.get(turn, lambda: data)()


def name(rng: np.random.Generator) -> str:
    number = int(rng.integers(40))
    return f"käse {number}" if number % 13 == 0 else f"layer.{number}/w"


def in_one_transaction(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    """Many writes, names again and again, some ended, some rolled back."""
    with suppress(MldbError, KeyError), db.transaction() as txn:
        for _ in range(int(rng.integers(1, 60))):
            key = name(rng)
            turn = int(rng.integers(12))
            if turn == 0:
                del txn[key]
            elif turn == 1:
                txn.store_tensor(key, value(rng), {"a": int(rng.integers(300))})
            elif turn == 2:
                txn.set_metadata(key, {})
            else:
                txn[key] = value(rng)
        if rng.integers(8) == 0:
            raise KeyError


def act(db: mldb.MLDatabase, rng: np.random.Generator, epoch: int) -> None:
    turn = int(rng.integers(12))
    if turn < 4:
        db[name(rng)] = value(rng)
    elif turn < 7:
        in_one_transaction(db, rng)
    elif turn < 9:
        state = {name(rng): value(rng) for _ in range(int(rng.integers(1, 30)))}
        plain = {key: item for key, item in state.items() if isinstance(item, np.ndarray)}
        db.checkpoint(plain | {"n": 3}, epoch=epoch)
    elif turn == 9:
        db.log({"loss": float(rng.random())}, step=epoch)
    elif turn == 10:
        db.store_tensor(name(rng), value(rng), {"k": [1, -(1 << 40), "x"]}, epoch=epoch)
    else:
        with suppress(MldbError):
            db.tag("t") if rng.integers(2) else db.rewind(epoch - 1)


def files_after(seed: int, options: Options, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a store consists of when a history of this seed has passed."""
    rng, ids, aside = map(np.random.default_rng, (seed, seed + 1, seed + 2))

    def urandom(size: int) -> bytes:
        """What is written in threads aside takes no id of the commits."""
        return (ids if current_thread() is main_thread() else aside).bytes(size)

    batch_module._ids.clear()
    known_arrays.clear()
    fs = MemoryFileSystem()
    fs.tick_ns = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", urandom)
        for part in range(3):
            with mldb.MLDatabase.on(fs, **({"durability": "os"} | options)) as db:
                for step in range(25):
                    with suppress(MldbError):
                        act(db, rng, part * 25 + step)
                state = {key: np.asarray(db[key]).tobytes() for key in db}
    batch_module._ids.clear()
    files = {path: inode.read(inode.length, 0) for path, inode in fs._files.items()}
    return {path: data for path, data in files.items() if not path.startswith(ASIDE)}, state


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("options", OPTIONS)
def test_a_history_makes_the_same_files(
    seed: int, options: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(native.twin)
    monkeypatch.setattr(native, "twin", counted)
    mine = files_after(seed + turn, OPTIONS[options], monkeypatch)
    with native.switched_off():
        python = files_after(seed + turn, OPTIONS[options], monkeypatch)
    assert mine[0].keys() == python[0].keys()
    for path, data in python[0].items():
        assert mine[0][path] == data, path
    assert mine[1] == python[1]
    assert counted.answers["encode_batch"] > 20
    assert counted.answers["add_versions"] > 20
    if options not in ("compressed", "everything looked up"):  # each waits for a look first
        assert counted.answers["small_record"] > 2
    if options in ("plain", "durable", "nothing looked up"):
        assert counted.answers["pack_array"] > 20
        assert counted.answers["pack_tensor"] > 20
