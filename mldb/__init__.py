"""mldb: the flight recorder of a training run, an embedded event-sourced store for tensors.

A store is a folder. Every write is an event; nothing is overwritten, so every earlier epoch stays
readable, and a transaction, a checkpoint or a single write is whole or absent.

>>> import mldb
>>> db = mldb.open("run")                      # doctest: +SKIP
>>> db.checkpoint(model, epoch=3)              # doctest: +SKIP
>>> db.query_tensor("layer.weight", as_of=3)   # doctest: +SKIP
>>> db.load({"model": model}, part=True)       # doctest: +SKIP

Ten names to know:

mldb.open(path)                    open a store, or make one; use it in a ``with``
db.checkpoint(state, epoch=3)      model, optimizer and the rest in one commit; wait=False: behind
db.load(state)                     the same back into live objects
db[name] = array                   one tensor; ``db[name]`` reads it
db.query_tensor(name, as_of=3)     one tensor of an epoch, tag, time or commit
db.tensor(name)[a:b]               rows of a tensor that need not fit in memory
db.transaction(epoch)              ``with`` it: all or nothing
db.history(name), db.diff(3, 7)    what was, and what changed
db.sql("SELECT ...")               tensors, versions, checkpoints and metrics of every epoch
db.lake(name)                      rows of embeddings, streamed to PyTorch

Read on: ``help(mldb.MLDatabase)``, ``help(mldb.Options)``, ``help(mldb.errors)``; the folder docs
of the repository has tutorials, how-tos and guarantees; ``mldb --help`` is the command line. A line
that begins with "Cost" says how a call grows.

Names are loaded when first used, so ``import mldb`` alone costs a few milliseconds and no NumPy.
"""

from __future__ import annotations

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mldb.compaction.report import CompactionReport, NameReport
    from mldb.compaction.retention import Retention
    from mldb.compaction.soc.avalanches import AvalancheStats
    from mldb.compaction.soc.report import ConsolidationReport, PastCapWarning
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
        ReentryError,
        RetryableError,
        StorageError,
        StorageFullError,
        StorageIOError,
        StoreMovedError,
        TensorNotFoundError,
        UsageError,
        VersionGoneError,
    )
    from mldb.history.checkpoints import Checkpoint
    from mldb.history.diff import TensorDiff
    from mldb.history.events import Event
    from mldb.history.metrics import MetricColumns
    from mldb.history.relationships import Relationship
    from mldb.history.versions import Version
    from mldb.lake.consolidation.settings import ConsolidationPolicy
    from mldb.lake.lake import Lake
    from mldb.lake.m2m import M2M, M2MConfig, create_m2m
    from mldb.lake.order.weights import Importance
    from mldb.lake.stream.dataset import M2MDataLake
    from mldb.lake.stream.loader import LakeLoader
    from mldb.lake.stream.settings import Augmentation, StreamOptions
    from mldb.lake.surface import LakeSnapshot
    from mldb.log.index.address import Lsn
    from mldb.log.recovery import Recovery
    from mldb.log.verify import Problem, VerifyReport
    from mldb.options import Options
    from mldb.query.result import QueryResult
    from mldb.query.surface import Snapshot
    from mldb.state.checkpointing import PendingCheckpoint
    from mldb.state.report import LoadReport, NothingLoadedWarning
    from mldb.state.structs import register_state_type
    from mldb.tensors.handle import TensorHandle
    from mldb.tools.formats.export_file import ExportReport, export_file
    from mldb.tools.formats.import_file import ImportReport, import_file
    from mldb.tools.repair.repair import repair
    from mldb.tools.repair.report import RepairReport
    from mldb.tools.replay.replay import replay
    from mldb.tools.replay.report import ReplayReport
    from mldb.write.tensor_writer import TensorWriter
    from mldb.write.transaction import Transaction

__version__ = "0.1.0"

_ERRORS = (
    *("ClosedError", "ConflictError", "CorruptError", "EpochOrderError", "FormatVersionError"),
    *("GpuUnavailableError", "InvalidNameError", "InvalidTypeError", "InvalidValueError"),
    *("LimitError", "LockedError", "MissingError", "MldbError", "QueryError", "ReadOnlyError"),
    *("ReentryError", "RetryableError", "StorageError", "StorageFullError", "StorageIOError"),
    *("StoreMovedError",),
    *("TensorNotFoundError", "UsageError", "VersionGoneError"),
)
_HOMES = {
    "MLDatabase": "mldb.database",
    "open": "mldb.database",
    "Options": "mldb.options",
    "QueryResult": "mldb.query.result",
    "Lsn": "mldb.log.index.address",
    "Event": "mldb.history.events",
    "TensorDiff": "mldb.history.diff",
    "Snapshot": "mldb.query.surface",
    "Transaction": "mldb.write.transaction",
    "TensorHandle": "mldb.tensors.handle",
    "TensorWriter": "mldb.write.tensor_writer",
    "Version": "mldb.history.versions",
    "Checkpoint": "mldb.history.checkpoints",
    "PendingCheckpoint": "mldb.state.checkpointing",
    "LoadReport": "mldb.state.report",
    "NothingLoadedWarning": "mldb.state.report",
    "register_state_type": "mldb.state.structs",
    "MetricColumns": "mldb.history.metrics",
    "Relationship": "mldb.history.relationships",
    "Retention": "mldb.compaction.retention",
    "CompactionReport": "mldb.compaction.report",
    "NameReport": "mldb.compaction.report",
    "Recovery": "mldb.log.recovery",
    "Problem": "mldb.log.verify",
    "VerifyReport": "mldb.log.verify",
    "Lake": "mldb.lake.lake",
    "LakeSnapshot": "mldb.lake.surface",
    "LakeLoader": "mldb.lake.stream.loader",
    "M2MDataLake": "mldb.lake.stream.dataset",
    "Augmentation": "mldb.lake.stream.settings",
    "StreamOptions": "mldb.lake.stream.settings",
    "Importance": "mldb.lake.order.weights",
    "AvalancheStats": "mldb.compaction.soc.avalanches",
    "ConsolidationPolicy": "mldb.lake.consolidation.settings",
    "ConsolidationReport": "mldb.compaction.soc.report",
    "PastCapWarning": "mldb.compaction.soc.report",
    "M2M": "mldb.lake.m2m",
    "M2MConfig": "mldb.lake.m2m",
    "create_m2m": "mldb.lake.m2m",
    "import_file": "mldb.tools.formats.import_file",
    "ImportReport": "mldb.tools.formats.import_file",
    "export_file": "mldb.tools.formats.export_file",
    "ExportReport": "mldb.tools.formats.export_file",
    "replay": "mldb.tools.replay.replay",
    "ReplayReport": "mldb.tools.replay.report",
    "repair": "mldb.tools.repair.repair",
    "RepairReport": "mldb.tools.repair.report",
    **dict.fromkeys(_ERRORS, "mldb.errors"),
}

__all__ = [
    "M2M",
    "Augmentation",
    "AvalancheStats",
    "Checkpoint",
    "ClosedError",
    "CompactionReport",
    "ConflictError",
    "ConsolidationPolicy",
    "ConsolidationReport",
    "CorruptError",
    "EpochOrderError",
    "Event",
    "ExportReport",
    "FormatVersionError",
    "GpuUnavailableError",
    "ImportReport",
    "Importance",
    "InvalidNameError",
    "InvalidTypeError",
    "InvalidValueError",
    "Lake",
    "LakeLoader",
    "LakeSnapshot",
    "LimitError",
    "LoadReport",
    "LockedError",
    "Lsn",
    "M2MConfig",
    "M2MDataLake",
    "MLDatabase",
    "MetricColumns",
    "MissingError",
    "MldbError",
    "NameReport",
    "NothingLoadedWarning",
    "Options",
    "PastCapWarning",
    "PendingCheckpoint",
    "Problem",
    "QueryError",
    "QueryResult",
    "ReadOnlyError",
    "Recovery",
    "ReentryError",
    "Relationship",
    "RepairReport",
    "ReplayReport",
    "Retention",
    "RetryableError",
    "Snapshot",
    "StorageError",
    "StorageFullError",
    "StorageIOError",
    "StoreMovedError",
    "StreamOptions",
    "TensorDiff",
    "TensorHandle",
    "TensorNotFoundError",
    "TensorWriter",
    "Transaction",
    "UsageError",
    "VerifyReport",
    "Version",
    "VersionGoneError",
    "create_m2m",
    "export_file",
    "import_file",
    "open",
    "register_state_type",
    "repair",
    "replay",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mldb' has no attribute {name!r}")
    value = getattr(_imported(home), name)
    globals()[name] = value
    return value


def _imported(home: str) -> ModuleType:
    """Import a module of ours, with the collector off: it would walk what is imported 20 times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return import_module(home)
    finally:
        if was_on:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
