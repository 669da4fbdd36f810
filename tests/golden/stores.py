"""What the tests of the golden stores share: their folders, files as bytes, values compared."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

HERE = Path(__file__).resolve().parent
FORMAT_1 = HERE / "format-1"
FORMAT_2 = HERE / "format-2"
METRICS = HERE / "format-2-metrics"
BACKUP = HERE / "format-2-backup"
DERIVED = ("LOCK", "GATE", "readers", "hints/border", "hints/reads")
"""What holds nothing, belongs to an open handle, or is measured anew on each machine."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that holds anything of the store."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(DERIVED)}


def digest_of(folder: Path) -> str:
    """One digest over names and bytes of all files."""
    files = contents(folder)
    parts = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in files.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def same(found: Any, expected: Any) -> None:
    """Compare two values to the last bit: type, dtype, shape and bytes, or those of their parts."""
    assert type(found).__module__ == type(expected).__module__
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
        return
    assert type(found) is type(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if sp.issparse(expected):
        if expected.format == "lil":
            assert found.rows.tolist() == expected.rows.tolist()
            assert found.data.tolist() == expected.data.tolist()
        elif expected.format == "dok":
            assert dict(found.items()) == dict(expected.items())
        else:
            for part in ("data", "indices", "indptr", "offsets"):
                if hasattr(expected, part):
                    same(getattr(found, part), getattr(expected, part))
            for one, other in zip(
                getattr(found, "coords", ()), getattr(expected, "coords", ()), strict=True
            ):
                same(one, other)
        return
    for one, other in zip(torch_parts(found), torch_parts(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert bytes(one.untyped_storage()) == bytes(other.untyped_storage())


def torch_parts(tensor: Any) -> list[Any]:
    """The components of a torch tensor, each contiguous and in a storage of its own."""
    import torch

    if tensor.layout is torch.strided:
        return [tensor.contiguous().clone()]
    if tensor.layout is torch.sparse_coo:
        assert tensor.is_coalesced() in (True, False)
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    else:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [part.contiguous().clone() for part in parts]
