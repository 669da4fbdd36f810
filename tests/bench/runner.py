"""The command line of the harness: run workloads, print tables, write JSON."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mldb.log import native
from tests.bench import (
    measure_events,
    measure_load,
    measure_open,
    measure_other,
    measure_stall,
    measure_write,
)
from tests.bench.pure import add_pure, check_pure
from tests.bench.registry import select
from tests.bench.report import Outcome, render_table, render_targets, write_json
from tests.bench.setting import Setting
from tests.bench.timing import Workspace, filesystem_of
from tests.bench.workloads import FULL, QUICK, Scale

WORKLOADS: dict[str, tuple[Callable[[Setting], Outcome], ...]] = {
    "W1": (measure_write.checkpoint, measure_write.sustained, measure_stall.stall),
    "W2": (measure_load.load,),
    "W3": (measure_events.puts,),
    "W4": (measure_events.history,),
    "W5": (measure_events.tuning,),
    "W6": (measure_load.rows,),
    "W7": (measure_open.records,),
    "ADAM": (measure_other.adam,),
    "DISK": (measure_other.disk,),
    "IMPORT": (measure_open.imports,),
}
_PACKAGES = ("numpy", "torch", "safetensors", "lmdb", "rocksdict", "h5py")
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs", "overlay")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="an eighth of the sizes")
    parser.add_argument("--peers", action="store_true", help="leave mldb out")
    parser.add_argument("--against", help="comma list of peers (names may be cut short)")
    parser.add_argument("--rounds", type=int, help="timed rounds of each measurement")
    parser.add_argument("--records", type=int, help="records of W7")
    parser.add_argument("--json", type=Path, help="write every sample here")
    parser.add_argument("--store-dir", type=Path, help="folder on the disk to be measured")
    add_pure(parser)
    options = parser.parse_args(arguments)
    check_pure(parser, options)
    options.only = [name.upper() for name in options.only.split(",") if name] or list(WORKLOADS)
    unknown = set(options.only) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}")
    return options


def run(scale: Scale, setting: Setting, only: list[str]) -> Outcome:
    """Run the workloads named in *only*, printing each table as it is known."""
    outcome = Outcome()
    for name in only:
        for measure in WORKLOADS[name]:
            part = measure(setting)
            for table in part.tables:
                print(f"\n{render_table(table)}", flush=True)
            outcome.add(part)
    print(f"\n{render_targets(outcome.measures, only)}")
    return outcome


def machine(
    root: Path, scale: str, rounds: int, packages: Sequence[str] = _PACKAGES
) -> dict[str, Any]:
    """Return what the figures depend on: what runs, sizes, versions, cores, memory, file system."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "native": native.status,
        "scale": scale,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "filesystem": filesystem_of(root),
        "packages": versions,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the harness; return 0 when every measurement could be made, met or not."""
    options = parse(arguments)
    scale = QUICK if options.quick else FULL
    scale = replace(
        scale, rounds=options.rounds or scale.rounds, records=options.records or scale.records
    )
    against = None if options.against is None else options.against.split(",")
    root = Path(tempfile.mkdtemp(prefix="mldb-bench-", dir=options.store_dir or default_folder()))
    about = machine(root, scale.name, scale.rounds)
    print("; ".join(f"{key} {value}" for key, value in about.items()))
    if about["filesystem"] in MEMORY_FILESYSTEMS:
        print(f"warning: {about['filesystem']} makes fsync free; name a real disk with --store-dir")
    try:
        workspace = Workspace(root, scale.settle_seconds)
        setting = Setting(scale, select(against, not options.peers), workspace)
        outcome = run(scale, setting, options.only)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.json is not None:
        write_json(options.json, about, outcome)
        print(f"\nsamples written to {options.json}", file=sys.stderr)
    return 0


def default_folder() -> Path:
    """Prefer /var/tmp: by convention it is on disk, while /tmp is often memory."""
    disk = Path("/var/tmp")
    return disk if disk.is_dir() else Path(tempfile.gettempdir())
