"""Hints of the active index every few versions, so that small stores save some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from mldb.log import format as fmt
from mldb.log import saving


@contextmanager
def hints_every(versions: int, *, steps: int = 40) -> Iterator[None]:
    """Save the index every so many versions, in this many steps for each commit."""
    with (
        mock.patch.object(fmt, "HINT_VERSIONS", versions),
        mock.patch.object(saving, "_STEPS_EACH", steps),
        mock.patch.object(saving, "_STEPS_MAX", steps),
    ):
        yield
