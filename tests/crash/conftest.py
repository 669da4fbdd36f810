"""What the tests of crashes share."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest


@pytest.fixture
def repeatable(
    seed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ids and temporary names follow the seed, and the warnings of recovery stay away."""
    monkeypatch.setattr(os, "urandom", np.random.default_rng(seed).bytes)
    caplog.set_level(logging.ERROR, "mldb")
