"""A small training of Lightning's, which may be killed in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

import mldb
from mldb.adapters.lightning import CheckpointIO, ExactResume, LakeDataModule, Logger

ROWS, BATCH, DIM, CLASSES = 160, 16, 8, 4
STEPS = ROWS // BATCH
"""Of an epoch."""

EPOCHS = 2

# What Lightning and torch say of any run like this one.
QUIET = (
    "ignore:.*isinstance.treespec, LeafSpec.:FutureWarning",
    "ignore:.*isinstance.treespec, LeafSpec.",
    "ignore:.*does not have many workers",
    "ignore:Your `IterableDataset` has `__len__` defined",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:.*is smaller than the logging interval",
    "ignore:GPU available but not used",
    "ignore:The number of training batches",
)


class Model(LightningModule):
    """A classifier with dropout, whose result depends on every random number."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(DIM, width),
            torch.nn.Dropout(0.3),
            torch.nn.ReLU(),
            torch.nn.Linear(width, CLASSES),
        )

    def _loss(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch.mu), batch.label.long())

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class KillAt(Callback):
    """Kills this process behind a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_data(folder: Path) -> None:
    """Store the rows of two lakes."""
    rng = np.random.default_rng(0)
    with mldb.open(folder) as db:
        for name, count in (("train", ROWS), ("val", 40)):
            labels = rng.integers(0, CLASSES, count)
            db.lake(name, dim=DIM).add_splats(rng.standard_normal((count, DIM)), labels=labels)


def data_of(root: Path) -> LakeDataModule:
    """The data of a run; ``root / "data"`` has it."""
    options = {"batch_size": BATCH, "fields": ("mu", "label")}
    return LakeDataModule(root / "data", train="train", val="val", options=options)


def make_trainer(
    folder: Path,
    *further: Callback,
    epochs: int = EPOCHS,
    io: Any = None,
    checkpoints: ModelCheckpoint | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer that saves every three steps and at the end, into ``folder / "store"``."""
    if checkpoints is None:
        checkpoints = ModelCheckpoint(
            folder, every_n_train_steps=3, save_top_k=2, monitor="step", mode="max", save_last=True
        )
    options = {"logger": Logger(folder / "store")} | options
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[CheckpointIO(folder / "store") if io is None else io],
        callbacks=[ExactResume(), checkpoints, *further],
        **options,
    )


def train(
    root: Path, name: str, *further: Callback, resume: str | None = None, **options: Any
) -> Model:
    """Train over the data in *root*, into its folder *name*; return the model."""
    seed_everything(7, verbose=False)
    model = Model()
    trainer = make_trainer(root / name, *further, **options)
    trainer.fit(model, datamodule=data_of(root), ckpt_path=resume, weights_only=False)
    return model


def parameters(model: LightningModule) -> list[np.ndarray[Any, Any]]:
    """The parameters as arrays of their own."""
    return [value.detach().numpy().copy() for value in model.parameters()]
