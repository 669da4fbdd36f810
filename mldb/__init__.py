"""mldb: the flight recorder of a training run, an embedded event-sourced store for tensors.

>>> import mldb
>>> db = mldb.open("run")                      # doctest: +SKIP
>>> db.checkpoint(model, epoch=3)              # doctest: +SKIP
>>> db.query_tensor("layer.weight", as_of=3)   # doctest: +SKIP

Names are loaded when first used, so ``import mldb`` alone costs a few milliseconds and no NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mldb.checkpointing import PendingCheckpoint
    from mldb.database import MLDatabase, open
    from mldb.errors import (
        ClosedError,
        ConflictError,
        CorruptError,
        EpochOrderError,
        FormatVersionError,
        GpuUnavailableError,
        InvalidNameError,
        InvalidTypeError,
        InvalidValueError,
        LimitError,
        LockedError,
        MissingError,
        MldbError,
        QueryError,
        ReadOnlyError,
        RetryableError,
        StorageError,
        StorageFullError,
        StorageIOError,
        TensorNotFoundError,
        UsageError,
        VersionGoneError,
    )
    from mldb.events import Event
    from mldb.log.address import Lsn
    from mldb.log.recovery import Recovery
    from mldb.log.verify import Problem, VerifyReport
    from mldb.options import Options
    from mldb.projections.checkpoints import Checkpoint
    from mldb.projections.relationships import Relationship
    from mldb.snapshot import Snapshot
    from mldb.tensor_writer import TensorWriter
    from mldb.tensors import TensorHandle, Version
    from mldb.transaction import Transaction

__version__ = "0.1.0"

_ERRORS = (
    *("ClosedError", "ConflictError", "CorruptError", "EpochOrderError", "FormatVersionError"),
    *("GpuUnavailableError", "InvalidNameError", "InvalidTypeError", "InvalidValueError"),
    *("LimitError", "LockedError", "MissingError", "MldbError", "QueryError", "ReadOnlyError"),
    *("RetryableError", "StorageError", "StorageFullError", "StorageIOError"),
    *("TensorNotFoundError", "UsageError", "VersionGoneError"),
)
_HOMES = {
    "MLDatabase": "mldb.database",
    "open": "mldb.database",
    "Options": "mldb.options",
    "Lsn": "mldb.log.address",
    "Event": "mldb.events",
    "Snapshot": "mldb.snapshot",
    "Transaction": "mldb.transaction",
    "TensorHandle": "mldb.tensors",
    "TensorWriter": "mldb.tensor_writer",
    "Version": "mldb.tensors",
    "Checkpoint": "mldb.projections.checkpoints",
    "PendingCheckpoint": "mldb.checkpointing",
    "Relationship": "mldb.projections.relationships",
    "Recovery": "mldb.log.recovery",
    "Problem": "mldb.log.verify",
    "VerifyReport": "mldb.log.verify",
    **dict.fromkeys(_ERRORS, "mldb.errors"),
}

__all__ = [
    "Checkpoint",
    "ClosedError",
    "ConflictError",
    "CorruptError",
    "EpochOrderError",
    "Event",
    "FormatVersionError",
    "GpuUnavailableError",
    "InvalidNameError",
    "InvalidTypeError",
    "InvalidValueError",
    "LimitError",
    "LockedError",
    "Lsn",
    "MLDatabase",
    "MissingError",
    "MldbError",
    "Options",
    "PendingCheckpoint",
    "Problem",
    "QueryError",
    "ReadOnlyError",
    "Recovery",
    "Relationship",
    "RetryableError",
    "Snapshot",
    "StorageError",
    "StorageFullError",
    "StorageIOError",
    "TensorHandle",
    "TensorNotFoundError",
    "TensorWriter",
    "Transaction",
    "UsageError",
    "VerifyReport",
    "Version",
    "VersionGoneError",
    "open",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mldb' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
