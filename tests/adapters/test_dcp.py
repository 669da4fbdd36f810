"""torch.distributed.checkpoint over a store, in one process: values, time travel, bad input."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import (
    CorruptError,
    FormatVersionError,
    InvalidTypeError,
    LimitError,
    MissingError,
    UsageError,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner  # noqa: E402

from mldb.adapters.dcp import StorageReader, StorageWriter, list_checkpoints  # noqa: E402
from mldb.adapters.dcp.document import DOCUMENT, Document, encode_document  # noqa: E402
from mldb.adapters.dcp.layout import Box, BoxedTensor  # noqa: E402


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """torch warns that there is no process group, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would pickle or unpickle fails."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("something was pickled")

    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refuse)
    for name in ("load", "loads", "dump", "dumps", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


def state_of(fill: int) -> dict[str, Any]:
    torch.manual_seed(fill)
    return {
        "model": {
            "weight": torch.randn(5, 7),
            "bf16": torch.randn(3).bfloat16(),
            "fp8": torch.randn(4).to(torch.float8_e4m3fn),
            "zero": torch.tensor(fill),
            "empty": torch.empty(0, 3),
            "turned": torch.randn(6, 4).t(),
            "complex": torch.randn(3, dtype=torch.complex128),
            "bool": torch.tensor([True, False]),
        },
        "a/b": torch.ones(2) * fill,
        "": torch.ones(1) * fill,
        "x" * 300: torch.ones(3) * fill,
        "number": fill,
        "huge": 1 << (70 + fill),
        "list": [1, "ü", None, (2, 3.5)],
        "deep": [{"tensor": torch.ones(2) * fill}, {"plain": 3.5}],
        "bytes": BytesIO(b"abc%d" % fill),
        "none": None,
        "scalar": np.float32(fill),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)]
        return bool(
            one.dtype == other.dtype and one.shape == other.shape and bits[0].equal(bits[1])
        )
    if isinstance(one, BytesIO):
        return bool(one.getvalue() == other.getvalue())
    return bool(type(one) is type(other) and one == other)


def save(path: Path, fill: int, name: str | None = None, **options: Any) -> dict[str, Any]:
    state = state_of(fill)
    dcp.save(state, checkpoint_id=name, storage_writer=StorageWriter(path, **options))
    return state


def load(path: Path, name: str | None = None, **options: Any) -> dict[str, Any]:
    state = state_of(50)
    dcp.load(state, checkpoint_id=name, storage_reader=StorageReader(path, **options))
    return state


def failure(call: Any) -> BaseException:
    """What the one rank raised."""
    with pytest.raises(CheckpointException) as caught:
        call()
    error: BaseException = caught.value.failures[0][0]
    return error


@pytest.mark.usefixtures("no_pickles")
def test_a_state_comes_back_bit_by_bit_without_a_pickle(store_path: Path) -> None:
    state = save(store_path, 1, "one", epoch=2, step=7, metrics={"loss": 0.25})
    assert same(load(store_path), state)
    (found,) = list_checkpoints(store_path)
    assert (found.name, found.epoch, found.step, found.metrics) == ("one", 2, 7, {"loss": 0.25})
    with mldb.open(store_path) as db:
        assert db.verify().ok
        assert same(torch.from_numpy(db["model.weight"].copy()), state["model"]["weight"])
        assert db["a%2Fb"].tolist() == [1, 1]
        assert db["%"].tolist() == [1]
        whole = db.load(None)
        assert same(whole["model"], state["model"])
        assert same(whole["deep"], state["deep"])
        assert whole["huge"] == state["huge"]


def test_earlier_ones_are_found_by_name_epoch_and_tag(store_path: Path) -> None:
    states = {number: save(store_path, number, f"n{number}", epoch=number) for number in (1, 2, 3)}
    with mldb.open(store_path) as db:
        db.tag("good", 2)
        db.checkpoint({"plain": np.arange(3)}, epoch=4, name="ordinary")
    assert [each.name for each in list_checkpoints(store_path)] == ["n1", "n2", "n3"]
    assert [each.name for each in list_checkpoints(store_path, as_of=2)] == ["n1", "n2"]
    assert same(load(store_path, "n1"), states[1])
    assert same(load(store_path, as_of=1), states[1])
    assert same(load(store_path, as_of="good"), states[2])
    assert same(load(store_path), states[3])
    for name in ("ordinary", "nothing"):
        error = failure(lambda name=name: load(store_path, name))
        assert isinstance(error, MissingError)
        assert name in str(error)
    assert "n1, n2, n3" in str(failure(lambda: load(store_path, "ordinary")))
    assert isinstance(failure(lambda: load(store_path, as_of=0)), MissingError)


def test_a_whole_state_is_made_from_what_is_stored(store_path: Path) -> None:
    state = save(store_path, 1)
    made: dict[str, Any] = {}
    reader, planner = StorageReader(store_path), _EmptyStateDictLoadPlanner()  # type: ignore[no-untyped-call]
    dcp.load(made, storage_reader=reader, planner=planner)
    assert made == {}  # dcp.load fills a copy
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    _load_state_dict(made, reader, no_dist=True, planner=planner)
    del made["bytes"], state["bytes"]
    assert same(made, state)


def test_tensors_of_another_dtype_are_cast(store_path: Path) -> None:
    save(store_path, 1)
    state = {"model": {"weight": torch.zeros(5, 7, dtype=torch.float64)}}
    dcp.load(state, storage_reader=StorageReader(store_path))
    assert torch.equal(state["model"]["weight"], state_of(1)["model"]["weight"].double())


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "'bad'"),
        ((torch.ones(2),), "holds tensors"),
        (torch.ones(2).to_sparse(), "sparse"),
        (lambda: None, "'bad'"),
    ],
)
def test_what_cannot_be_stored_is_named(store_path: Path, value: object, what: str) -> None:
    def call() -> None:
        dcp.save({"bad": value}, storage_writer=StorageWriter(store_path))

    error = failure(call)
    assert isinstance(error, InvalidTypeError)
    assert what in str(error)
    assert list_checkpoints(store_path) == [] if store_path.exists() else True


def test_a_rank_of_another_machine_is_refused(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(["here", "there"])
    monkeypatch.setattr("mldb.adapters.dcp.writer.boot_id", lambda: next(ids))
    writer = StorageWriter(store_path)
    error = failure(lambda: dcp.save({"a": torch.ones(2)}, storage_writer=writer))
    assert isinstance(error, UsageError)
    assert "another machine" in str(error)
    assert list((store_path / "pending").iterdir()) == []


def test_a_writer_and_a_reader_travel(store_path: Path) -> None:
    writer = StorageWriter(store_path, epoch=3)
    again = pickle.loads(pickle.dumps(writer))  # noqa: S301 - as torch sends it to its process
    dcp.save({"a": torch.ones(2)}, storage_writer=again)
    reader = copy.deepcopy(StorageReader(store_path))
    state = {"a": torch.zeros(2)}
    dcp.load(state, storage_reader=reader)
    assert state["a"].tolist() == [1, 1]


class _OwnBytes(dcp.DefaultSavePlanner):
    def transform_object(self, write_item: Any, object: Any) -> Any:
        return BytesIO(b"own") if write_item.type.name == "BYTE_IO" else object


class _OwnLoads(dcp.DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = value.getvalue()
        self.original_state_dict[read_item.dest_index.fqn] = value.getvalue()


def test_bytes_of_a_planner_are_for_a_planner(store_path: Path) -> None:
    writer, reader = StorageWriter(store_path), StorageReader(store_path)
    dcp.save({"a": 5}, checkpoint_id="own", storage_writer=writer, planner=_OwnBytes())
    dcp.save({"a": 5}, checkpoint_id="plain", storage_writer=writer)
    state: dict[str, Any] = {"a": 0}
    dcp.load(state, checkpoint_id="own", storage_reader=reader, planner=_OwnLoads())
    assert state == {"a": b"own"}
    for name, planner in (("own", None), ("plain", _OwnLoads())):
        error = failure(
            lambda name=name, planner=planner: dcp.load(
                {"a": 0}, checkpoint_id=name, storage_reader=reader, planner=planner
            )
        )
        assert isinstance(error, InvalidTypeError)
        assert "'a'" in str(error)


def test_a_call_out_of_turn_is_an_error_of_use(store_path: Path) -> None:
    writer = StorageWriter(store_path)
    with pytest.raises(UsageError, match="without a save"):
        writer.finish(dcp.Metadata({}), [])
    with pytest.raises(UsageError, match="use_collectives"):
        writer.set_up_storage_writer(True, rank=0, use_collectives=False)
    with pytest.raises(UsageError, match="not in a load"):
        StorageReader(store_path).prepare_local_plan(dcp.LoadPlan([]))
    assert StorageWriter.validate_checkpoint_id("step-1")
    assert not StorageReader.validate_checkpoint_id("/a/path")


# --- what comes from a store that somebody made -----------------------------------------------


def hostile(path: Path, data: bytes | list[Any], **tensors: Any) -> BaseException:
    """Load from a store whose document is *data*; return what the rank raised."""
    import msgpack

    packed = data if isinstance(data, bytes) else msgpack.packb(data)
    with mldb.open(path) as db:
        db.checkpoint({DOCUMENT: np.frombuffer(packed, np.uint8), **tensors}, epoch=0)
    return failure(lambda: load(path))


_ABOUT = {"torch": "2.13", "ranks": 1}
_FOUR = np.zeros(4, np.float32)
_HOSTILE: dict[str, tuple[bytes | list[Any], str]] = {
    "a pickle": (pickle.dumps({"a": 1}), "no msgpack"),
    "no array": (b"\x01", "not an array"),
    "short": ([1, _ABOUT], "5 fields"),
    "no ranks": ([1, {"torch": "2", "ranks": -1}, {}, {}, None], "ranks"),
    "huge": ([1, _ABOUT, {"a": ["<f4", [1 << 47, 1 << 47], "a"]}, {}, None], "dtype and shape"),
    "bad dtype": ([1, _ABOUT, {"a": ["O", [4], "a"]}, {}, None], "dtype and shape"),
    "negative": ([1, _ABOUT, {"a": ["<f4", [-4], "a"]}, {}, None], "out of range"),
    "bool axis": ([1, _ABOUT, {"a": ["<f4", [True], "a"]}, {}, None], "out of range"),
    "a path": ([1, _ABOUT, {"a": ["<f4", [4], "../a"]}, {}, None], "not allowed"),
    "twice": ([1, _ABOUT, {"a": ["<f4", [4], "a"], "b": ["<f4", [4], "a"]}, {}, None], "one name"),
    "outside": ([1, _ABOUT, {"a": ["<f4", [4], [[[3], [2], "a"]]]}, {}, None], "reaches out"),
    "overlap": (
        [1, _ABOUT, {"a": ["<f4", [4], [[[0], [3], "a"], [[1], [3], "b"]]]}, {}, None],
        "overlap",
    ),
    "no parts": ([1, _ABOUT, {"a": ["<f4", [4], []]}, {}, None], "no parts"),
    "value": ([1, _ABOUT, {}, {"a": 5}, None], "no bytes"),
    "both": ([1, _ABOUT, {"a": ["<f4", [4], "a"]}, {"a": b"V"}, None], "name of a value"),
    "long list": ([1, _ABOUT, {"a": ["<f4", [4], "a"]}, {}, {"a": ["a", 1 << 40]}], "far longer"),
    "bad path": ([1, _ABOUT, {"a": ["<f4", [4], "a"]}, {}, {"a": [0]}], "index"),
    "many paths": ([1, _ABOUT, {}, {}, {"a": ["a"]}], "more paths"),
    "half": ([1, _ABOUT, {"a": ["<f4", [4], "gone"]}, {}, None], "not in the store"),
    "other shape": ([1, _ABOUT, {"a": ["<f4", [1 << 30], "a"]}, {}, None], "is stored as"),
    "other dtype": ([1, _ABOUT, {"a": ["<f8", [4], "a"]}, {}, None], "is stored as"),
}


@pytest.mark.parametrize("which", sorted(_HOSTILE))
def test_hostile_metadata_is_refused(store_path: Path, which: str) -> None:
    data, problem = _HOSTILE[which]
    error = hostile(store_path, data, a=_FOUR)
    assert isinstance(error, CorruptError)
    assert problem in str(error)


def test_a_newer_format_is_named(store_path: Path) -> None:
    assert isinstance(hostile(store_path, [2, {}]), FormatVersionError)


def test_random_damage_of_the_metadata_is_a_typed_error(
    store_path: Path, rng: np.random.Generator
) -> None:
    from mldb.adapters.dcp.document import decode_document

    save(store_path, 1)
    with mldb.open(store_path, mode="r") as db:
        good = db[DOCUMENT].tobytes()
    assert encode_document(decode_document(good)) == good
    for _ in range(500):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            decode_document(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
        except (CorruptError, FormatVersionError):
            continue


@pytest.mark.parametrize(
    "stored", [b"", b"X", b"V", b"V\x91\x01", b"V\x94\x01\x92\x01\xa1a\x80\x90"]
)
def test_a_hostile_value_is_refused(store_path: Path, stored: bytes) -> None:
    document = [1, _ABOUT, {}, {"number": stored}, None]
    import msgpack

    with mldb.open(store_path) as db:
        packed = msgpack.packb(document)
        db.checkpoint({DOCUMENT: np.frombuffer(packed, np.uint8)}, epoch=0)

    def call() -> None:
        dcp.load({"number": 1}, storage_reader=StorageReader(store_path))

    assert isinstance(failure(call), CorruptError)


def test_too_much_that_is_no_tensor_is_refused() -> None:
    whole = BoxedTensor("<f4", (4,), ((Box((0,), (4,)), "a"),))
    document = Document("2.13", 1, {"a": whole}, {"b": bytes(65 << 20)}, None)
    with pytest.raises(LimitError, match="Make large values tensors"):
        encode_document(document)
