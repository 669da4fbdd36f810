"""What is measured: saves and reads of a state, reads of the past, small commits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import mldb
from mldb.errors import LimitError
from mldb.log.fs.machine import filesystem_kind
from mldb.tools.measure.rounds import TURNS_MAX, Measurement, in_turns, rate_of, time_of

STATE_BYTES: Final = 64 << 20
_TENSORS: Final = 48
_EPOCHS: Final = 1000
_READS: Final = 2000
_COMMITS_DURABLE: Final = 20
_COMMITS_FAST: Final = 500
_SMALL: Final = 64
_ROOM: Final = TURNS_MAX + 5
"""So many states have room on the disk, at most, before it begins."""


@dataclass(frozen=True, slots=True)
class BenchSizes:
    """How much is measured: bytes of a state, and seconds for each of the sections."""

    state_bytes: int = STATE_BYTES
    budget: float = 3.0


class Workbench:
    """A folder in which things are measured; what it makes there goes when it is closed.

    For one thread. *folder* must be empty and is left to the caller.
    """

    def __init__(self, folder: str, sizes: BenchSizes) -> None:
        """Make a store, and the state that is saved in it. Raises LimitError without room."""
        self.folder = folder
        self.sizes = sizes
        self.kind = filesystem_kind(folder)
        found = os.statvfs(folder)
        if found.f_bavail * found.f_frsize < _ROOM * sizes.state_bytes:
            raise LimitError(
                f"{folder} has {found.f_bavail * found.f_frsize:,} bytes free, and "
                f"{_ROOM * sizes.state_bytes:,} may be needed. Name another folder with --path."
            )
        self._closing = ExitStack()
        self.store = mldb.open(os.path.join(folder, "store"), background_compaction=False)
        self._closing.callback(self.store.close)
        self.fast = mldb.open(
            os.path.join(folder, "fast"), durability="os", background_compaction=False
        )
        self._closing.callback(self.fast.close)
        rng = np.random.default_rng(0)
        each = max(sizes.state_bytes // _TENSORS // 4, 1)
        self.state: dict[str, npt.NDArray[np.float32]] = {
            f"layer{number}.weight": rng.random(each, np.float32) for number in range(_TENSORS)
        }
        self.bytes = sum(array.nbytes for array in self.state.values())
        self._copy = {name: np.empty_like(array) for name, array in self.state.items()}
        self._epoch = 0

    def close(self) -> None:
        """Close the stores; the folder is for the caller to remove."""
        self._closing.close()

    def sections(self) -> Iterator[list[Measurement]]:
        """Yield the figures, section by section."""
        yield self.saves()
        yield self.reads()
        yield self.past()
        yield self.commits()

    # --- sections ---------------------------------------------------------------------------------

    def saves(self) -> list[Measurement]:
        """A durable checkpoint, against one file written in a row and synced, and a copy."""
        found = in_turns(
            {"copy": self._copied, "file": self._file_written, "save": self._saved},
            self.sizes.budget,
        )
        return [
            rate_of("copy in memory", self.bytes, found["copy"], None),
            rate_of("write and fsync a file", self.bytes, found["file"], None),
            rate_of(
                "save a state, durable",
                self.bytes,
                found["save"],
                ("write and fsync a file", found["file"]),
            ),
        ]

    def reads(self) -> list[Measurement]:
        """The state into memory of one's own, by a handle that knows it and by a new one."""
        found = in_turns(
            {
                "copy": self._copied,
                "first": self._read_anew,
                "again": partial(self._read, self.store),
            },
            self.sizes.budget,
        )
        against = "copy in memory", found["copy"]
        return [
            rate_of("read a state, opened and verified", self.bytes, found["first"], against),
            rate_of("read a state again", self.bytes, found["again"], against),
        ]

    def past(self) -> list[Measurement]:
        """Reads of a small tensor now and at any of a thousand epochs."""
        value = np.zeros(_SMALL, np.float32)
        for epoch in range(1, _EPOCHS + 1):
            self.fast.store_tensor("small", value + epoch, epoch=epoch)
        epochs = np.random.default_rng(1).integers(1, _EPOCHS + 1, _READS).tolist()

        def now() -> None:
            for _ in epochs:
                self.fast.query_tensor("small")

        def then() -> None:
            for epoch in epochs:
                self.fast.query_tensor("small", as_of=epoch)

        found = in_turns({"now": now, "then": then}, self.sizes.budget / 3)
        head = "read a small tensor now", found["now"]
        return [
            time_of(head[0], _READS, found["now"], None),
            time_of("read it at one of 1,000 epochs", _READS, found["then"], head),
        ]

    def commits(self) -> list[Measurement]:
        """Small commits, durable and not, against appends of the same bytes to a file."""
        value = np.zeros(_SMALL, np.float32)

        def stored(db: Any, count: int) -> None:
            for number in range(count):
                db["w"] = value + number

        with open(os.path.join(self.folder, "appended"), "ab", buffering=0) as file:

            def appended(count: int, *, synced: bool) -> None:
                for _ in range(count):
                    file.write(value.data)
                    if synced:
                        os.fdatasync(file.fileno())

            durable = in_turns(
                {
                    "file": partial(appended, _COMMITS_DURABLE, synced=True),
                    "store": partial(stored, self.store, _COMMITS_DURABLE),
                },
                self.sizes.budget / 2,
            )
            fast = in_turns(
                {
                    "file": partial(appended, _COMMITS_FAST, synced=False),
                    "store": partial(stored, self.fast, _COMMITS_FAST),
                },
                self.sizes.budget / 3,
            )
        synced = "append and fsync", durable["file"]
        plain = "append", fast["file"]
        return [
            time_of(synced[0], _COMMITS_DURABLE, durable["file"], None),
            time_of("small commit, durable", _COMMITS_DURABLE, durable["store"], synced),
            time_of(plain[0], _COMMITS_FAST, fast["file"], None),
            time_of('small commit, durability="os"', _COMMITS_FAST, fast["store"], plain),
        ]

    # --- what is timed ----------------------------------------------------------------------------

    def _copied(self) -> None:
        for name, array in self.state.items():
            np.copyto(self._copy[name], array)

    def _file_written(self) -> None:
        path = os.path.join(self.folder, "plain")
        with open(path, "wb", buffering=0) as file:
            file.writelines(array.data for array in self.state.values())
            os.fsync(file.fileno())
        os.unlink(path)

    def _saved(self) -> None:
        self._epoch += 1
        for array in self.state.values():
            array[0] = self._epoch  # or it would be stored as a reference to the one before
        self.store.checkpoint(self.state, epoch=self._epoch)

    def _read(self, db: mldb.MLDatabase) -> None:
        for name, own in self._copy.items():
            np.copyto(own, db.query_tensor(name))

    def _read_anew(self) -> None:
        with mldb.open(self.store.path, mode="r") as db:
            self._read(db)
