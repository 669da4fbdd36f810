"""mldb in Lightning 2.6: checkpoints, resuming, metrics and data of a Trainer.

::

    from mldb.adapters.lightning import CheckpointIO, ExactResume, Logger

    trainer = Trainer(
        plugins=[CheckpointIO("run/store", wait=False)],
        logger=Logger("run/store"),
        callbacks=[ExactResume(), ModelCheckpoint("run", save_top_k=2, monitor="val_loss")],
    )
    trainer.fit(model, datamodule=LakeDataModule("data"), ckpt_path="last")

The page ``docs/howto/lightning.md`` shows each part. The framework is the package ``lightning``;
importing this module raises UsageError where another version than 2.6 is installed.
"""

from __future__ import annotations

# First of all: it refuses versions that do not fit.
from mldb.adapters.lightning_version import LIGHTNING_VERSION

# isort: split
from mldb.adapters.lightning_data import EvaluationLoader, LakeDataModule, TrainLoader
from mldb.adapters.lightning_io import CheckpointIO
from mldb.adapters.lightning_logger import HYPERPARAMETERS, Logger
from mldb.adapters.lightning_resume import ExactResume

__all__ = [
    "HYPERPARAMETERS",
    "LIGHTNING_VERSION",
    "CheckpointIO",
    "EvaluationLoader",
    "ExactResume",
    "LakeDataModule",
    "Logger",
    "TrainLoader",
]
