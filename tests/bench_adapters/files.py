"""Files of others: a safetensors file into a store, and a store into a safetensors file.

``python -m tests.bench_adapters.files [MB [ROUNDS [FOLDER]]]``; 1024 MB and 5 rounds unless
said. Import is held against the fastest raw durable write of the same bytes that the machine has,
with the file to import in the page cache; export against ``safetensors.numpy.save_file`` and an
fsync.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file
from xxhash import xxh3_128_digest

import mldb
from tests.bench.limits import RAW_WRITERS, write_raw
from tests.bench.sections import fresh_folder
from tests.bench.timing import Samples, Workspace, interleave, median, sync_path
from tests.bench_compaction.row import Row, at_least

TENSORS: Final = 16
SAFETENSORS: Final = "safetensors.save_file, fsync"
IMPORT: Final = "mldb.import_file"
EXPORT: Final = "mldb.export_file"
BARE: Final = "limit: a bare import"
TARGET: Final = 0.9


def state(megabytes: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random float32 tensors of one size, *megabytes* MiB in all."""
    rng = np.random.default_rng(seed)
    rows = max(megabytes * (1 << 20) // (TENSORS * 4 * 1024), 1)
    return {
        f"layer.{i:02d}.weight": rng.random((rows, 1024), dtype=np.float32) for i in range(TENSORS)
    }


def measure(root: Path, megabytes: int, rounds: int) -> Samples:
    """Seconds of each way, by its name; one round more runs first and is thrown away."""
    space = Workspace(root, settle_seconds=0.0)
    tensors = state(megabytes)
    source = space.root / "source.safetensors"
    save_file(tensors, source)
    store = space.root / "store"
    mldb.import_file(store, source)
    contenders: dict[str, Callable[[], float]] = {
        name: partial(_timed, space, "raw", partial(write, tensors))
        for name, write in RAW_WRITERS.items()
    }
    contenders |= {
        BARE: lambda: _timed(space, "bare", lambda folder: _bare_import(source, folder)),
        IMPORT: lambda: _timed(space, "import", lambda folder: _import(source, folder)),
        SAFETENSORS: lambda: _timed(space, "save", lambda folder: _save(tensors, folder)),
        EXPORT: lambda: _timed(space, "export", lambda folder: _export(store, folder)),
    }
    return interleave("files", contenders, rounds)


def _timed(space: Workspace, label: str, run: Callable[[Path], float | None]) -> float:
    """The seconds that *run* took, its own figure where it has one."""
    folder = space.fresh(label)
    space.settle()
    begin = time.perf_counter()
    own = run(folder)
    seconds = time.perf_counter() - begin if own is None else own
    space.drop(folder)
    return seconds


def _save(tensors: dict[str, np.ndarray[Any, Any]], folder: Path) -> None:
    save_file(tensors, folder / "saved.safetensors")
    sync_path(folder / "saved.safetensors")
    sync_path(folder)


def _import(source: Path, folder: Path) -> None:
    mldb.import_file(folder / "store", source)


def _bare_import(source: Path, folder: Path) -> None:
    """Write a mapped file to another one, durably, and hash it meanwhile: no names, no store."""
    data = np.memmap(source, np.uint8, "r")
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(xxh3_128_digest, data.data)
        write_raw({"file": data}, folder, allocate=False, early=True)
        hashed.result()


def _export(store: Path, folder: Path) -> None:
    mldb.export_file(store, folder / "exported.safetensors")


def compare(samples: Samples) -> dict[str, float]:
    """How fast mldb is against the way beside it; 1 is as fast."""
    return {
        "import / raw write": min(median(samples[name]) for name in RAW_WRITERS)
        / median(samples[IMPORT]),
        "export / safetensors": median(samples[SAFETENSORS]) / median(samples[EXPORT]),
    }


def by_round(other: list[float], own: list[float]) -> float:
    """The median of what each round said: the disk of a shared machine drifts between them."""
    return median([theirs / ours for theirs, ours in zip(other, own, strict=True)])


def report(samples: Samples, megabytes: int) -> list[str]:
    """The lines that are printed."""
    lines = [f"{megabytes} MiB in {TENSORS} tensors, medians of {len(samples[IMPORT])} rounds"]
    for name, seconds in samples.items():
        rate = megabytes * 1.048576 / median(seconds)
        lines.append(f"{name:40} {rate:8,.0f} MB/s   {min(seconds):.3f}-{max(seconds):.3f} s")
    lines += [
        f"import / {name:36} {by_round(samples[name], samples[IMPORT]):8.2f} x"
        for name in (*RAW_WRITERS, BARE)
    ]
    for name, ratio in compare(samples).items():
        met = "met" if ratio >= TARGET else "missed"
        lines.append(f"{name:40} {ratio:8.2f} x      at least {TARGET} x: {met}")
    return lines


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    megabytes, rounds = (8, 2) if quick else (1024, 5)
    with fresh_folder() as root:
        samples = measure(root, megabytes, rounds)
    asked = not quick
    found = [
        at_least(f"{what} of {megabytes} MiB", ratio, "x of it", TARGET, asked=asked)
        for what, ratio in compare(samples).items()
    ]
    each = [
        Row(f"import / {name}, by rounds", by_round(samples[name], samples[IMPORT]), "x of it")
        for name in (*RAW_WRITERS, BARE)
    ]
    return [
        *found,
        *each,
        *(Row(name, median(times) * 1e3, "ms") for name, times in samples.items()),
    ]


def main(arguments: list[str]) -> None:
    """Measure and print."""
    megabytes = int(arguments[0]) if arguments else 1024
    rounds = int(arguments[1]) if len(arguments) > 1 else 5
    with tempfile.TemporaryDirectory(dir=arguments[2] if len(arguments) > 2 else ".") as root:
        print("\n".join(report(measure(Path(root), megabytes, rounds), megabytes)))


if __name__ == "__main__":
    main(sys.argv[1:])
