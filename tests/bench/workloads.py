"""Sizes and data of the workloads; everything is a pure function of a scale and a seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
State: TypeAlias = dict[str, Array]

SEED = 20240607
FIRST_TENSOR = "adapter.3"  # 4 MiB at full and quick scale
ROWS_NAME = "embedding"
_LAYERS = 22
_ADAPTERS = 7
_UINT64_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large each workload is; lengths in elements unless the name says bytes."""

    name: str
    rounds: int = 5
    settle_seconds: float = 0.2
    state_bytes: int = 1 << 30
    width: int = 896
    adapter_side: int = 1024
    puts: int = 20_000
    put_values: int = 1024
    batch: int = 100
    epochs: int = 200
    history_tensors: int = 16
    history_changed: int = 4
    history_values: int = 65_536
    as_of_reads: int = 2_000
    rows: int = 65_536
    row_values: int = 4_096
    slices: int = 1_000
    slice_rows: int = 64
    records: int = 1_000_000
    record_bytes: int = 100
    records_per_commit: int = 1_000
    tail_bytes: int = 250 << 20
    tune_steps: int = 20
    tune_values: int = 5 << 20
    adam_parameters: int = 250
    large_tensors: int = 64


FULL = Scale(name="full")
QUICK = Scale(
    name="quick",
    state_bytes=1 << 27,
    width=288,
    puts=5_000,
    epochs=40,
    as_of_reads=500,
    rows=8_192,
    slices=250,
    records=125_000,
    tail_bytes=31 << 20,
    tune_values=5 << 17,
    large_tensors=16,
)
TINY = Scale(
    name="tiny",
    rounds=1,
    settle_seconds=0.0,
    state_bytes=1 << 20,
    width=16,
    adapter_side=64,
    puts=200,
    epochs=5,
    history_values=1_024,
    as_of_reads=20,
    rows=256,
    row_values=256,
    slices=10,
    slice_rows=8,
    records=2_000,
    tail_bytes=1 << 20,
    tune_steps=2,
    tune_values=1 << 14,
    adam_parameters=5,
    large_tensors=2,
)


def generator(*words: int) -> np.random.Generator:
    """Return a generator that depends on the seed of the run and *words* only."""
    return np.random.default_rng([SEED, *words])


def _layer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width),
        "mlp.c_proj.bias": (width,),
    }


def state_shapes(scale: Scale) -> dict[str, tuple[int, ...]]:
    """Return 275 fp32 shapes like a GPT's, summing to ``scale.state_bytes`` exactly."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(_LAYERS):
        for part, shape in _layer_shapes(scale.width).items():
            shapes[f"h.{layer}.{part}"] = shape
    for number in range(_ADAPTERS):
        shapes[f"adapter.{number}"] = (scale.adapter_side, scale.adapter_side)
    shapes["wpe.weight"] = (1024, scale.width)
    shapes["ln_f.weight"] = (scale.width,)
    shapes["ln_f.bias"] = (scale.width,)
    used = sum(math.prod(shape) for shape in shapes.values())
    shapes["wte.weight"] = (scale.state_bytes // 4 - used,)
    return shapes


def state_dict(scale: Scale, seed: int = 0) -> State:
    """Return arrays of :func:`state_shapes`, normal fp32 values, each with memory of its own."""
    rng = generator(1, seed)
    return {
        name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in state_shapes(scale).items()
    }


def equal_tensors(scale: Scale) -> State:
    """Return ``scale.state_bytes`` of fp32 values in tensors of one size: 4 MiB, but for tiny."""
    rng, side = generator(2), scale.adapter_side
    count = scale.state_bytes // (4 * side * side)
    return {
        f"part.{number:04d}": rng.standard_normal((side, side), dtype=np.float32)
        for number in range(count)
    }


def small_tensors(scale: Scale) -> tuple[list[str], list[Array]]:
    """Return the names and values (4 KiB, fp32, all different) of the small puts of W3."""
    block = generator(3).standard_normal((scale.puts, scale.put_values), dtype=np.float32)
    return [f"layer.{number:06d}" for number in range(scale.puts)], list(block)


class History:
    """The epochs of W4: at every epoch a quarter of the tensors gets new values, the rest stays."""

    def __init__(self, scale: Scale) -> None:
        rng = generator(4)
        self.names = [f"block.{number}.weight" for number in range(scale.history_tensors)]
        self.commits: list[State] = []
        for epoch in range(scale.epochs):
            count = scale.history_changed if epoch else len(self.names)
            chosen = rng.choice(len(self.names), count, replace=False)
            self.commits.append(
                {
                    self.names[place]: rng.standard_normal(scale.history_values, dtype=np.float32)
                    for place in chosen
                }
            )

    def states(self) -> Iterator[tuple[int, State, State]]:
        """Yield (epoch, tensors that changed, all tensors at that epoch)."""
        full: State = {}
        for epoch, changed in enumerate(self.commits):
            full.update(changed)
            yield epoch, changed, dict(full)

    def at(self, name: str, epoch: int) -> Array:
        """Return the value of *name* as of *epoch*."""
        while name not in self.commits[epoch]:
            epoch -= 1
        return self.commits[epoch][name]

    def reads(self, count: int) -> list[tuple[str, int]]:
        """Return *count* random (name, epoch) pairs."""
        rng = generator(5)
        places = rng.integers(0, len(self.names), count)
        epochs = rng.integers(0, len(self.commits), count)
        return [(self.names[p], int(e)) for p, e in zip(places, epochs, strict=True)]


def tuning_states(scale: Scale) -> Iterator[tuple[int, State, State]]:
    """Yield the steps of W5: 70 % of the values frozen, the rest times 1 + 1e-3 N at each step."""
    rng = generator(6)
    size = scale.tune_values // 10
    state = {f"part.{n}": rng.standard_normal(size, dtype=np.float32) for n in range(10)}
    for step in range(scale.tune_steps):
        if step:
            for number in range(7, 10):
                noise = rng.standard_normal(size, dtype=np.float32)
                state[f"part.{number}"] = state[f"part.{number}"] * (1 + np.float32(1e-3) * noise)
        yield step, dict(state), dict(state)


def matrix(scale: Scale) -> Array:
    """Return the (rows, row_values) fp32 matrix of W6."""
    return generator(7).standard_normal((scale.rows, scale.row_values), dtype=np.float32)


def slice_starts(scale: Scale) -> list[int]:
    """Return the first rows of the random slices of W6."""
    last = scale.rows - scale.slice_rows
    return [int(start) for start in generator(8).integers(0, last + 1, scale.slices)]


def record_batches(scale: Scale, count: int) -> Iterator[State]:
    """Yield *count* records of W7 in batches of one commit each; uint8 arrays, random bytes."""
    for first in range(0, count, scale.records_per_commit):
        size = min(scale.records_per_commit, count - first)
        block = generator(9, first).integers(0, 256, (size, scale.record_bytes), dtype=np.uint8)
        yield {f"record.{first + place:08d}": block[place] for place in range(size)}


def touch(array: Array) -> int:
    """Return the sum of *array* as 64-bit words: every byte is read, nothing is kept."""
    flat = array.reshape(-1)
    if flat.nbytes % 8:
        return int(np.add.reduce(flat.view(np.uint8), dtype=np.uint64))
    return int(np.add.reduce(flat.view(np.uint64)))


def touch_all(arrays: Iterable[Array]) -> int:
    """Return the sum of :func:`touch` over *arrays*, modulo 2**64."""
    return sum(touch(array) for array in arrays) & _UINT64_MASK
