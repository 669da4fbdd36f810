"""What is used of torch.distributed.checkpoint, and an error that names the torch that lacks it."""

from __future__ import annotations

from mldb.errors import UsageError

TESTED = "2.13"

try:
    import torch
except ImportError as error:
    raise UsageError(
        "torch.distributed.checkpoint needs torch: pip install mldb[torch]. Nothing was changed."
    ) from error
try:
    from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
    from torch.distributed.checkpoint import StorageReader as TorchReader
    from torch.distributed.checkpoint import StorageWriter as TorchWriter
    from torch.distributed.checkpoint._traverse import set_element
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )
    from torch.distributed.checkpoint.planner import (
        LoadItemType,
        LoadPlan,
        LoadPlanner,
        ReadItem,
        SavePlan,
        SavePlanner,
        WriteItem,
        WriteItemType,
    )
    from torch.distributed.checkpoint.storage import WriteResult
    from torch.futures import Future
except (ImportError, AttributeError) as error:
    raise UsageError(
        f"torch {torch.__version__} has no torch.distributed.checkpoint as mldb.adapters.dcp uses "
        f"it ({error}); tested is torch {TESTED}, built with distributed. Nothing was changed."
    ) from error

__all__ = [
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "DefaultLoadPlanner",
    "DefaultSavePlanner",
    "Future",
    "LoadItemType",
    "LoadPlan",
    "LoadPlanner",
    "Metadata",
    "MetadataIndex",
    "ReadItem",
    "SavePlan",
    "SavePlanner",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "TorchReader",
    "TorchWriter",
    "WriteItem",
    "WriteItemType",
    "WriteResult",
    "set_element",
    "torch",
]
