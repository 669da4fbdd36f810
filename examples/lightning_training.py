"""Train with Lightning over a lake, stop in the middle of an epoch, and go on as if nothing was.

python examples/lightning_training.py [new folder] [rows]
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

import mldb
from mldb.adapters.lightning import CheckpointIO, ExactResume, LakeDataModule, Logger

DIM, CLASSES = 32, 5


class Classifier(LightningModule):
    """Two layers with dropout: every random number counts."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(DIM, width),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(width, CLASSES),
        )

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The loss of one batch of the lake."""
        loss = torch.nn.functional.cross_entropy(self.net(batch.mu), batch.label.long())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class StopAt(Callback):
    """What a preemption does, without the signal."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop behind a step."""
        if trainer.global_step == self._step:
            trainer.should_stop = True


def train(folder: Path, data: Path, *further: Callback, resume: str | None = None) -> Classifier:
    """Train three epochs, with a checkpoint every five steps, all of them in one store."""
    seed_everything(3, verbose=False)
    checkpoints = ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=1, save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[CheckpointIO(folder / "store", wait=False)],
        logger=Logger(folder / "store"),
        callbacks=[ExactResume(), checkpoints, *further],
    )
    model = Classifier()
    rows = LakeDataModule(data, options={"batch_size": 32, "fields": ("mu", "label")})
    trainer.fit(model, datamodule=rows, ckpt_path=resume)
    return model


def main(folder: str = "lightning_run", rows: int | str = 2000) -> None:
    """Train once straight on and once with a stop; compare."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # what it is, every time
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # one order of summation
    root, count = Path(folder), int(rows)

    x = torch.randn(count, DIM, generator=torch.Generator().manual_seed(0))
    labels = (x @ torch.randn(DIM, CLASSES, generator=torch.Generator().manual_seed(1))).argmax(1)
    with mldb.open(root / "data") as db:
        db.lake(dim=DIM).add_splats(x, labels=labels)
    steps = -(-count // 32)

    straight = train(root / "straight", root / "data")
    train(root / "stopped", root / "data", StopAt(steps + 6))
    print(f"stopped in the middle of epoch 1, behind step {steps + 6} of {3 * steps}")
    resumed = train(root / "stopped", root / "data", resume="last")

    with mldb.open(root / "stopped" / "store", mode="r") as db:
        newest = db.checkpoints()[-1]
        curve = db.metrics("train_loss")
        print(f"{newest.name}: epoch {newest.epoch}, step {newest.step}, {newest.nbytes:,} bytes")
        print(
            f"{len(curve)} steps in the curve, loss {curve.value[0]:.3f} to {curve.value[-1]:.3f}"
        )
    pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    print("the same parameters, bit for bit" if same else "OTHER PARAMETERS")


if __name__ == "__main__":
    main(*sys.argv[1:3])
