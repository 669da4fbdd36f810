"""The collector is off while paused, and afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from mldb.log.index.pause import collection_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with collection_paused():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(KeyError), collection_paused():
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_on else gc.disable)()
