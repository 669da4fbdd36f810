"""What all tests of interference share: waits are seen, ids repeat, recoveries are not printed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from tests.support.interference_turns import rehearsed


@pytest.fixture(autouse=True)
def _rehearsed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, "mldb")
    with rehearsed():
        yield


@pytest.fixture
def _frozen() -> None:
    """What is old already is not looked through by the garbage collection of each child."""
    gc.collect()
    gc.freeze()
