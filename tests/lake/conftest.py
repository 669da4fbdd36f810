"""What the tests of the lake share."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from mldb.lake.write import addition


def give_ids(monkeypatch: pytest.MonkeyPatch, make: Callable[[int], bytes]) -> None:
    """Have lakes that are created from here on get their ids from *make*."""
    known = {name: getattr(os, name) for name in dir(os)}
    monkeypatch.setattr(addition, "os", SimpleNamespace(**known | {"urandom": make}))


@pytest.fixture(autouse=True)
def _ids_of_lakes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of new lakes come from the seed of the test: orders and noise hold the lake's id."""
    ids = np.random.default_rng([abs(seed), 1])
    give_ids(monkeypatch, ids.bytes)


@pytest.fixture
def one_lake_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lakes of several stores have one id, as copies of a lake do."""
    give_ids(monkeypatch, lambda size: b"\x07" * size)
