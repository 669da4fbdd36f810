"""Deduplication at write: bytes of training runs, and what looking costs and saves a writer.

Writers with and without it are measured in turns, so that both meet the same disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import mldb
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least, at_most
from tests.bench_compaction.runner import bytes_in

Floats: TypeAlias = dict[str, NDArray[np.float32]]

NOISE = np.float32(1e-3)


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    width: int = 196
    layers: int = 41
    checkpoints: int = 20
    lora_checkpoints: int = 100
    throughput_bytes: int = 256 << 20
    rounds: int = 15
    puts: int = 4000
    asked: bool = True


FULL = Sizes()
QUICK = Sizes(64, 41, 5, 10, 16 << 20, 3, 500, asked=False)


def model(sizes: Sizes) -> Floats:
    """Return the layers of a transformer, small tensors and large: 50 MB in fp32 at full size."""
    rng, width = np.random.default_rng(11), sizes.width
    shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.weight": (width, 4 * width),
        "attn.bias": (4 * width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.weight": (width, 4 * width),
        "mlp.bias": (4 * width,),
    }
    return {
        f"h.{layer}.{part}": rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        for layer in range(sizes.layers)
        for part, shape in shapes.items()
    }


def size_of(state: Floats) -> int:
    """The bytes of all tensors."""
    return sum(value.nbytes for value in state.values())


def frozen_names(state: Floats, share: float) -> set[str]:
    """The first tensors that fit into this share of the bytes."""
    left, names = share * size_of(state), set()
    for name, value in state.items():
        if value.nbytes <= left:
            left -= value.nbytes
            names.add(name)
    return names


# --- bytes ----------------------------------------------------------------------------------------


def tuned(sizes: Sizes) -> list[Row]:
    """Checkpoints of a fine-tune, 70 % frozen, against one safetensors file for each."""
    from safetensors.numpy import save_file

    state, rng = model(sizes), np.random.default_rng(12)
    frozen = frozen_names(state, 0.7)
    with fresh_folder() as root:
        peer = root / "safetensors"
        peer.mkdir()
        with mldb.open(root / "store", durability="os") as db:
            for epoch in range(sizes.checkpoints):
                for name in state.keys() - frozen if epoch else ():
                    noise = rng.standard_normal(state[name].shape, dtype=np.float32)
                    state[name] *= 1 + NOISE * noise
                db.checkpoint({"model": state}, epoch=epoch)
                save_file(state, peer / f"{epoch}.safetensors")
        ratio = bytes_in(root / "store") / bytes_in(peer)
        share = sum(state[name].nbytes for name in frozen) / size_of(state)
    what = f"{sizes.checkpoints} checkpoints of {size_of(state) / 1e6:.0f} MB, {share:.0%} frozen"
    return [
        at_most(f"{what}: bytes after write", ratio, "x safetensors", 0.34, asked=sizes.asked),
        Row("of this what changed, and all of it once", _changed(sizes, share), "x safetensors"),
    ]


def _changed(sizes: Sizes, share: float) -> float:
    """What no writer of whole tensors goes below."""
    return share / sizes.checkpoints + (1 - share)


def adapted(sizes: Sizes) -> list[Row]:
    """Checkpoints of a LoRA run: the base is in every state, and never changes."""
    base, rng = model(sizes), np.random.default_rng(13)
    names = [name for name in base if name.endswith(".weight") and base[name].ndim == 2]
    rank = 4
    adapters: Floats = {}
    for name in names:
        rows, columns = base[name].shape
        adapters[f"{name}.lora_a"] = rng.standard_normal((rank, columns), dtype=np.float32)
        adapters[f"{name}.lora_b"] = np.zeros((rows, rank), np.float32)
    with fresh_folder() as root:
        with mldb.open(root / "store", durability="os") as db:
            for epoch in range(sizes.lora_checkpoints):
                for value in adapters.values():
                    value += NOISE * rng.standard_normal(value.shape, dtype=np.float32)
                db.checkpoint({"model": base | adapters}, epoch=epoch)
        stored = bytes_in(root / "store")
    needed = size_of(base) + sizes.lora_checkpoints * size_of(adapters)
    share = size_of(base) / (size_of(base) + size_of(adapters))
    what = f"LoRA, {sizes.lora_checkpoints} checkpoints, {share:.1%} of the state frozen"
    figure = f"{what}: bytes after write"
    unit = "x base once + adapters"
    return [at_most(figure, stored / needed, unit, 1.3, 1.05, asked=sizes.asked)]


# --- time -----------------------------------------------------------------------------------------

Act: TypeAlias = Callable[[mldb.MLDatabase, int], object]
"""Store something in round *n*; what it needs was made before."""


class Turns(NamedTuple):
    """Seconds with deduplication, and how many times as long it took without it.

    Both are medians over the rounds, the second one of the rounds' own ratios: others use the
    machine and the disk as well. Half of the rounds have a ratio between ``low`` and ``high``.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> str:
        """How far the rounds lie apart, in words."""
        return f"{self.low:.2f} to {self.high:.2f} in half of {self.rounds} rounds"


def in_turns(
    sizes: Sizes, prepare: Callable[[int], object], act: Act, options: dict[str, Any]
) -> Turns:
    """Measure *act* with and without deduplication, in turns; the first round is not counted."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    with fresh_folder() as root:
        stores = {on: _opened(root / f"{on}", on, options) for on in (True, False)}
        for number in range(sizes.rounds + 1):
            prepare(number)
            for on in (True, False) if number % 2 else (False, True):
                started = time.perf_counter()
                act(stores[on], number)
                if number:
                    spent[on].append(time.perf_counter() - started)
        for db in stores.values():
            db.close()
    ratios = [off / on for on, off in zip(spent[True], spent[False], strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return Turns(statistics.median(spent[True]), middle, low, high, len(ratios))


def _opened(path: Path, on: bool, options: dict[str, Any]) -> mldb.MLDatabase:
    return mldb.open(path, deduplicate=on, **options)


def throughput(sizes: Sizes) -> list[Row]:
    """Durable checkpoints of large and of middling tensors: all new, and all stored before."""
    found = []
    for each in (4 << 20, 256 << 10):
        rng = np.random.default_rng(14)
        state = {
            f"part.{number}": rng.standard_normal(each // 4, dtype=np.float32)
            for number in range(max(1, sizes.throughput_bytes // each))
        }

        def renew(number: int, state: Floats = state) -> None:
            for value in state.values():
                value += np.float32(1)

        def save(db: mldb.MLDatabase, number: int, state: Floats = state) -> None:
            db.checkpoint({"model": state}, epoch=number)

        total, size = size_of(state) / 1e6, f"{each >> 10} KiB each"
        for what, prepare, must, aim in (
            ("nothing", renew, 0.9, 1.0),
            ("everything", lambda number: None, 2.0, None),
        ):
            turns = in_turns(sizes, prepare, save, {})
            figure = f"durable write, {what} duplicate, {size}"
            ratio, told = turns.ratio, f"{figure} ({turns.spread})"
            found.append(at_least(told, ratio, "x of off", must, aim, asked=sizes.asked))
            found.append(Row(f"{figure}: rate", total / turns.seconds, "MB/s"))
    return found


def small_writes(sizes: Sizes) -> list[Row]:
    """What small writes pay: puts and batches of 4 KiB, commits of 4 x 256 KiB."""
    rng = np.random.default_rng(15)
    values = list(rng.standard_normal((sizes.puts, 1024), dtype=np.float32))
    blocks = list(rng.standard_normal((sizes.puts // 40, 4, 65_536), dtype=np.float32))

    def puts(db: mldb.MLDatabase, number: int) -> None:
        for place, value in enumerate(values):
            db.store_tensor(f"layer.{number}.{place}", value)

    def batches(db: mldb.MLDatabase, number: int) -> None:
        for low in range(0, len(values), 100):
            with db.transaction() as txn:
                for place in range(low, min(low + 100, len(values))):
                    txn.store_tensor(f"layer.{number}.{place}", values[place])

    def epochs(db: mldb.MLDatabase, number: int) -> None:
        for block in blocks:
            with db.transaction() as txn:
                for place in range(4):
                    txn.store_tensor(f"block.{place}", block[place])

    def change(number: int) -> None:
        for block in blocks:
            block += np.float32(1)

    found = []
    lazy = {"durability": "os"}
    for figure, act, options in (
        ("puts of 4 KiB, not durable", puts, lazy),
        ("durable batches of 100 x 4 KiB", batches, {}),
        ("durable commits of 4 x 256 KiB", epochs, {}),
    ):
        turns = in_turns(sizes, change, act, options)
        found.append(Row(f"{figure}: rate ({turns.spread})", turns.ratio, "x of off"))
    return found


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    sizes = QUICK if quick else FULL
    return [*tuned(sizes), *adapted(sizes), *throughput(sizes), *small_writes(sizes)]
