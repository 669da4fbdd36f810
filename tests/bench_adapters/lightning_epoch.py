"""An epoch of a Lightning training with a checkpoint at its end, against one without.

``rows(quick)`` as in the other benchmarks; alone, with ``--quick`` or without:
``python -m tests.bench_adapters.lightning_epoch``. Checkpoints go to a store with
``CheckpointIO(wait=False)``, every commit synced. Runs with and without take turns; the first epoch
of each, in which memory is allocated and the store is opened, is not counted. torch has one core
less than there are, as in the benchmark of stalls.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.sections import fresh_folder
from tests.bench.timing import median
from tests.bench_compaction.row import Row, at_most
from tests.bench_compaction.runner import render


@dataclass(frozen=True)
class Amounts:
    """What is measured; ``asked``: the bound is meant for these sizes."""

    width: int = 1024
    batch: int = 256
    epoch_seconds: float = 2.0
    epochs: int = 5
    turns: int = 2
    asked: bool = True


FULL = Amounts()
QUICK = Amounts(width=128, epoch_seconds=0.2, epochs=3, turns=1, asked=False)


def _model(amounts: Amounts, steps: int) -> Any:
    """A module whose epochs have *steps* batches, which stand in memory, and cost nothing else."""
    import torch
    from lightning.pytorch import LightningModule

    width, batch = amounts.width, amounts.batch

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(width, 2 * width),
                torch.nn.ReLU(),
                torch.nn.Linear(2 * width, width),
            )

        def training_step(self, x: torch.Tensor, index: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.net(x), x)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def train_dataloader(self) -> Any:
            batches: Any = [torch.randn(batch, width)] * steps
            return torch.utils.data.DataLoader(batches, batch_size=None)

    return Model()


def _epoch_seconds(amounts: Amounts, steps: int, folder: Path | None, stalls: list[float]) -> Any:
    """Train; return the seconds of each epoch but the first, with its checkpoint where one is."""
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from mldb.adapters.lightning import CheckpointIO

    starts: list[float] = []

    class Clock(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            starts.append(time.perf_counter())

    class Timed(CheckpointIO):
        def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
            start = time.perf_counter()
            super().save_checkpoint(*arguments, **options)
            stalls.append((time.perf_counter() - start) * 1e3)

    options: dict[str, Any] = {"enable_checkpointing": False, "callbacks": [Clock()]}
    if folder is not None:
        saver = ModelCheckpoint(folder, save_top_k=-1, save_on_train_epoch_end=True)
        io = Timed(folder / "store", wait=False)
        options = {"plugins": [io], "callbacks": [Clock(), saver]}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=amounts.epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(_model(amounts, steps))
    return [end - start for start, end in pairwise(starts[1:])]


def _steps(amounts: Amounts) -> int:
    """How many steps an epoch of the length asked for has on this machine."""
    import torch

    model = _model(amounts, 1)
    optimizer = model.configure_optimizers()
    (batch,) = model.train_dataloader()
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        model.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - start)
    assert torch.isfinite(next(model.parameters())).all()
    return max(2, round(amounts.epoch_seconds / min(taken)))


def rows(quick: bool = False) -> list[Row]:
    """Measure; the rows of the table."""
    import lightning.pytorch  # noqa: F401 - sets the level of its logger
    import torch

    amounts = QUICK if quick else FULL
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    bare: list[float] = []
    saving: list[float] = []
    stalls: list[float] = []
    try:
        with warnings.catch_warnings(), fresh_folder() as root:
            warnings.simplefilter("ignore")  # of Lightning, about workers and intervals
            steps = _steps(amounts)
            for turn in range(amounts.turns):
                bare += _epoch_seconds(amounts, steps, None, [])
                saving += _epoch_seconds(amounts, steps, root / str(turn), stalls)
    finally:
        torch.set_num_threads(threads)
    parameters = 4 * amounts.width**2
    what = f"{parameters / 1e6:.1f} M parameters with AdamW"
    ratio = median(saving) / median(bare)
    return [
        at_most(
            f"Lightning epoch with a checkpoint behind it / without ({what})",
            ratio,
            "x",
            1.02,
            asked=amounts.asked,
        ),
        Row("epoch without checkpoints, median", median(bare), "s"),
        Row("save_checkpoint holds the loop, median", median(stalls), "ms"),
    ]


if __name__ == "__main__":
    print(render(rows("--quick" in sys.argv[1:])))
