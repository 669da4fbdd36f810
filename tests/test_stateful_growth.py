"""The same machine as in ``test_stateful``, over stores in which everything that grows is tiny.

Parts of the directory are made at every seal, the active index is saved every few versions, and all
of it is merged at once, so that short histories read what long ones do.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

import pytest
from hypothesis import settings

from tests.support.directories import made_at_once
from tests.support.hints import hints_every
from tests.support.parts import count_of
from tests.test_stateful import STEPS, Store

EXAMPLES = int(os.environ.get("MLDB_STATEFUL_EXAMPLES", str(count_of(20))))


class GrownStore(Store):
    """A store whose parts are tiny."""

    def __init__(self) -> None:
        super().__init__()
        self._tiny = ExitStack()
        self._tiny.enter_context(made_at_once(due=1))
        self._tiny.enter_context(hints_every(3))

    def teardown(self) -> None:
        """Whatever happened, the next process finds all of it."""
        try:
            super().teardown()
        finally:
            self._tiny.close()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "mldb")


TestGrownStore = pytest.mark.slow(GrownStore.TestCase)
TestGrownStore.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
