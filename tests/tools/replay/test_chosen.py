"""mldb.replay with names and with a function: what stays, in which form, at every commit."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import InvalidTypeError
from mldb.log.rebuild import StoreBuilder
from mldb.tools.replay.selection import chooser
from tests.support.compacting import commits_of, compact_all, kept_of
from tests.support.recorded import all_shown, compact_with_retention, record_run
from tests.tools.replay.test_replay import Killed, kill_after


@pytest.fixture(params=["as recorded", "compacted"])
def source(tmp_path: Path, rng: np.random.Generator, request: pytest.FixtureRequest) -> Path:
    record_run(tmp_path / "source", rng)
    if request.param == "compacted":
        compact_with_retention(tmp_path / "source")
        with mldb.open(tmp_path / "source", durability="os") as db:
            compact_all(db, cold=timedelta(0))
    return tmp_path / "source"


def at_each(old: Path, new: Path, report: Any) -> list[tuple[Any, Any]]:
    """What each commit of the old store shows, beside what stands for it in the new one."""
    found = []
    one, two = all_shown(old)["commits"], all_shown(new)["commits"]
    for lsn, shown in one.items():
        there = report.lsn(lsn)
        empty: dict[str, Any] = {
            "tensors": {},
            "metadata": {},
            "relations": [],
            "lakes": {},
            "checkpoints": [],
        }
        found.append((shown, two[there] if there else empty))
    return found


CHOICES: dict[str, Any] = {
    "prefix": "encoder",
    "glob": "*.b",
    "several": ["decoder.w", "oth*"],
    "one that referred": ["shared.b", "default"],
    "function": lambda name: "a" in name,
    "nothing": [],
}


@pytest.mark.parametrize("choice", CHOICES)
def test_each_commit_shows_what_was_chosen_of_it(source: Path, tmp_path: Path, choice: str) -> None:
    names = CHOICES[choice]
    takes = chooser(names)
    assert takes is not None
    new = tmp_path / "new"
    report = mldb.replay(source, new, names=names, verify=True)
    assert report.verified is not None
    assert report.verified.differences == ()
    for before, after in at_each(source, new, report):
        assert after["tensors"] == {k: v for k, v in before["tensors"].items() if takes(k)}
        assert after["metadata"] == {k: v for k, v in before["metadata"].items() if takes(k)}
        assert after["lakes"] == {k: v for k, v in before["lakes"].items() if takes(k)}
        ends = {end for item in before["relations"] for end in (item.source, item.target)}
        lost = {end for end in ends if not takes(end)} & {"decoder.w", "encoder.conv_weights",
                                                          "encoder.conv_biases"}  # fmt: skip
        assert after["relations"] == [
            item for item in before["relations"] if not {item.source, item.target} & lost
        ]
    with mldb.open(source, mode="r") as one, mldb.open(new) as two:
        assert two.verify().ok
        assert (two.tags(), two.pins(), two.retention.get()) == (
            *(one.tags(), one.pins(), one.retention.get()),
        )
        assert (two.lsn, two.epoch) == (one.lsn, one.epoch)
        old = {row.lsn: (row.epoch, row.time, row.clock, row.id) for row in commits_of(one)}
        for row in commits_of(two):
            assert old[row.lsn] == (row.epoch, row.time, row.clock, row.id)
        assert set(kept_of(two)) <= set(kept_of(one))
        for epoch in range(10):  # never an older value in silence
            try:
                there = one.at(epoch).lsn
            except mldb.VersionGoneError:
                with pytest.raises(mldb.VersionGoneError):
                    two.at(epoch)
            else:
                assert two.at(epoch).lsn == report.lsn(there)


def test_commits_with_nothing_left_are_left_out_but_for_those_that_are_named(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    with mldb.open(source, durability="os") as db:
        lsns = [db.store_tensor(f"x{n % 2}", n, epoch=n) for n in range(10)]
        db.tag("odd", lsns[3])
        last = db.rewind(lsns[5])
    report = mldb.replay(source, tmp_path / "new", names="x0")
    kept = {*lsns[::2], lsns[3], lsns[5], last}
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert {row.lsn for row in commits_of(db)} - kept == {last - 2}  # that of the tag
        assert [int(db.query_tensor("x0", as_of=lsn)) for lsn in (lsns[2], lsns[3])] == [2, 2]
        assert int(db["x0"]) == 4
    assert [report.lsn(lsn) for lsn in lsns[6:9]] == [lsns[6], lsns[6], lsns[8]]
    assert (report.left_out, report.commits) == (3, 9)
    assert report.lsn(0) == 0


def test_bytes_that_a_left_out_name_owned_are_stored_once(tmp_path: Path) -> None:
    source, data = tmp_path / "source", np.random.default_rng(3).random(50_000)
    with mldb.open(source, durability="os", deduplicate=1) as db:
        for name in ("a", "b", "c"):
            db[name] = data
    mldb.replay(source, tmp_path / "new", names=["b", "c"], verify=True)
    with mldb.open(tmp_path / "new", mode="r") as db:
        assert db.stats()["bytes"] < 1.2 * data.nbytes
        assert (db["b"] == data).all()
        assert (db["c"] == data).all()


def test_checkpoints_stay_where_all_their_tensors_do(source: Path, tmp_path: Path) -> None:
    report = mldb.replay(source, tmp_path / "none", names="encoder")
    assert {name[0] for name in report.checkpoints_left_out} == {"c"}
    with mldb.open(source, mode="r") as db:
        state = [name for name in db.names() if name.startswith("model")]
        wanted = db.checkpoints()
    report = mldb.replay(source, tmp_path / "all", names=["model", "step", *state], verify=True)
    assert report.checkpoints_left_out == ()
    with mldb.open(tmp_path / "all", mode="r") as db:
        assert db.checkpoints() == wanted
        assert db.load(None)["step"] == 8


@pytest.mark.parametrize("names", [3, [b"x"], ["a", None]])
def test_names_that_are_none_are_refused(tmp_path: Path, names: Any) -> None:
    with pytest.raises(InvalidTypeError, match="names has a"):
        mldb.replay(tmp_path, tmp_path / "new", names=names)


# --- a function of each tensor --------------------------------------------------------------------


def halved(name: str, array: Any, metadata: dict[str, Any]) -> Any:
    """Half the precision, other names, a note; one tensor left out, one as it came."""
    if name == "shared.b":
        return None
    if name == "encoder.conv_biases":
        return name, array, metadata
    if array.dtype.kind == "f":
        array = array.astype(np.float16)
    return name.replace("encoder", "enc"), array, {**metadata, "was": name}


def shown(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(value)
    return f"{array.dtype.name} {array.dtype.str}", array.shape, array.tobytes()


def test_each_commit_shows_what_the_function_makes_of_it(source: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    report = mldb.replay(source, new, transform=halved, verify=True)
    assert report.verified is not None
    assert report.verified.differences == ()
    with mldb.open(source, mode="r") as one, mldb.open(new, mode="r") as two:
        assert two.verify().ok
        for lsn in kept_of(one):
            before, after = one.at(lsn=lsn), two.at(lsn=report.lsn(lsn))
            made = [halved(name, before[name], before.metadata(name)) for name in before.names()]
            expected = {item[0]: (shown(item[1]), item[2]) for item in made if item is not None}
            found = {name: (shown(after[name]), after.metadata(name)) for name in after.names()}
            assert found == expected
            if after.checkpoints():
                state = after.load(None)
                assert state["model"]["w"].dtype == np.float16
        ends = {item.source for item in two.relationships()}
        assert "enc.conv" not in ends
        assert "encoder.conv" in ends
        targets = {item.target for item in two.relationships()}
        assert "enc.conv_weights" in targets or "encoder.conv_biases" in targets


def test_what_comes_back_as_it_came_is_stored_as_it_was(source: Path, tmp_path: Path) -> None:
    """A function that changes nothing costs no byte: references, patches and deltas stay."""
    mldb.replay(source, tmp_path / "one", transform=lambda *given: given, verify=True)
    assert all_shown(tmp_path / "one") == all_shown(source)
    mldb.replay(source, tmp_path / "two")
    with mldb.open(tmp_path / "one", mode="r") as one, mldb.open(tmp_path / "two", mode="r") as two:
        assert one.stats()["versions"] == two.stats()["versions"]
        assert one.stats()["bytes"] < 1.3 * two.stats()["bytes"]


BREAKING: dict[str, tuple[Any, str]] = {
    "two names": (lambda n, a, m: (f"{n}{a.size % 7}", a, m), "A name becomes one name"),
    "one name": (lambda n, a, m: ("same", a, m), "No two tensors become one"),
    "sometimes left out": (
        lambda n, a, m: None if n == "model/b" and a.size == 3 else (n, a, m),
        "A name becomes one name",
    ),
    "no triple": (lambda n, a, m: a, "transform returned"),
    "object": (lambda n, a, m: (n, object(), m), "tensor "),
    "empty name": (lambda n, a, m: ("", a, m), "name"),
}


@pytest.mark.parametrize("kind", BREAKING)
def test_a_function_that_breaks_the_rules_is_refused(
    tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    record_run(tmp_path / "source", rng, epochs=4)
    transform, message = BREAKING[kind]
    with pytest.raises((mldb.UsageError, InvalidTypeError), match=message):
        mldb.replay(tmp_path / "source", tmp_path / "new", transform=transform)
    with pytest.raises(mldb.FormatVersionError, match="not finished"):
        mldb.open(tmp_path / "new")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("options", [{"names": ["shared.b", "model", "default"]}, {}])
def test_a_killed_one_goes_on(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, count: int,
    options: dict[str, Any],
) -> None:  # fmt: skip
    options = options or {"transform": halved}
    source = tmp_path / "source"
    record_run(source, rng)
    mldb.replay(source, tmp_path / "straight", **options)
    small = partial(StoreBuilder, segment_entries=40)
    monkeypatch.setattr("mldb.tools.replay.replay.StoreBuilder", small)
    with monkeypatch.context() as patch:
        kill_after(patch, count)
        with pytest.raises(Killed):
            mldb.replay(source, tmp_path / "new", **options)
    report = mldb.replay(source, tmp_path / "new", verify=True, **options)
    assert report.resumed
    assert report.verified is not None
    assert report.verified.differences == ()
    assert all_shown(tmp_path / "new") == all_shown(tmp_path / "straight")
