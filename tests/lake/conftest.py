"""What the tests of the lake share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mldb.lake.write import addition


@pytest.fixture(autouse=True)
def _ids_of_lakes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of new lakes come from the seed of the test: orders and noise hold the lake's id."""
    ids = np.random.default_rng([abs(seed), 1])
    monkeypatch.setattr(addition, "os", SimpleNamespace(urandom=ids.bytes))


@pytest.fixture
def one_lake_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lakes of several stores have one id, as copies of a lake do."""
    monkeypatch.setattr(addition, "os", SimpleNamespace(urandom=lambda size: b"\x07" * size))
