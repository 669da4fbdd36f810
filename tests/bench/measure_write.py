"""W1: one durable checkpoint, and a checkpoint written behind a running training loop."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.limits import MEMCPY, RAW_WRITERS, Memcpy, RawWriter
from tests.bench.peer import Peer, as_torch
from tests.bench.peer_mldb import MLDB, Mldb
from tests.bench.report import Outcome, Table, best_of
from tests.bench.setting import Setting, check_equal
from tests.bench.timing import Contender, Samples, interleave, median, percentile
from tests.bench.workloads import Array, State, state_dict

_SAFETENSORS = ["safetensors numpy", "safetensors torch"]
_IDLE_STEPS = 100


def checkpoint(setting: Setting) -> Outcome:
    """Measure the durable write of one state dict: raw writes, every peer, mldb."""
    state = state_dict(setting.scale)
    copy = Memcpy(state)
    contenders: dict[str, Contender] = {MEMCPY: lambda: _megabytes(state) / copy.seconds()}
    for name, write in RAW_WRITERS.items():
        contenders[name] = partial(_raw_rate, setting, write, state)
    checked: set[str] = set()
    for peer in setting.able("checkpoint"):
        prepared = peer.prepare(state)
        contenders[peer.name] = partial(_save_rate, setting, peer, prepared, state, checked)
    samples = interleave("W1 write", contenders, setting.scale.rounds)
    table = Table(
        workload="W1",
        title="durable checkpoint",
        unit="MB/s",
        samples=samples,
        notes=setting.notes("checkpoint"),
    )
    return _against_limit(table)


def _against_limit(table: Table) -> Outcome:
    best = best_of(table, list(RAW_WRITERS))
    table = Table(
        workload=table.workload,
        title=table.title,
        unit=table.unit,
        samples=table.samples,
        limit=best,
        notes={**table.notes, best: "the best raw write of this run"},
    )
    outcome = Outcome([table])
    outcome.compare("w1.write / limit", table, MLDB, best)
    outcome.compare("w1.write / safetensors", table, MLDB, best_of(table, _SAFETENSORS))
    return outcome


def _megabytes(state: State) -> float:
    return sum(array.nbytes for array in state.values()) / 1e6


def _raw_rate(setting: Setting, write: RawWriter, state: State) -> float:
    folder = setting.workspace.fresh("raw")
    seconds = write(state, folder)
    setting.workspace.drop(folder)
    return _megabytes(state) / seconds


def _save_rate(
    setting: Setting, peer: Peer, prepared: Any, state: State, checked: set[str]
) -> float:
    folder = setting.workspace.fresh(peer.name)
    store = peer.open(folder, "bulk")
    begin = time.perf_counter()
    store.put_all(prepared)
    seconds = time.perf_counter() - begin
    store.close()
    if peer.name not in checked:
        check_equal(peer, folder, state)
        checked.add(peer.name)
    setting.workspace.drop(folder)
    return _megabytes(state) / seconds


class _Trainer:
    """A small MLP and its optimizer; one step takes 5 to 10 ms on two CPU cores."""

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
        self._input = torch.randn(128, 512)

    def step_seconds(self) -> float:
        """Make one training step; return how long it took."""
        begin = time.perf_counter()
        self._optimizer.zero_grad()
        loss = self._model(self._input).square().mean()
        loss.backward()
        self._optimizer.step()
        return time.perf_counter() - begin


def stall(setting: Setting) -> Outcome:
    """Measure how long ``checkpoint(wait=False)`` holds the caller, and the train steps beside it.

    The steps run twice: with one core left to the rest of the process (the figure held to a
    target), and with a torch thread on every core, where other work stalls the pool's barrier.
    """
    if not setting.has(MLDB):
        return Outcome()
    state = state_dict(setting.scale)
    cores = os.cpu_count() or 1
    behind = _Behind(setting, state)
    outcome = behind.measure_stall()
    for threads in (max(1, cores - 1), cores):
        table = behind.measure_steps(threads)
        outcome.tables.append(table)
        idle, busy = (percentile(values, 0.99) for values in table.samples.values())
        outcome.measures.setdefault("w1.steps / idle", busy / idle)
        outcome.measures[f"w1.steps / idle, {threads} threads"] = busy / idle
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

    def measure_steps(self, threads: int) -> Table:
        """Pool the step times of all rounds: idle, and while a checkpoint is being written."""
        import torch

        database = self._database()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        trainer = _Trainer()
        samples: Samples = {"idle": [], MLDB: []}
        for turn in range(self._setting.scale.rounds + 1):
            idle = [trainer.step_seconds() * 1e3 for _ in range(_IDLE_STEPS)]
            self._change()
            pending = database.checkpoint(self._state, epoch=self._epoch, wait=False)
            busy: list[float] = []
            while not pending.done:
                busy.append(trainer.step_seconds() * 1e3)
            pending.result()
            self._setting.workspace.settle()
            if turn:
                samples["idle"] += idle
                samples[MLDB] += busy
        torch.set_num_threads(before)
        tails = {name: percentile(values, 0.99) for name, values in samples.items()}
        return Table(
            workload="W1",
            title=f"train step, {threads} torch threads",
            unit="ms",
            samples=samples,
            limit="idle",
            higher_is_better=False,
            notes={name: f"p99 {tail:.2f} ms" for name, tail in tails.items()},
        )

    def close(self) -> None:
        """Close the store and remove it."""
        if self._store is not None:
            self._store.close()
            self._setting.workspace.drop(self._folder)
            self._store = None
