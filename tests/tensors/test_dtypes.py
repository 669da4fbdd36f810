"""Dtype codes: one for every element type that is stored, none for the rest."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mldb.errors import InvalidTypeError, InvalidValueError, UsageError
from mldb.tensors import dtypes
from mldb.tensors.dtypes import code_of_torch, dtype_code, dtype_of, itemsize_of, torch_dtype

ML_NAMES = [
    name
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and name not in ("finfo", "iinfo")
]
# What torch has beyond these: quantised types and shells without operations.
TORCH_NAMES = [
    *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool"),
    *("float16", "float32", "float64", "complex32", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    "float4_e2m1fn_x2",
]
STORABLE = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.unsigned_integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | hnp.complex_number_dtypes(endianness="?", sizes=(64, 128))
    | hnp.datetime64_dtypes(endianness="?")
    | hnp.timedelta64_dtypes(endianness="?")
    | hnp.byte_string_dtypes(endianness="?", min_len=1, max_len=300)
    | hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=300)
)


@given(STORABLE)
@example(np.dtype("<M8"))
@example(np.dtype("<m8[25s]"))
@example(np.dtype("S1"))
def test_every_numpy_dtype_comes_back(dtype: np.dtype[Any]) -> None:
    code = dtype_code(dtype)
    assert code == dtype.str
    assert dtype_of(code) == dtype
    assert dtype_of(code).byteorder == dtype.byteorder
    assert itemsize_of(code) == dtype.itemsize


@pytest.mark.parametrize("name", ML_NAMES)
def test_every_ml_dtype_comes_back(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    assert dtype_code(dtype) == name
    assert dtype_of(name) == dtype
    assert itemsize_of(name) == dtype.itemsize


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_torch_dtypes_map_to_the_same_bytes(name: str) -> None:
    dtype = getattr(torch, name)
    code = code_of_torch(dtype)
    assert torch_dtype(code) is dtype
    assert itemsize_of(code) == dtype.itemsize
    if name == "float4_e2m1fn_x2":
        assert dtype_of(code) == np.uint8
        return
    assert dtype_code(dtype_of(code)) == code
    assert code_of_torch(torch_dtype(dtype_code(dtype_of(code)))) == code
    # float8_e8m0fnu holds powers of two only.
    values = [True, False] if name == "bool" else [1, 2, 4]
    seen = torch.frombuffer(bytearray(np.asarray(values, dtype_of(code)).tobytes()), dtype=dtype)
    wide = torch.complex64 if dtype.is_complex else torch.float64
    assert seen.to(wide).tolist() == values


def test_the_torch_table_covers_what_torch_and_numpy_share() -> None:
    shared = {name for name in ML_NAMES if isinstance(getattr(torch, name, None), torch.dtype)}
    # torch's sub-byte integers are shells that hold no values yet.
    shared -= {name for name in shared if name.startswith(("int", "uint"))}
    assert shared <= set(TORCH_NAMES)
    assert {"bfloat16", "complex32", "float8_e8m0fnu"} <= shared


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (np.dtype(object), "object arrays would need pickle, which mldb never loads"),
        (np.dtype([("a", "O")]), "object arrays would need pickle, which mldb never loads"),
        (np.dtype([("a", "i4"), ("b", "f4")]), "store each field under a name of its own"),
        (np.dtype("V7"), "view them as np.uint8"),
        (np.dtypes.StringDType(), r"convert with astype\('U'\)"),
        (np.dtype("S0"), "no stable bytes"),
        (np.dtype(ml_dtypes.bfloat16).newbyteorder(">"), "Convert it with astype"),
    ],
)
def test_refused_dtypes_say_why_and_how_to_convert(dtype: np.dtype[Any], words: str) -> None:
    with pytest.raises(InvalidTypeError, match=words) as caught:
        dtype_code(dtype)
    assert isinstance(caught.value, TypeError)
    assert "dtype" in str(caught.value)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is double here")
@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_longdouble_is_refused(dtype: Any) -> None:
    with pytest.raises(InvalidTypeError, match="depends on the platform"):
        dtype_code(np.dtype(dtype))


@given(st.text(max_size=12) | st.text("<>|=?fiuOVSUMmcb8416[],()nsx ", max_size=12))
@example("O")
@example("|O")
@example("f4,f4")
@example("(9999999,)f4")
@example("<f16")
@example("<f1")
@example("=f4")
@example("f4")
@example("<U0")
@example("<U999999999")
@example("|S999999999")
@example("<M8[0s]")
@example("<M8[1s]")
@example("<M8[99999999s]")
@example("<f4\n")
@example("<M8[٣s]")
@example("|V3")
@example("int3")
@example("__class__")
@example("finfo")
def test_hostile_codes_give_one_error_or_a_dtype_of_that_code(code: str) -> None:
    try:
        dtype = dtype_of(code)
    except InvalidValueError:
        with pytest.raises(InvalidValueError):
            itemsize_of(code)
    else:
        assert dtype_code(dtype) == code
        assert not dtype.hasobject


@pytest.mark.parametrize("code", [None, 4, b"<f4", ["<f4"], {}])
def test_a_code_that_is_no_text_is_an_invalid_value(code: object) -> None:
    with pytest.raises(InvalidValueError):
        dtype_of(code)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [">f4", "<M8[ns]", "<U3", "float8_e3m4", "int4", "nonsense"])
def test_codes_without_a_torch_dtype_point_to_numpy(code: str) -> None:
    with pytest.raises(InvalidTypeError, match="NumPy array"):
        torch_dtype(code)


@pytest.mark.parametrize("dtype", [torch.quint8, torch.bits8, torch.qint32])
def test_torch_dtypes_without_plain_values_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidTypeError, match="Convert the tensor first"):
        code_of_torch(dtype)


def test_an_ml_dtypes_too_old_for_a_code_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "_dtypes", {})
    monkeypatch.delattr(ml_dtypes, "complex32")
    with pytest.raises(UsageError, match="pip install -U ml_dtypes"):
        dtype_of("complex32")
    assert itemsize_of("complex32") == 4


def test_the_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "_codes", {})
    monkeypatch.setattr(dtypes, "_dtypes", {})
    monkeypatch.setattr(dtypes, "_CACHE_LIMIT", 8)
    for length in range(1, 100):
        assert dtype_of(dtype_code(np.dtype(f"S{length}"))).itemsize == length
        assert len(dtypes._codes) <= 8
        assert len(dtypes._dtypes) <= 8


def test_plain_codes_import_neither_torch_nor_ml_dtypes() -> None:
    script = (
        "import sys, numpy as np\n"
        "from mldb.tensors import dtypes\n"
        "dtypes.dtype_of(dtypes.dtype_code(np.dtype('f4')))\n"
        "dtypes.itemsize_of('bfloat16')\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'ml_dtypes', 'scipy')))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
