"""W7: open a store of many records, closed or after SIGKILL. IMPORT: a fresh interpreter."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.bench.children import REPOSITORY, environment, run_child, tail_name
from tests.bench.peer import Peer, Store
from tests.bench.peer_mldb import MLDB, Mldb
from tests.bench.report import Outcome, Table
from tests.bench.setting import Folders, Setting, check_total
from tests.bench.timing import Contender, Samples, folder_bytes, interleave
from tests.bench.workloads import SEED, Scale, generator, record_batches, touch

_HEAVY = ("torch", "vulkan", "duckdb", "scipy", "ml_dtypes", "pandas", "pyarrow")
_IMPORT_ROUNDS = 11
_TAIL_KIB = (4, 1024)
_CALIBRATION_RECORDS = 20_000


def _write_records(scale: Scale, count: int, store: Store) -> None:
    for batch in record_batches(scale, count):
        store.put_batch(batch)


def records(setting: Setting) -> Outcome:
    """Measure open + first get of a closed store of many small records, and after SIGKILL."""
    scale = setting.scale
    peers = setting.able("records")
    folders = setting.build(
        peers, "lazy", lambda store: _write_records(scale, scale.records, store)
    )
    twins = setting.build(peers, "lazy", lambda store: _write_records(scale, 10, store))
    outcome = _open_clean(setting, peers, folders, twins)
    setting.drop(folders)
    if setting.has(MLDB):
        for kind, sizes, per_commit in (
            ("tensors", _tensor_sizes(scale), 1),
            ("records", _record_sizes(setting), scale.records_per_commit),
        ):
            outcome.add(_open_killed(setting, kind, sizes, per_commit, twins[MLDB]))
    setting.drop(twins)
    return outcome


def _open_clean(setting: Setting, peers: list[Peer], folders: Folders, twins: Folders) -> Outcome:
    wanted = setting.scale.records // 2
    name = f"record.{wanted:08d}"
    expected = _record(setting.scale, wanted)
    opens: Samples = {peer.name: [] for peer in peers}
    gets: Samples = {peer.name: [] for peer in peers}

    def contender(peer: Peer) -> Contender:
        def run() -> float:
            result = run_child(
                {
                    "task": "open_get",
                    "peer": peer.name,
                    "folder": str(folders[peer.name]),
                    "twin": str(twins[peer.name]),
                    "twin_name": "record.00000003",
                    "name": name,
                }
            )
            check_total(peer, result["total"], expected)
            opens[peer.name].append(result["open_seconds"] * 1e3)
            gets[peer.name].append(result["get_seconds"] * 1e3)
            return float(result["private_mib"])

        return run

    contenders = {peer.name: contender(peer) for peer in peers}
    private = interleave("W7 open", contenders, setting.scale.rounds)
    outcome = Outcome()
    for title, unit, samples, key in (
        ("open", "ms", {n: v[1:] for n, v in opens.items()}, "w7.open"),
        ("first get", "ms", {n: v[1:] for n, v in gets.items()}, "w7.get"),
        ("private memory", "MiB", private, "w7.private"),
    ):
        table = Table(
            workload="W7",
            title=f"{setting.scale.records:,} records: {title}",
            unit=unit,
            samples=samples,
            higher_is_better=False,
        )
        outcome.tables.append(table)
        outcome.keep(key, table, MLDB)
    return outcome


def _record(scale: Scale, place: int) -> int:
    """Return the sum over the record at *place*, without making those before it."""
    first = place - place % scale.records_per_commit
    size = min(scale.records_per_commit, scale.records - first)
    block = generator(9, first).integers(0, 256, (size, scale.record_bytes), dtype=np.uint8)
    return touch(block[place - first])


def _tensor_sizes(scale: Scale) -> list[int]:
    """Return byte sizes from 4 KiB to 1 MiB, log-uniform, summing to about ``tail_bytes``."""
    rng = generator(10)
    sizes: list[int] = []
    total = 0
    while total < scale.tail_bytes:
        low, high = (np.log2(kib) for kib in _TAIL_KIB)
        sizes.append(int(1024 * 2 ** rng.uniform(low, high)) // 8 * 8)
        total += sizes[-1]
    return sizes[:-1]


def _record_sizes(setting: Setting) -> list[int]:
    """Return sizes of as many records as fill ``tail_bytes`` of log, going by a small store."""
    scale = setting.scale
    folder = setting.workspace.fresh("calibration")
    store = Mldb(folder, "lazy")
    _write_records(scale, _CALIBRATION_RECORDS, store)
    store.close()
    per_record = folder_bytes(folder)[0] / _CALIBRATION_RECORDS
    setting.workspace.drop(folder)
    return [scale.record_bytes] * int(scale.tail_bytes / per_record)


def _open_killed(
    setting: Setting, kind: str, sizes: list[int], per_commit: int, twin: Path
) -> Outcome:
    """Measure open + get of the last tensor on copies of a store whose writer died by SIGKILL."""
    crashed = setting.workspace.fresh("killed")
    fill = {"peer": MLDB, "folder": str(crashed), "sizes": sizes, "per_commit": per_commit}
    if run_child({"task": "fill", **fill}) != {"killed": True}:
        raise RuntimeError("the writer ended before it could be killed: no figures")
    expected = _last_written(sizes, per_commit)

    def run() -> float:
        folder = setting.workspace.fresh("killed-copy")
        shutil.copytree(crashed, folder, dirs_exist_ok=True)
        setting.workspace.settle()
        result = run_child(
            {
                "task": "open_get",
                "peer": MLDB,
                "folder": str(folder),
                "twin": str(twin),
                "twin_name": "record.00000003",
                "name": tail_name(len(sizes) - 1),
            }
        )
        if result["total"] != expected:
            raise RuntimeError("the last tensor before the kill came back different: no figures")
        setting.workspace.drop(folder)
        return float(result["open_seconds"]) + float(result["get_seconds"])

    samples = interleave(f"W7 killed, {kind}", {MLDB: run}, setting.scale.rounds)
    mib = sum(sizes) / (1 << 20)
    table = Table(
        workload="W7",
        title=f"open + get after SIGKILL, {kind}",
        unit="s",
        samples=samples,
        higher_is_better=False,
        notes={MLDB: f"{len(sizes):,} tensors, {mib:,.0f} MiB of payload unsealed"},
    )
    outcome = Outcome([table])
    outcome.keep(f"w7.killed, {kind}", table, MLDB)
    setting.workspace.drop(crashed)
    return outcome


def _last_written(sizes: list[int], per_commit: int) -> int:
    """Return the sum over the last tensor that the ``fill`` task writes."""
    rng = np.random.default_rng(SEED)
    data = b""
    for begin in range(0, len(sizes), per_commit):
        data = rng.bytes(sum(sizes[begin : begin + per_commit]))
    return touch(np.frombuffer(data, np.uint8)[-sizes[-1] :])


def _interpreter_milliseconds(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env=environment())
    return (time.perf_counter() - begin) * 1e3


def imports(setting: Setting) -> Outcome:
    """Measure importing mldb and opening an empty store, and see what was loaded for it."""
    if not setting.has(MLDB):
        return Outcome()
    folder = setting.workspace.fresh("empty")
    Mldb(folder, "bulk").close()
    use = f"import mldb; mldb.open({str(folder)!r})"
    contenders: dict[str, Contender] = {
        "python": lambda: _interpreter_milliseconds("pass"),
        "python, numpy": lambda: _interpreter_milliseconds("import numpy"),
        MLDB: lambda: _interpreter_milliseconds(use),
    }
    rounds = max(setting.scale.rounds, _IMPORT_ROUNDS) if setting.scale.rounds > 1 else 1
    samples = interleave("IMPORT", contenders, rounds)
    listing = f"{use}; import sys; print(*(m for m in {_HEAVY!r} if m in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", listing],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
    ).stdout.split()
    setting.workspace.drop(folder)
    table = Table(
        workload="IMPORT",
        title="fresh interpreter",
        unit="ms",
        samples=samples,
        higher_is_better=False,
        notes={MLDB: f"heavy modules loaded: {', '.join(loaded) or 'none'}"},
    )
    outcome = Outcome([table])
    outcome.keep("import.total", table, MLDB)
    outcome.keep("import.python", table, "python")
    outcome.keep("import.numpy", table, "python, numpy")
    measures = outcome.measures
    measures["import.own"] = measures["import.total"] - measures["import.numpy"]
    measures["import.milliseconds"] = measures["import.total"] - measures["import.python"]
    measures["import.heavy"] = len(loaded)
    return outcome
