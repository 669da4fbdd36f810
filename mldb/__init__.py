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
    from mldb.lake.dataset import M2MDataLake
    from mldb.lake.lake import Lake
    from mldb.lake.loader import LakeLoader
    from mldb.lake.m2m import M2M, M2MConfig, create_m2m
    from mldb.lake.settings import Augmentation, StreamOptions
    from mldb.lake.surface import LakeSnapshot
    from mldb.lake.weights import Importance
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
    "Lake": "mldb.lake.lake",
    "LakeSnapshot": "mldb.lake.surface",
    "LakeLoader": "mldb.lake.loader",
    "M2MDataLake": "mldb.lake.dataset",
    "Augmentation": "mldb.lake.settings",
    "StreamOptions": "mldb.lake.settings",
    "Importance": "mldb.lake.weights",
    "M2M": "mldb.lake.m2m",
    "M2MConfig": "mldb.lake.m2m",
    "create_m2m": "mldb.lake.m2m",
    **dict.fromkeys(_ERRORS, "mldb.errors"),
}

__all__ = [
    "M2M",
    "Augmentation",
    "Checkpoint",
    "ClosedError",
    "ConflictError",
    "CorruptError",
    "EpochOrderError",
    "Event",
    "FormatVersionError",
    "GpuUnavailableError",
    "Importance",
    "InvalidNameError",
    "InvalidTypeError",
    "InvalidValueError",
    "Lake",
    "LakeLoader",
    "LakeSnapshot",
    "LimitError",
    "LockedError",
    "Lsn",
    "M2MConfig",
    "M2MDataLake",
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
    "StreamOptions",
    "TensorHandle",
    "TensorNotFoundError",
    "TensorWriter",
    "Transaction",
    "UsageError",
    "VerifyReport",
    "Version",
    "VersionGoneError",
    "create_m2m",
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
