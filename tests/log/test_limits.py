"""Whatever the constants above the log say, nothing is stored that a reader would call damaged.

Raising one of them once stored a batch that the next opening called corrupt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import mldb
from mldb.database import MLDatabase
from mldb.errors import LimitError
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.names import MAX_NAME_BYTES
from mldb.tensors.descriptor import MAX_DESCRIPTOR_BYTES
from mldb.tensors.metadata import MAX_METADATA_BYTES
from tests.support.files import contents_of

Use = Callable[[MLDatabase], object]
ONES = np.ones(300, np.float32)
LONG = "n" * 2000
LARGE = {"note": "x" * (1 << 21)}


def stored(db: MLDatabase) -> None:
    db.store_tensor(LONG, ONES)


def stored_in_a_batch(db: MLDatabase) -> None:
    with db.transaction() as tx:
        tx.store_tensor("small", ONES)
        tx.store_tensor(LONG, ONES)


def spilled(db: MLDatabase) -> None:
    with db.transaction() as tx:
        tx.store_tensor("large", np.ones(1 << 18, np.float32))
        tx.store_tensor(LONG, np.ones(1 << 18, np.float32))


def related(db: MLDatabase) -> None:
    db.create_relationship("before", "before", LONG)


def tagged(db: MLDatabase) -> None:
    db.tag(LONG)


def kept(db: MLDatabase) -> None:
    db.checkpoint({"w": ONES}, name=LONG, epoch=1)


def kept_under_a_name(db: MLDatabase) -> None:
    db.checkpoint({LONG: ONES}, name="c", epoch=1)


def described(db: MLDatabase) -> None:
    db.store_tensor("w", ONES, metadata=LARGE)


def described_later(db: MLDatabase) -> None:
    db.set_metadata("before", LARGE)


def described_in_a_batch(db: MLDatabase) -> None:
    with db.transaction() as tx:
        for number in range(20):
            tx.store_tensor(f"w{number}", ONES, metadata={"number": number})
        tx.set_metadata("w7", LARGE)


def described_at_length(db: MLDatabase) -> None:
    with db.transaction() as tx:
        for number in range(66):
            tx.store_tensor(f"w{number}", ONES, metadata={"note": "x" * ((1 << 20) - 20)})


def packed(db: MLDatabase) -> None:
    scalar = np.zeros((), np.int8)
    with db.transaction() as tx:
        for number in range(fmt.ENTRIES_MAX + 1):
            tx.store_tensor(f"w{number}", scalar)


def added(db: MLDatabase) -> None:
    db.lake("lake", dim=4).add_splats(np.eye(4, dtype=np.float32))


NAMES = {"mldb.names.MAX_NAME_BYTES": 1 << 14}
METADATA = {"mldb.tensors.metadata.MAX_METADATA_BYTES": 1 << 24}
BLOCKS = ["mldb.history.kinds.lakes.CHECK_LOG2", "mldb.lake.write.block.CHECK_LOG2"]
RAISED: dict[str, tuple[dict[str, int], Use]] = {
    "a name": (NAMES, stored),
    "a name in a batch": (NAMES, stored_in_a_batch),
    "a name of what is spilled": (NAMES, spilled),
    "a name of a relationship": (NAMES, related),
    "a tag": (NAMES, tagged),
    "a checkpoint's name": (NAMES, kept),
    "a name in a checkpoint": (NAMES, kept_under_a_name),
    "metadata with a tensor": (METADATA, described),
    "metadata": (METADATA, described_later),
    "metadata in a batch": (METADATA, described_in_a_batch),
    "a body": ({"mldb.history.kinds.changes._BODY_BYTES": 1 << 40}, described_at_length),
    "a pack": (
        {"mldb.write.packs.PACK_BYTES": 8 << 20, "mldb.write.packs.PACK_ENTRIES": 1 << 20},
        packed,
    ),
    "the alignment of a block": ({"mldb.history.kinds.lakes.PAGE_LOG2": 22}, added),
    "a page of a block": (dict.fromkeys(BLOCKS, 31), added),
    "a small page of a block": (dict.fromkeys(BLOCKS, 11), added),
}


def prepared(fs: MemoryFileSystem) -> MLDatabase:
    db = MLDatabase.on(fs, spill_bytes=1 << 20, segment_entries=1 << 17)
    db.store_tensor("before", ONES)
    db.lake("lake", dim=4).add_splats(np.eye(4, dtype=np.float32))
    return db


@pytest.mark.parametrize("what", RAISED)
def test_what_a_reader_would_call_damaged_is_refused_and_nothing_is_stored(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants, use = RAISED[what]
    fs = MemoryFileSystem()
    db = prepared(fs)
    before, lsn = contents_of(fs), db.lsn
    with monkeypatch.context() as patch:
        patch.setattr("mldb.names._known", {})  # names that pass here alone are not remembered
        for name, value in constants.items():
            patch.setattr(name, value)
        with pytest.raises(LimitError, match="Nothing was stored"):
            use(db)
    assert db.lsn == lsn
    names = [name for name in before if not name.startswith("readers/")]
    after = contents_of(fs)
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert {name for name in after.keys() - before.keys() if name.startswith("segments/")} == set()
    db.store_tensor("after", ONES)
    db.close()
    reopened = MLDatabase.on(fs)
    assert reopened.recovery.clean
    assert reopened.verify().ok
    assert reopened["before"].tolist() == reopened["after"].tolist() == ONES.tolist()
    assert len(reopened.lake("lake")) == 4
    reopened.close()


@pytest.mark.parametrize("what", RAISED)
def test_with_the_constants_as_they_are_the_log_is_not_asked(what: str) -> None:
    """The same calls are stored, or refused above by a limit of their own."""
    constants, use = RAISED[what]
    db = prepared(MemoryFileSystem())
    lsn = db.lsn
    if constants in (NAMES, METADATA):
        limit = MAX_NAME_BYTES if constants is NAMES else MAX_METADATA_BYTES
        with pytest.raises(mldb.MldbError, match=str(limit)):
            use(db)
        assert db.lsn == lsn
    else:
        use(db)
        assert db.lsn > lsn
    db.close()


def test_limits_of_the_log_leave_room_for_those_above_it() -> None:
    longest = 1 + 3 * MAX_NAME_BYTES + 2  # a relationship: three names and what stands between
    assert longest <= fmt.KEY_BYTES_MAX
    assert max(MAX_METADATA_BYTES, MAX_DESCRIPTOR_BYTES) <= fmt.ATTR_BYTES_MAX
