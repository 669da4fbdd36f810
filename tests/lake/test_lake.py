"""A splat lake against a model: plain lists of rows by commit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.history.events import LakeCreated, SplatsAdded, SplatsDeleted
from mldb.lake.rows.block import MappedBlock
from mldb.lake.write import addition, block
from mldb.log.fs.posix_file import OsFile

DIM = 6


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def rows_of(rng: np.random.Generator, count: int, dim: int = DIM) -> Any:
    return rng.standard_normal((count, dim))


def unit(x: Any) -> Any:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_rows_come_back_normalised_with_their_norms_ids_and_labels(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    x, labels = rows_of(rng, 50), np.arange(50) % 3
    lake = db.lake(dim=DIM)
    assert len(lake) == 0
    ids = lake.add_splats(x, labels=labels, alpha=np.arange(1, 51), kappa=7.0, epoch=2)
    assert ids.tolist() == list(range(50))
    got = lake.get(fields=("mu", "norm", "id", "label", "alpha", "kappa", "min_cos"))
    np.testing.assert_allclose(got["mu"], unit(x), atol=3e-7)
    np.testing.assert_allclose(got["norm"], np.linalg.norm(x, axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got["mu"].astype(float), axis=1), 1, atol=3e-7)
    assert got["id"].tolist() == ids.tolist()
    assert got["label"].tolist() == labels.tolist()
    assert got["alpha"].tolist() == list(range(1, 51))
    assert set(got["kappa"].tolist()) == {7.0}
    assert set(got["min_cos"].tolist()) == {1.0}
    assert (db.epoch, db.lakes()) == (2, ["default"])
    assert db.verify().ok


def test_a_lake_follows_adds_removals_rewinds_and_every_past_commit(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    """The model is a list of (id, first value of the row); each commit keeps a copy of it."""
    lake = db.lake(dim=DIM)
    state: list[tuple[int, float]] = []
    seen: dict[int, list[tuple[int, float]]] = {}
    epoch = 0
    for _ in range(60):
        epoch += 1
        choice = rng.random()
        if choice < 0.5 or not state:
            x = rows_of(rng, int(rng.integers(1, 9)))
            free = np.setdiff1d(np.arange(200), [i for i, _ in state])
            given = rng.choice(free, len(x), replace=False) if rng.random() < 0.5 else None
            ids = lake.add_splats(x, ids=given, epoch=epoch)
            state = state + list(zip(ids.tolist(), unit(x)[:, 0].tolist(), strict=True))
        elif choice < 0.85:
            count = int(rng.integers(1, len(state) + 1))
            gone = set(rng.choice([i for i, _ in state], count, replace=False).tolist())
            lake.remove(sorted(gone), epoch=epoch)
            state = [row for row in state if row[0] not in gone]
        else:
            lsn = int(rng.choice(list(seen)))
            db.rewind(mldb.Lsn(lsn))
            state = seen[lsn]
            epoch = db.epoch
        seen[int(db.lsn)] = state
        got = lake.get(fields=("id", "mu"))
        assert got["id"].tolist() == [i for i, _ in state]
        np.testing.assert_allclose(got["mu"][:, 0], [v for _, v in state], atol=1e-6)
    for lsn, then in seen.items():
        with lake.at(mldb.Lsn(lsn)) as past:
            assert past.ids().tolist() == [i for i, _ in then]


def test_an_id_comes_back_after_its_removal_and_names_the_new_row(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 5), epoch=1)
    lake.remove([2], epoch=2)
    again = rows_of(rng, 1)
    lake.add_splats(again, ids=[2], epoch=3)
    assert lake.ids().tolist() == [0, 1, 3, 4, 2]
    np.testing.assert_allclose(lake.get([2])["mu"], unit(again), atol=3e-7)
    assert lake.at(1).ids().tolist() == [0, 1, 2, 3, 4]
    assert lake.add_splats(rows_of(rng, 1)).tolist() == [5]


def test_large_additions_equal_small_ones(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    """Above 16 MiB a block is written piece by piece before the commit."""
    x = rows_of(rng, 30_000, 160).astype(np.float32)
    one, many = db.lake("one", dim=160), db.lake("many", dim=160)
    assert one.add_splats(x, labels=np.arange(30_000)).tolist() == list(range(30_000))
    for low in range(0, 30_000, 7_000):
        many.add_splats(x[low : low + 7_000], labels=np.arange(low, min(low + 7_000, 30_000)))
    fields = ("mu", "norm", "id", "label")
    a, b = one.get(fields=fields), many.get(fields=fields)
    for name in fields:
        assert a[name].tobytes() == b[name].tobytes()
    scattered = rng.permutation(30_000)[:777]
    want = a["mu"][scattered]
    assert one.rows().gather("mu", scattered).tobytes() == want.tobytes()
    assert many.rows().gather("mu", scattered).tobytes() == want.tobytes()
    assert db.verify().ok


def test_events_tell_what_happened_to_lakes(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = db.lake("x", dim=DIM, geometry="euclid")
    lake.add_splats(rows_of(rng, 3), alpha=2.0)
    lake.remove([1])
    made, added, gone = list(db.events())
    assert isinstance(made, LakeCreated)
    assert (made.name, made.dim, made.geometry) == ("x", DIM, "euclid")
    assert isinstance(added, SplatsAdded)
    assert (added.lake, added.rows, added.base, added.alpha_sum) == ("x", 3, 0, 6.0)
    assert isinstance(gone, SplatsDeleted)
    assert (gone.lake, gone.rows) == ("x", 1)


def test_two_handles_never_give_out_the_same_id(store_path: Path, rng: np.random.Generator) -> None:
    with mldb.open(store_path) as one, mldb.open(store_path) as two:
        lakes = one.lake(dim=DIM), two.lake(dim=DIM)
        ids = [lakes[i % 2].add_splats(rows_of(rng, 3)).tolist() for i in range(6)]
        assert sorted(itertools.chain(*ids)) == list(range(18))
        assert lakes[0].ids().tolist() == lakes[1].ids().tolist()


def test_lakes_survive_reopening_backup_and_read_only(
    store_path: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    x = rows_of(rng, 20)
    with mldb.open(store_path) as db:
        db.lake(dim=DIM).add_splats(x, columns={"score": np.arange(20.0), "pair": x[:, :2]})
        db.backup(tmp_path / "copy")
    for path in (store_path, tmp_path / "copy"):
        with mldb.open(path, mode="r") as db:
            lake = db.lake()
            assert (lake.dim, lake.geometry, len(lake)) == (DIM, "sphere", 20)
            got = lake.get([19, 0], fields=("score", "pair"))
            assert got["score"].tolist() == [19.0, 0.0]
            np.testing.assert_array_equal(got["pair"], x[[19, 0], :2])
            with pytest.raises(mldb.ReadOnlyError):
                lake.add_splats(x)


def test_a_euclidean_lake_keeps_rows_as_they_are(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    x = np.vstack([rows_of(rng, 3), np.zeros((1, DIM))]).astype(np.float32)
    lake = db.lake("flat", dim=DIM, geometry="euclid")
    lake.add_splats(x)
    assert lake.get()["mu"].tobytes() == x.tobytes()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8", "torch", "bfloat16"])
def test_rows_of_every_kind_are_taken(db: mldb.MLDatabase, kind: str) -> None:
    torch = pytest.importorskip("torch")
    plain = np.array([[3, 4, 0, 0, 0, 0], [0, 0, 0, 0, 8, 6]])
    given: Any = plain.astype(kind) if kind in ("float16", "float32", "float64", "int8") else None
    if given is None:
        given = torch.tensor(plain, dtype=torch.float32 if kind == "torch" else torch.bfloat16)
        given.requires_grad_(True)
    lake = db.lake(dim=DIM)
    lake.add_splats(given, labels=torch.tensor([1, 2]))
    assert lake.get(fields=("norm",))["norm"].tolist() == [5.0, 10.0]
    np.testing.assert_allclose(lake.get()["mu"][0], [0.6, 0.8, 0, 0, 0, 0], atol=1e-7)


def test_norms_far_outside_the_range_of_squares_are_right(db: mldb.MLDatabase) -> None:
    x = np.zeros((3, DIM), np.float32)
    x[0, 0], x[1, 1], x[2, :2] = 1e-30, 1e30, (3e-25, 4e-25)
    lake = db.lake(dim=DIM)
    lake.add_splats(x)
    got = lake.get(fields=("mu", "norm"))
    np.testing.assert_allclose(got["norm"], [1e-30, 1e30, 5e-25], rtol=1e-6)
    np.testing.assert_allclose(got["mu"][2, :2], [0.6, 0.8], rtol=1e-6)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nan": ({"mu": [[1] * DIM, [np.nan] * DIM]}, mldb.InvalidValueError, "row 1 of mu is not fin"),
    "inf": ({"mu": [[np.inf] * DIM]}, mldb.InvalidValueError, "row 0 of mu is not finite"),
    "zero": ({"mu": [[1] * DIM, [0] * DIM]}, mldb.InvalidValueError, "row 1 of mu is zero"),
    "width": ({"mu": np.ones((2, DIM + 1))}, mldb.InvalidValueError, "takes [N, 6]"),
    "vector": ({"mu": np.ones(DIM)}, mldb.InvalidValueError, "takes [N, 6]"),
    "complex": ({"mu": np.ones((2, DIM), complex)}, mldb.InvalidTypeError, "real numbers"),
    "twice": ({"ids": [4, 4]}, mldb.InvalidValueError, "id 4 is given twice, at rows 0 and 1"),
    "taken": ({"ids": [70, 0]}, mldb.InvalidValueError, "id 0 at row 1 is taken"),
    "wide": ({"ids": [1, 1 << 48]}, mldb.InvalidValueError, "id 281474976710656 at row 1"),
    "negative": ({"ids": [-1, 1]}, mldb.InvalidValueError, "id -1 at row 0"),
    "floats": ({"ids": [0.5, 1.0]}, mldb.InvalidTypeError, "ids have dtype"),
    "labels": ({"labels": [1]}, mldb.InvalidValueError, "labels has shape (1,) for 2 rows"),
    "kappa": ({"kappa": [1, 0]}, mldb.InvalidValueError, "kappa is 0.0 at row 1"),
    "alpha": ({"alpha": -1}, mldb.InvalidValueError, "alpha is -1.0"),
    "alpha nan": ({"alpha": [1, np.nan]}, mldb.InvalidValueError, "alpha is nan at row 1"),
    "column": ({"columns": {"mu": [1, 2]}}, mldb.InvalidNameError, "mu"),
    "long": ({"columns": {"a": [1, 2, 3]}}, mldb.InvalidValueError, "column 'a' has shape (3,)"),
    "object": ({"columns": {"a": ["x", "y"]}}, mldb.InvalidTypeError, "column 'a' has dtype"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_and_nothing_is_stored(db: mldb.MLDatabase, case: str) -> None:
    arguments, error, text = BAD[case]
    lake = db.lake(dim=DIM)
    lake.add_splats(np.ones((3, DIM)), epoch=1)
    before = db.lsn
    with pytest.raises(error) as caught:
        lake.add_splats(**{"mu": np.ones((2, DIM)), **arguments})
    assert text in str(caught.value)
    assert isinstance(caught.value, mldb.MldbError)
    assert (db.lsn, len(lake)) == (before, 3)


def test_a_bad_row_in_a_large_addition_leaves_no_pending_file(db: mldb.MLDatabase) -> None:
    x = np.ones((40_000, 160), np.float32)
    x[39_999, 3] = np.nan
    lake = db.lake("big", dim=160)
    with pytest.raises(mldb.InvalidValueError, match="row 39999"):
        lake.add_splats(x)
    assert len(lake) == 0
    assert list((Path(db.path) / "pending").iterdir()) == []


def test_removing_what_is_not_there_removes_nothing(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = db.lake(dim=DIM)
    with pytest.raises(mldb.MissingError, match="there is no lake 'default'"):
        lake.remove([1])
    lake.add_splats(rows_of(rng, 3))
    before = db.lsn
    with pytest.raises(mldb.MissingError, match="no live row of id 7"):
        lake.remove([1, 7])
    with pytest.raises(mldb.InvalidValueError, match="no ids"):
        lake.remove([])
    with pytest.raises(mldb.MissingError, match="no column 'label'"):
        lake.get(fields=("label",))
    assert (db.lsn, len(lake)) == (before, 3)


def test_a_lake_keeps_its_shape(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    db.lake("a", dim=DIM).add_splats(rows_of(rng, 1))
    assert db.lake("a").dim == DIM
    assert db.lake("other").dim == 640
    with pytest.raises(mldb.InvalidValueError, match="dim=6, not 7"):
        db.lake("a", dim=7)
    with pytest.raises(mldb.InvalidValueError, match="geometry='sphere', not 'euclid'"):
        db.lake("a", geometry="euclid")
    with pytest.raises(mldb.LimitError):
        db.lake("b", dim=1)
    with pytest.raises(mldb.InvalidNameError):
        db.lake("a\0b")


def test_rows_taken_live_longer_than_the_store(store_path: Path, rng: np.random.Generator) -> None:
    with mldb.open(store_path) as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(rows_of(rng, 9))
        rows, want = lake.rows(), lake.get()["mu"]
    assert rows.gather("mu", np.arange(9)).tobytes() == want.tobytes()
    with pytest.raises(mldb.ClosedError):
        len(lake)


def test_damage_is_found_when_its_rows_are_read_and_only_then(
    store_path: Path, rng: np.random.Generator
) -> None:
    """Rows are verified in blocks of 16 KiB: the others stay readable."""
    with mldb.open(store_path) as db:
        db.lake(dim=160).add_splats(rows_of(rng, 1000, 160))
    file = max((store_path / "segments").iterdir())
    data = bytearray(file.read_bytes())
    place = data.find(b"\0" * 64, 200)
    start = -(-place // 4096) * 4096 if place > 0 else 4096
    data[start + 900 * 640] ^= 1
    file.write_bytes(data)
    with mldb.open(store_path, mode="r") as db:
        rows = db.lake().rows()
        rows.gather("mu", np.array([3, 100, 5]))
        with pytest.raises(mldb.CorruptError, match="'default'"):
            rows.gather("mu", np.array([3, 900]))
        with pytest.raises(mldb.CorruptError):
            rows.gather("mu", slice(0, 1000))
        assert not db.verify().ok


def test_a_large_addition_is_written_up_to_whole_huge_pages(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes of mu end where a huge page does, but for the last one; none leaves a gap."""
    monkeypatch.setattr(block, "PIECE_BYTES", 4 * DIM * 100)
    monkeypatch.setattr(block, "HUGE_BYTES", 2 * DIM * 100 + 96)
    monkeypatch.setattr(addition, "_IN_MEMORY", 0)
    written: list[tuple[int, int]] = []
    write = OsFile.pwritev

    def noted(self: OsFile, parts: Any, offset: int) -> int:
        written.append((offset, offset + sum(map(len, parts))))
        return write(self, parts, offset)

    rows = rng.standard_normal((950, DIM))
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        monkeypatch.setattr(OsFile, "pwritev", noted)
        lake.add_splats(rows)
        monkeypatch.undo()
        want = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        assert np.abs(lake.get()["mu"] - want).max() < 1e-6
        assert db.verify().ok
    huge = 2 * DIM * 100 + 96
    first = next(i for i, (low, high) in enumerate(written) if high - low > huge)
    runs = written[first : first + 9]
    assert all(high % huge == 0 for _, high in runs)
    assert all(low == before for (low, _), (_, before) in zip(runs[1:], runs, strict=False))


def test_buffers_come_back_only_after_the_last_write(
    store_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a large addition came back while the last one was still being written."""
    monkeypatch.setattr(block, "PIECE_BYTES", 4 * DIM * 64)
    write = OsFile.pwritev

    def slow(self: OsFile, parts: Any, offset: int) -> int:
        time.sleep(0.002)
        return write(self, parts, offset)

    with mldb.open(store_path, durability="os") as db:
        give = db._buffers.give

        def scribbled(part: memoryview) -> None:
            part[:] = bytes([0xAB]) * len(part)  # as the next one who takes it would
            give(part)

        monkeypatch.setattr(db._buffers, "give", scribbled)
        monkeypatch.setattr(OsFile, "pwritev", slow)
        lake, rows = db.lake(dim=DIM), rng.standard_normal((64 * 5, DIM))
        monkeypatch.setattr(addition, "_IN_MEMORY", 0)
        lake.add_splats(rows)
        want = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        assert np.abs(lake.get()["mu"] - want).max() < 1e-6
        assert db.verify().ok


def test_ids_can_be_asked_for_inside_the_call_that_reads_them(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler would: it waited for the lock of its own thread, for ever."""
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 20), ids=rng.permutation(20) + 100)
    rows = lake.rows()
    rows.chain.fresh.clear()  # what this handle added it need not read
    gather = MappedBlock.gather
    inside: list[Any] = []

    def interrupted(self: Any, name: str, *rest: Any) -> Any:
        if not inside:
            inside.append(None)
            inside[0] = rows.find(np.array([104, 7]))
        return gather(self, name, *rest)

    monkeypatch.setattr(MappedBlock, "gather", interrupted)
    want = np.array([rows.ids().tolist().index(104), -1])
    assert inside[0].tolist() == want.tolist() == rows.find(np.array([104, 7])).tolist()
    assert rows.ids() is rows.ids()


def test_rows_of_another_shape_do_not_get_into_a_lake(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    """Two handles of a lake that was not there yet: the second one's rows made it unreadable."""
    for other in ({"dim": DIM + 1}, {"dim": DIM, "geometry": "euclid"}):
        name = str(other)
        late = db.lake(name, dim=DIM)
        db.lake(name, **other).add_splats(rows_of(rng, 5, other["dim"]))  # type: ignore[arg-type]
        with pytest.raises(mldb.InvalidValueError, match="in the meantime"):
            late.add_splats(rows_of(rng, 3))
        assert len(db.lake(name)) == 5
        assert db.lake(name).get()["mu"].shape == (5, other["dim"])


@pytest.mark.parametrize("large", [False, True])
def test_rows_that_are_refused_make_no_lake(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """The lake was made, and the epoch moved, before the rows were looked at."""
    if large:
        monkeypatch.setattr(addition, "_IN_MEMORY", 0)
    before = db.lsn
    rows = rows_of(rng, 40)
    rows[30, 2] = np.nan
    with pytest.raises(mldb.InvalidValueError, match="row 30"):
        db.lake("f", dim=DIM).add_splats(rows, epoch=6)
    assert db.lsn == before
    assert db.lake("f", dim=DIM + 3).dim == DIM + 3


def bad_columns() -> dict[str, tuple[dict[str, Any], str]]:
    torch = pytest.importorskip("torch")
    one = np.zeros(1)
    return {
        "list": ({"columns": [1, 2]}, "give a dict"),
        "taken": ({"columns": {"changed": one}}, "fields of its own"),
        "surrogate": ({"columns": {"\ud800": one}}, "column"),
        "sparse": ({"mu": torch.eye(1, DIM).to_sparse()}, "dense real numbers"),
        "bool": ({"mu": torch.ones((1, DIM), dtype=torch.bool)}, "dense real numbers"),
    }


@pytest.mark.parametrize("case", ["list", "taken", "surrogate", "sparse", "bool"])
def test_what_is_no_column_is_refused(
    db: mldb.MLDatabase, rng: np.random.Generator, case: str
) -> None:
    given, text = bad_columns()[case]
    with pytest.raises(mldb.MldbError, match=text):
        db.lake(dim=DIM).add_splats(**{"mu": rows_of(rng, 1), **given})


@pytest.mark.parametrize("name", ["kappa", "alpha"])
@pytest.mark.parametrize(
    "value",
    ["3", ["3", "4"], 3 + 1j, np.array([1 + 0j, 2]), True, [None, 1], np.array([2, 3], "M8[s]")],
    ids=str,
)
def test_what_is_no_real_number_is_no_kappa_or_alpha(
    db: mldb.MLDatabase, rng: np.random.Generator, name: str, value: Any
) -> None:
    """kappa="3" was read as 3, and of a complex number the real part was taken."""
    lake = db.lake(dim=DIM)
    with pytest.raises(mldb.InvalidTypeError, match=rf"{name} has dtype .*real numbers"):
        lake.add_splats(rows_of(rng, 2), **{name: value})
    assert len(lake) == 0


def test_reads_that_cannot_be_are_refused_in_words(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake: Any = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 5))
    m2m: Any = mldb.create_m2m
    calls: list[Any] = [
        lambda: lake.get([[1, 2]]),
        lambda: lake.get(np.zeros((0, 2), int)),
        lambda: lake.remove([[1, 2]]),
        lambda: lake.get(fields=5),
        lambda: lake.get(fields=[["mu"]]),
        lambda: lake.augment(rows_of(rng, 2), seed="x", device="numpy"),
        lambda: lake.augment([["a"] * DIM], device="numpy"),
        lambda: lake.augment(rows_of(rng, 2), strength="x", device="numpy"),
        lambda: lake.augment(rows_of(rng, 2), keep="yes", device="numpy"),
        lambda: m2m("path"),
    ]
    for call in calls:
        with pytest.raises(mldb.InvalidTypeError):
            call()
    assert lake.augment(np.empty((0, DIM)), mode="walk", device="numpy").shape == (0, DIM)
