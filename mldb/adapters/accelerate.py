"""accelerate: metrics of a run as curves of a store, and its whole state as one commit.

For accelerate 1.15 and newer of major 1; another one is refused by name at import.

>>> accelerator = Accelerator(log_with=MldbTracker(db))        # doctest: +SKIP
>>> accelerator.init_trackers("run", config={"lr": 1e-3})      # doctest: +SKIP
>>> save_state(accelerator, db, epoch=1, step=500)             # doctest: +SKIP
>>> load_state(accelerator, db)                                # doctest: +SKIP

A loader of a lake goes through ``accelerator.prepare`` unchanged: the lake deals its rows out to
ranks itself (those of torch.distributed, or ``rank`` and ``world`` of ``export_to_dataloader``),
and its batches lie where its ``device`` says. Pass the loader, not a DataLoader of one's own around
its dataset: with several processes prepare() would deal out what was dealt out already.
``accelerator.accumulate`` does not see where a lake's pass ends, so choose steps that divide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# First of all: it refuses versions that do not fit.
from mldb.adapters.accelerate_version import ACCELERATE_VERSION

# isort: split
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from mldb.adapters.generators import rng_state, set_rng_state
from mldb.adapters.plain import numbers_of, plain_of
from mldb.database import MLDatabase
from mldb.errors import InvalidTypeError, UsageError
from mldb.history.as_of import AsOf
from mldb.history.checkpoints import Checkpoint

__all__ = ["ACCELERATE_VERSION", "MldbTracker", "load_state", "save_state"]

CONFIG_NAME = "accelerate/config"
"""The tensor, of no elements, whose metadata is the configuration of a run."""


class MldbTracker(GeneralTracker):  # type: ignore[misc]
    """A tracker for ``Accelerator(log_with=...)``: numbers become ``db.metrics(name)``.

    ``accelerator.log`` stores within a second; texts are no points of a curve and are left out. The
    configuration of ``init_trackers`` is ``db.metadata("accelerate/config")``. The main process
    alone stores. The store stays open and is its owner's to close. Raises what ``db.log`` raises.
    """

    name = "mldb"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, db: MLDatabase) -> None:
        if not isinstance(db, MLDatabase):
            raise InvalidTypeError(f"db is a {type(db).__name__}; pass what mldb.open() gives")
        self.db = db
        super().__init__()

    @property
    def tracker(self) -> MLDatabase:
        """The store, as ``accelerator.get_tracker("mldb", unwrap=True)`` gives it."""
        return self.db

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Store the configuration of the run; what is no plain value becomes its text."""
        self.db.store_tensor(CONFIG_NAME, np.empty(0, np.uint8), plain_of(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log the numbers among *values*."""
        numbers = numbers_of(values)
        if numbers:
            self.db.log(numbers, step=step, buffer=True)

    def finish(self) -> None:
        """Store what waits."""
        self.db.sync()


def save_state(
    accelerator: Accelerator,
    db: MLDatabase,
    *,
    epoch: int,
    step: int | None = None,
    name: str | None = None,
) -> Checkpoint:
    """Store what ``accelerator.save_state`` would write to a folder, as one atomic commit.

    Models, optimizers, schedulers and loaders that were prepared, the scaler, what was given to
    ``register_for_checkpointing``, and the generators; nothing is pickled. Of loaders those that
    keep a state: of a lake, and with ``use_stateful_dataloader``. One process: several raise
    UsageError. Raises what ``db.checkpoint`` raises.
    """
    return db.checkpoint(
        _parts(accelerator) | {"rng": rng_state()}, epoch=epoch, step=step, name=name
    )


def load_state(accelerator: Accelerator, db: MLDatabase, *, as_of: AsOf = None) -> None:
    """Load what :func:`save_state` stored, the newest as of *as_of*, into what was prepared.

    Raises MissingError, VersionGoneError, CorruptError, InvalidValueError where it does not fit.
    """
    report = db.load(_parts(accelerator) | {"rng": None}, as_of=as_of)
    set_rng_state(report["rng"])


def _parts(accelerator: Accelerator) -> dict[str, Any]:
    """What is prepared, in the order of prepare(), without the wrappers of accelerate."""
    if accelerator.num_processes > 1:
        raise UsageError(
            f"this is the state of one process, and accelerate runs {accelerator.num_processes}. "
            "Nothing was stored or loaded; with several use mldb.adapters.dcp."
        )
    found: dict[str, Any] = {
        "models": [accelerator.unwrap_model(model) for model in accelerator._models],
        "optimizers": [item.optimizer for item in accelerator._optimizers],
        "schedulers": [item.scheduler for item in accelerator._schedulers],
        "registered": list(accelerator._custom_objects),
        "loaders": [
            loader
            for loader in accelerator._dataloaders
            if getattr(loader, "use_stateful_dataloader", False)
        ],
    }
    if accelerator.scaler is not None:
        found["scaler"] = accelerator.scaler
    return found
