"""W3: small puts. W4: commits of epochs and as-of reads. W5: bytes on disk of a fine-tune."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from tests.bench.children import run_child
from tests.bench.limit_log import LOG, PREALLOCATED
from tests.bench.peer import Ability, Peer, Purpose, Store
from tests.bench.peer_keyvalue import LMDB, LMDB_COMMIT_EACH, LMDB_READ_EACH
from tests.bench.peer_mldb import MLDB, ONE_TRANSACTION, UNVERIFIED
from tests.bench.registry import is_limit
from tests.bench.report import Outcome, Table
from tests.bench.setting import Setting, check_equal, check_total
from tests.bench.timing import Contender, Samples, folder_bytes, interleave
from tests.bench.workloads import History, State, small_tensors, touch_all, tuning_states

# Writes to an open store; the rate counts how often its unit of work was done.
Write: TypeAlias = Callable[[Store], None]


def _rates(
    setting: Setting,
    label: str,
    ability: Ability,
    purpose: Purpose,
    write: Write,
    count: int,
    expected: State,
) -> Samples:
    """Measure *count* operations per second of *write* in a fresh store per round; compare once."""
    checked: set[str] = set()

    def contender(peer: Peer) -> Contender:
        def run() -> float:
            folder = setting.workspace.fresh(peer.name)
            store = peer.open(folder, purpose)
            begin = time.perf_counter()
            write(store)
            seconds = time.perf_counter() - begin
            store.close()
            if peer.name not in checked:
                check_equal(peer, folder, expected)
                checked.add(peer.name)
            setting.workspace.drop(folder)
            return count / seconds

        return run

    peers = [peer for peer in setting.able(ability) if not peer.reads]
    return interleave(label, {peer.name: contender(peer) for peer in peers}, setting.scale.rounds)


def puts(setting: Setting) -> Outcome:
    """Measure 4 KiB tensors put one by one without fsync, and in durable batches of 100."""
    scale = setting.scale
    names, values = small_tensors(scale)
    state = dict(zip(names, values, strict=True))
    batches = [
        dict(zip(names[k : k + scale.batch], values[k : k + scale.batch], strict=True))
        for k in range(0, len(names), scale.batch)
    ]

    def write_lazily(store: Store) -> None:
        store.put_lazily(names, values)

    def write_batches(store: Store) -> None:
        for batch in batches:
            store.put_batch(batch)

    lazy = Table(
        workload="W3",
        title="4 KiB puts, no fsync",
        unit="puts/s",
        samples=_rates(setting, "W3 lazy", "lazy", "lazy", write_lazily, len(names), state),
        limit=LOG,
        notes=setting.notes("lazy"),
    )
    durable = Table(
        workload="W3",
        title=f"4 KiB puts, durable batches of {scale.batch}",
        unit="puts/s",
        samples=_rates(setting, "W3 durable", "batch", "durable", write_batches, len(names), state),
        notes=setting.notes("batch"),
    ).against_best([LOG, PREALLOCATED])
    outcome = Outcome([lazy, durable])
    outcome.compare("w3.lazy / lmdb, commit per put", lazy, MLDB, LMDB_COMMIT_EACH)
    outcome.compare("w3.lazy / lmdb", lazy, MLDB, LMDB)
    outcome.compare("w3.one / lmdb", lazy, ONE_TRANSACTION, LMDB)
    outcome.compare("w3.batch / lmdb", durable, MLDB, LMDB)
    outcome.compare("w3.batch / limit", durable, MLDB, durable.limit)
    return outcome


def _write_epochs(states: Iterable[tuple[int, State, State]], store: Store) -> None:
    for epoch, changed, full in states:
        store.commit_epoch(epoch, changed, full)


def history(setting: Setting) -> Outcome:
    """Measure durable commits of epochs and reads as of random epochs, summed."""
    scale = setting.scale
    past = History(scale)
    states = list(past.states())
    commits = _commits(setting, states)
    outcome = Outcome([commits])
    outcome.compare("w4.commit / lmdb", commits, MLDB, LMDB)
    outcome.compare("w4.commit / limit", commits, MLDB, commits.limit)
    peers = setting.able("as_of")

    folders = setting.build(peers, "durable", partial(_write_epochs, states))
    reads = past.reads(scale.as_of_reads)
    total = touch_all(past.at(name, epoch) for name, epoch in reads)

    def contender(peer: Peer, seconds: str) -> Contender:
        def run() -> float:
            folder = str(folders[peer.name])
            task = {"task": "as_of", "peer": peer.name, "folder": folder, "reads": reads}
            result = run_child(task)
            check_total(peer, result["total"], total)
            return len(reads) / float(result[seconds])

        return run

    for key, title, seconds in (
        ("w4.read", "reads as of random epochs, summed", "seconds"),
        ("w4.again", "the same reads again, nothing summed", "again"),
    ):
        contenders = {peer.name: contender(peer, seconds) for peer in peers}
        table = Table(
            workload="W4",
            title=title,
            unit="reads/s",
            samples=interleave(f"W4 {title}", contenders, scale.rounds),
            limit=LOG,
            notes=setting.notes("as_of"),
        )
        outcome.tables.append(table)
        for name, what in ((MLDB, key), (UNVERIFIED, f"{key}, never")):
            outcome.compare(f"{what} / lmdb", table, name, LMDB)
            outcome.compare(f"{what} / lmdb, each", table, name, LMDB_READ_EACH)
            outcome.compare(f"{what} / limit", table, name, LOG)
    setting.drop(folders)
    return outcome


def _commits(setting: Setting, states: list[tuple[int, State, State]]) -> Table:
    def contender(peer: Peer) -> Contender:
        def run() -> float:
            folder = setting.workspace.fresh(peer.name)
            store = peer.open(folder, "durable")
            begin = time.perf_counter()
            _write_epochs(states, store)
            seconds = time.perf_counter() - begin
            store.close()
            setting.workspace.drop(folder)
            return len(states) / seconds

        return run

    contenders = {peer.name: contender(peer) for peer in setting.able("commits")}
    return Table(
        workload="W4",
        title=f"{len(states)} durable commits, a quarter of the tensors changed",
        unit="commits/s",
        samples=interleave("W4 commits", contenders, setting.scale.rounds),
        notes=setting.notes("commits"),
    ).against_best([LOG, PREALLOCATED])


def tuning(setting: Setting) -> Outcome:
    """Report bytes on disk of a fine-tune saved whole at every step; for information."""
    raw = sum(sum(v.nbytes for v in full.values()) for _, _, full in tuning_states(setting.scale))
    samples: Samples = {}
    for peer in setting.able("commits"):
        if not is_limit(peer.name):
            write = partial(_write_epochs, tuning_states(setting.scale))
            folders = setting.build([peer], "durable", write)
            samples[peer.name] = [folder_bytes(folders[peer.name])[1] / raw]
            setting.drop(folders)
    table = Table(
        workload="W5",
        title=f"bytes on disk of {setting.scale.tune_steps} fine-tune steps, 70 % frozen",
        unit="x raw",
        samples=samples,
        higher_is_better=False,
    )
    return Outcome([table])
