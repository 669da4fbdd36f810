"""Tensors through the whole store: every type, parts of them, views, and writing piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.utils.dlpack
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.log.fs.memory import MemoryFileSystem

Array = np.ndarray[Any, Any]

NUMPY_TYPES = [
    *("?", "i1", "u1", "S3", "<U2", ">U2", "<M8[ns]", ">M8[s]", "<m8[us]"),
    *(
        order + kind
        for order in "<>"
        for kind in ("i2", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16")
    ),
]
SMALL_TYPES = [
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e8m0fnu", "float8_e3m4"),
    *("float6_e2m3fn", "float4_e2m1fn", "int4", "uint4", "int2"),
]
TORCH_TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex128),
]
SHAPES: list[tuple[int, ...]] = [(), (0,), (3, 0, 2), (5,), (4, 3), (2, 1, 3)]
MIB = 1 << 20


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random values of a type, made from numbers it can hold."""
    if dtype.kind in "SU":
        return rng.choice(np.array(["", "a", "xy"]), shape).astype(dtype)
    if dtype.kind in "mM":
        return rng.integers(0, 1 << 40, shape).astype("<i8").astype(dtype)
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)


def same(one: Any, other: Any) -> None:
    """Equal to the bit, in the same type and shape."""
    assert type(one) is type(other) is np.ndarray
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"map_bytes": 0}, {"compression": "zstd"}], ids=repr)
@pytest.mark.parametrize("code", [*NUMPY_TYPES, *SMALL_TYPES])
def test_every_type_comes_back_to_the_bit(
    code: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    dtype = np.dtype(getattr(ml_dtypes, code)) if code in SMALL_TYPES else np.dtype(code)
    arrays = {
        f"s{len(shape)}n{index}": filled(dtype, shape, rng) for index, shape in enumerate(SHAPES)
    }
    arrays["strided"] = filled(dtype, (6, 8), rng)[::2, ::-3]
    arrays["fortran"] = np.asfortranarray(filled(dtype, (3, 4), rng))
    arrays["large"] = filled(dtype, (90, 800), rng)
    fs = MemoryFileSystem()
    with mldb.MLDatabase.on(fs, durability="os", **options) as db:
        for name, array in arrays.items():
            db.store_tensor(name, array, epoch=1)
        with db.transaction(epoch=2) as txn:
            for name, array in arrays.items():
                txn[name] = array.copy()
                same(txn[name], np.ascontiguousarray(array).reshape(array.shape))
        for name in arrays:
            db.store_tensor(name, filled(dtype, (2,), rng), epoch=3)
    with mldb.MLDatabase.on(fs, mode="r", map_bytes=options.get("map_bytes")) as db:
        for name, array in arrays.items():
            expected = np.ascontiguousarray(array).reshape(array.shape)
            for epoch in (1, 2):
                found = db.query_tensor(name, as_of=epoch)
                same(found, expected)
                assert not found.flags.writeable
                handle = db.tensor(name, as_of=epoch)
                assert (handle.shape, handle.dtype) == (array.shape, array.dtype)
                assert (handle.nbytes, handle.layout) == (expected.nbytes, "dense")
            one, two, _ = db.history(name)
            assert one.digest == two.digest  # the same bytes, whichever way they came
            assert (one.shape, one.nbytes) == (array.shape, expected.nbytes)


@pytest.mark.parametrize("dtype", TORCH_TYPES, ids=str)
@pytest.mark.parametrize("map_bytes", [0, 1 << 40])
def test_torch_types_come_back_through_torch(
    db: mldb.MLDatabase, dtype: torch.dtype, map_bytes: int
) -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        tensor = torch.randint(0, 2, shape).to(dtype)
        db["x"] = tensor
        with mldb.open(db.path, mode="r", map_bytes=map_bytes) as reader:
            back = reader.tensor("x").torch()
            assert (back.dtype, back.shape) == (dtype, tensor.shape)
            assert back.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
            assert reader["x"].nbytes == tensor.nbytes
            assert isinstance(reader["x"], np.ndarray)
            assert reader.tensor("x").torch(device="meta").device.type == "meta"


def test_torch_views_gradients_and_conjugates(db: mldb.MLDatabase) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors: dict[str, torch.Tensor] = {
        "transposed": base.T,
        "strided": base[:, ::2],
        "gradient": torch.nn.Parameter(base.clone()),
        "conjugate": torch.complex(base, base).conj(),
        "negative": torch.complex(base, base).conj().imag,
        "expanded": base[:1].expand(5, 4),
    }
    db.update(tensors)
    for name, tensor in tensors.items():
        assert db.tensor(name).torch().equal(tensor.detach().resolve_conj().resolve_neg())


def test_big_endian_is_kept_in_numpy_and_turned_for_torch(db: mldb.MLDatabase) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    db["x"] = array
    assert db["x"].dtype.str == ">f4"
    assert db.tensor("x").torch().tolist() == array.tolist()
    db["y"] = np.arange(3, dtype=">u8").astype(">U1")
    with pytest.raises(mldb.InvalidTypeError):
        db.tensor("y").torch()


SPARSE: dict[str, Callable[[], Any]] = {
    "csr": lambda: sp.random_array((6, 8), density=0.3, format="csr", rng=1),
    "csc": lambda: sp.random_array((6, 8), density=0.3, format="csc", rng=1),
    "coo": lambda: sp.random_array((6, 8), density=0.3, format="coo", rng=1),
    "bsr": lambda: sp.random_array((6, 8), density=0.3, format="bsr", rng=1),
    "csr matrix": lambda: sp.random(6, 8, density=0.3, format="csr", random_state=1),
    "csr of zeros": lambda: sp.csr_array((4, 4)),
    "csr without rows": lambda: sp.csr_array((0, 5)),
    "torch coo": lambda: torch.eye(4).to_sparse(),
    "torch coo of zeros": lambda: torch.zeros(3, 3).to_sparse(),
    "torch csr": lambda: torch.eye(4).to_sparse_csr(),
    "torch csc": lambda: torch.eye(4).to_sparse_csc(),
    "torch bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
}


@pytest.mark.parametrize("options", [{}, {"map_bytes": 0}, {"compression": "zstd"}], ids=repr)
@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta:UserWarning")
def test_sparse_comes_back_in_its_layout(
    store_path: Path, kind: str, options: dict[str, Any]
) -> None:
    value = SPARSE[kind]()
    with mldb.open(store_path, durability="os", **options) as db:
        db.store_tensor("x", value, epoch=1)
        with db.transaction(epoch=2) as txn:
            txn["x"] = value
            assert_same_sparse(txn["x"], value)
        db.store_tensor("x", 1, epoch=3)
    with mldb.open(store_path, mode="r", **options) as db:
        for epoch in (1, 2):
            found = db.query_tensor("x", as_of=epoch)
            assert_same_sparse(found, value)
            handle = db.tensor("x", as_of=epoch)
            assert handle.shape == tuple(value.shape)
            assert handle.layout != "dense"
            assert_same_sparse(handle.numpy(), value)
            dense = handle.torch()
            assert (dense.to_dense() if dense.is_sparse else dense).shape == tuple(value.shape)
            with pytest.raises(mldb.InvalidTypeError, match=r"sparse.*\.numpy\(\)"):
                np.asarray(handle)
        # What was handed out belongs to the caller: writing to it reaches nobody.
        found = db.query_tensor("x", as_of=1)
        (found.data if isinstance(value, sp.sparray | sp.spmatrix) else found.values())[:] = 9
        assert_same_sparse(db.query_tensor("x", as_of=1), value)


def assert_same_sparse(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    if isinstance(value, torch.Tensor):
        assert found.layout == value.layout
        assert found.to_dense().equal(value.to_dense())
    else:
        assert found.format == value.format
        np.testing.assert_array_equal(found.toarray(), value.toarray())


# --- parts ----------------------------------------------------------------------------------------

INDICES = st.recursive(
    st.one_of(
        st.integers(-5, 5),
        st.slices(6),
        st.just(Ellipsis),
        st.none(),
        st.lists(st.integers(-2, 1), min_size=1, max_size=3),
    ),
    lambda inner: st.tuples(inner, inner),
    max_leaves=3,
)


@given(index=INDICES, map_bytes=st.sampled_from([0, 1 << 30]), encoded=st.booleans())
def test_a_part_is_what_numpy_cuts(index: Any, map_bytes: int, encoded: bool) -> None:
    array = np.arange(6 * 4 * 1200, dtype="<i4").reshape(6, 4, 1200)
    compression: Any = "zstd" if encoded else None
    with mldb.MLDatabase.on(
        MemoryFileSystem(), durability="os", map_bytes=map_bytes, compression=compression
    ) as db:
        db["x"] = array
        handle = db.tensor("x")
        try:
            expected = array[index]
        except (IndexError, ValueError):
            with pytest.raises((mldb.InvalidValueError, mldb.InvalidTypeError)):
                handle[index]
            return
        found = handle[index]
        np.testing.assert_array_equal(found, expected)
        assert np.shape(found) == np.shape(expected)
        if isinstance(found, np.ndarray) and found.flags.writeable:  # a copy made by the index
            found.fill(-1)
            np.testing.assert_array_equal(handle[index], expected)


def place_of(store: Path, data: bytes) -> tuple[Path, int]:
    """The segment file and offset where these bytes stand."""
    for file in sorted((store / "segments").iterdir()):
        found = file.read_bytes().find(data)
        if found >= 0:
            return file, found
    raise AssertionError("the bytes are in no segment")


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 1]))


@pytest.fixture
def damaged(store_path: Path, rng: np.random.Generator) -> tuple[Path, Array, str, int]:
    """A store whose tensor x (5 MiB, a row per block) has a flipped byte in row 3."""
    array = rng.integers(0, 256, (5, MIB), np.uint8)
    with mldb.open(store_path, durability="os") as db:
        db["x"] = array
        db["y"] = np.arange(10)
        db["x2"] = array[:1]
    file, offset = place_of(store_path, array[0, :64].tobytes())
    flip(file, offset + 3 * MIB + 77)
    return store_path, array, f"segments/{file.name}", offset + 3 * MIB


@pytest.mark.parametrize("map_bytes", [0, 1 << 40])
def test_only_the_blocks_touched_are_verified(
    damaged: tuple[Path, Array, str, int], map_bytes: int
) -> None:
    path, array, file, block = damaged
    with mldb.open(path, mode="r", map_bytes=map_bytes) as db:
        handle = db.tensor("x")
        for part in (slice(0, 3), slice(4, 5), 2, (4, slice(5, 9)), -1, (2, -1)):
            np.testing.assert_array_equal(handle[part], array[part])
        for part in (3, slice(2, 4), (3, slice(0, 1)), slice(None)):
            with pytest.raises(mldb.CorruptError, match=r"stored checksum .* computed") as caught:
                handle[part]
            assert (caught.value.file, caught.value.key) == (file, "x")
            assert caught.value.offset == block
            assert "stay readable" in str(caught.value)
        for call in (lambda: db["x"], handle.torch, handle.numpy):
            with pytest.raises(mldb.CorruptError):
                call()
        # The rest of the store is as readable as before.
        np.testing.assert_array_equal(db["y"], np.arange(10))
        np.testing.assert_array_equal(db["x2"], array[:1])
        (problem,) = db.verify().problems
        assert problem.file == file


def test_verify_never_and_always(damaged: tuple[Path, Array, str, int]) -> None:
    path, array, file, block = damaged
    with mldb.open(path, mode="r", verify="never") as db:
        assert int((db["x"] != array).sum()) == 1
        assert not db.verify().ok  # asked for outright
    flip(path / file, block + 77)  # whole again
    with (
        mldb.open(path, mode="r", verify="first") as first,
        mldb.open(path, mode="r", verify="always") as always,
    ):
        for db in (first, always):
            np.testing.assert_array_equal(db["x"], array)
        flip(path / file, block + 77)
        assert int((first["x"] != array).sum()) == 1  # was verified before; the file lies now
        with pytest.raises(mldb.CorruptError):
            always["x"]


# --- handles and views ----------------------------------------------------------------------------


def test_a_handle_is_lazy_and_fixed(db: mldb.MLDatabase) -> None:
    array = np.arange(6.0).reshape(2, 3)
    lsn = db.store_tensor("x", array, {"k": 1}, epoch=4)
    handle = db.tensor("x")
    db.store_tensor("x", np.zeros(9), {"k": 2}, epoch=5)
    db.delete_tensor("x")
    assert (handle.name, handle.shape, handle.dtype) == ("x", (2, 3), np.dtype("<f8"))
    assert (handle.lsn, handle.epoch, handle.metadata, handle.nbytes) == (lsn, 4, {"k": 1}, 48)
    assert handle.time == db.at(lsn).time
    assert len(handle) == 2
    assert "shape=(2, 3)" in repr(handle)
    same(handle.numpy(), array)
    for row, expected in zip(handle, array, strict=True):
        same(row, expected)
    same(np.asarray(handle), array)
    assert np.asarray(handle, dtype="f4").dtype == np.float32
    assert np.array(handle).flags.writeable
    assert torch.as_tensor(handle).tolist() == array.tolist()
    assert torch.utils.dlpack.from_dlpack(handle).tolist() == array.tolist()
    np.testing.assert_array_equal(np.from_dlpack(handle), array)
    np.testing.assert_array_equal(np.add(handle, 1), array + 1)
    db["scalar"] = 5
    with pytest.raises(mldb.InvalidTypeError, match="no axes"):
        len(db.tensor("scalar"))
    assert int(db.tensor("scalar")[()]) == 5
    with pytest.raises(mldb.TensorNotFoundError):
        db.tensor("y")


def digest_of(path: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (path / "segments").iterdir()
    }


@pytest.mark.parametrize("map_bytes", [0, 1 << 40])
@pytest.mark.parametrize("size", [5, 300_000])
def test_what_is_written_to_a_torch_view_reaches_nobody(
    store_path: Path, map_bytes: int, size: int
) -> None:
    array = np.arange(size, dtype="f4")
    with mldb.open(store_path, durability="os", map_bytes=map_bytes) as db:
        db["x"] = array
        db.checkpoint({"w": torch.from_numpy(array)}, epoch=1)
        before = digest_of(store_path)
        reading, handle = db["x"], db.tensor("x")
        for tensor in (
            handle.torch(),
            torch.utils.dlpack.from_dlpack(handle),
            db.state_dict()["w"],
            db.load(None)["w"],
        ):
            assert tensor.tolist() == array.tolist()
            tensor.mul_(-1).sub_(3)
            assert tensor[1].item() == -4
            with mldb.open(store_path, mode="r", map_bytes=map_bytes, verify="always") as other:
                for found in (reading, db["x"], handle.numpy(), handle[:], handle.torch().numpy()):
                    np.testing.assert_array_equal(found, array)
                np.testing.assert_array_equal(other["x"], array)
                np.testing.assert_array_equal(other["w"], array)
            assert digest_of(store_path) == before
        assert db.verify().ok


def test_arrays_cannot_be_written_to(db: mldb.MLDatabase) -> None:
    db["small"], db["large"] = np.arange(4), np.zeros(3 * MIB, "u1")
    for name in db:
        array = db[name]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        part = db.tensor(name)[1:3]
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1


def test_history_tells_versions_along_the_lineage(db: mldb.MLDatabase) -> None:
    assert db.history("x") == []
    lsns = [db.store_tensor("x", np.zeros((2, n), "f4"), epoch=n) for n in range(1, 4)]
    versions = db.history("x")
    assert [(v.lsn, v.epoch, v.shape, v.dtype, v.nbytes) for v in versions] == [
        (lsn, n, (2, n), "<f4", 8 * n) for lsn, n in zip(lsns, range(1, 4), strict=True)
    ]
    assert [v.time for v in versions] == sorted(v.time for v in versions)
    assert all(v.stored_bytes == v.nbytes for v in versions)
    assert db.history("x", as_of=2) == versions[:2]
    with pytest.raises(mldb.InvalidNameError):
        db.history("../x")


# --- writing piece by piece -----------------------------------------------------------------------

PIECES = st.lists(
    st.tuples(
        st.sampled_from(("rows", "row", "part", "fill", "all")),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=10,
)


@given(pieces=PIECES, code=st.sampled_from(["f4", ">i2", "c8", "bfloat16"]))
def test_pieces_in_any_order_make_the_array(pieces: list[tuple[str, int, int]], code: str) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16 if code == "bfloat16" else code)
    model = np.zeros((7, 5), dtype)
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        with db.create_tensor("x", (7, 5), dtype, {"k": 1}, casting="same_kind", epoch=3) as writer:
            for value, (verb, one, two) in enumerate(pieces, 1):
                key: Any = slice(min(one, two), max(one, two))
                values: Any = np.arange(5) + value
                match verb:
                    case "row":
                        key = min(one, 6)
                    case "part":
                        key = (min(one, 6), slice(1, 4))
                        values = [value] * 3
                    case "fill":
                        values = value
                    case "all":
                        key = ...
                writer[key] = values
                model[key] = np.asarray(values).astype(dtype)
            assert "x" not in db
        assert writer.lsn == db.lsn
        same(db["x"], model)
        assert (db.metadata("x"), db.epoch) == ({"k": 1}, 3)
        db["y"] = model
        assert db.history("x")[0].digest == db.history("y")[0].digest
        assert db.verify().ok


def test_an_exception_stores_nothing(db: mldb.MLDatabase) -> None:
    db["x"] = 1
    before = db.lsn
    with pytest.raises(ZeroDivisionError), db.create_tensor("x", (4,), "f4") as writer:  # noqa: PT012
        writer[0:2] = 1
        raise ZeroDivisionError
    assert (db.lsn, int(db["x"]), writer.lsn) == (before, 1, None)
    assert list((Path(db.path) / "pending").iterdir()) == []
    db.store_tensor("x", 2, epoch=5)
    with pytest.raises(mldb.EpochOrderError), db.create_tensor("x", (4,), "f4", epoch=4) as writer:
        writer[:] = 1
    assert int(db["x"]) == 2
    assert list((Path(db.path) / "pending").iterdir()) == []


def test_what_a_writer_refuses(db: mldb.MLDatabase) -> None:
    with db.create_tensor("x", (4, 3), "f4") as writer:
        wrong: list[tuple[Any, Any]] = [
            (slice(0, 4, 2), 1),
            (slice(None, None, -1), 1),
            ([0, 2], 1),
            (np.array([True, False, True, False]), 1),
            ((slice(0, 2), 1), 1),
            (None, 1),
            (4, 1),
            (-5, 1),
            ((0, 0, 0), 1),
            ("row", 1),
            (slice(0, 2), np.zeros((3, 3))),
            (slice(0, 2), np.zeros((2, 2))),
        ]
        for key, values in wrong:
            with pytest.raises(mldb.InvalidValueError):
                writer[key] = values
        for values in ("text", object(), [[1], [2, 3]], sp.csr_array(np.eye(3)), ["a"]):
            with pytest.raises(mldb.InvalidTypeError):
                writer[0:3] = values
        writer[0:2] = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(db["x"], [[1] * 3] * 2 + [[0] * 3] * 2)
    with pytest.raises(mldb.ClosedError, match="with"):
        writer[0] = 1
    shapes: list[Any] = [5, None, (1.5,), "ab", (2, None)]
    for shape in shapes:
        with pytest.raises(mldb.InvalidTypeError, match="shape"):
            db.create_tensor("y", shape, "f4")
    too_large: list[Any] = [(-1,), (1 << 62, 4), (2,) * 65]
    for shape in too_large:
        with pytest.raises(mldb.LimitError):
            db.create_tensor("y", shape, "f4")
    with pytest.raises(mldb.LimitError), db.create_tensor("y", (1 << 50,), "u1"):
        pass
    for dtype in (object, "no type", [("a", "f4")]):
        with pytest.raises(mldb.InvalidTypeError):
            db.create_tensor("y", (1,), dtype)
    assert list(db) == ["x"]
    assert list((Path(db.path) / "pending").iterdir()) == []


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,)])
def test_small_and_empty_shapes(db: mldb.MLDatabase, shape: tuple[int, ...]) -> None:
    dtype: Any = torch.float64
    with db.create_tensor("x", shape, dtype) as writer:
        writer[...] = 7
    same(db["x"], np.full(shape, 7.0))
    assert db.verify().ok


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.arange(6.0).reshape(2, 3), [0, 1, 2, 3, 4, 5]),
        (np.array(7), [7]),
        (np.zeros((0, 3)), []),
        (sp.csr_array(np.array([[0, 2.0], [3, 0]])), [2, 3]),
        (sp.csr_array((4, 5)), []),
        (torch.tensor([[0, 2.0], [3, 0]]).to_sparse(), [2, 3]),
    ],
    ids=["dense", "scalar", "empty", "csr", "csr of nothing", "coo"],
)
def test_flat_values_are_what_is_stored(
    db: mldb.MLDatabase, value: Any, expected: list[Any]
) -> None:
    db.store_tensor("t", value)
    handle = db.tensor("t")
    flat = handle.flat_values()
    assert flat.tolist() == expected
    assert flat.ndim == 1
    assert not flat.flags.writeable or not flat.size
    assert len(handle.decoded()) == handle.nbytes == handle.descriptor.nbytes


def test_a_handle_tells_how_it_is_stored(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os", compression="zstd") as db:
        db.store_tensor("zeros", np.zeros(100_000))
        packed = db.tensor("zeros")
        assert packed.encoding == "zstd"
        assert 0 < packed.stored_bytes < packed.nbytes
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("raw", np.arange(3.0))
        assert (db.tensor("raw").encoding, db.tensor("raw").stored_bytes) == ("raw", 24)
