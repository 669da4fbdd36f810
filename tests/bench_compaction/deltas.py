"""Deltas of cold versions: bytes of training runs after compaction, and what reading them costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.dedupe import FULL as MODEL
from tests.bench_compaction.dedupe import QUICK as SMALL_MODEL
from tests.bench_compaction.dedupe import Sizes as ModelSizes
from tests.bench_compaction.dedupe import frozen_names, model
from tests.bench_compaction.row import Row, at_least, at_most
from tests.bench_compaction.runner import bytes_in

Arrays: TypeAlias = dict[str, NDArray[Any]]

NOISE = 1e-3
FROZEN = 0.7


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    model: ModelSizes = MODEL
    epochs: int = 200
    width: int = 256
    read_bytes: int = 64 << 20
    asked: bool = True


FULL = Sizes()
QUICK = Sizes(SMALL_MODEL, 12, 64, 4 << 20, asked=False)


# --- bytes ----------------------------------------------------------------------------------------


def tuned(sizes: Sizes, dtype: str) -> list[Row]:
    """Checkpoints of a fine-tune, most of it frozen, against one safetensors file for each."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bf16" else np.float32)
    # What is trained keeps its own precision, as an optimizer keeps master weights.
    master = {name: value.astype(np.float64) for name, value in model(sizes.model).items()}
    state = {name: value.astype(kind) for name, value in master.items()}
    frozen = frozen_names(state, FROZEN)
    rng, raw = np.random.default_rng(21), 0
    with fresh_folder() as root:
        path = root / "store"
        with mldb.open(path, durability="os") as db:
            for epoch in range(sizes.model.checkpoints):
                for name in sorted(state.keys() - frozen) if epoch else ():
                    master[name] *= 1 + NOISE * rng.standard_normal(state[name].shape)
                    state[name] = master[name].astype(kind)
                db.checkpoint({"model": state}, epoch=epoch)
                raw += sum(value.nbytes for value in state.values())
            written = bytes_in(path)
            seconds = _compacted(db)
        after = bytes_in(path)
    what = f"{sizes.model.checkpoints} checkpoints, {FROZEN:.0%} frozen, {dtype}"
    bounds = (0.21, 0.18) if dtype == "fp32" else (0.08, 0.06)
    return [
        at_most(f"{what}: after compaction", after / raw, "x raw", *bounds, asked=sizes.asked),
        Row("  after write", written / raw, "x raw"),
        Row(f"  compaction took {seconds:.1f} s of CPU", written / seconds / 1e6, "MB/s"),
    ]


def _compacted(db: mldb.MLDatabase) -> float:
    """Compact everything; return the seconds of CPU that it took."""
    started = time.process_time()
    db.compact(cold="all")
    return time.process_time() - started


def trained(sizes: Sizes) -> list[Row]:
    """A run that was really trained: a network on digits, weights and Adam state, every epoch."""
    raw = 0
    with fresh_folder() as root:
        path = root / "store"
        with mldb.open(path, durability="os") as db:
            for epoch, state in enumerate(training(sizes)):
                db.checkpoint(state, epoch=epoch)
                raw += sum(value.nbytes for value in state.values())
            written = bytes_in(path)
            _compacted(db)
        after = bytes_in(path)
    what = f"{sizes.epochs} epochs of an MLP on digits, width {sizes.width}, with Adam state"
    return [
        at_most(f"{what}: after compaction", after / raw, "x raw", 0.72, 0.62, asked=sizes.asked),
        Row("  after write", written / raw, "x raw"),
    ]


def training(sizes: Sizes) -> Iterator[Arrays]:
    """Yield weights and moments after each epoch: 64-width-10, Adam, batches of 64."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels]
    rng, width = np.random.default_rng(22), sizes.width
    weights: Arrays = {
        "w1": (rng.standard_normal((64, width)) / 8).astype(np.float32),
        "b1": np.zeros(width, np.float32),
        "w2": (rng.standard_normal((width, 10)) / np.sqrt(width)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    m = {name: np.zeros_like(value) for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in weights.items()}
    step = 0
    for _ in range(sizes.epochs):
        order = rng.permutation(len(x))
        for low in range(0, len(x), 64):
            step += 1
            rows = order[low : low + 64]
            for name, gradient in _gradients(weights, x[rows], y[rows]).items():
                m[name] = np.float32(0.9) * m[name] + np.float32(0.1) * gradient
                v[name] = np.float32(0.999) * v[name] + np.float32(0.001) * gradient**2
                rate = np.float32(1e-3 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
                weights[name] = weights[name] - rate * m[name] / (np.sqrt(v[name]) + 1e-8)
                weights[name] = weights[name].astype(np.float32)
        moments = {f"{name}.m": value for name, value in m.items()}
        yield weights | moments | {f"{name}.v": value for name, value in v.items()}


def _gradients(weights: Arrays, x: NDArray[Any], y: NDArray[Any]) -> Arrays:
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    scores = hidden @ weights["w2"] + weights["b2"]
    scores -= scores.max(axis=1, keepdims=True)
    chances = np.exp(scores)
    chances /= chances.sum(axis=1, keepdims=True)
    error = (chances - y) / len(x)
    back = (error @ weights["w2"].T) * (hidden > 0)
    return {
        "w1": x.T @ back,
        "b1": back.sum(axis=0),
        "w2": hidden.T @ error,
        "b2": error.sum(axis=0),
    }


# --- reading --------------------------------------------------------------------------------------


def reading(sizes: Sizes) -> list[Row]:
    """Reads of a version at each depth of the chain, in a fresh handle, by seconds of CPU."""
    rng = np.random.default_rng(23)
    value = (0.02 * rng.standard_normal(sizes.read_bytes // 4)).astype(np.float32)
    depths = {1: 1, 3: 2, 7: 3, 15: 4}  # by number since the keyframe
    with fresh_folder() as root:
        path = root / "store"
        with mldb.open(path, durability="os", deduplicate=False) as db:
            for epoch in range(16):
                db.store_tensor("w", value, epoch=epoch)
                value = value * (1 + NOISE * rng.standard_normal(len(value)).astype(np.float32))
            db.compact(cold="all")
        spent = {depth: _seconds(partial(_read, path, at)) for at, depth in depths.items()}
        mean = statistics.mean(_seconds(partial(_read, path, at)) for at in range(16))
    size = sizes.read_bytes / 1e6
    figure = "read of a delta-coded tensor, one core"
    deepest = at_least(
        f"{figure}: the deepest of the default chain (4)",
        size / spent[4],
        "MB/s",
        150,
        asked=sizes.asked,
    )
    shallow = Row(f"{figure}: chain 1", size / spent[1], "MB/s", aim=">= 600")
    return [deepest, shallow, Row(f"{figure}: mean of all versions", size / mean, "MB/s")]


def _read(path: Path, epoch: int) -> float:
    """Seconds of CPU that one read takes."""
    with mldb.open(path, mode="r", cache_bytes=0) as db:
        started = time.process_time()
        db.query_tensor("w", as_of=epoch)
        return time.process_time() - started


def _seconds(act: Callable[[], float], rounds: int = 5) -> float:
    return statistics.median(act() for _ in range(rounds))


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    sizes = QUICK if quick else FULL
    return [*tuned(sizes, "fp32"), *tuned(sizes, "bf16"), *trained(sizes), *reading(sizes)]
