"""The stream of a lake: exact cover, exact resume, the same bytes however rows are stored."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from tests.support.lakes import BATCH, DIM, KINDS, ROWS, data, db, fill, raw, stream
from tests.support.workers import METHODS

__all__ = ["data", "db"]

torch = pytest.importorskip("torch")


def test_a_batch_is_a_plain_tensor_and_a_pass_holds_every_row_once(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    for kind in ("sequential", "permutation", "windowed"):
        loader = stream(lake, kind)
        batches = list(loader)
        assert [len(batch) for batch in batches] == [BATCH] * 15 + [20]
        assert len(loader) == 16
        assert all(type(batch) is torch.Tensor for batch in batches)
        assert all(batch.dtype == torch.float32 for batch in batches)
        rows = sorted(row.tobytes() for row in torch.cat(batches).numpy())
        assert rows == sorted(row.tobytes() for row in lake.get()["mu"])
    assert raw(stream(lake, "sequential"))[0] == lake.get()["mu"][:BATCH].tobytes()


def test_passes_differ_and_repeat_by_their_number(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    loader = stream(lake)
    first, second = raw(loader), raw(loader)
    assert first != second
    assert sorted(b"".join(first)) == sorted(b"".join(second))
    again = stream(lake)
    again.dataset.set_pass(1)
    assert raw(again) == second
    assert raw(stream(lake, seed=6)) != first
    left = stream(lake)
    next(iter(left))
    assert raw(left) == second  # a pass left in the middle is over


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_at_every_batch_of_a_pass(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str
) -> None:
    lake = fill(db, data)
    loader = stream(lake, kind)
    list(loader)  # the second pass is the one that is cut
    states, whole = [loader.state_dict()], []
    for batch in loader:
        whole += raw([batch])
        states.append(loader.state_dict())
    following = raw(loader)
    for at, state in enumerate(states[:-1]):
        other = stream(lake, kind)
        other.load_state_dict(state)
        assert raw(other) == whole[at:], f"resumed at batch {at}"
    other = stream(lake, kind)
    other.load_state_dict(loader.state_dict())
    assert raw(other)[0] != following[0] or kind == "sequential"  # the third pass has begun


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("one_lake_id")
def test_blocks_and_segments_change_nothing(
    store_path: Path, tmp_path: Path, data: dict[str, Any], kind: str
) -> None:
    """One addition, or many in small segments: the same rows give the same batches."""
    with (
        mldb.open(store_path) as one,
        mldb.open(tmp_path / "many", segment_bytes=8192) as many,
    ):
        whole, parts = fill(one, data), fill(many, data, 23)
        assert many.stats()["segments"] > 3
        assert raw(stream(parts, kind)) == raw(stream(whole, kind))
        loader = stream(whole, kind)
        iterator = iter(loader)
        head = raw(itertools.islice(iterator, 3))
        state = loader.state_dict() | {"lake": stream(parts).state_dict()["lake"]}
        state["lsn"] = int(many.lsn)
        other = stream(parts, kind)
        other.load_state_dict(state)
        assert head + raw(other) == raw(stream(whole, kind))


def test_a_stream_stays_at_its_commit(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    lake = fill(db, data)
    loader = stream(lake)
    state = loader.state_dict()
    want = raw(stream(lake))
    lake.remove(np.arange(100))
    lake.add_splats(np.ones((50, DIM)))
    assert raw(loader) == want
    newer = stream(lake)
    assert sum(len(batch) for batch in newer) == ROWS - 50
    newer = stream(lake)
    newer.load_state_dict(state)  # goes back to the commit of the state
    assert raw(newer) == want
    assert sum(len(b) for b in stream(lake, as_of=mldb.Lsn(state["lsn"]))) == ROWS


def test_removed_rows_are_not_streamed(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    lake = fill(db, data, 3)
    gone = np.arange(0, ROWS, 3)
    lake.remove(gone)
    for kind in ("sequential", "permutation", "drawn"):
        got = np.concatenate([b.id.numpy() for b in stream(lake, kind, fields=("mu", "id"))])
        assert not np.isin(got, gone).any()


def test_fields_come_as_a_named_tuple_in_their_order(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    data = data | {"columns": None}
    data.pop("columns")
    lake = fill(db, data)
    fields = ("mu", "weight", "id", "label", "kappa", "alpha", "norm", "lsn", "augmentation")
    for batch in stream(lake, "drawn", fields=fields):
        assert batch._fields == fields
        ids = batch.id.numpy()
        assert batch.mu.numpy().tobytes() == lake.get(ids)["mu"].tobytes()
        assert batch.label.tolist() == data["labels"][ids].tolist()
        assert batch.alpha.tolist() == data["alpha"][ids].tolist()
        assert batch.lsn.unique().tolist() == [int(db.lsn)]
        assert batch.augmentation.unique().tolist() == [0]
        assert batch.weight.dtype == torch.float32
    with pytest.raises(mldb.MissingError, match="no column 'nothing'"):
        stream(lake, fields=("mu", "nothing"))


def test_weights_are_unbiased_for_the_rows(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    """The weighted mean of f over draws estimates its mean over ingested rows."""
    lake = fill(db, data)
    truth = (data["labels"] * data["alpha"]).sum() / data["alpha"].sum()
    chosen = mldb.Importance(beta=0.0, target="rows")
    loader = stream(lake, "drawn", fields=("label", "weight"), importance_sampling=chosen)
    values, plain = [], []
    for _ in range(40):
        for batch in loader:
            values.append((batch.label * batch.weight).double())
            plain.append(batch.label.double())
    every = torch.cat(values)
    error = every.std() / len(every) ** 0.5
    assert abs(every.mean() - truth) < 4 * error


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 1), (3, 1)])
@pytest.mark.parametrize("kind", ["permutation", "drawn", "isotropic"])
def test_ranks_share_a_pass(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str, world: int, workers: int
) -> None:
    lake = fill(db, data)
    want = raw(stream(lake, kind))
    ranks = [raw(stream(lake, kind, rank=rank, world=world)) for rank in range(world)]
    dealt = [batch for turn in itertools.zip_longest(*ranks) for batch in turn if batch]
    assert dealt == want


def test_a_state_goes_on_under_another_number_of_ranks(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    want = raw(stream(lake))
    rank = stream(lake, rank=1, world=3)
    list(itertools.islice(iter(rank), 2))
    alone = stream(lake)
    alone.load_state_dict(rank.state_dict())
    assert raw(alone) == want[6:]
    two = [stream(lake, rank=r, world=2) for r in range(2)]
    for loader in two:
        loader.load_state_dict(rank.state_dict())
    halves = [raw(loader) for loader in two]
    assert [b for turn in itertools.zip_longest(*halves) for b in turn if b] == want[6:]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_workers_share_a_pass_and_resume(
    store_path: Path, data: dict[str, Any], method: str
) -> None:
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        want = raw(stream(lake, "isotropic"))
        context = {"multiprocessing_context": method}
        loader = stream(lake, "isotropic", num_workers=2, loader=context)
        assert loader.num_workers == 2
        got = []
        for batch in loader:
            got += raw([batch])
            if len(got) == 5:
                state = loader.state_dict()
        assert got == want
        alone = stream(lake, "isotropic")
        alone.load_state_dict(state)
        assert raw(alone) == want[5:]
        for workers in (2, 1):  # two of them went on behind the tenth batch
            one = stream(lake, "isotropic", num_workers=workers, loader=context)
            one.load_state_dict(state)
            assert raw(one) == want[5:]
        # The pass after it is the next one, with workers as without.
        single = stream(lake, "isotropic")
        single.dataset.set_pass(1)
        assert raw(one) == raw(single)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_workers_of_a_plain_data_loader_cover_every_row_once(
    store_path: Path, data: dict[str, Any], method: str
) -> None:
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        dataset = stream(lake, fields=("id", "label")).dataset
        plain = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=method
        )
        batches = list(plain)
        assert torch.cat([b.id for b in batches]).tolist() == [
            i for b in stream(lake, fields=("id",)) for i in b.id.tolist()
        ]
        assert sorted(torch.cat([b.id for b in batches]).tolist()) == list(range(ROWS))
        assert type(batches[0]).__name__ == "SplatBatch"


def test_workers_are_not_started_where_rows_are_only_read(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    options = {"multiprocessing_context": "spawn", "persistent_workers": True, "timeout": 5}
    loader = stream(lake, num_workers=3, loader=options)
    assert (loader.num_workers, loader.workers_asked) == (0, 3)
    assert raw(loader) == raw(stream(lake))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")  # torchdata 0.11 under torch 2.13
@pytest.mark.slow
def test_it_runs_under_a_stateful_data_loader(
    store_path: Path, data: dict[str, Any], workers: int
) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        want = raw(stream(lake))

        def make() -> Any:
            return torchdata.StatefulDataLoader(
                stream(lake).dataset, batch_size=None, num_workers=workers
            )

        loader = make()
        iterator = iter(loader)
        head = raw(itertools.islice(iterator, 5))
        state = loader.state_dict()
        del iterator
        other = make()
        other.load_state_dict(state)
        assert head + raw(other) == want


def _child(lake: Any, pipe: Any) -> None:
    try:
        len(lake)
    except mldb.ClosedError as error:
        pipe.send(str(error))


def test_a_lake_is_refused_in_a_forked_child(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    lake = fill(db, data)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(lake, there))
    child.start()
    assert here.poll(20)
    assert "forked child" in here.recv()
    child.join()


def test_batches_are_the_callers_own(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    """Kept batches stay as they were, and what is written to one is seen nowhere else."""
    lake = fill(db, data)
    for kind in ("permutation", "sequential"):
        want = raw(stream(lake, kind))
        loader = stream(lake, kind)
        kept = list(loader)
        assert raw(kept) == want
        loader.dataset.set_pass(0)
        for number, batch in enumerate(loader):
            batch.zero_()
            assert raw([loader.dataset.batch(number)]) == [want[number]]
        assert raw(kept) == want
        loader.dataset.set_pass(0)
        assert raw(loader) == want
        assert raw(stream(lake, kind)) == want
    assert db.verify().ok
    dropped = stream(lake)
    for batch in dropped:
        del batch
    assert dropped.stats()["buffers"] <= 12  # memory is used again


@pytest.mark.parametrize("device", ["numpy", "cpu", "vulkan"])
def test_a_stream_that_was_left_leaves_its_device_usable(
    db: mldb.MLDatabase, data: dict[str, Any], device: str
) -> None:
    """Batches that were started and never asked for hold slots of the device."""
    lake = fill(db, data)
    try:
        want = raw(stream(lake, "isotropic", device=device))
    except mldb.GpuUnavailableError as error:
        pytest.skip(str(error))
    loader = stream(lake, "isotropic", device=device)
    for at in range(1, 9):
        assert raw(itertools.islice(iter(loader), at)) != []
        loader.dataset.set_pass(0)
    assert raw(loader) == want


def test_rows_in_their_order_are_lent_and_not_copied(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data, 2)
    loader = stream(lake, "sequential", warm_bytes=0)
    whole = 4 * DIM * ROWS
    list(loader)
    moved = loader.stats()["cold"]
    assert moved["lent_bytes"] + moved["moved_bytes"] == whole
    assert moved["moved_bytes"] == 4 * DIM * BATCH  # the batch that lies in two blocks
    lake.remove([5])
    batches = list(stream(lake, "sequential"))
    assert torch.cat(batches).numpy().tobytes() == lake.get()["mu"].tobytes()


def test_any_batch_of_any_past_pass_can_be_made_again(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    loader = stream(lake, "copies", fields=("mu", "id", "lsn", "augmentation"))
    passes = [list(loader), list(loader)]
    other = stream(lake, "copies", fields=("mu", "id", "lsn", "augmentation")).dataset
    for number, at in ((1, 7), (0, 3), (1, 0)):
        again, was = other.batch(at, pass_number=number), passes[number][at]
        assert raw([again.mu]) == raw([was.mu])
        told = other.provenance(at, pass_number=number)
        assert told["id"].tolist() == was.id.tolist()
        assert told["lsn"].tolist() == was.lsn.tolist()
        assert told["augmentation"].tolist() == was.augmentation.tolist() == [0, 1, 2, 3] * 8
        assert (told["seed"], told["pass"], told["layout"]) == (5, number, 2)


@pytest.mark.parametrize("kind", ["sequential", "permutation", "systematic", "copies", "langevin"])
def test_looking_at_single_batches_leaves_the_iteration_alone(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str
) -> None:
    """They were made by the stream that was iterated: its pass changed, its buffers with it."""
    lake = fill(db, data)
    want = raw(stream(lake, kind))
    later = stream(lake, kind)
    later.dataset.set_pass(3)
    third = raw(later)
    loader = stream(lake, kind)
    got = []
    for number, batch in enumerate(loader):
        other = loader.dataset.batch(len(third) - 1 - number, pass_number=3)
        assert raw([other]) == [third[len(third) - 1 - number]]
        assert raw([loader.dataset.batch(number)]) == [want[number]]
        assert loader.dataset.provenance(0, pass_number=3)["pass"] == 3
        assert len(loader) == len(want)
        got += raw([batch])
    assert got == want


def test_a_state_loaded_in_the_middle_of_a_pass_ends_it(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    want = raw(stream(lake))
    loader = stream(lake)
    states = [loader.state_dict() for _ in zip(loader, range(5), strict=False)]
    loader.load_state_dict(states[1])
    assert raw(loader) == want[2:]


@pytest.mark.slow
def test_workers_that_persist_follow_a_loaded_state(store_path: Path, data: dict[str, Any]) -> None:
    """They went on with the pass they were in, while the loader counted the one of the state."""
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        alone = stream(lake, "isotropic")
        passes = [raw(alone) for _ in range(2)]
        options = {"multiprocessing_context": "fork", "persistent_workers": True}
        loader = stream(lake, "isotropic", num_workers=2, loader=options)
        states = [loader.state_dict() for _ in loader]
        assert raw(loader) == passes[1]
        loader.load_state_dict(states[4])
        assert raw(loader) == passes[0][5:]
        assert raw(loader) == passes[1]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_may_be_made_even(db: mldb.MLDatabase, data: dict[str, Any], world: int) -> None:
    """A rank with a batch more would wait for the others for ever."""
    lake = fill(db, data)
    want = raw(stream(lake))
    ranks = [stream(lake, rank=rank, world=world, even_ranks=True) for rank in range(world)]
    assert {len(loader) for loader in ranks} == {16 // world}
    got = [raw(loader) for loader in ranks]
    dealt = [batch for turn in zip(*got, strict=True) for batch in turn]
    assert dealt == want[: 16 // world * world]
    late = stream(lake, rank=world - 1, world=world, even_ranks=True)
    iterator = iter(late)
    next(iterator)
    rest = stream(lake, rank=world - 1, world=world, even_ranks=True)
    rest.load_state_dict(late.state_dict())
    assert raw(rest) == raw(iterator) == got[-1][1:]


def test_ranks_are_those_of_torch_distributed(
    db: mldb.MLDatabase, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, data)
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    dataset = stream(lake).dataset
    assert (dataset.rank, dataset.world) == (1, 3)
    dataset = stream(lake, rank=4, world=6).dataset
    assert (dataset.rank, dataset.world) == (4, 6)
    with pytest.raises(mldb.InvalidValueError, match="rank=3 is not one of world=3"):
        stream(lake, rank=3)


def test_stats_tell_how_well_a_pass_is_shuffled_and_what_weights_cost(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rng.standard_normal((20_000, DIM)), alpha=rng.integers(1, 9, 20_000))

    def told(kind: str, **options: Any) -> dict[str, Any]:
        loader = stream(lake, kind, **options)
        next(iter(loader))
        return loader.stats()  # type: ignore[no-any-return]

    full = told("permutation")
    assert (full["order"], full["importance"]) == ("permutation", None)
    assert full["shuffle"]["mix"] == pytest.approx(1, abs=0.05)
    assert full["shuffle"]["spread"] == pytest.approx(1, abs=0.05)
    near = told("windowed", window_rows=2048)["shuffle"]
    assert near["mix"] < 0.4  # a batch comes from two runs of 1,024 rows
    wide = told("windowed", window_rows=16 << 10)["shuffle"]
    assert near["mix"] < wide["mix"] < 1.05
    assert told("sequential")["shuffle"] is None
    weighted = mldb.Importance(beta=0.5, target="rows")
    drawn = told("drawn", importance_sampling=weighted, fields=("mu", "weight"))
    assert (drawn["order"], drawn["shuffle"]) == ("importance, with", None)
    assert 0.1 < drawn["importance"]["ess"] < 1
    assert drawn["importance"]["floor"] == 0.1
    assert told("isotropic")["shuffle"]["mix"] > 0.9
    one = stream(lake, "permutation")
    assert one.stats()["shuffle"] is None  # nothing was planned yet


def test_salience_is_a_column_or_a_function_of_ids(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(data["mu"], columns={"loss": np.arange(ROWS) >= 490})
    chosen = mldb.Importance(gamma=1.0, floor=0.0, least_ess=0.0)
    for salience in ("loss", lambda ids: ids >= 490):
        loader = stream(
            lake, "drawn", importance_sampling=chosen, salience=salience, fields=("id",)
        )
        ids = torch.cat([batch.id for batch in loader])
        assert ids.min() >= 490
    with pytest.raises(mldb.MissingError, match="no column 'x'"):
        stream(lake, "drawn", importance_sampling=chosen, salience="x")


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.permutations(["drawn", "walk", "copies"], 2))
)
def test_a_state_of_other_settings_is_refused(
    db: mldb.MLDatabase, data: dict[str, Any], one: str, other: str
) -> None:
    """It used to be taken, and the stream went on with other batches."""
    lake = fill(db, data)
    with pytest.raises(mldb.InvalidValueError, match="settings"):
        stream(lake, one).load_state_dict(stream(lake, other).state_dict())
    strong = stream(lake, generate_samples=mldb.Augmentation(strength=0.5))
    with pytest.raises(mldb.InvalidValueError, match="settings"):
        strong.load_state_dict(stream(lake, "isotropic").state_dict())


BAD_STATES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lake": ({"lake": "00"}, mldb.InvalidValueError, "lake '00'"),
    "version": ({"version": 2}, mldb.InvalidValueError, "version of the state 2"),
    "layout": ({"layout": 9}, mldb.InvalidValueError, "counter layout 9"),
    "seed": ({"seed": 1}, mldb.InvalidValueError, "seed 1"),
    "batch": ({"batch_size": 7}, mldb.InvalidValueError, "batch size 7"),
    "settings": ({"settings": "00"}, mldb.InvalidValueError, "settings (importance"),
    "order": ({"order": "windowed"}, mldb.InvalidValueError, "order 'windowed'"),
    "commit": ({"lsn": 999}, mldb.InvalidValueError, "commit 999"),
    "negative": ({"cursor": -1}, mldb.InvalidTypeError, "cursor is -1"),
    "text": ({"pass": "1"}, mldb.InvalidTypeError, "pass is '1'"),
    "undecided": ({"order": "auto"}, mldb.InvalidTypeError, "order is 'auto'"),
    "unordered": ({"order": ["x"]}, mldb.InvalidTypeError, "order is"),
    "far": ({"pass": 1 << 32}, mldb.InvalidTypeError, "pass is 4294967296"),
    "endless": ({"cursor": 1 << 80}, mldb.InvalidTypeError, "cursor is"),
    "workers": ({"workers": 3}, mldb.InvalidValueError, "one of 3 workers"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_that_does_not_fit_is_refused(
    db: mldb.MLDatabase, data: dict[str, Any], case: str
) -> None:
    lake = fill(db, data)
    loader = stream(lake)
    changes, error, text = BAD_STATES[case]
    with pytest.raises(error) as caught:
        loader.load_state_dict(loader.state_dict() | changes)
    assert text in str(caught.value)
    assert raw(loader) == raw(stream(lake))
    with pytest.raises(mldb.InvalidTypeError):
        loader.load_state_dict({"epoch": 3})


def test_a_refused_order_leaves_a_stream_as_it_was(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    """The commit of the state was taken before its order was refused."""
    lake = fill(db, data)
    old = stream(lake, order="auto")
    lake.remove([1])
    loader = stream(lake, order="auto")
    before = loader.state_dict()
    with pytest.raises(mldb.InvalidTypeError, match="no state"):
        loader.load_state_dict(old.state_dict() | {"order": "sorted"})
    assert loader.state_dict() == before
    assert sum(len(batch) for batch in loader) == ROWS - 1


def test_a_stream_holds_its_commit_and_gives_it_back(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    held = db._log.registration

    def promised() -> int:
        assert held._written is not None
        return held._written[0]

    loader = stream(lake)
    lsn = loader.dataset.lsn
    lake.remove([1])
    assert (loader.dataset.lsn, promised()) == (lsn, lsn)
    list(loader)
    del loader
    gc.collect()
    held.hold(db.lsn)  # the next call takes back what was given up
    assert promised() == db.lsn
    held.release(db.lsn)


@pytest.mark.parametrize("order", ["sequential", "permutation"])
def test_an_iteration_holds_its_commit_without_its_loader(
    db: mldb.MLDatabase, data: dict[str, Any], order: str
) -> None:
    """``for batch in lake.export_to_dataloader()``: nobody else has the loader."""
    lake = fill(db, data)
    held = db._log.registration
    iterator = iter(stream(lake, order=order))
    lsn = db.lsn
    next(iterator)
    gc.collect()
    lake.remove([1])
    held.hold(db.lsn)
    assert held._written is not None
    assert held._written[0] == lsn
    iterator.close()
    del iterator
    gc.collect()
    held.release(db.lsn)
    assert held._written[0] > lsn


def test_streams_that_cannot_be_are_refused(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    empty = db.lake("empty", dim=DIM)
    with pytest.raises(mldb.MissingError, match="no lake 'empty'"):
        stream(empty)
    lake = fill(db, data)
    lake.remove(np.arange(ROWS))
    with pytest.raises(mldb.InvalidValueError, match="has no rows at commit"):
        stream(lake)
    lake.add_splats(data["mu"][:5])
    assert [len(batch) for batch in stream(lake)] == [5]
    for options, error, text in (
        ({"drop_last": True}, mldb.InvalidValueError, "Lower batch_size"),
        ({"order": "random"}, mldb.InvalidValueError, "order='random'"),
        ({"shufle": 1}, mldb.InvalidTypeError, "is no option of StreamOptions"),
        ({"rank": 2, "world": 2}, mldb.InvalidValueError, "rank=2 is not one of world=2"),
        ({"generate_samples": "yes"}, mldb.InvalidTypeError, "generate_samples is a str"),
        ({"strength": 0.5}, mldb.InvalidTypeError, "Those of augmentation go into"),
        ({"fields": "mu"}, mldb.InvalidTypeError, "fields='mu' is a str"),
        ({"loader": {"batch_size": 3}}, mldb.InvalidValueError, "pass batch_size"),
        ({"salience": "x"}, mldb.InvalidValueError, "importance_sampling as well"),
        ({"draws": 5}, mldb.InvalidValueError, "importance_sampling as well"),
        (
            {"salience": "x", "importance_sampling": True},
            mldb.InvalidValueError,
            "give both or neither",
        ),
        (
            {"importance_sampling": mldb.Importance(gamma=1.0)},
            mldb.InvalidValueError,
            "give both or neither",
        ),
        ({"device": "tpu"}, mldb.InvalidValueError, "device='tpu'"),
        ({"generate_samples": mldb.Augmentation(copies=3)}, mldb.InvalidValueError, "multiple"),
        ({"fields": ()}, mldb.InvalidValueError, "fields"),
        ({"seed": -1}, mldb.InvalidValueError, "seed=-1"),
    ):
        with pytest.raises(error, match=text):
            stream(lake, **options)


def test_euclidean_lakes_stream_and_are_not_augmented(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = db.lake("flat", dim=DIM, geometry="euclid")
    lake.add_splats(data["mu"])
    assert sum(len(batch) for batch in stream(lake)) == ROWS
    with pytest.raises(mldb.InvalidValueError, match="euclid"):
        list(stream(lake, "isotropic"))
