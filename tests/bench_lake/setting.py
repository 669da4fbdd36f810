"""Sizes of the workloads, the rows they read, and what every workload is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mldb
from tests.bench.timing import Workspace
from tests.bench.workloads import generator, touch

LAKE = "embeddings"
KAPPA = 500.0
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeScale:
    """How large the workloads are. ``done`` batches lie behind a resume; ``starts`` are processes.

    ``window`` rows are shuffled together in a pass from disk. ``chain_rows`` rows are moved by
    ``steps`` Langevin steps under ``neighbours`` rows each.
    """

    name: str
    rounds: int = 5
    settle_seconds: float = 0.2
    rows: int = 200_000
    dim: int = 640
    batch: int = 256
    chain_rows: int = 8_192
    neighbours: int = 16
    steps: int = 5
    done: int = 100
    starts: int = 3
    window: int = 32_768


FULL = LakeScale(name="full")
QUICK = LakeScale(
    name="quick",
    rounds=2,
    settle_seconds=0.0,
    rows=20_000,
    chain_rows=1_024,
    done=30,
    starts=1,
    window=4_096,
)
TINY = LakeScale(
    name="tiny",
    rounds=1,
    settle_seconds=0.0,
    rows=1_000,
    dim=32,
    batch=64,
    chain_rows=128,
    neighbours=4,
    steps=2,
    done=5,
    starts=1,
    window=1_024,
)


@dataclass(frozen=True, slots=True)
class Data:
    """Unit rows [rows, dim] in a lake and in a file, their masses in another; same order."""

    folder: str
    rows: int
    dim: int

    @property
    def store(self) -> Path:
        """The store with the lake."""
        return Path(self.folder) / "store"

    def mapped(self) -> Floats:
        """The rows, mapped. Copy-on-write: torch warns about arrays that cannot be written."""
        name = Path(self.folder) / "rows.f32"
        return np.asarray(np.memmap(name, np.float32, "c", shape=(self.rows, self.dim)))

    def loaded(self) -> Floats:
        """The rows, in memory."""
        return np.fromfile(Path(self.folder) / "rows.f32", np.float32).reshape(self.rows, self.dim)

    def masses(self) -> Floats:
        """The mass of every row."""
        return np.fromfile(Path(self.folder) / "alpha.f32", np.float32)

    def total(self) -> int:
        """The sum of all bytes of the rows, as :func:`tests.bench.workloads.touch` sums them."""
        return touch(self.mapped())


def make_data(folder: Path, scale: LakeScale) -> Data:
    """Write the rows: to the lake in one block, and as the lake returns them to the file."""
    data = Data(str(folder), scale.rows, scale.dim)
    rng = generator(20)
    rows = rng.standard_normal((scale.rows, scale.dim), dtype=np.float32)
    alpha = np.exp(rng.standard_normal(scale.rows)).astype(np.float32)
    with mldb.open(data.store) as db:
        lake = db.lake(LAKE, dim=scale.dim)
        lake.add_splats(rows, kappa=KAPPA, alpha=alpha)
        lake.rows().gather("mu", slice(0, scale.rows), rows)
    rows.tofile(folder / "rows.f32")
    alpha.tofile(folder / "alpha.f32")
    return data


@dataclass(frozen=True, slots=True)
class Setting:
    """One run of the harness. ``processes`` is off in tests: contenders then share this process."""

    scale: LakeScale
    data: Data
    workspace: Workspace
    processes: bool = True

    def task(self, name: str, **options: Any) -> dict[str, Any]:
        """Return a task for a contender over the rows of this run."""
        where = {"folder": self.data.folder, "rows": self.data.rows, "dim": self.data.dim}
        return {"task": name, "data": where, "batch": self.scale.batch, **options}
