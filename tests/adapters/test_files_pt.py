"""Files of torch.save: tensors and ties come back, nothing is run, and lies are told apart."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mldb
from mldb.errors import (
    CorruptError,
    InvalidTypeError,
    InvalidValueError,
    LimitError,
    MissingError,
    MldbError,
    UsageError,
)
from mldb.tools.formats.pt import read_pt
from mldb.tools.formats.pt_names import StoredBytes, StoredTensor
from mldb.tools.formats.pt_pickle import ForeignNameError, UnreadablePickleError, read_pickle

torch = pytest.importorskip("torch")

_DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
)


def _same(one: Any, other: Any) -> bool:
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(*raw))


def _saved(path: Path, value: Any, **options: Any) -> str:
    torch.save(value, path, **options)
    return str(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_comes_back_bit_by_bit(tmp_path: Path, protocol: int) -> None:
    draw = torch.Generator().manual_seed(protocol)
    state = {
        name: torch.rand((3, 5), generator=draw).mul(3).to(getattr(torch, name)) for name in _DTYPES
    }
    state |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    path = _saved(tmp_path / "w.pt", state, pickle_protocol=protocol)
    report = mldb.import_file(tmp_path / "run", path, epoch=4)
    assert (report.tensors, report.epoch, report.left_out) == (len(state), 4, ())
    with mldb.open(tmp_path / "run", mode="r") as db:
        back = db.state_dict()
        assert back.keys() == state.keys()
        assert all(_same(back[name], tensor) for name, tensor in state.items())


def test_a_model_with_tied_weights_is_stored_once_and_loads(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    path = _saved(tmp_path / "model.pth", model.state_dict())
    report = mldb.import_file(tmp_path / "run", path, prefix="m/")
    assert report.shared == {"b.weight": "a.weight"}
    with mldb.open(tmp_path / "run") as db:
        exported = mldb.export_file(db, tmp_path / "o.safetensors", prefix="m/", strip_prefix="m/")
        assert exported.shared == {"b.weight": "a.weight"}
        other = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)})
        other.load_state_dict(db.state_dict(prefix="m/"))
    assert torch.equal(other["b"].weight, model["a"].weight)


def test_views_parameters_and_strides(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "turned": base.T,
        "part": base[1:3, 2:5],
        "one": base[2],
        "spread": torch.ones(1).expand(5, 3),
        "parameter": torch.nn.Parameter(base.clone()),
        "buffer": torch.nn.Buffer(torch.ones(2)),
    }
    mldb.import_file(tmp_path / "run", _saved(tmp_path / "v.pt", state))
    with mldb.open(tmp_path / "run", mode="r") as db:
        for name, tensor in state.items():
            np.testing.assert_array_equal(db[name], tensor.detach().numpy())


def test_a_training_checkpoint_gives_its_tensors_and_names_the_rest(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "note": "text",
        "none": None,
        "blob": b"abc",
        "dtype": torch.float32,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
    }
    path = _saved(tmp_path / "last.ckpt", checkpoint)
    report = mldb.import_file(tmp_path / "all", path)
    assert {"epoch", "note", "none", "blob", "dtype", "size/0", "device"} <= set(report.left_out)
    with mldb.open(tmp_path / "all", mode="r") as db:
        assert "optimizer_states/0/state/0/exp_avg" in db
    mldb.import_file(tmp_path / "run", path, only="state_dict/", strip_prefix="state_dict/")
    with mldb.open(tmp_path / "run", mode="r") as db:
        assert sorted(db) == ["bias", "weight"]
        model.load_state_dict(db.state_dict())


def test_large_storages_are_views_of_the_file(tmp_path: Path) -> None:
    path = _saved(tmp_path / "w.pt", {"a": torch.zeros(1 << 18)})
    (tensor,) = read_pt(path).tensors
    array = tensor.read()
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_a_tensor_alone_is_called_as_its_file(tmp_path: Path) -> None:
    report = mldb.import_file(tmp_path / "run", _saved(tmp_path / "w.pt", torch.ones(2)))
    assert report.tensors == 1
    with mldb.open(tmp_path / "run", mode="r") as db:
        assert list(db) == ["w"]


def test_checksums_are_looked_at_where_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    marker = np.frombuffer(b"markmarkmarkmark", np.float32).copy()
    try:
        for compute in (True, False):
            torch.serialization.set_crc32_options(compute)
            torch.save({"a": torch.from_numpy(marker)}, path)
            data = path.read_bytes()
            path.write_bytes(data.replace(b"markmark", b"MARKmark", 1))
            if compute:
                with pytest.raises(CorruptError, match="checksum"):
                    mldb.import_file(tmp_path / "run", path)
            else:
                assert mldb.import_file(tmp_path / "run", path).tensors == 1
    finally:
        torch.serialization.set_crc32_options(True)


class _Bomb:
    def __reduce__(self) -> Any:
        return print, ("the file was run",)


@pytest.mark.parametrize(
    "value, said",
    [
        ({"a": _Bomb()}, "print"),
        ({"a": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"a": np.float64(1.0)}, "numpy"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_what_is_no_tensor_is_refused_by_name(
    tmp_path: Path, value: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _saved(tmp_path / "w.pt", value)
    with pytest.raises(InvalidTypeError, match=said):
        mldb.import_file(tmp_path / "run", path)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_old_and_foreign_files_say_what_to_do(tmp_path: Path) -> None:
    old = _saved(tmp_path / "old.pt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match=r"bare pickle.*torch\.save"):
        read_pt(old)
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")
    with pytest.raises(UsageError, match="TorchScript"):
        read_pt(str(script))
    (tmp_path / "none.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(CorruptError, match=r"no archive of torch\.save"):
        read_pt(str(tmp_path / "none.pt"))
    with pytest.raises(MissingError):
        read_pt(str(tmp_path / "absent.pt"))
    with pytest.raises(MissingError, match="no tensor"):
        mldb.import_file(tmp_path / "run", _saved(tmp_path / "plain.pt", {"a": 1}))


def test_names_that_clash_and_a_file_that_grows(tmp_path: Path) -> None:
    one = torch.ones(1)
    with pytest.raises(InvalidValueError, match="both called 'a/b'"):
        read_pt(_saved(tmp_path / "c.pt", {"a/b": one, "a": {"b": one}}))
    grown = _saved(tmp_path / "g.pt", {"a": one.expand(1 << 30)})
    with pytest.raises(LimitError, match="repeat their elements"):
        read_pt(grown)
    with pytest.raises(LimitError):
        mldb.import_file(tmp_path / "run", grown, max_bytes=1 << 20)


def test_export_to_a_pickle_is_refused(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run") as db:
        db["a"] = np.ones(2)
        with pytest.raises(InvalidValueError, match="does not write"):
            mldb.export_file(db, tmp_path / "w.pt")


# --- hostile programs -----------------------------------------------------------------------------


def _program(value: Any, protocol: int = 2) -> memoryview:
    return memoryview(pickle.dumps(value, protocol))


def test_plain_values_are_built() -> None:
    value = {
        "a": [1, -5, 70_000, 1 << 40, -(1 << 70), 2.5, None, True, False],
        3: ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "o": OrderedDict(x=1),
        "t": "ä" * 300,
    }
    for protocol in (2, 3, 4, 5):
        assert read_pickle(_program(value, protocol)) == value


def test_containers_that_hold_themselves_are_bounded(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    many: Any = [1]
    for _ in range(60):
        many = [many, many]
    for name, value in {"ring": ring, "many": many}.items():
        path = _saved(tmp_path / f"{name}.pt", {"a": value})
        with pytest.raises(LimitError):
            read_pt(path)


@pytest.mark.parametrize(
    "program, said",
    [
        (b"", "cut off"),
        (b"\x80\x09.", "newer protocol"),
        (b"\x80\x02X\xff\xff\xff\xff.", "a text is said"),
        (b"\x80\x02.", "one value"),
        (b"\x80\x02NN.", "one value"),
        (b"\x80\x02(.", "one value"),
        (b"\x80\x02h\x07.", "KeyError"),
        (b"\x80\x02i.", "instruction"),
        (b"\x80\x02Na.", "damaged|no list"),
        (b"\x80\x02NNs.", "damaged|no dict"),
        (b"\x80\x02}]Ns.", "a key is a list"),
        (b"\x80\x02ccollections\nOrderedDict\nNR.", "called"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "TypeError"),
        (b"\x80\x02NQ.", "storage"),
        (b"\x80\x02t.", "mark is missing"),
        (b"\x80\x02c" + b"a" * 500, "no end"),
    ],
)
def test_programs_that_make_no_sense(program: bytes, said: str) -> None:
    with pytest.raises(UnreadablePickleError, match=said):
        read_pickle(memoryview(program))


def test_names_are_never_imported() -> None:
    with pytest.raises(ForeignNameError, match=r"os\.system"):
        read_pickle(memoryview(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."))
    with pytest.raises(ForeignNameError, match=r"builtins\.eval"):
        read_pickle(memoryview(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."))


def _archive(program: bytes, **members: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("w/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"w/data/{name}", data)
    return whole.getvalue()


def _tensor_program(count: int, offset: int, shape: tuple[int, ...], strides: Any) -> bytes:
    rest: tuple[Any, ...] = (offset, shape, strides, False, OrderedDict())
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0\x30X\3\0\0\0cpu"
    body = b"".join(pickle.dumps(item, 2)[2:-1] for item in rest)
    number = pickle.dumps(count, 2)[2:-1]
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number + b"tQ" + body + b"tR."
    )


@pytest.mark.parametrize(
    "count, offset, shape, strides",
    [
        (4, 1, (4,), (1,)),
        (4, 0, (5,), (1,)),
        (5, 0, (4,), (1,)),
        (4, 0, (2, 2), (4, 1)),
        (4, 0, (1 << 61,), (1,)),
        (4, -1, (1,), (1,)),
        (4, 0, (2,), (-1,)),
        (4, 0, (2, 2), (1,)),
        (4, 0, (True,), (1,)),
    ],
)
def test_tensors_that_reach_out_of_their_storage(
    tmp_path: Path, count: int, offset: int, shape: tuple[int, ...], strides: Any
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(_archive(_tensor_program(count, offset, shape, strides), **{"0": bytes(16)}))
    with pytest.raises(CorruptError):
        read_pt(str(path))
    path.write_bytes(_archive(_tensor_program(4, 0, (4,), (1,)), **{"0": bytes(16)}))
    assert read_pt(str(path)).tensors[0].shape == (4,)
    path.write_bytes(_archive(_tensor_program(4, 0, (4,), (1,))))
    with pytest.raises(CorruptError, match="missing"):
        read_pt(str(path))


def _whole_file() -> bytes:
    state = {"a": torch.arange(6.0).reshape(2, 3), "n": {"b": torch.ones(2, 3).T, "e": 3}}
    whole = io.BytesIO()
    torch.save(state, whole)
    return whole.getvalue()


@given(data=st.data())
@settings(max_examples=300)
def test_mutated_files_give_typed_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(_whole_file())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole))) :]
    path = tmp_path_factory.getbasetemp() / "mutated.pt"
    path.write_bytes(whole)
    try:
        for tensor in read_pt(str(path)).tensors:
            tensor.read()
    except MldbError:
        pass


@given(data=st.data())
@settings(max_examples=300)
def test_mutated_programs_give_typed_errors(data: st.DataObject) -> None:
    whole = bytearray(zipfile.ZipFile(io.BytesIO(_whole_file())).read("archive/data.pkl"))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    with suppress(UnreadablePickleError, ForeignNameError):
        read_pickle(memoryview(bytes(whole)))


def test_what_a_tensor_is_described_as() -> None:
    found = read_pickle(memoryview(_tensor_program(4, 0, (2, 2), (2, 1))))
    assert found == StoredTensor(StoredBytes("0", "<f4", 4), "<f4", 0, (2, 2), (2, 1))
