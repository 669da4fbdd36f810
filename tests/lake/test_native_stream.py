"""A stream is the same with the compiled twin and without: every batch, field and state."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import native
from tests.support.lakes import KINDS, data, db, fill, stream

__all__ = ["data", "db"]

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

FIELDS = ("mu", "id", "label", "weight", "alpha", "lsn")


def told(loader: Any) -> list[Any]:
    """Two passes of a loader with the state behind each batch, and a batch made anew."""
    found: list[Any] = []
    for _ in range(2):
        for batch in loader:
            found.append([part.numpy().tobytes() for part in batch])
            found.append(loader.state_dict())
    again = loader.dataset.batch(3, pass_number=0)
    provenance = loader.dataset.provenance(2, pass_number=1)
    found.append([part.numpy().tobytes() for part in again])
    found.append({name: np.asarray(value).tobytes() for name, value in provenance.items()})
    return found


@pytest.mark.parametrize("parts", [1, 60])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "generate_samples" not in KINDS[kind]])
def test_streams_are_the_same_bit_for_bit(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str, parts: int
) -> None:
    """Over one block and over many, with rows removed in between."""
    lake = fill(db, data, parts)
    for _ in range(2):
        found = []
        for mode in (nullcontext, native.switched_off):
            with mode():
                found.append(told(stream(lake, kind, fields=FIELDS)))
        assert found[0] == found[1]
        assert len(found[0]) > 20
        lake.remove(lake.rows().ids()[::9])
