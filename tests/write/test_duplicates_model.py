"""A store that deduplicates reads as one that does not, byte for byte, and has every value once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TypeAlias

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.directories import made_at_once
from tests.support.duplicates import values
from tests.support.model import content_of
from tests.support.parts import examples

NAMES = ("a", "b", "c/d")
Step: TypeAlias = tuple[Any, ...]

names = st.sampled_from(NAMES)
numbers = st.integers(0, 9)
pairs = st.lists(st.tuples(names, numbers), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), names, numbers),
        st.tuples(st.just("create"), names, numbers),
        st.tuples(st.just("transaction"), pairs),
        st.tuples(st.just("checkpoint"), pairs),
        st.tuples(st.just("delete"), names),
        st.tuples(st.just("rewind"), st.integers(0, 99)),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("kill")),
    ),
    max_size=14,
)


def value(number: int) -> np.ndarray[Any, Any]:
    """Ten values: small, in a frame of their own, spilled; two with the bytes of another."""
    data = values(number // 2 * 2 if number > 7 else number, (3, 90, 9000, 20_000)[number % 4])
    return data.view("f8") if number % 2 else data.reshape(-1, 1)


class Pair:
    """The same calls on two stores; what the second one told is what the first must tell."""

    def __init__(self, **options: Any) -> None:
        self.disks = [MemoryFileSystem(), MemoryFileSystem()]
        self.options = [{"deduplicate": 1, **options}, {"deduplicate": False, **options}]
        self.stores = [self.open(place) for place in range(2)]
        self.lsns: list[list[int]] = [[], []]

    def open(self, place: int) -> mldb.MLDatabase:
        return mldb.MLDatabase.on(self.disks[place], **self.options[place])

    def act(self, step: Step) -> None:
        for place, db in enumerate(self.stores):
            if step[0] in ("reopen", "kill"):
                if step[0] == "kill":
                    self.disks[place].kill()
                else:
                    db.close()
                self.stores[place] = self.open(place)
            elif self.perform(db, step, self.lsns[place]):
                self.lsns[place].append(int(self.stores[place].lsn))

    def perform(self, db: mldb.MLDatabase, step: Step, lsns: list[int]) -> bool:
        match step:
            case "store", name, number:
                db.store_tensor(name, value(number), {"n": number})
            case "create", name, number:
                data = value(number)
                with db.create_tensor(name, data.shape, data.dtype) as writer:
                    writer[...] = data
            case "transaction", stored:
                with db.transaction() as txn:
                    for name, number in stored:
                        txn[name] = value(number)
                        assert txn[name].tobytes() == value(number).tobytes()
            case "checkpoint", stored:
                state = {
                    f"{place}{name}": value(number) for place, (name, number) in enumerate(stored)
                }
                if len(stored) % 2:
                    db.checkpoint(state, epoch=db.epoch, wait=False)
                else:
                    db.checkpoint(state, epoch=db.epoch)
                db.sync()
            case "delete", name:
                if name not in db:
                    return False
                del db[name]
            case "rewind", place:
                if not lsns:
                    return False
                db.rewind(mldb.Lsn(lsns[place % len(lsns)]))
        return True

    def compare(self) -> None:
        ours, plain = self.stores
        for one, two in zip(*self.lsns, strict=True):
            got, expected = content_of(ours, mldb.Lsn(one)), content_of(plain, mldb.Lsn(two))
            assert got == expected
        for db in self.stores:
            assert db.verify().ok
        for name in plain:
            history = [[item.digest for item in db.history(name)] for db in self.stores]
            assert history[0] == history[1]

    def places(self) -> dict[bytes, set[tuple[bytes, int]]]:
        """By digest, where the first store has bytes of tensors."""
        found = defaultdict(set)
        view = self.stores[0]._log.head()
        for key in view.keys(keys.TENSORS):
            for entry in view.versions(key):
                if entry.length and entry.encoding != fmt.ENCODING_REFERENCE:
                    found[entry.digest].add((entry.segment, entry.offset))
        return found


@examples(45)
@given(
    steps=STEPS,
    segment_entries=st.sampled_from([2, 6, 1 << 16]),
    spill_bytes=st.sampled_from([100_000, 1 << 26]),
    compression=st.sampled_from([None, "zstd"]),
    parts=st.booleans(),
)
def test_a_store_that_deduplicates_reads_as_one_that_does_not_and_has_every_value_once(
    steps: list[Step],
    segment_entries: int,
    spill_bytes: int,
    compression: str | None,
    parts: bool,
) -> None:
    pair = Pair(
        segment_entries=segment_entries,
        spill_bytes=spill_bytes,
        compression=compression,
        durability="os",
        map_bytes=500,
    )
    with made_at_once(2 if parts else 1 << 30):
        for step in steps:
            pair.act(step)
    pair.compare()
    for place in range(2):
        pair.stores[place].close()
        pair.stores[place] = pair.open(place)
    pair.compare()
    assert all(len(places) == 1 for places in pair.places().values())
