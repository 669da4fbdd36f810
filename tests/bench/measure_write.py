"""W1: one durable checkpoint of a state dict, and several in a row."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tests.bench.limits import MEMCPY, RAW_WRITERS, Memcpy, RawWriter
from tests.bench.peer import Peer
from tests.bench.peer_mldb import MLDB
from tests.bench.report import Outcome, Table
from tests.bench.setting import Setting, check_equal
from tests.bench.timing import Contender, interleave
from tests.bench.workloads import State, equal_tensors, state_dict

_SAFETENSORS = ["safetensors numpy", "safetensors torch"]
_TRANSACTION = f"{MLDB}, a transaction"
_IN_A_ROW = 5


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
    table = Table(
        workload="W1",
        title="durable checkpoint",
        unit="MB/s",
        samples=interleave("W1 write", contenders, setting.scale.rounds),
        notes=setting.notes("checkpoint"),
    ).against_best(list(RAW_WRITERS))
    outcome = Outcome([table])
    outcome.compare("w1.write / limit", table, MLDB, table.limit)
    outcome.compare("w1.write / safetensors", table, MLDB, table.best_of(_SAFETENSORS))
    return outcome


def sustained(setting: Setting) -> Outcome:
    """Measure the fifth durable write in a row of a state whose tensors all change."""
    state = equal_tensors(setting.scale)
    contenders: dict[str, Contender] = {}
    for name, write in RAW_WRITERS.items():
        contenders[name] = partial(_fifth_raw, setting, write, state)
    for peer in setting.able("checkpoint"):
        if peer.name in (MLDB, *_SAFETENSORS):
            contenders[peer.name] = partial(_fifth, setting, peer, state, together=False)
        if peer.name == MLDB:
            contenders[_TRANSACTION] = partial(_fifth, setting, peer, state, together=True)
    table = Table(
        workload="W1",
        title=f"durable write of {len(state)} tensors of one size, the fifth in a row",
        unit="MB/s",
        samples=interleave("W1 sustained", contenders, setting.scale.rounds),
        notes=setting.notes("checkpoint"),
    ).against_best(list(RAW_WRITERS))
    outcome = Outcome([table])
    for key, name in (("w1.fifth", MLDB), ("w1.transaction", _TRANSACTION)):
        outcome.compare(f"{key} / limit", table, name, table.limit)
        outcome.compare(f"{key} / safetensors", table, name, table.best_of(_SAFETENSORS))
    return outcome


def _change(state: State) -> None:
    for array in state.values():
        array += 1


def _fifth_raw(setting: Setting, write: RawWriter, state: State) -> float:
    folder = setting.workspace.fresh("raw")
    for number in range(_IN_A_ROW):
        _change(state)
        place = folder / str(number)
        place.mkdir()
        seconds = write(state, place)
    setting.workspace.drop(folder)
    return _megabytes(state) / seconds


def _fifth(setting: Setting, peer: Peer, state: State, *, together: bool) -> float:
    folder = setting.workspace.fresh(peer.name)
    store, prepared = peer.open(folder, "bulk"), peer.prepare(state)
    for _ in range(_IN_A_ROW):
        _change(state)
        begin = time.perf_counter()
        if together:
            store.put_batch(state)
        else:
            store.put_all(prepared)
        seconds = time.perf_counter() - begin
    store.close()
    check_equal(peer, folder, {name: state[name] for name in list(state)[:3]})
    setting.workspace.drop(folder)
    return _megabytes(state) / seconds


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
