"""torch.distributed.checkpoint: a store beside DCP's own FileSystemWriter, on two gloo ranks.

The state is DTensors split along their first axis, as FSDP2 has them. Both write into a new folder
and sync; both read what was just written, which is in the page cache. They take turns, so that a
busy machine is busy for both; the median of the ratios is told. MLDB_BENCH_DCP_MIB sets how much a
full run saves (1024).
"""

from __future__ import annotations

import importlib.util
import os
import statistics
from dataclasses import dataclass

from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least
from tests.support.ranks import run_ranks

RANKS = 2


@dataclass(frozen=True)
class Size:
    """MiB in all, in so many tensors; rounds; whether the bounds are meant for it."""

    mib: float
    tensors: int
    rounds: int
    asked: bool


FULL = Size(float(os.environ.get("MLDB_BENCH_DCP_MIB", "1024")), 16, 3, asked=True)
QUICK = Size(8, 4, 2, asked=False)


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    if importlib.util.find_spec("torch") is None:
        return []
    size = QUICK if quick else FULL
    with fresh_folder() as folder:
        work = "tests.bench_adapters.dcp_ranks:measure"
        timed = run_ranks(work, RANKS, folder, str(folder), size.mib, size.tensors, size.rounds)[
            0
        ].result
    found = []
    for what, must in (("save", 1.2), ("load", 1.5)):
        own, other = timed[f"mldb {what}"], timed[f"files {what}"]
        figure = f"DCP {what} of {size.mib:g} MiB on {RANKS} ranks"
        ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
        asked = size.asked and size.mib >= 256
        found += [
            at_least(figure, ratio, "x of FileSystemWriter", must, 2, asked=asked),
            Row(f"{figure}: mldb", statistics.median(own) * 1e3, "ms"),
            Row(f"{figure}: FileSystemWriter", statistics.median(other) * 1e3, "ms"),
        ]
    size_of_it = f"{size.mib:g} MiB by one process, which is what the disk takes"
    for kind, how in (("raw", "a write and fsync"), ("early", "the same, writeback started early")):
        seconds = statistics.median(timed[f"{kind} save"])
        ratio = statistics.median(
            b / a for a, b in zip(timed["mldb save"], timed[f"{kind} save"], strict=True)
        )
        found.append(Row(f"{how} of {size_of_it}", seconds * 1e3, "ms"))
        found.append(Row(f"DCP save of {size.mib:g} MiB: mldb / {how}", ratio, "x of it"))
    seconds = statistics.median(
        b / a for a, b in zip(timed["early save"], timed["files save"], strict=True)
    )
    most = "what a save that takes as long as the disk alone would be of FileSystemWriter"
    return [*found, Row(most, seconds, "x of it")]
