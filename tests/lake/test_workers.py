"""What workers need of a lake is made once, in the parent: forked or pickled, read-only or not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.augment import graph_store, landscape
from tests.lake.test_prefetch import threads
from tests.support.lakes import BATCH, ROWS, data, fill, raw, stream
from tests.support.workers import METHODS

__all__ = ["data"]

torch = pytest.importorskip("torch")

COUNTED = (
    (graph_store, "build_graph", "graph"),
    (landscape, "lake_bandwidth", "bandwidth"),
    (landscape, "nearest_labels", "labels"),
)


def noted(log: Path, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Write down who calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {name}\n")
        return function(*args, **kwargs)

    return call


def count(log: Path, worker: int = -1, set_attribute: Callable[..., None] = setattr) -> None:
    """Note all that is computed in this process; the first thing that a worker does."""
    for module, attribute, name in COUNTED:
        set_attribute(module, attribute, noted(log, name, getattr(module, attribute)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("cache", [1 << 28, 0], ids=["cached", "no cache"])
@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize(("mode", "what"), [("r", "walk"), ("r", "langevin"), ("rw", "langevin")])
def test_no_worker_builds_what_the_parent_has_built(
    cache: int,
    mode: Any,
    what: Any,
    how: str,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A read-only store has no hints, a small cache no room: each worker built it every pass."""
    log = tmp_path / "log"
    with mldb.open(tmp_path / "store", durability="os") as db:
        lake = db.lake(dim=12)
        for _ in range(2):
            lake.add_splats(rng.standard_normal((90, 12)), labels=rng.integers(-1, 3, 90))
        lake.remove([4])
    count(log, set_attribute=monkeypatch.setattr)
    with mldb.open(tmp_path / "store", mode=mode, lake_cache_bytes=cache) as db:
        loader = db.lake().export_to_dataloader(
            32,
            num_workers=2,
            generate_samples=mldb.Augmentation(mode=what),
            device="numpy",
            loader={"multiprocessing_context": how, "worker_init_fn": partial(count, log)},
        )
        assert [sum(len(batch) for batch in loader) for _ in range(2)] == [179, 179]
    made = [line.split() for line in log.read_text().splitlines()]
    parent = str(os.getpid())
    assert [name for pid, name in made if pid == parent].count("graph") == 1
    assert {name for pid, name in made if pid != parent} == set()


_COUNT_ALL = """
import hashlib, os, sys
import mldb
from mldb.gpu.cpu import chains
from mldb.lake.order import passes
from mldb.lake.rows.live import Rows
from mldb.lake.augment import graph_store
from mldb.noise import philox_compiled

store, log, what, replacement, device, cache = sys.argv[1:7]
derived = Rows.derived

def note(name, function):
    def noted(*args, **kwargs):
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {name}\\n")
        return function(*args, **kwargs)
    return noted

def counted(self, key, make, nbytes):
    name = key[0] if isinstance(key, tuple) else key
    return derived(self, key, note(name.replace(" ", "_"), make), nbytes)

Rows.derived = counted
passes.Passes._made = note("plan", passes.Passes._made)
graph_store.build_graph = note("graph", graph_store.build_graph)
philox_compiled._compile = note("kernels", philox_compiled._compile)
chains._compiled = note("chains", chains._compiled)

def digest(loader):
    return hashlib.sha256(b"".join(batch.numpy().tobytes() for batch in loader)).hexdigest()

with mldb.open(store, lake_cache_bytes=int(cache)) as db:
    options = {
        "generate_samples": mldb.Augmentation(mode=what),
        "importance_sampling": mldb.Importance(beta=0.5, replacement=replacement),
        "draws": 90,
        "device": device,
    }
    lake = db.lake()
    context = {"multiprocessing_context": "fork"}
    loader = lake.export_to_dataloader(16, num_workers=2, loader=context, **options)
    got = [digest(loader) for _ in range(2)]
    print(os.getpid(), got == [digest(alone) for alone in [lake.export_to_dataloader(16, **options)]
                               for _ in range(2)])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "replacement", "device", "cache", "made"),
    [
        pytest.param(
            *("langevin", "with", "torch", 0, {"sampler", "graph", "kernels", "chains", "table"}),
            marks=pytest.mark.large,
        ),
        pytest.param(
            *("langevin", "bottom_k", "cpu", 1 << 28, {"plan", "firsts", "labelled_rows", "live"}),
            marks=pytest.mark.large,
        ),
        ("isotropic", "systematic", "torch", 0, {"sampler", "ids", "kernels"}),
        ("walk", "with", "numpy", 0, {"sampler", "graph", "labels_around", "table"}),
    ],
)
def test_forked_workers_make_nothing_that_the_parent_could_make_for_all(
    what: str,
    replacement: str,
    device: str,
    cache: int,
    made: set[str],
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    """Tables of the sampler, arrays of rows, plans, kernels: each worker made its own."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(_COUNT_ALL)
    mu = rng.standard_normal((90, 12))
    mu[40:70] = mu[40]  # so many alike that a search looks at them once
    with mldb.open(tmp_path / "store", durability="os") as db:
        lake = db.lake(dim=12)
        for _ in range(2):
            lake.add_splats(mu, alpha=rng.integers(1, 9, 90), labels=rng.integers(-1, 3, 90))
        lake.remove([4])
    done = subprocess.run(
        [sys.executable, script, tmp_path / "store", log, what, replacement, device, str(cache)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parent, same = done.stdout.split()
    assert same == "True"
    notes = [line.split() for line in log.read_text().splitlines()]
    assert made <= {name for pid, name in notes if pid == parent}
    assert {name for pid, name in notes if pid != parent} == set()


# --- settings that workers hear -------------------------------------------------------------------


@pytest.fixture
def lake(store_path: Path, data: dict[str, Any]) -> Iterator[Any]:
    with mldb.open(store_path, durability="os") as db:
        yield fill(db, data)


def plain(dataset: Any, **options: Any) -> Any:
    context = {"num_workers": 2, "multiprocessing_context": "fork"}
    return torch.utils.data.DataLoader(dataset, batch_size=None, **context, **options)


def _made_ahead(batch: Any) -> tuple[int, int]:
    """Wait until a worker's thread makes no more; return its batches so far, and its threads."""
    info = torch.utils.data.get_worker_info()
    made, before = info.dataset.stats()["batches"], -1
    while made != before:
        time.sleep(0.2)
        made, before = info.dataset.stats()["batches"], made
    return made, threads()


@pytest.mark.parametrize(
    ("prefetch", "first"), [(None, (1, 0)), (0, (1, 0)), (1, (1, 1)), (4, (4, 1))]
)
def test_workers_make_as_many_batches_ahead_as_prefetch_says(
    lake: Any, prefetch: int | None, first: tuple[int, int]
) -> None:
    """It was ignored in workers; the DataLoader asks ahead by itself, so left out it stays so."""
    dataset = stream(lake, prefetch=prefetch).dataset
    made = next(iter(plain(dataset, collate_fn=_made_ahead, prefetch_factor=1)))
    assert made == first
    assert raw(plain(stream(lake, prefetch=prefetch).dataset)) == raw(stream(lake))
    loader = stream(lake, "isotropic", prefetch=prefetch, num_workers=2)
    assert raw(loader) == raw(stream(lake, "isotropic"))


def test_a_hot_tier_is_refused_where_workers_make_the_batches(lake: Any) -> None:
    """Their batches end on the host, and the budget was passed over in silence."""
    options: dict[str, Any] = {"device": "cpu", "hot_bytes": 1 << 20}
    with pytest.raises(mldb.InvalidValueError, match="hot_bytes=1048576 does nothing in workers"):
        stream(lake, "isotropic", num_workers=2, **options)
    assert sum(map(len, stream(lake, "isotropic", **options))) == ROWS
    loader = stream(lake, num_workers=2, **options)  # rows are only read: a thread does it
    assert sum(map(len, loader)) == ROWS
    assert loader.stats()["hot"]["hits"] > 0
    alone = stream(lake, **options).dataset
    with pytest.raises(mldb.InvalidValueError, match="hot_bytes=1048576 does nothing in workers"):
        next(iter(plain(alone)))
    assert len(next(iter(alone))) == BATCH
