"""Safetensors: what is written the package reads, what the package writes is read, lies are not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb.errors import CorruptError, LimitError, MldbError, UsageError
from mldb.tools.formats.export_file import export_file
from mldb.tools.formats.import_file import import_file, read_tensors
from mldb.tools.formats.safetensors import read_safetensors
from mldb.tools.formats.tensors import chunks_of

torch = pytest.importorskip("torch")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
safetensors_torch = pytest.importorskip("safetensors.torch")

_TORCH_DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)


def _state() -> dict[str, Any]:
    """A tensor of each dtype that the format has, of odd sizes, empty and without axes."""
    draw = torch.Generator().manual_seed(7)
    found = {
        name: torch.rand((3, 5), generator=draw).mul(3).to(getattr(torch, name))
        for name in _TORCH_DTYPES
    }
    packed = torch.arange(6, dtype=torch.uint8).reshape(3, 2)
    found["fp4"] = packed.view(torch.float4_e2m1fn_x2)
    return {**found, "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}


def _as_bytes(tensor: Any) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_the_package_reads_what_is_exported_bit_by_bit(tmp_path: Path) -> None:
    state, path = _state(), str(tmp_path / "out.safetensors")
    with mldb.open(tmp_path / "run", durability="os") as db:
        with db.transaction(epoch=3) as txn:
            for name, tensor in state.items():
                txn.store_tensor(f"model/{name}", tensor, {"about": name})
        with db.at() as snapshot:
            report = export_file(snapshot, path, prefix="model/", strip_prefix="model/")
    assert (report.tensors, report.widened, report.epoch) == (len(state), (), 3)
    found = safetensors_torch.load_file(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert _as_bytes(found[name]) == _as_bytes(tensor)
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["mldb"])["epoch"] == 3


def test_what_the_package_wrote_is_imported_bit_by_bit_and_in_one_commit(tmp_path: Path) -> None:
    state, path = _state(), str(tmp_path / "in.safetensors")
    safetensors_torch.save_file(state, path, {"format": "pt"})
    with mldb.open(tmp_path / "run", durability="os") as db:
        report = import_file(db, path, prefix="m/", epoch=5)
        assert (report.tensors, report.epoch, report.lsn) == (len(state), 5, db.lsn)
        assert len(list(db.events())) > 0
        assert {event.lsn for event in db.events()} == {db.lsn}
        for name, tensor in state.items():
            own = db.tensor(f"m/{name}").torch()
            assert (own.dtype, own.shape) == (tensor.dtype, tensor.shape)
            assert _as_bytes(own) == _as_bytes(tensor)


def test_numbers_with_the_highest_byte_first_are_turned(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=">f8")
    with mldb.open(tmp_path / "run", durability="os") as db:
        db["w"] = array
        with db.at() as snapshot:
            export_file(snapshot, str(tmp_path / "o.safetensors"))
    found = safetensors_numpy.load_file(tmp_path / "o.safetensors")
    np.testing.assert_array_equal(found["w"], array)
    assert found["w"].dtype == np.dtype("<f8")


def test_chunks_cover_an_array_and_turn_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldb.tools.formats.tensors.CHUNK", 64)
    for array in (np.arange(77, dtype="<i4"), np.arange(77, dtype=">i4"), np.empty((0, 3))):
        found = b"".join(chunks_of(array))
        assert found == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_metadata_come_back_and_what_json_lacks_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "o.safetensors")
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor(
            "a", np.ones(3), {"type": "weights", "layer": "conv1", "n": [1, {"x": 2.5}]}
        )
        db.store_tensor("b", np.ones(4), {"raw": b"\x00\xff"})
        db.store_tensor("c", np.ones(5), {"loss": float("nan")})
        with db.at() as snapshot:
            report = export_file(snapshot, path)
        assert report.metadata_lost == ("b", "c")
    with mldb.open(tmp_path / "again", durability="os") as db:
        import_file(db, path)
        assert db.tensor("a").metadata == {
            "type": "weights",
            "layer": "conv1",
            "n": [1, {"x": 2.5}],
        }
        assert db.tensor("b").metadata == {}


def test_names_that_share_bytes_are_written_twice_or_once(tmp_path: Path) -> None:
    table = np.arange(100_000, dtype=np.float32)
    twice, once = str(tmp_path / "twice.safetensors"), str(tmp_path / "once.safetensors")
    with mldb.open(tmp_path / "run") as db:
        tied = torch.from_numpy(table.copy())
        db.checkpoint({"head": tied, "body": tied, "other": torch.ones(7)}, epoch=1)
        with db.at() as snapshot:
            assert export_file(snapshot, twice).shared == {"head": "body"}
            assert export_file(snapshot, once, once=True).tensors == 2
    assert safetensors_numpy.load_file(twice).keys() == {"head", "body", "other"}
    assert safetensors_numpy.load_file(once).keys() == {"body", "other"}
    assert read_tensors(once).metadata["head"] == "body"
    with mldb.open(tmp_path / "again", durability="os") as db:
        import_file(db, once)
        np.testing.assert_array_equal(db["head"], table)


def _file(path: Path, header: object, payload: bytes = b"", length: int | None = None) -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + payload)
    return str(path)


def _entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "payload", "word"),
    [
        (b"{", b"", "no JSON"),
        (b"[]", b"", "no JSON object"),
        (b"\xff\xfe{}", b"", "no JSON"),
        (b"[" * 200_000, b"", "no JSON"),
        ({"a": 3}, b"", "no dtype"),
        ({"a": _entry(offsets=(0, 5))}, b"12345", "takes 4 bytes"),
        ({"a": _entry(offsets=(0, 4))}, b"123", "lies at"),
        ({"a": _entry(offsets=(4, 0))}, b"1234", "lies at"),
        ({"a": _entry(offsets=(-4, 0))}, b"1234", "lies at"),
        ({"a": _entry(offsets=(0.0, 4.0))}, b"1234", "lies at"),
        ({"a": _entry(offsets=(0, 1 << 70))}, b"1234", "lies at"),
        ({"a": _entry(shape=(-2, -2))}, b"1234", "no shape"),
        ({"a": _entry(shape=(True, 4))}, b"1234", "no shape"),
        ({"a": _entry(shape=[1] * 65 + [4])}, b"1234", "no shape"),
        ({"a": _entry(shape=(1 << 40, 1 << 40))}, b"1234", "takes"),
        ({"a": _entry("F4", (4, 3), (0, 6))}, b"123456", "odd last axis"),
        ({"a": _entry(), "b": _entry(offsets=(2, 6))}, b"123456", "overlaps"),
        ({"a": _entry(), "b": _entry(offsets=(5, 9))}, b"123456789", "gap"),
        ({"a": _entry()}, b"1234567", "end at 4"),
        ({"__metadata__": {"a": 3}, "b": _entry()}, b"1234", "text to text"),
        ({"x" * 5000: _entry()}, b"1234", "longer than"),
        (b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(_entry()).encode()}, b"1234", "twice"),
    ],
)
def test_a_file_that_lies_is_refused_by_what_is_wrong(
    tmp_path: Path, header: object, payload: bytes, word: str
) -> None:
    with pytest.raises(CorruptError, match=word):
        read_safetensors(_file(tmp_path / "x.safetensors", header, payload))


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 200_000_000, 3])
def test_a_header_length_is_bounded_before_it_is_believed(tmp_path: Path, length: int) -> None:
    path = _file(tmp_path / "x.safetensors", {"a": _entry()}, b"1234", length)
    with pytest.raises(CorruptError):
        read_safetensors(path)


def test_a_dtype_of_another_world_is_refused_by_name(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.safetensors", {"a": _entry("F6_E2M3", (4,), (0, 3))}, b"123")
    with pytest.raises(UsageError, match="'a' has the dtype 'F6_E2M3'"):
        read_safetensors(path)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldb.tools.formats.safetensors.TENSORS_MAX", 2)
    header = {name: _entry(shape=(0,), offsets=(0, 0)) for name in "abc"}
    with pytest.raises(LimitError, match="3 tensors"):
        read_safetensors(_file(tmp_path / "x.safetensors", header))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_raises_a_typed_error_or_reads_the_same_shapes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    header = {"a": _entry("F32", (2, 3), (0, 24)), "b": _entry("BF16", (4,), (24, 32))}
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    whole = bytearray(Path(_file(path, header, bytes(range(32)))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 33))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        for tensor in read_safetensors(str(path)).tensors:
            assert np.asarray(tensor.read()).nbytes == tensor.nbytes
    except MldbError:
        pass


def test_a_payload_that_is_not_aligned_is_read_all_the_same(tmp_path: Path) -> None:
    header = {"a": _entry("U8", (1,), (0, 1)), "b": _entry("F64", (2,), (1, 17))}
    payload = b"\x07" + np.array([1.5, -2.5]).tobytes()
    found = {item.name: item for item in read_tensors(
        _file(tmp_path / "x.safetensors", header, payload)
    ).tensors}  # fmt: skip
    assert found["b"].read().tolist() == [1.5, -2.5]
    assert found["b"].read().flags.aligned


def test_values_of_bfloat16_are_those_that_were_given(tmp_path: Path) -> None:
    values = np.array([1.5, -0.0, np.inf, 3e38], ml_dtypes.bfloat16)
    path = tmp_path / "x.safetensors"
    _file(path, {"a": _entry("BF16", (4,), (0, 8))}, values.tobytes())
    with mldb.open(tmp_path / "run", durability="os") as db:
        import_file(db, str(path))
        assert db["a"].tobytes() == values.tobytes()
        assert db["a"].dtype == values.dtype
