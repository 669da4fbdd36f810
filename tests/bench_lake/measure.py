"""The workloads: which contenders they have, what is compared, and what is recorded for targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.bench.children import Result, Task
from tests.bench.peer_mldb import MLDB
from tests.bench.report import Outcome, Table
from tests.bench.timing import interleave
from tests.bench_lake.child import Group
from tests.bench_lake.setting import Setting

TORCH, OWN, STATEFUL = "torch DataLoader", "torch DataLoader, own sampler", "torchdata stateful"
NO_LOADER = "no loader: gather, copy"
EAGER, EAGER_ONE = "torch operations", "torch operations, Python threads"
_NUMPY_BATCHES = 40  # the reference device is slow, and nobody's choice
_RAW = ["limit: write, fresh file", "limit: write, early writeback"]


def _rate(result: Result) -> float:
    return float(result["rate"])


def ingest(setting: Setting) -> Outcome:
    """S1: durable ingest of all rows from memory into a fresh folder."""
    tasks = {
        _RAW[0]: setting.task("ingest", how="write"),
        _RAW[1]: setting.task("ingest", how="early"),
        MLDB: setting.task("ingest", how="mldb"),
        "lance": setting.task("ingest", how="lance"),
    }

    def once(name: str) -> float:
        folder = setting.workspace.fresh(name)
        seconds = float(group.workers[name].turn({"into": str(folder)})["seconds"])
        setting.workspace.drop(folder)
        return setting.scale.rows / seconds

    with Group(tasks, processes=setting.processes) as group:
        contenders = {name: (lambda name=name: once(name)) for name in group.workers}
        table = Table(
            workload="S1",
            title="durable ingest",
            unit="rows/s",
            samples=interleave("S1", contenders, setting.scale.rounds),
            notes=group.notes(),
            absent=group.absent,
        ).against_best(_RAW)
    outcome = Outcome([table])
    outcome.compare("s1.ingest / limit", table, MLDB, table.limit)
    outcome.compare("s1.ingest / lance", table, MLDB, "lance")
    return outcome


def _passes(
    setting: Setting, workload: str, title: str, tasks: Mapping[str, Task], limit: str = ""
) -> Table:
    with Group(tasks, processes=setting.processes) as group:
        return Table(
            workload=workload,
            title=title,
            unit="rows/s",
            samples=group.measure(workload, setting.scale.rounds, _rate),
            limit=limit,
            notes=group.notes(),
            absent=group.absent,
        )


def _read(setting: Setting, workload: str, kind: str, title: str, limit: str) -> Outcome:
    def task(maker: str, how: str = "") -> Task:
        return setting.task("stream", maker=maker, kind=kind, how=how)

    tasks = {
        limit: task("limit"),
        MLDB: task("mldb"),
        TORCH: task("torch", "BatchSampler over memmap"),
        OWN: task("own", _OWN_HOW[kind]),
        STATEFUL: task("stateful", "BatchSampler over memmap"),
    }
    if kind != "sequential":
        tasks[NO_LOADER] = setting.task("stream", maker="limit", kind=kind, copied=True)
    table = _passes(setting, workload, title, tasks, limit)
    outcome = Outcome([table])
    key = workload.lower()
    outcome.compare(f"{key}.stream / limit", table, MLDB, limit)
    outcome.compare(f"{key}.stream / torch", table, MLDB, TORCH)
    outcome.compare(f"{key}.stream / own", table, MLDB, OWN)
    return outcome


_OWN_HOW = {
    "sequential": "slices of memmap: batches are views of the file",
    "shuffled": "arrays of row numbers",
    "weighted": "arrays of row numbers",
}


def sequential(setting: Setting) -> Outcome:
    """S2: all rows in their order."""
    return _read(setting, "S2", "sequential", "sequential stream", "limit: memcpy per batch")


def shuffled(setting: Setting) -> Outcome:
    """S3: all rows in random order."""
    return _read(setting, "S3", "shuffled", "full shuffle", "limit: gather per batch")


def weighted(setting: Setting) -> Outcome:
    """S4: rows drawn with replacement, their importance weights returned."""
    return _read(setting, "S4", "weighted", "weighted, with weights", "limit: gather per batch")


def augmented(setting: Setting) -> Outcome:
    """S5: all rows in their order, isotropic noise around each, on every device there is."""

    def mldb_on(device: str, **options: Any) -> Task:
        return setting.task("stream", maker="mldb", kind="augmented", device=device, **options)

    def noisy(**options: Any) -> Task:
        return setting.task("stream", maker="own", kind="augmented", noise=True, **options)

    # A busy core stalls torch's pool of threads, and most of the work is one thread's anyway.
    limits = ["limit: noise alone", "limit: noise alone, one thread"]
    noise = setting.task("stream", maker="limit", kind="augmented")
    tasks = {
        limits[0]: noise,
        limits[1]: {**noise, "threads": 1},
        MLDB: mldb_on("auto"),
        f"{MLDB}, torch": mldb_on("torch"),
        f"{MLDB}, vulkan": mldb_on("vulkan"),
        f"{MLDB}, numpy": mldb_on("numpy", batches=_NUMPY_BATCHES),
        f"{TORCH} + randn": noisy(how="slices, torch.randn, all threads"),
        f"{TORCH} + randn, one thread": noisy(how="slices, torch.randn", threads=1),
    }
    table = _passes(setting, "S5", "isotropic augmentation", tasks).against_best(limits)
    best = table.best_of([f"{TORCH} + randn", f"{TORCH} + randn, one thread"])
    outcome = Outcome([table])
    for name in (MLDB, f"{MLDB}, torch", f"{MLDB}, vulkan"):
        outcome.compare(f"s5.{name} / torch", table, name, best)
    return outcome


def workers(setting: Setting) -> Outcome:
    """S9: the sequential stream from two loader workers, their start and end included."""

    def task(maker: str, how: str = "two workers") -> Task:
        return setting.task("stream", maker=maker, kind="sequential", workers=2, how=how)

    # What is only read needs no workers: LakeLoader takes num_workers=2 as a wish.
    tasks = {
        MLDB: task("mldb", "num_workers=2: read by a thread"),
        TORCH: task("torch"),
        OWN: task("own"),
        STATEFUL: task("stateful"),
    }
    table = _passes(setting, "S9", "sequential, two workers", tasks)
    outcome = Outcome([table])
    outcome.compare("s9.stream / torch", table, MLDB, TORCH)
    outcome.compare("s9.stream / own", table, MLDB, OWN)
    return outcome


def _chains(setting: Setting, workload: str, title: str, tasks: Mapping[str, Task]) -> Table:
    scale = setting.scale
    sizes = {"rows": scale.chain_rows, "neighbours": scale.neighbours, "steps": scale.steps}
    with Group(
        {name: {**task, **sizes} for name, task in tasks.items()}, processes=setting.processes
    ) as group:
        cosines = {name: worker.ready["cosine"] for name, worker in group.workers.items()}
        _same_law(cosines, scale.dim)
        return Table(
            workload=workload,
            title=title,
            unit="rows/s",
            samples=group.measure(workload, scale.rounds, _rate),
            notes=group.notes(),
            absent=group.absent,
        )


def _same_law(cosines: Mapping[str, float], dim: int) -> None:
    """Compare the mean cosine of an end to its start; RuntimeError when a contender differs."""
    low, high = min(cosines.values()), max(cosines.values())
    # One chain deviates by less than 0.2 / sqrt(dim), the mean of hundreds by far less.
    if high - low > 0.05 / dim**0.5:
        raise RuntimeError(f"the chains end at different mean cosines {cosines}: no figures")


def langevin(setting: Setting) -> Outcome:
    """S6: chains under the energy of neighbours, on the CPU."""

    def task(device: str, **options: Any) -> Task:
        return setting.task("chains", energy="mixture", device=device, **options)

    subspace = f"{MLDB}, subspace form"
    tasks = {
        MLDB: task("torch"),
        subspace: task("torch", form="subspace"),
        EAGER: task("eager"),
        EAGER_ONE: task("eager", threads=1),
    }
    scale = setting.scale
    title = f"{scale.steps} Langevin steps, {scale.neighbours} neighbours, CPU"
    table = _chains(setting, "S6", title, tasks)
    best = table.best_of([EAGER, EAGER_ONE])
    outcome = Outcome([table])
    outcome.compare("s6.direct / torch", table, MLDB, best)
    outcome.compare("s6.subspace / torch", table, subspace, best)
    return outcome


def vulkan(setting: Setting) -> Outcome:
    """VULKAN: the same steps on the Vulkan device, under one splat and under neighbours."""
    outcome = Outcome()
    for energy, title in (
        ("self", f"{setting.scale.steps} steps, own splat"),
        ("mixture", f"{setting.scale.steps} steps, {setting.scale.neighbours} neighbours"),
    ):
        name = f"{MLDB}, vulkan"

        def task(device: str, energy: str = energy, **options: Any) -> Task:
            return setting.task("chains", energy=energy, device=device, **options)

        tasks = {
            name: task("vulkan"),
            f"{MLDB}, torch": task("torch"),
            EAGER: task("eager"),
            EAGER_ONE: task("eager", threads=1),
        }
        table = _chains(setting, "VULKAN", title, tasks)
        outcome.tables.append(table)
        outcome.compare(f"vulkan.{energy} / torch", table, name, table.best_of([EAGER, EAGER_ONE]))
    return outcome
