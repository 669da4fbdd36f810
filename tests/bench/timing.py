"""Rounds, scratch folders, bytes on disk and private memory: the mechanics of measuring."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

Contender: TypeAlias = Callable[[], float]
Samples: TypeAlias = dict[str, list[float]]


def interleave(label: str, contenders: Mapping[str, Contender], rounds: int) -> Samples:
    """Run every contender once per round, in another order each round (drawn by seed).

    A rotated order would give each contender the same predecessor, whose dirty pages, journal and
    discards it then pays for. A contender prepares, measures, cleans up and returns its own figure.
    One more round runs first and is thrown away. Progress goes to stderr when it is a terminal.
    """
    names = list(contenders)
    samples: Samples = {name: [] for name in names}
    rng = random.Random(label)
    for turn in range(rounds + 1):
        for name in rng.sample(names, len(names)):
            _progress(f"{label}: round {turn}/{rounds}, {name}")
            figure = contenders[name]()
            if turn:
                samples[name].append(figure)
    _progress("")
    return samples


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def median(values: list[float]) -> float:
    """Return the median of *values*."""
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which *share* (0 to 1) of *values* lies; always a real sample."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Workspace:
    """Scratch folders under one root, each fresh, each removed outside of the timed region."""

    def __init__(self, root: Path, settle_seconds: float) -> None:
        self.root = root
        self._settle_seconds = settle_seconds
        self._count = 0
        root.mkdir(parents=True, exist_ok=True)

    def fresh(self, label: str) -> Path:
        """Make and return a folder that never existed before."""
        self._count += 1
        clean = "".join(c if c.isalnum() else "-" for c in label)
        folder = self.root / f"{self._count:05d}-{clean}"
        folder.mkdir()
        return folder

    def drop(self, folder: Path) -> None:
        """Remove *folder* and wait until the disk is quiet again."""
        shutil.rmtree(folder)
        self.settle()

    def settle(self) -> None:
        """Write out all dirty pages, then pause: discards end in the background."""
        os.sync()
        if self._settle_seconds:
            time.sleep(self._settle_seconds)


def sync_path(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files below *folder*: (by length, by allocated blocks)."""
    length = blocks = 0
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            length += status.st_size
            blocks += status.st_blocks * 512
    return length, blocks


def private_bytes() -> int:
    """Return the anonymous resident memory of this process; mapped files are not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def filesystem_of(folder: Path) -> str:
    """Return the type of the file system that holds *folder*, as /proc/mounts names it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _device, mount, mount_kind, *_rest = line.split()
        inside = f"{folder.resolve()}/".startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, mount_kind
    return kind
