"""NumPy's files: both ways as NumPy itself does it; pickles and bombs are refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb.errors import CorruptError, InvalidTypeError, LimitError, MldbError, UsageError
from mldb.tools.formats.export_file import export_file
from mldb.tools.formats.import_file import import_file
from mldb.tools.formats.npy import npy_code, read_npy, read_npz

_CODES = ("|b1", "|u1", "<i2", ">i4", "<f2", "<f4", ">f8", "<c16", "<U3", "<M8[ns]")


def _arrays() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    found = {f"a/{code}": rng.integers(0, 2, (3, 5)).astype(code) for code in _CODES}
    return {**found, "empty": np.zeros((0, 4)), "scalar": np.float64(2.5).reshape(())}


def test_numpy_reads_what_is_exported(tmp_path: Path) -> None:
    arrays = _arrays()
    with mldb.open(tmp_path / "run", durability="os") as db:
        with db.transaction() as txn:
            for name, array in arrays.items():
                txn.store_tensor(name, array)
        with db.at() as snapshot:
            report = export_file(snapshot, str(tmp_path / "o.npz"))
            export_file(snapshot, str(tmp_path / "o.npy"), names=["a/>f8"])
    assert (report.tensors, report.widened) == (len(arrays), ())
    with np.load(tmp_path / "o.npz") as found:
        assert set(found.files) == set(arrays)
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), arrays["a/>f8"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_imported(tmp_path: Path, save: Any) -> None:
    arrays = {**_arrays(), "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4))}
    save(tmp_path / "in.npz", **arrays)
    with mldb.open(tmp_path / "run", durability="os") as db:
        report = import_file(db, str(tmp_path / "in.npz"), prefix="n/")
        assert report.tensors == len(arrays)
        for name, array in arrays.items():
            assert db[f"n/{name}"].dtype == array.dtype
            np.testing.assert_array_equal(db[f"n/{name}"], array)


def test_one_array_has_the_name_of_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "weights.npy", np.arange(6.0).reshape(2, 3))
    with mldb.open(tmp_path / "run", durability="os") as db:
        import_file(db, str(tmp_path / "weights.npy"))
        assert db["weights"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float6_e2m3fn", "int4", "uint2"])
def test_what_numpy_lacks_is_written_wider_with_every_value(tmp_path: Path, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    values = np.arange(4).astype(dtype)
    with mldb.open(tmp_path / "run", durability="os") as db:
        db["w"] = values
        with db.at() as snapshot:
            report = export_file(snapshot, str(tmp_path / "o.npz"))
    assert report.widened == ("w",)
    with np.load(tmp_path / "o.npz") as found:
        assert found["w"].astype(dtype).tobytes() == values.tobytes()
        assert found["w"].dtype.name == (
            "float32" if "float" in name else name.rstrip("0123456789") + "8"
        )


def test_every_finite_value_of_fp8_is_one_of_float32() -> None:
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        dtype = np.dtype(getattr(ml_dtypes, name))
        every = np.arange(256, dtype=np.uint8).view(dtype)
        code = npy_code(name)
        assert code is not None
        wide = every.astype(code)
        finite = np.isfinite(wide)
        assert wide[finite].astype(dtype).tobytes() == every[finite].tobytes()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    bad = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "x.npy", bad)
    np.savez(tmp_path / "x.npz", good=np.ones(3), bad=bad)
    np.savez_compressed(tmp_path / "y.npz", bad=bad)
    with pytest.raises(InvalidTypeError, match="never unpickles"):
        read_npy(str(tmp_path / "x.npy"), "x")
    for name in ("x.npz", "y.npz"):
        with pytest.raises(InvalidTypeError, match="'bad' has the dtype"):
            read_npz(str(tmp_path / name))


def _npy(header: bytes, payload: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + payload


def _stated(descr: str, fortran: str, shape: str) -> bytes:
    return f"{{'descr':{descr},'fortran_order':{fortran},'shape':{shape}}}".encode()


@pytest.mark.parametrize(
    ("header", "payload", "error"),
    [
        (b"{}", b"", CorruptError),
        (b"(", b"", CorruptError),
        (b"(" * 9000, b"", CorruptError),
        (b"__import__('os').abort()", b"", CorruptError),
        (_stated("'<f4'", "False", "(2,)"), b"1234", CorruptError),
        (_stated("'<f4'", "False", "(-1,)"), b"", CorruptError),
        (_stated("'<f4'", "False", "[1]"), b"1234", CorruptError),
        (_stated("'<f4'", "1", "(1,)"), b"1234", CorruptError),
        (_stated("'<f4'", "False", "(1<<9,)"), b"1", CorruptError),
        (_stated("'<f4'", "False", "(1<<62,8)"), b"1", CorruptError),
        (_stated("'<M8[0s]'", "False", "(1,)"), b"12345678", InvalidTypeError),
        (_stated("'|V4'", "False", "(1,)"), b"1234", InvalidTypeError),
        (_stated("[('a','<f4')]", "False", "(1,)"), b"1234", InvalidTypeError),
    ],
)
def test_an_array_that_lies_is_refused(
    tmp_path: Path, header: bytes, payload: bytes, error: type[MldbError]
) -> None:
    (tmp_path / "x.npy").write_bytes(_npy(header, payload))
    with pytest.raises(error):
        read_npy(str(tmp_path / "x.npy"), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        _npy(_stated("'<f4'", "False", "(1,)"), b"1234", b"\x09\x00"),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b" " * 99,
    ],
)
def test_what_is_no_array_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(CorruptError):
        read_npy(str(tmp_path / "x.npy"), "x")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(300_000_000 // 8), b=np.zeros(3))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(LimitError, match="grow to 3000"):
        read_npz(str(path), limit=1 << 20)
    assert len(read_npz(str(path)).tensors) == 2


def test_an_archive_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")
    with pytest.raises(CorruptError, match="'a' is no array"):
        read_npz(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", b"hello")
    with pytest.raises(CorruptError, match=r"'notes.txt' is no array"):
        read_npz(str(path))
    header = _stated("'|u1'", "False", "(1,)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", _npy(header, b"1"))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", _npy(header, b"1"))
    with pytest.raises(CorruptError, match="twice"):
        read_npz(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", _npy(header, b"1"))
    with pytest.raises(UsageError, match="packed in a way"):
        read_npz(str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(CorruptError, match="no npz archive"):
        read_npz(str(path))


def test_damage_of_a_stored_member_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(1000.0))
    data = bytearray(path.read_bytes())
    at = data.index(np.arange(1000.0).tobytes())
    data[at + 100] ^= 1
    path.write_bytes(data)
    (found,) = read_npz(str(path)).tensors
    with pytest.raises(CorruptError, match="checksum"):
        found.read()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damage_is_a_typed_error(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "x.npz"
    save(path, a=np.arange(40.0), b=np.ones((3, 3), np.float32))
    whole = path.read_bytes()

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4))
    def damaged(changes: list[tuple[int, int]]) -> None:
        data = bytearray(whole)
        for place, value in changes:
            data[place] = value
        path.write_bytes(data)
        try:
            for tensor in read_npz(str(path)).tensors:
                assert tensor.read().nbytes == tensor.nbytes
        except MldbError:
            pass

    damaged()


def test_members_that_lie_on_top_of_each_other_are_refused(tmp_path: Path) -> None:
    """A hundred names of one member would be a hundred times as much, without any packing."""
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(1000.0))
    data = path.read_bytes()
    start = data.rindex(b"PK\x01\x02")
    entry, end = data[start : data.rindex(b"PK\x05\x06")], data[data.rindex(b"PK\x05\x06") :]
    many = b"".join(entry.replace(b"a.npy", b"%c.npy" % letter) for letter in range(97, 123))
    end = end[:8] + struct.pack("<HHL", 26, 26, len(many)) + end[16:]
    path.write_bytes(data[:start] + many + end)
    with pytest.raises(CorruptError, match="on top of each other"):
        read_npz(str(path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("magic", "place"), [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)])
def test_flags_that_nobody_sets_are_typed_errors(
    tmp_path: Path, save: Any, magic: bytes, place: int
) -> None:
    """A bit that says "patched" in the header of a member came as NotImplementedError."""
    path = tmp_path / "x.npz"
    save(path, a=np.arange(40.0))
    whole = path.read_bytes()
    at = whole.index(magic) + place
    for bit in range(16):
        data = bytearray(whole)
        data[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            (tensor,) = read_npz(str(path)).tensors
            assert tensor.read().tolist() == list(range(40))
        except MldbError:
            pass
