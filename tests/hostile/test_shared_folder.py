"""A store that two users of one group share: what one makes the other can write.

``LOCK``, ``GATE`` and ``MANIFEST`` were 0644 whatever the umask, so that the second could not.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mldb
from tests.support.processes import Child, Line
from tests.support.seen import segments_of

GROUP = 54_321


def whole_life(path: Path, name: str) -> None:
    """Everything that makes a file: seals, spills, checkpoints, registrations, hints, a backup."""
    with mldb.open(path, segment_bytes=3000, spill_bytes=66_000) as db:
        for number in range(4):
            db.store_tensor(f"{name}{number}", np.full(2000, number, "u1"))
        with db.transaction() as txn:
            txn[f"{name} large"] = np.zeros(70_000, "u1")
        db.checkpoint({"w": np.arange(4)}, epoch=db.epoch + 1)
        with db.at() as snapshot:
            assert int(snapshot[f"{name}3"][0]) == 3
    with segments_of(path)[-1].open("ab") as file:
        file.write(b"\x5a" * 100)  # torn; the next writer saves it
    with mldb.open(path) as db:
        db[f"{name} last"] = 1
        assert db.recovery.saved_as
        db.backup(path.parent / f"backup by {name}")


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [(0o002, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)],
)
def test_every_file_and_folder_of_a_store_follows_the_umask(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    path = tmp_path / "above" / "store"

    def live(_: Line) -> None:
        os.umask(umask)
        whole_life(path, "mine")

    with Child(live) as child:
        assert child.wait() == 0
    made = [path.parent, *path.parent.rglob("*")]
    kinds = {item.relative_to(path).parts[0] for item in path.rglob("*")}
    assert kinds >= {"LOCK", "segments", "pending", "readers", "hints", "lost+found"}
    for item in made:
        mode = stat.S_IMODE(item.stat().st_mode)
        assert mode == (folder if item.is_dir() else file), item


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of the group, which what is made in it inherits."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, -1, GROUP)
        Path(name).chmod(0o2775)
        yield Path(name)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can be two users"
)
def test_two_users_of_a_group_take_turns(shared: Path, tmp_path: Path) -> None:
    """Each creates, commits, seals, repairs what the other left, and closes."""
    whole_life(tmp_path / "warm", "warm")  # imports all there is: the users may not read it

    def as_user(uid: int, name: str) -> None:
        def live(_: Line) -> None:
            os.setgroups([GROUP])
            os.setgid(GROUP)
            os.setuid(uid)
            os.umask(0o002)
            whole_life(shared / "store", name)

        with Child(live) as child:
            assert child.wait() == 0

    for uid, name in ((54_321, "one"), (54_322, "two"), (54_321, "three")):
        as_user(uid, name)
    with mldb.open(shared / "store", mode="r") as db:
        assert db.verify().ok
        assert db.recovery.clean
        assert {f"{name}{number}" for name in ("one", "two", "three") for number in range(4)} <= {
            *db
        }
    assert {path.stat().st_uid for path in (shared / "store").rglob("*")} == {54_321, 54_322}
