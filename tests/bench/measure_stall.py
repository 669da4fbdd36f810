"""W1: a checkpoint written behind a training loop: what it costs the caller and the steps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.limits import MEMCPY, Memcpy, write_raw
from tests.bench.peer import as_torch
from tests.bench.peer_mldb import MLDB, Mldb
from tests.bench.report import Outcome, Table
from tests.bench.setting import Setting
from tests.bench.timing import Contender, Samples, interleave, median, percentile
from tests.bench.workloads import Array, State, state_dict

_IDLE = "idle"
_BARE = "limit: a thread that only writes"
_IDLE_STEPS = 100


class _Trainer:
    """A small MLP and its optimizer; one step takes 5 to 10 ms on one or two CPU cores."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(0)
        self._model = torch.nn.Sequential(
            torch.nn.Linear(512, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 64),
        )
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3)
        self._input = torch.randn(64, 512)

    def step_milliseconds(self) -> float:
        """Make one training step; return how long it took."""
        begin = time.perf_counter()
        self._optimizer.zero_grad()
        loss = self._model(self._input).square().mean()
        loss.backward()
        self._optimizer.step()
        return (time.perf_counter() - begin) * 1e3

    def steps_while(self, running: Callable[[], bool]) -> list[float]:
        """Make steps until *running* says no; return how long each took."""
        steps = []
        while running():
            steps.append(self.step_milliseconds())
        return steps


def stall(setting: Setting) -> Outcome:
    """Measure how long ``checkpoint(wait=False)`` holds the caller, and the train steps beside it.

    The steps run twice: with one core left to the rest of the process (the figure held to a
    target), and with a torch thread on every core, where other work stalls the pool's barrier.
    """
    if not setting.has(MLDB):
        return Outcome()
    behind = _Behind(setting, state_dict(setting.scale))
    outcome = behind.measure_stall()
    cores = os.cpu_count() or 1
    for threads in sorted({max(1, cores - 1), cores}):
        samples = behind.measure_steps(threads)
        tails = {name: percentile(values, 0.99) for name, values in samples.items()}
        key = "w1.steps / idle" if threads < cores else f"w1.steps / idle, {threads} threads"
        outcome.measures[key] = tails[MLDB] / tails[_IDLE]
        outcome.tables.append(
            Table(
                workload="W1",
                title=f"train steps meanwhile, torch threads: {threads} of {cores} cores",
                unit="ms",
                samples=samples,
                limit=_IDLE,
                higher_is_better=False,
                notes={
                    name: f"p99 {tail:.1f} ms, {tail / tails[_IDLE]:.2f} x idle, "
                    f"{len(samples[name])} steps"
                    for name, tail in tails.items()
                },
            )
        )
    behind.close()
    return outcome


class _Behind:
    """A store whose checkpoints are written behind the caller, from a buffer that is reused."""

    def __init__(self, setting: Setting, state: State) -> None:
        self._setting = setting
        self._copy = Memcpy(state)
        self._state = as_torch(state)
        self._arrays: list[Array] = list(state.values())
        self._epoch = 0
        self._folder = Path()
        self._store: Mldb | None = None

    def _database(self) -> Any:
        """Return a store in a new folder, its reused buffer warm; the old one is removed."""
        self.close()
        self._folder = self._setting.workspace.fresh("behind")
        self._store = Mldb(self._folder, "bulk")
        self._store.database.checkpoint(self._state, epoch=0, wait=False).result()
        self._setting.workspace.settle()
        self._epoch = 0
        return self._store.database

    def _change(self) -> None:
        """Give every tensor another value, as a step would."""
        self._epoch += 1
        for array in self._arrays:
            array.reshape(-1)[0] = np.float32(self._epoch)

    def measure_stall(self) -> Outcome:
        """Compare the time inside the call with one memcpy into a reused buffer."""
        database = self._database()
        reported: list[float] = []

        def call() -> float:
            self._change()
            begin = time.perf_counter()
            pending = database.checkpoint(self._state, epoch=self._epoch, wait=False)
            seconds = time.perf_counter() - begin
            pending.result()
            reported.append(pending.stall_ms)
            self._setting.workspace.settle()
            return seconds * 1e3

        contenders: dict[str, Contender] = {MEMCPY: lambda: self._copy.seconds() * 1e3, MLDB: call}
        samples = interleave("W1 stall", contenders, self._setting.scale.rounds)
        table = Table(
            workload="W1",
            title="checkpoint(wait=False): stall of the caller",
            unit="ms",
            samples=samples,
            limit=MEMCPY,
            higher_is_better=False,
            notes={MLDB: f"measured around the call; stall_ms says {median(reported):.1f}"},
        )
        outcome = Outcome([table])
        outcome.compare("w1.stall / memcpy", table, MLDB, MEMCPY)
        return outcome

    def measure_steps(self, threads: int) -> Samples:
        """Pool the step times of all rounds: idle, beside mldb, beside a bare writing thread."""
        import torch

        database = self._database()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        trainer = _Trainer()
        pools: dict[str, list[list[float]]] = {_IDLE: [], MLDB: [], _BARE: []}

        def pooled(name: str, steps: list[float]) -> float:
            pools[name].append(steps)
            self._setting.workspace.settle()
            return median(steps or [0.0])

        def idle() -> float:
            return pooled(_IDLE, [trainer.step_milliseconds() for _ in range(_IDLE_STEPS)])

        def beside_mldb() -> float:
            self._change()
            pending = database.checkpoint(self._state, epoch=self._epoch, wait=False)
            steps = trainer.steps_while(lambda: not pending.done)
            pending.result()
            return pooled(MLDB, steps)

        def beside_writer() -> float:
            folder = self._setting.workspace.fresh("bare")
            writer = threading.Thread(target=self._write_bare, args=(folder,))
            writer.start()
            steps = trainer.steps_while(writer.is_alive)
            writer.join()
            self._setting.workspace.drop(folder)
            return pooled(_BARE, steps)

        contenders = {_IDLE: idle, MLDB: beside_mldb, _BARE: beside_writer}
        interleave(f"W1 steps, {threads} threads", contenders, self._setting.scale.rounds)
        torch.set_num_threads(before)
        # The first steps belong to the untimed round.
        return {name: list(chain(*pool[1:])) for name, pool in pools.items()}

    def _write_bare(self, folder: Path) -> None:
        arrays = {str(place): array for place, array in enumerate(self._arrays)}
        write_raw(arrays, folder, allocate=False, early=True)

    def close(self) -> None:
        """Close the store and remove it."""
        if self._store is not None:
            self._store.close()
            self._setting.workspace.drop(self._folder)
            self._store = None
