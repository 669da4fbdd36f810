"""Where the time of mldb goes: ``python -m tests.bench_lake.profiling shuffled [--start]``.

Profiles one warm pass of a stream, or with ``--start`` one further loader up to its first batches.
Batches are made in the caller's thread (``prefetch=0``), since a profile sees one thread only. A
profile makes Python calls look dearer than they are; ``make bench-lake`` says what they cost.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tests.bench.runner import default_folder
from tests.bench.timing import Workspace
from tests.bench_lake.loaders import Kind
from tests.bench_lake.setting import FULL, Setting, make_data
from tests.bench_lake.worker import make_worker

_LINES = 25


def main(arguments: list[str] | None = None) -> int:
    """Print the functions that took longest."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_lake.profiling")
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--start", action="store_true", help="a new loader, not a pass")
    parser.add_argument("--rows", type=int, default=FULL.rows)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mldb-profile-", dir=default_folder()) as folder:
        workspace = Workspace(Path(folder), 0.0)
        scale = replace(FULL, rows=options.rows)
        setting = Setting(scale, make_data(workspace.fresh("rows"), scale), workspace)
        what = {"maker": "mldb", "kind": options.kind, "device": options.device, "prefetch": 0}
        worker = make_worker(setting.task("start" if options.start else "stream", **what))
        worker.turn({})
        profile = cProfile.Profile()
        profile.runcall(worker.turn, {})
        worker.close()
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(_LINES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
