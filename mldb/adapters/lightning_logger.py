"""Lightning's Logger over a store: metrics are curves, hyperparameters metadata."""

from __future__ import annotations

import os
import posixpath
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger as _Logger
from lightning.pytorch.utilities import rank_zero_only

from mldb.adapters.lightning_store import StoreHolder
from mldb.adapters.plain import plain_of
from mldb.errors import InvalidTypeError

if TYPE_CHECKING:
    from mldb.database import MLDatabase

HYPERPARAMETERS: Final = "lightning/hyperparameters"
"""The tensor, an empty one, whose metadata the hyperparameters are."""


class Logger(_Logger):
    """Metrics of a Trainer as curves in a store: ``Trainer(logger=Logger("run/store"))``.

    ``db.metrics("train_loss")`` is the curve of ``self.log("train_loss", ...)``, its steps are the
    Trainer's. Points are stored about once a second and at the end; a killed process loses those of
    the last second. They have the epoch of the newest checkpoint; the curve ``epoch``, which
    Lightning logs, has that of each step. Only the first of several processes writes.

    The store may be that of a CheckpointIO. Without *name* and *version* ModelCheckpoint keeps its
    files in ``checkpoints`` beside it.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | MLDatabase,
        *,
        name: str = "",
        version: int | str = "",
        prefix: str = "",
        **options: Any,
    ) -> None:
        """*store*: its folder, or an open one. *prefix* stands before each metric, with a ``/``.

        *name* and *version* are for Lightning, which makes folders of them; *options* are those of
        ``mldb.open``. Raises InvalidTypeError, InvalidNameError.
        """
        super().__init__()
        for what, value in (("name", name), ("prefix", prefix)):
            if not isinstance(value, str):
                raise InvalidTypeError(f"{what} is a {type(value).__name__}, not a str")
        self._store = StoreHolder(store, options)
        self._name, self._version = name, version
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return self._name

    @property
    def version(self) -> int | str:
        """The version of the experiment."""
        return self._version

    @property
    def save_dir(self) -> str:
        """The folder that the store lies in."""
        return posixpath.dirname(self._store.path)

    @property
    def root_dir(self) -> str:
        """As :attr:`save_dir`."""
        return self.save_dir

    @property
    def log_dir(self) -> str:
        """The folder of the store."""
        return self._store.path

    @property
    @rank_zero_experiment
    def experiment(self) -> MLDatabase:
        """The open store; elsewhere than in the first process something that does nothing."""
        return self._store.get()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers by name at *step*; stored within a second. Raises what ``db.log`` raises."""
        if metrics:
            named = {f"{self._prefix}{name}": value for name, value in metrics.items()}
            self._store.get().log(named, step=step, buffer=True)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Keep hyperparameters as metadata of ``lightning/hyperparameters``, where they are new.

        Nested dicts and lists stay; a value that is no number, text, bool or None becomes its text.
        Further *args* and *kwargs*, which other loggers take, are refused with InvalidTypeError.
        """
        if args or kwargs:
            raise InvalidTypeError("log_hyperparams takes the parameters alone")
        if params is None:
            return
        plain = plain_of(vars(params) if isinstance(params, Namespace) else params)
        if not isinstance(plain, dict):
            raise InvalidTypeError(f"hyperparameters are a dict, not a {type(params).__name__}")
        db = self._store.get()
        if plain and (HYPERPARAMETERS not in db or db.metadata(HYPERPARAMETERS) != plain):
            db.store_tensor(HYPERPARAMETERS, np.zeros(0, np.uint8), plain)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Store what waits, however the run ended (*status*); a store opened here is closed."""
        self._store.get().sync()
        self._store.close()
