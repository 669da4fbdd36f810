"""Model checkpoints: restored to the bit, taken behind the training loop, failing loudly."""

from __future__ import annotations

import copy
import errno
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.faults import FaultFileSystem
from tests.support.parts import examples


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


pytestmark = pytest.mark.usefixtures("one_thread")


# --- a training run -------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """Two layers that share a weight, batch statistics, and noise."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(9, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.drop(self.norm(self.embed(tokens))))
        return result


class Run:
    """Model, Adam, schedule, every generator, and the cursor of a loader."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        self.model = Tied()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.cursor = {"epoch": 0, "position": 0, "order": list(range(5))}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "rng": {
                "torch": torch.get_rng_state(),
                "generator": self.generator,
                "numpy": self.rng.bit_generator.state,
                "python": random.getstate(),
            },
            "cursor": self.cursor,
        }

    def resume(self, db: mldb.MLDatabase, as_of: Any = None) -> None:
        loaded = db.load(self.state(), as_of=as_of)
        torch.set_rng_state(loaded["rng"]["torch"])
        self.rng.bit_generator.state = loaded["rng"]["numpy"]
        random.setstate(loaded["rng"]["python"])
        self.cursor = loaded["cursor"]

    def step(self) -> float:
        tokens = torch.randint(0, 9, (8,), generator=self.generator)
        tokens = (tokens + int(self.rng.integers(0, 3)) + random.randint(0, 2)) % 9
        loss = torch.nn.functional.cross_entropy(self.model(tokens), tokens)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        self.cursor["position"] = int(self.cursor["position"]) + 1  # type: ignore[call-overload]
        self.cursor["order"] = self.cursor["order"][1:] + self.cursor["order"][:1]  # type: ignore[index]
        return loss.item()

    def bits(self) -> bytes:
        parts = [tensor.detach().numpy().tobytes() for tensor in self.model.state_dict().values()]
        for entry in self.optimizer.state_dict()["state"].values():
            parts += [entry[key].numpy().tobytes() for key in ("exp_avg", "exp_avg_sq", "step")]
        return b"".join(parts) + self.generator.get_state().numpy().tobytes()


@pytest.mark.parametrize("options", [{}, {"map_bytes": 0}, {"compression": "zstd"}], ids=repr)
@pytest.mark.parametrize("wait", [True, False])
def test_a_run_resumes_bit_for_bit(store_path: Path, wait: bool, options: dict[str, Any]) -> None:
    run = Run(1)
    losses = []
    with mldb.open(store_path, durability="os", **options) as db:
        for epoch in range(1, 6):
            losses.append([run.step() for _ in range(3)])
            metrics = {"loss": losses[-1][-1]}
            db.checkpoint(run.state(), epoch=epoch, metrics=metrics, wait=wait)  # type: ignore[call-overload]
    end = run.bits()
    for epoch in (1, 3, 5):
        with mldb.open(store_path, **options) as db:
            other = Run(99)
            other.resume(db, epoch)
            assert other.cursor == {
                "epoch": 0,
                "position": 3 * epoch,
                "order": list(np.roll(range(5), -3 * epoch)),
            }
            assert other.model.head.weight is other.model.embed.weight
            assert [[other.step() for _ in range(3)] for _ in range(epoch, 5)] == losses[epoch:]
            assert other.bits() == end
            (point,) = [c for c in db.checkpoints() if c.epoch == epoch]
            assert point.metrics == {"loss": losses[epoch - 1][-1]}


def test_a_bare_model_is_stored_by_its_keys(db: mldb.MLDatabase) -> None:
    model = Tied()
    point = db.checkpoint(model, epoch=3)
    assert (point.name, point.epoch, point.step, point.tensors) == ("epoch-3", 3, None, 7)
    assert list(db) == sorted(model.state_dict())
    np.testing.assert_array_equal(db["head.weight"], model.head.weight.detach().numpy())
    state = db.state_dict()
    assert set(state) == set(model.state_dict())
    other = Tied()
    other.load_state_dict(state)
    for key, value in model.state_dict().items():
        assert other.state_dict()[key].equal(value), key
    assert db.load(Tied()).state.head.weight.equal(model.head.weight)
    # The shared weight is there once.
    assert db.history("head.weight")[0].digest == db.history("embed.weight")[0].digest
    assert point.nbytes == sum(
        {t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values()
    )


def test_parts_of_a_tree_by_prefix(db: mldb.MLDatabase) -> None:
    run = Run(1)
    run.step()
    db.checkpoint(run.state(), epoch=1)
    assert "model/head.weight" in db
    state = db.state_dict(prefix="model/")
    assert set(state) == set(run.model.state_dict())
    Tied().load_state_dict(state)
    assert db.state_dict(prefix="none/") == {}
    assert all(tensor.device.type == "meta" for tensor in db.state_dict(device="meta").values())
    with pytest.raises(mldb.InvalidTypeError):
        db.state_dict(prefix=5)  # type: ignore[arg-type]


def test_state_dict_without_a_checkpoint_is_all_tensors(db: mldb.MLDatabase) -> None:
    db.update({"a/x": torch.ones(2), "b": np.zeros(3)})
    assert {name: value.tolist() for name, value in db.state_dict().items()} == {
        "a/x": [1, 1],
        "b": [0, 0, 0],
    }
    assert set(db.state_dict(prefix="a/")) == {"x"}
    with pytest.raises(mldb.MissingError, match="no checkpoint"):
        db.load(None)
    with pytest.raises(mldb.MissingError, match="checkpoint"):
        db.load({"a": torch.ones(2)})


TREES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(allow_nan=False),
        st.text(max_size=4),
        st.binary(max_size=4),
        st.integers(0, 5).map(torch.arange),
        st.integers(0, 5).map(lambda n: np.arange(n, dtype=">f4")),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=10,
)


def same_tree(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same_tree(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same_tree(left, right)
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tolist() == other.tolist()
    else:
        assert one == other


@given(tree=TREES, wait=st.booleans())
@examples(60)
def test_a_tree_of_plain_state_comes_back_typed(tree: Any, wait: bool) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        state = {"tree": tree}
        pending = db.checkpoint(state, epoch=0, wait=wait)  # type: ignore[call-overload]
        point = pending if wait else pending.result(10)
        same_tree(db.load(None), state)
        assert db.checkpoints()[0] == mldb.Checkpoint(
            "epoch-0", point.lsn, 0, None, point.time, {}, point.tensors, point.nbytes
        )


# --- names and lists ------------------------------------------------------------------------------


def test_checkpoints_are_listed_and_named(db: mldb.MLDatabase) -> None:
    for epoch in (1, 2):
        for step in (10, 20):
            db.checkpoint({"w": np.full(2, epoch * step)}, epoch=epoch, step=epoch * 100 + step)
    db.checkpoint({"w": np.zeros(1)}, epoch=2, name="best", metrics={"acc": 0.5, "n": np.int64(3)})
    names = ["epoch-1-step-110", "epoch-1-step-120", "epoch-2-step-210", "epoch-2-step-220", "best"]
    found = db.checkpoints()
    assert [c.name for c in found] == names
    assert [c.lsn for c in found] == sorted(c.lsn for c in found)
    assert found[-1].metrics == {"acc": 0.5, "n": 3}
    assert [c.step for c in found] == [110, 120, 210, 220, None]
    assert [c.name for c in db.checkpoints(as_of=1)] == names[:2]
    assert db.load(None, as_of="epoch-1-step-120")["w"].tolist() == [20, 20]
    again = db.checkpoint({"w": np.ones(1)}, epoch=3, name="best")
    assert [c.lsn for c in db.checkpoints()][-1] == again.lsn  # the newest of a name
    assert len(db.checkpoints()) == 5
    db["w"] = [7, 7]  # stored later by hand: the checkpoint stays what it was
    assert db.load(None)["w"].tolist() == [1]
    assert db.state_dict()["w"].tolist() == [1]


def test_what_a_checkpoint_refuses(db: mldb.MLDatabase) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"epoch": None}, mldb.InvalidTypeError),
        ({"epoch": "1"}, mldb.InvalidTypeError),
        ({"epoch": True}, mldb.InvalidTypeError),
        ({"epoch": -1}, mldb.LimitError),
        ({"epoch": 1 << 63}, mldb.LimitError),
        ({"epoch": 1, "step": 1.5}, mldb.InvalidTypeError),
        ({"epoch": 1, "step": True}, mldb.InvalidTypeError),
        ({"epoch": 1, "name": "../x"}, mldb.InvalidNameError),
        ({"epoch": 1, "name": 5}, mldb.InvalidTypeError),
        ({"epoch": 1, "metrics": [1]}, mldb.InvalidTypeError),
        ({"epoch": 1, "metrics": {"m": object()}}, mldb.InvalidTypeError),
    ]
    for options, error in wrong:
        for wait in (True, False):
            with pytest.raises(error):
                db.checkpoint({"w": np.zeros(1)}, wait=wait, **options)
    for state in ({"f": lambda: 1}, {"w": np.array([object()])}, {"s": {1, 2}}, object()):
        with pytest.raises(mldb.InvalidTypeError):
            db.checkpoint(state, epoch=1)
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(mldb.LimitError):
        db.checkpoint(nested, epoch=1)
    assert (db.lsn, db.checkpoints(), len(db)) == (0, [], 0)
    with pytest.raises(TypeError):
        db.checkpoint({})  # type: ignore[call-overload]


def test_a_refused_load_changes_nothing(db: mldb.MLDatabase) -> None:
    model = torch.nn.Linear(2, 2)
    db.checkpoint({"model": model, "extra": torch.ones(2)}, epoch=1)
    linear = torch.nn.Linear(2, 2)
    other = {"model": linear, "extra": torch.zeros(2)}
    before = copy.deepcopy(linear.state_dict())
    with pytest.raises(mldb.InvalidValueError, match="extra"):
        db.load({"model": other["model"]})
    with pytest.raises(mldb.MissingError, match="more"):
        db.load({**other, "more": torch.zeros(1)})
    with pytest.raises(mldb.InvalidValueError, match="shape"):
        db.load({"model": torch.nn.Linear(3, 2), "extra": torch.zeros(2)})
    same_tree(linear.state_dict(), before)
    db.load({"model": other["model"]}, strict=False)
    assert linear.weight.equal(model.weight)


# --- behind the training loop ---------------------------------------------------------------------


class Gate:
    """Stands in the way of a file system's writes until it is opened."""

    def __init__(self, fs: FaultFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = threading.Event()
        self.opened = threading.Event()
        write = fs.write

        def held(*arguments: Any) -> int:
            if threading.current_thread().name == "mldb-checkpoints":
                self.arrived.set()
                assert self.opened.wait(10)
            return write(*arguments)

        monkeypatch.setattr(fs, "write", held)


@pytest.fixture
def fs() -> FaultFileSystem:
    return FaultFileSystem(MemoryFileSystem())


def test_the_value_is_fixed_at_the_call(
    fs: FaultFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(fs, monkeypatch)
    weights, large = torch.ones(5), np.ones(200_000)
    plain, metrics = {"n": [1]}, {"nested": {"loss": [1.0]}}
    sparse = torch.eye(3).to_sparse()
    with mldb.MLDatabase.on(fs, durability="os") as db:
        pending = db.checkpoint(
            {"w": weights, "large": large, "plain": plain, "sparse": sparse},
            epoch=1,
            metrics=metrics,
            wait=False,
        )
        assert gate.arrived.wait(10)
        assert not pending.done
        assert "on its way" in repr(pending)
        with pytest.raises(TimeoutError, match="goes on behind"):
            pending.result(timeout=0.001)
        weights.mul_(7)
        large *= 7
        plain["n"].append(2)
        metrics["nested"]["loss"].append(2.0)
        sparse.values().mul_(7)
        assert "w" not in db
        gate.opened.set()
        point = pending.result(10)
        assert "stored" in repr(pending)
        loaded = db.load(None)
        assert loaded["w"].tolist() == [1] * 5
        assert float(loaded["large"].max()) == 1
        assert loaded["plain"] == {"n": [1]}
        assert loaded["sparse"].to_dense().equal(torch.eye(3))
        assert point.metrics == db.checkpoints()[0].metrics == {"nested": {"loss": [1.0]}}
        assert point.stall_ms == pending.stall_ms > 0
        # The reused buffer does not reach into what was stored before.
        db.checkpoint({"w": torch.zeros(5)}, epoch=2, wait=False).result(10)
        assert db.load(None, as_of=1)["w"].tolist() == [1] * 5


def test_commits_come_in_the_order_of_the_calls(
    fs: FaultFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(fs, monkeypatch)
    timer = threading.Timer(0.05, gate.opened.set)
    with mldb.MLDatabase.on(fs, durability="os") as db:
        pending = db.checkpoint({"w": torch.ones(5)}, epoch=1, wait=False)
        timer.start()
        lsn = db.store_tensor("w", torch.zeros(5))
        assert pending.done
        assert pending.result().lsn < lsn
        gate.opened.clear()
        pending = db.checkpoint({"w": torch.ones(5)}, epoch=2, wait=False)
        threading.Timer(0.05, gate.opened.set).start()
        with db.transaction() as txn:  # begins behind the checkpoint, so it conflicts with nothing
            assert txn["w"].tolist() == [1] * 5
            txn["w"] = torch.full((5,), 2)
        gate.opened.clear()
        db.checkpoint({"w": torch.ones(5)}, epoch=3, wait=False)
        threading.Timer(0.05, gate.opened.set).start()
        assert db.checkpoint({"w": torch.zeros(5)}, epoch=3, name="late").epoch == 3
        assert [c.name for c in db.checkpoints()] == ["epoch-1", "epoch-2", "epoch-3", "late"]
    writes: dict[str, Callable[[mldb.MLDatabase], Any]] = {
        "tag": lambda db: db.tag("t"),
        "rewind": lambda db: db.rewind("late"),
        "sync": lambda db: db.sync(),
        "create": lambda db: db.create_tensor("c", (1,), "f4").__enter__().__exit__(*[None] * 3),
        "relate": lambda db: db.create_relationship("a", "b", "c"),
        "close": lambda db: db.close(),
    }
    for name, write in writes.items():
        db = mldb.MLDatabase.on(fs, durability="os")
        gate.opened.clear()
        pending = db.checkpoint({"w": torch.ones(5)}, epoch=9, name=name, wait=False)
        threading.Timer(0.02, gate.opened.set).start()
        write(db)
        assert pending.done, name
        db.close()
    timer.join()


def test_the_queue_is_bounded_and_the_stall_is_told(
    fs: FaultFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(fs, monkeypatch)
    with mldb.MLDatabase.on(fs, durability="os", pending_checkpoints=2) as db:
        state = {"w": torch.ones(5)}
        free = [db.checkpoint(state, epoch=1, name=f"{n}", wait=False) for n in range(2)]
        threading.Timer(0.1, gate.opened.set).start()
        waited = db.checkpoint(state, epoch=1, name="2", wait=False)
        assert all(pending.stall_ms < 80 for pending in free)
        assert waited.stall_ms > 50
        assert free[0].done  # its buffer was reused
        for pending in (*free, waited):
            pending.result(10)
        assert [c.name for c in db.checkpoints()] == ["0", "1", "2"]


NEXT_CALLS: dict[str, Callable[[mldb.MLDatabase], Any]] = {
    "store": lambda db: db.store_tensor("x", 1),
    "checkpoint": lambda db: db.checkpoint({"w": np.ones(1)}, epoch=1),
    "checkpoint behind": lambda db: db.checkpoint({"w": np.ones(1)}, epoch=1, wait=False),
    "transaction": lambda db: db.transact(lambda txn: txn.store_tensor("x", 1)),
    "tag": lambda db: db.tag("t", db.lsn),
    "rewind": lambda db: db.rewind(None),
    "sync": lambda db: db.sync(),
    "close": lambda db: db.close(),
    "result": lambda db: None,
}


@pytest.mark.parametrize("call", NEXT_CALLS)
def test_an_error_is_raised_at_the_next_call(fs: FaultFileSystem, call: str) -> None:
    db = mldb.MLDatabase.on(fs, durability="os")
    db["first"] = 1
    fs.fail("pwritev", code=errno.ENOSPC)
    pending = db.checkpoint({"w": np.ones(100)}, epoch=1, wait=False)
    if call == "result":
        with pytest.raises(mldb.StorageFullError):
            pending.result(10)
        assert "failed" in repr(pending)
        db["x"] = 1  # seen once is enough
    else:
        if call == "checkpoint behind":
            while not pending.done:
                pass
        with pytest.raises(mldb.StorageFullError, match="Free space"):
            NEXT_CALLS[call](db)
    assert isinstance(pending.error, mldb.StorageFullError)
    if call != "close":
        assert list(db) == (["first", "x"] if call == "result" else ["first"])
        assert db.checkpoint({"w": np.ones(100)}, epoch=1).name == "epoch-1"
        NEXT_CALLS["close"](db)
    with mldb.MLDatabase.on(fs) as again:
        assert again.verify().ok
        assert ("w" in again) == (call != "close")
        assert again.recovery.clean or call == "close"


def test_close_raises_what_nobody_saw_and_closes_all_the_same(fs: FaultFileSystem) -> None:
    db = mldb.MLDatabase.on(fs, durability="os")
    fs.fail("pwritev", code=errno.EIO)
    with pytest.raises(mldb.StorageIOError), db:
        db.checkpoint({"w": np.ones(1)}, epoch=1, wait=False)
    with pytest.raises(mldb.ClosedError):
        len(db)
    db.close()


@pytest.mark.parametrize("kind", ["pwritev", "link"])
@pytest.mark.parametrize("small", [True, False])
def test_a_checkpoint_is_all_or_nothing(fs: FaultFileSystem, kind: str, small: bool) -> None:
    """A full disk at any write of it leaves the one before, whole; the next one succeeds."""
    state = {f"t{n}": np.full(50 if small else 40_000, 0.0) for n in range(4)}
    number = failed = 0
    with mldb.MLDatabase.on(fs, durability="os", segment_bytes=1_000_000) as db:
        db.checkpoint(state, epoch=0)
        for at in (step // 2 + 1 for step in range(40)):
            for tensor in state.values():
                tensor[:] = number + 1
            fs.fail(kind, at=at, code=errno.ENOSPC)
            try:
                db.checkpoint(state, epoch=number + 1)
                number += 1
            except mldb.StorageFullError:
                failed += 1
            fs.heal()
            loaded = db.load(None)
            assert {float(value[7]) for value in loaded.values()} == {float(number)}
            assert db.epoch == number
    assert number > 10
    assert failed > 1 or (kind == "link" and small)
