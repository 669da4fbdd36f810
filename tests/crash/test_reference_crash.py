"""Crashes of stores with references: what is left finds its bytes, or was never promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.crash.test_crash import SHARES, least_of
from tests.support.crashes import PERSISTENCE, Recorder, Seen, violation_in
from tests.support.model import Change, Verbs
from tests.support.parts import one_of

pytestmark = pytest.mark.usefixtures("repeatable")

COUNT = 90


def frozen(number: int) -> Change:
    """Two layers that never change, one that does, one equal to another one of the batch."""

    def change(target: Verbs) -> None:
        for layer in range(2):
            target.store_tensor(f"frozen{layer}", np.full(COUNT, layer))
        target.store_tensor("tuned", np.full(COUNT, 100 + number))
        target.store_tensor("like tuned", np.full(COUNT, 100 + number))

    return change


def train(run: Recorder) -> None:
    """Commits, a rewind to before the owners' names were deleted, a kill and a clean close."""
    run.commit(frozen(0), epoch=0)
    run.put("copy", np.full(COUNT, 0))
    run.commit(frozen(1), epoch=1)
    run.commit(lambda target: target.delete_tensor("frozen0"), epoch=1)
    run.put("copy", np.full(COUNT, 0))
    run.rewind(2)
    run.reopen(kill=True)
    run.commit(frozen(2), epoch=2)
    run.reopen()
    run.put("other", np.full(COUNT, 101))
    run.close()


@SHARES
@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize(
    "options", [{}, {"segment_entries": 4}, {"segment_bytes": 1500, "spill_bytes": 600}]
)
def test_after_a_crash_every_reference_that_is_there_has_its_bytes(
    durability: str, options: dict[str, Any], share: int, seed: int
) -> None:
    run = Recorder({"durability": durability, "map_bytes": 256, "deduplicate": 1, **options})
    train(run)
    seen: set[Seen] = set()
    for persistence in PERSISTENCE:
        wrong = violation_in(run, persistence, seed=seed, limit=45 // share, seen=seen)
        assert not wrong, wrong
    print(f"{one_of(share)}: {len(seen)} checks")
    assert len(seen) > least_of(60, share)
