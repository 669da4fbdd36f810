"""torch.distributed.checkpoint on real gloo ranks: FSDP2 that resumes, resharding, async, death."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import mldb
from tests.support.ranks import run_ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

pytestmark = pytest.mark.slow

WORK = "tests.support.dcp_ranks"


def leftovers(store: Path) -> list[str]:
    """What a save left behind that is no part of the store."""
    return os.listdir(store / "pending")


def checkpoints(store: Path) -> list[str]:
    """The names of the checkpoints, by a handle that finds nothing to repair."""
    with mldb.open(store, mode="r") as db:
        assert db.recovery.clean
        assert db.verify().ok
        return [each.name for each in db.checkpoints()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What two epochs of training come to when nothing happens."""
    folder = tmp_path_factory.mktemp("straight")
    ends = run_ranks(f"{WORK}:train", 2, folder, str(folder / "store"), 2)
    assert ends[0].result == ends[1].result
    assert checkpoints(folder / "store") == ["step-1", "step-2", "step-3", "step-4"]
    state: dict[str, str] = ends[0].result["state"]
    assert len(state) > 20
    return state


@pytest.mark.parametrize("dies", ["rank", "coordinator", "finish"])
def test_training_resumes_bit_exactly_after_a_death_in_a_save(
    tmp_path: Path, straight: dict[str, str], dies: str
) -> None:
    store = tmp_path / "store"
    ends = run_ranks(f"{WORK}:train", 2, tmp_path, str(store), 2, dies, 2, check=False)
    dead, alive = (ends[1], ends[0]) if dies == "rank" else (ends[0], ends[1])
    assert dead.status == -9
    assert dead.result is None
    assert alive.status == 0, alive.stderr
    assert alive.result["raised"]
    assert checkpoints(store) == ["step-1", "step-2"]  # the third is absent, not half there
    (first, second) = run_ranks(f"{WORK}:train", 2, tmp_path, str(store), 2)
    assert first.result["started"] == second.result["started"] == 2
    assert first.result["state"] == second.result["state"] == straight
    assert checkpoints(store) == ["step-1", "step-2", "step-3", "step-4"]
    assert leftovers(store) == []


def test_it_loads_under_other_numbers_of_ranks(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    saved = run_ranks(f"{WORK}:save_mesh", 4, tmp_path, store, 7, "four")
    wanted = saved[0].result
    for world in (2, 1):
        for end in run_ranks(f"{WORK}:load_mesh", world, tmp_path, store, "four"):
            assert end.result == wanted
    with mldb.open(store, mode="r") as db:
        names = set(db)
        assert {"rows", "long_columns", "nested.fp8", "nested.list.0"} <= names
        assert db["rows"].shape == (10, 6)
        assert db["long_columns"].shape == (16, 32768)
        assert "columns" not in names  # in parts: the runs of its bytes are short
        assert sorted(name for name in names if name.startswith("columns/"))[:2] == [
            "columns/0.0",
            "columns/0.3",
        ]
        state = db.load(None)
        assert state["nested"]["list"][1] == {"name": "fill-7", "none": None}
        assert state["plain"] == (7, 2.5, ["a", 7])
        assert torch.equal(state["rows"], torch.from_numpy(db["rows"].copy()))


def test_an_async_save_is_what_was_there_at_the_call(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for end in run_ranks(f"{WORK}:save_async", 2, tmp_path, str(store)):
        assert end.result["loaded"] == end.result["wanted"]
        assert end.result["wanted"]["thread"] != end.result["wanted"]["again"]
    assert checkpoints(store) == ["thread", "again", "process"]
    assert leftovers(store) == []


FAILURES = {
    "full": "StorageFullError",
    "object": "InvalidTypeError",
    "epoch": "EpochOrderError",
    "cached": "UsageError",
    "absent": "MissingError",
}


def test_what_goes_wrong_is_raised_by_every_rank(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with mldb.open(store) as db:
        db.store_tensor("other", [1.0], epoch=2)
    ends = run_ranks(f"{WORK}:fail", 2, tmp_path, str(store), [*FAILURES])
    assert [end.result for end in ends] == [FAILURES, FAILURES]
    assert checkpoints(store) == ["after"]
    assert leftovers(store) == []
