"""W2: load a checkpoint and its first tensor. W6: random row slices of a large tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from tests.bench.children import Task, run_child
from tests.bench.limit_log import LOG
from tests.bench.peer import Peer, Store
from tests.bench.peer_mldb import MLDB, UNVERIFIED
from tests.bench.report import Outcome, Table
from tests.bench.setting import Folders, Setting, check_equal, check_total
from tests.bench.timing import Contender, interleave
from tests.bench.workloads import (
    FIRST_TENSOR,
    ROWS_NAME,
    TINY,
    Array,
    State,
    matrix,
    slice_starts,
    state_dict,
    touch,
    touch_all,
)

_SAFETENSORS = ["safetensors numpy", "safetensors torch"]
_FIRST_ROUNDS = 9
_CHECKED_SLICES = 8

TaskOf: TypeAlias = Callable[[str, Peer], Task]


def _put_all(prepared: Any, store: Store) -> None:
    store.put_all(prepared)


def _put_rows(data: Array, store: Store) -> None:
    store.put_rows(ROWS_NAME, data)


def _save(setting: Setting, peers: list[Peer], state: State) -> Folders:
    folders: Folders = {}
    for peer in peers:
        if not peer.reads:
            prepared = peer.prepare(state)
            folders |= setting.build([peer], "bulk", partial(_put_all, prepared))
    return folders | {peer.name: folders[peer.reads] for peer in peers if peer.reads}


def load(setting: Setting) -> Outcome:
    """Measure loading everything, and the first tensor, each round in a process of its own."""
    peers = setting.able("load")
    state = state_dict(setting.scale)
    folders = _save(setting, peers, state)
    twins = _save(setting, peers, state_dict(TINY))
    for peer in peers:
        check_equal(peer, folders[peer.name], state)
    total = touch_all(iter(state.values()))
    first_total = touch(state[FIRST_TENSOR])
    megabytes = sum(array.nbytes for array in state.values()) / 1e6
    del state

    def task(kind: str, peer: Peer) -> Task:
        return {
            "task": kind,
            "peer": peer.name,
            "folder": str(folders[peer.name]),
            "twin": str(twins[peer.name]),
            "first": FIRST_TENSOR,
        }

    outcome = Outcome()
    outcome.add(_load_all(setting, peers, task, total, megabytes))
    outcome.add(_first_tensor(setting, peers, task, first_total))
    setting.drop(folders | {f"twin of {name}": twin for name, twin in twins.items()})
    return outcome


def _load_all(
    setting: Setting, peers: list[Peer], task: TaskOf, total: int, megabytes: float
) -> Outcome:
    private: dict[str, float] = {}

    def contender(peer: Peer) -> Contender:
        def run() -> float:
            result = run_child(task("load", peer))
            check_total(peer, result["total"], total)
            private[peer.name] = result["private_mib"]
            return megabytes / float(result["seconds"])

        return run

    contenders = {peer.name: contender(peer) for peer in peers}
    samples = interleave("W2 load", contenders, setting.scale.rounds)
    table = Table(
        workload="W2",
        title="load all, sum every byte",
        unit="MB/s",
        samples=samples,
        limit=LOG,
        notes={name: f"{mib:,.0f} MiB private" for name, mib in private.items()},
    )
    outcome = Outcome([table])
    outcome.compare("w2.load / limit", table, MLDB, LOG)
    outcome.compare("w2.load, never / limit", table, UNVERIFIED, LOG)
    return outcome


def _first_tensor(setting: Setting, peers: list[Peer], task: TaskOf, total: int) -> Outcome:
    again: dict[str, list[float]] = {peer.name: [] for peer in peers}

    def contender(peer: Peer) -> Contender:
        def run() -> float:
            result = run_child(task("first", peer))
            check_total(peer, result["total"], total)
            again[peer.name].append(result["again_seconds"] * 1e6)
            return float(result["seconds"]) * 1e3

        return run

    rounds = max(setting.scale.rounds, _FIRST_ROUNDS) if setting.scale.rounds > 1 else 1
    contenders = {peer.name: contender(peer) for peer in peers}
    samples = interleave("W2 first", contenders, rounds)
    closed = Table(
        workload="W2",
        title="first tensor of a closed store, summed",
        unit="ms",
        samples=samples,
        limit=LOG,
        higher_is_better=False,
    )
    # The first sample belongs to the untimed round.
    opened = Table(
        workload="W2",
        title="the same tensor again, open handle, not summed",
        unit="us",
        samples={name: values[1:] for name, values in again.items()},
        limit=LOG,
        higher_is_better=False,
    )
    outcome = Outcome([closed, opened])
    outcome.compare("w2.first / safetensors", closed, MLDB, closed.best_of(_SAFETENSORS))
    outcome.keep("w2.again", opened, MLDB)
    return outcome


def rows(setting: Setting) -> Outcome:
    """Measure random slices of rows copied into one buffer, each round in its own process."""
    scale = setting.scale
    peers = setting.able("rows")
    data = matrix(scale)
    starts = slice_starts(scale)
    folders = setting.build(peers, "bulk", partial(_put_rows, data))
    expected = [touch(data[start : start + scale.slice_rows]) for start in starts[:_CHECKED_SLICES]]
    del data

    def contender(peer: Peer) -> Contender:
        def run() -> float:
            result = run_child(
                {
                    "task": "rows",
                    "peer": peer.name,
                    "folder": str(folders[peer.name]),
                    "name": ROWS_NAME,
                    "row_values": scale.row_values,
                    "slice_rows": scale.slice_rows,
                    "starts": starts,
                    "checked": _CHECKED_SLICES,
                }
            )
            for got, true in zip(result["totals"], expected, strict=True):
                check_total(peer, got, true)
            return len(starts) / float(result["seconds"])

        return run

    samples = interleave("W6", {peer.name: contender(peer) for peer in peers}, scale.rounds)
    slice_mib = scale.slice_rows * scale.row_values * 4 / (1 << 20)
    table = Table(
        workload="W6",
        title=f"random row slices of {slice_mib:g} MiB, copied",
        unit="slices/s",
        samples=samples,
        limit=LOG,
        notes=setting.notes("rows"),
    )
    outcome = Outcome([table])
    outcome.compare("w6.rows / limit", table, MLDB, LOG)
    outcome.compare("w6.rows, never / limit", table, UNVERIFIED, LOG)
    setting.drop(folders)
    return outcome
