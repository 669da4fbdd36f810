"""The command line of the harness: run workloads, print tables, write JSON."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.bench.pure import add_pure, check_pure
from tests.bench.report import Outcome, render_table, render_targets, write_json
from tests.bench.runner import MEMORY_FILESYSTEMS, default_folder, machine
from tests.bench.timing import Workspace
from tests.bench_lake import measure, measure_first, measure_start
from tests.bench_lake.setting import FULL, QUICK, LakeScale, Setting, make_data
from tests.bench_lake.targets import TARGETS

WORKLOADS: dict[str, Callable[[Setting], Outcome]] = {
    "S1": measure.ingest,
    "S2": measure.sequential,
    "S3": measure.shuffled,
    "S4": measure.weighted,
    "S5": measure.augmented,
    "S6": measure.langevin,
    "VULKAN": measure.vulkan,
    "S7": measure_start.resume,
    "S8": measure_start.first,
    "S9": measure.workers,
    "S10": measure_first.first_pass,
    "S11": measure_first.from_disk,
}
_PACKAGES = ("numpy", "torch", "torchdata", "numba", "vulkan", "pylance")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_lake", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, two rounds")
    parser.add_argument("--rounds", type=int, help="timed rounds of each measurement")
    parser.add_argument("--rows", type=int, help="rows of 640 float32")
    parser.add_argument("--json", type=Path, help="write every sample here")
    parser.add_argument("--path", type=Path, help="folder on the disk to be measured")
    add_pure(parser)
    options = parser.parse_args(arguments)
    check_pure(parser, options)
    options.only = [name.upper() for name in options.only.split(",") if name] or list(WORKLOADS)
    unknown = set(options.only) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}")
    return options


def run(setting: Setting, only: list[str]) -> Outcome:
    """Run the workloads named in *only*, printing each table as it is known."""
    outcome = Outcome()
    for name in only:
        part = WORKLOADS[name](setting)
        for table in part.tables:
            print(f"\n{render_table(table)}", flush=True)
        outcome.add(part)
    print(f"\n{render_targets(outcome.measures, only, TARGETS)}")
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """Run the harness; return 0 when every measurement could be made, met or not."""
    options = parse(arguments)
    scale: LakeScale = QUICK if options.quick else FULL
    scale = replace(scale, rounds=options.rounds or scale.rounds, rows=options.rows or scale.rows)
    root = Path(tempfile.mkdtemp(prefix="mldb-bench-lake-", dir=options.path or default_folder()))
    about = {**machine(root, scale.name, scale.rounds, _PACKAGES), "rows": scale.rows}
    print("; ".join(f"{key} {value}" for key, value in about.items()))
    if about["filesystem"] in MEMORY_FILESYSTEMS:
        print(f"warning: {about['filesystem']} makes fsync free; name a real disk with --path")
    try:
        workspace = Workspace(root, scale.settle_seconds)
        setting = Setting(scale, make_data(workspace.fresh("rows"), scale), workspace)
        outcome = run(setting, options.only)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.json is not None:
        write_json(options.json, about, outcome, TARGETS)
        print(f"\nsamples written to {options.json}", file=sys.stderr)
    return 0
