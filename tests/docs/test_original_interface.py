"""The interface of the original documents, with nothing but the import changed.

Programs written for it go on working: the same names, the same calls, and results that are what
those programs expect. Sizes are scaled down, except in the one test marked ``large``.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mldb import (
    InvalidTypeError,
    MLDatabase,
    MldbError,
    Relationship,
    StorageFullError,
    TensorNotFoundError,
)
from mldb.log.fs.memory import MemoryFileSystem
from tests.support.faults import FaultFileSystem
from tests.support.seen import contents

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("conv1", "conv2", "fc1")


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MLDatabase]:
    monkeypatch.chdir(tmp_path)
    with MLDatabase("ml_storage") as database:
        yield database


def layer(rng: np.random.Generator, size: int = 16) -> tuple[Array, Array]:
    return rng.standard_normal((size, 3, 3, 3), np.float32), np.zeros(size, np.float32)


# --- tensors --------------------------------------------------------------------------------------


def test_a_store_without_a_path_is_ml_storage_beside_the_program(
    db: MLDatabase, tmp_path: Path
) -> None:
    db.store_tensor("x", np.arange(3))
    assert db.path == str(tmp_path / "ml_storage")
    with MLDatabase() as same, MLDatabase(tmp_path / "ml_storage") as path:
        assert same.query_tensor("x").tolist() == path.query_tensor("x").tolist() == [0, 1, 2]


def test_large_layer_weights_are_read_as_a_view_of_the_mapped_log(
    db: MLDatabase, rng: np.random.Generator
) -> None:
    """Above the 10 MB of the original design every machine maps, whatever border it measured."""
    large = rng.standard_normal((2000, 1500), np.float32)
    db.store_tensor("large_layer_weights", large)
    weights = db.query_tensor("large_layer_weights")
    np.testing.assert_array_equal(weights, large)
    assert (weights.dtype, weights.shape) == (large.dtype, large.shape)
    assert not weights.flags.writeable
    assert not weights.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        weights.flags.writeable = True
    again = db.query_tensor("large_layer_weights")
    assert address_of(again) == address_of(weights)
    if sys.platform == "linux":
        permissions, file = mapping_at(address_of(weights))
        assert permissions == "r--s"
        assert Path(file).parent == Path(db.path) / "segments"


def address_of(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def mapping_at(address: int) -> tuple[str, str]:
    """Permissions and file of the mapping that holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, permissions, *_ = fields = line.split(maxsplit=5)
        low, high = (int(bound, 16) for bound in where.split("-"))
        if low <= address < high:
            return permissions, fields[5] if len(fields) == 6 else ""
    raise AssertionError("no mapping holds the address")


def test_storing_a_layer_sets_type_layer_position_and_relationship(
    db: MLDatabase, rng: np.random.Generator
) -> None:
    stored = {name: layer(rng) for name in LAYERS}
    for name, (weights, biases) in stored.items():
        db.store_model_layer(name, weights, biases)
    db.store_model_layer("conv2", *layer(rng))  # a layer stored again stays where it was
    for position, name in enumerate(LAYERS):
        common = {"layer": name, "position": position}
        assert db.metadata(f"{name}_weights") == {"type": "weights", **common}
        assert db.metadata(f"{name}_biases") == {"type": "biases", **common}
        (found,) = db.relationships(source=f"{name}_weights")
        assert isinstance(found, Relationship)
        assert (found.target, found.kind) == (f"{name}_biases", "layer_params")
    for name in ("conv1", "fc1"):
        np.testing.assert_array_equal(db.query_tensor(f"{name}_weights"), stored[name][0])
        np.testing.assert_array_equal(db.query_tensor(f"{name}_biases"), stored[name][1])
    assert [len(db.history(f"{name}_weights")) for name in LAYERS] == [1, 2, 1]
    # Both tensors, their metadata and the relationship are one commit.
    assert db.tensor("fc1_weights").lsn == db.tensor("fc1_biases").lsn
    assert db.relationships(source="fc1_weights")[0].lsn == db.tensor("fc1_weights").lsn


def test_relationships_are_created_through_the_storage(db: MLDatabase) -> None:
    db.storage.create_relationship("conv1", "pool1", "feeds_into")
    db.storage.create_relationship("pool1", "conv2", "feeds_into")
    db.storage.create_relationship("conv1", "fc1", "feeds_into")
    found = db.relationships(source="conv1", kind="feeds_into")
    assert [item.target for item in found] == ["fc1", "pool1"]
    assert [item.source for item in db.relationships(target="conv2")] == ["pool1"]
    assert "conv1" not in db  # a relationship makes no tensor


# --- transactions ---------------------------------------------------------------------------------


def test_a_transaction_of_the_storage_updates_several_layers_at_once(
    db: MLDatabase, rng: np.random.Generator
) -> None:
    new = {name: layer(rng) for name in LAYERS}
    for name in LAYERS:
        db.store_model_layer(name, *layer(rng))
    before = contents(db)
    with db.storage.transaction() as txn:
        for name, (weights, biases) in new.items():
            txn.store_model_layer(name, weights, biases)
            assert contents(db) == before
    for name, (weights, biases) in new.items():
        np.testing.assert_array_equal(db.query_tensor(f"{name}_weights"), weights)
        np.testing.assert_array_equal(db.query_tensor(f"{name}_biases"), biases)
    assert {db.tensor(name).lsn for name in db} == {txn.lsn}


class Failure(Exception):
    """What a training loop raises here."""


def fail(error: BaseException) -> Callable[[Any], None]:
    def act(_: Any) -> None:
        raise error

    return act


@pytest.mark.parametrize("after", range(len(LAYERS) + 1))
@pytest.mark.parametrize(
    "kind, act",
    [
        (Failure, fail(Failure("by hand"))),
        (KeyboardInterrupt, fail(KeyboardInterrupt())),
        (MemoryError, fail(MemoryError())),
        (InvalidTypeError, lambda txn: txn.store_tensor("bad", np.array([None, {}]))),
        (TensorNotFoundError, lambda txn: txn["absent"]),
        (TensorNotFoundError, lambda txn: txn.delete_tensor("absent")),
    ],
    ids=["exception", "interrupt", "memory", "refused value", "missing", "missing deletion"],
)
def test_any_failure_in_a_transaction_rolls_every_layer_back(
    db: MLDatabase,
    rng: np.random.Generator,
    kind: type[BaseException],
    act: Callable[[Any], None],
    after: int,
) -> None:
    for name in LAYERS:
        db.store_model_layer(name, *layer(rng, 2))
    before = contents(db)
    with pytest.raises(kind), db.storage.transaction() as txn:  # noqa: PT012
        for name in LAYERS[:after]:
            txn.store_model_layer(name, *layer(rng, 2))
        act(txn)
    assert contents(db) == before
    with MLDatabase(db.path) as again:
        assert contents(again) == before


def test_a_disk_that_fails_at_the_commit_rolls_every_layer_back(
    rng: np.random.Generator,
) -> None:
    """Each write and each sync in turn; what was there before is all there is after.

    A transaction that had read withdrew its registration after the commit; when that failed, it
    said that it was rolled back although it was stored. Nor may the claim that a commit is durable,
    which is written when it is synced: all of its layers may be there then, and the error says so.
    """
    outcomes = set()
    unknown = 0
    for call, code in (("pwritev", errno.ENOSPC), ("pwritev", errno.EIO), ("sync", errno.EIO)):
        for number in range(1, 20):
            inner = MemoryFileSystem()
            fs = FaultFileSystem(inner)
            db = MLDatabase.on(fs)
            for name in LAYERS:
                db.store_model_layer(name, *layer(rng, 2))
            before = contents(db)
            last = fs.calls[call] + number
            fs.fail(call, at=number, code=code)
            try:
                with db.storage.transaction() as txn:
                    for name in LAYERS:
                        txn.store_model_layer(name, *layer(rng, 2))
            except MldbError as error:
                outcomes.add((call, type(error)))
                after = contents(db)
                if "stored is not known" in str(error):
                    unknown += 1
                    assert set(after["tensors"]) == set(before["tensors"])
                    assert all(
                        after["tensors"][item] != before["tensors"][item]
                        for item in after["tensors"]
                        if item.endswith("weights")
                    )
                else:
                    assert isinstance(error, StorageFullError) == (code == errno.ENOSPC)
                    assert after == before
                with MLDatabase.on(inner, mode="r") as again:
                    assert contents(again) == after
            else:
                # A full disk keeps nobody from reading: the hold of the transaction is not written.
                assert contents(db) != before
                if fs.calls[call] < last:
                    fs.heal()
                    db.close()
                    break
            fs.heal()
            db.close()
        else:
            raise AssertionError("a transaction has no 20 calls that can fail")
    assert {call for call, _ in outcomes} == {"pwritev", "sync"}
    assert unknown == 2  # the claim, once for each way in which a write fails


# --- epochs ---------------------------------------------------------------------------------------


def test_checkpoints_of_a_training_loop_are_read_back_as_of_each_epoch(
    db: MLDatabase, seed: int
) -> None:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained: list[dict[str, torch.Tensor]] = []
    for epoch in range(6):
        loss = model(torch.randn(32, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        db.checkpoint(model, epoch=epoch, metrics={"loss": loss.item()})
        trained.append({name: value.clone() for name, value in model.state_dict().items()})
    assert [item.epoch for item in db.checkpoints()] == list(range(6))
    with MLDatabase("ml_storage", mode="r") as later:
        for epoch, expected in enumerate(trained):
            assert set(expected) == set(later.names(as_of=epoch))
            for name, value in expected.items():
                found = later.query_tensor(name, as_of=epoch)
                np.testing.assert_array_equal(found, value.numpy())
            model.load_state_dict(later.state_dict(as_of=epoch))
            assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
    assert not torch.equal(trained[0]["0.weight"], trained[5]["0.weight"])


def test_a_transaction_per_epoch_leaves_every_epoch_readable(
    db: MLDatabase, rng: np.random.Generator
) -> None:
    kept: list[dict[str, Array]] = []
    for epoch in range(1, 6):
        state = {name: rng.standard_normal((64, 64), np.float32) for name in LAYERS}
        with db.storage.transaction(epoch) as txn:
            for name, value in state.items():
                txn.store_tensor(name, value, {"epoch": epoch})
        kept.append(state)
    assert list(db.storage.at(0)) == []
    for epoch, state in enumerate(kept, 1):
        for name, value in state.items():
            np.testing.assert_array_equal(db.query_tensor(name, as_of=epoch), value)
            assert db.metadata(name, as_of=epoch) == {"epoch": epoch}
    assert [version.epoch for version in db.history("fc1")] == [1, 2, 3, 4, 5]


# --- larger than memory ---------------------------------------------------------------------------

_LARGER_THAN_MEMORY = """
    import resource, sys
    import numpy as np
    from mldb import MLDatabase

    rows, columns, step, limit_mib = 786_432, 512, 16_384, 192
    db = MLDatabase(sys.argv[1])
    np.ones((300, 300), np.float32) @ np.ones((300, 300), np.float32)  # BLAS takes its buffers
    limit = limit_mib << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.ones((rows, columns), np.float32)
        raise SystemExit("the limit does not hold")
    except MemoryError:
        pass
    with db.create_tensor("large_layer_weights", (rows, columns), "float32") as weights:
        for start in range(0, rows, step):
            numbers = np.arange(start, start + step, dtype=np.float32) % 97
            weights[start : start + step] = np.broadcast_to(numbers[:, None], (step, columns))
    handle = db.tensor("large_layer_weights")
    assert handle.nbytes == 8 * limit
    for start in (0, 1, 400_000, rows - 1000):
        part = handle[start : start + 1000]
        assert (part == (np.arange(start, start + 1000) % 97)[:, None]).all()
    assert db["large_layer_weights"].shape == (rows, columns)
    db.store_tensor("projection", np.ones((columns, 4), np.float32))
    product = db.ops.matrix_multiply(
        "large_layer_weights", "projection", out="product", memory_bytes=16 << 20
    )
    for start in range(0, rows, step):
        expected = (np.arange(start, start + step) % 97) * columns
        assert (product[start : start + step] == expected[:, None]).all()
    db.close()
    print("multiplied", handle.nbytes)
"""


@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers mmap on Linux only")
def test_an_array_eight_times_the_memory_limit_is_written_sliced_and_multiplied(
    tmp_path: Path,
) -> None:
    """1.5 GiB of float32 in a process that may take 192 MiB of memory of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_LARGER_THAN_MEMORY), str(tmp_path / "ml_storage")],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("multiplied")
