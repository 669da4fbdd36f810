"""Casting by NumPy's rules, with a look at the values: nothing becomes something else unasked."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest

import mldb
from mldb.tensors.casting import Casting, cast, check_casting, is_plain, may_cast
from mldb.tensors.dtypes import code_of, dtype_of

NUMPY_TYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
NARROW = [
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "int4", "uint4", "int2", "uint2"),
]


def made(values: Any, dtype: Any, casting: Casting = "safe") -> Any:
    array = np.asarray(values)
    plain = is_plain(values)
    target = dtype_of(code_of(dtype))
    return cast(array, target, casting, plain=plain, what="'x'", outcome="Not written.")


@pytest.mark.parametrize("casting", get_args(Casting))
def test_the_types_of_numpy_follow_its_own_table(casting: Casting) -> None:
    types = [*NUMPY_TYPES, "<U3", "<U5", "S3", "M8[D]", "M8[ns]", "m8[s]", ">f4", ">i2"]
    for source, target in itertools.product(map(np.dtype, types), repeat=2):
        assert may_cast(source, target, casting) == np.can_cast(source, target, casting)


def test_safe_casts_of_narrow_types_keep_every_value() -> None:
    """NumPy asks ml_dtypes, which calls int8 -> float8_e4m3fn safe: 127 becomes 128."""
    narrow = [np.dtype(getattr(ml_dtypes, name)) for name in NARROW]
    small = [np.dtype(code) for code in ("?", "i1", "u1", "i2", "f2", "f4", "f8")]
    seen = 0
    for source, target in itertools.product(narrow, [*narrow, *small]):
        if source == target or not may_cast(source, target, "safe"):
            continue
        known: Any = ml_dtypes
        if "int" in source.name:
            limits = known.iinfo(source)
            every = np.arange(limits.min, limits.max + 1).astype(source)
        else:
            bits = known.finfo(source).bits
            every = np.arange(1 << bits, dtype=f"u{source.itemsize}").view(source)
        with np.errstate(all="ignore"):
            there, here = every.astype(target).astype(np.float64), every.astype(np.float64)
        np.testing.assert_array_equal(there, here)
        seen += 1
    assert seen > 60
    for source, target in (("i1", "float8_e4m3fn"), ("float8_e4m3fn", "int4"), ("c8", "bfloat16")):
        assert not may_cast(dtype_of(code_of(source)), dtype_of(code_of(target)), "safe")
    assert not may_cast(np.dtype("c8"), np.dtype(ml_dtypes.bfloat16), "same_kind")
    assert may_cast(np.dtype(ml_dtypes.bfloat16), np.dtype("f2"), "same_kind")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (300, "int8"),
        (-1, "uint8"),
        ([1, 2**31], "int32"),
        (2**63, "int64"),
        (1e300, "float32"),
        ([[0.0, -1e39]], "float32"),
        (70_000, "float16"),
        (1e300j, "complex64"),
        (500.0, "float8_e4m3fn"),
        (float("inf"), "float8_e4m3fn"),
        (7.0, "float4_e2m1fn"),
        (float("nan"), "float4_e2m1fn"),
        (9, "int4"),
        (0.0, "float8_e8m0fnu"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_by_value(values: Any, dtype: str) -> None:
    with pytest.raises(mldb.InvalidValueError, match=rf"'x': the value .* does not fit {dtype}"):
        made(values, dtype)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (float("nan"), "int32"),
        (1.0, "int8"),
        (2j, "float64"),
        (2, "bool"),
        ([1.5, 2], "int64"),
        (np.array([300, 1]), "int8"),
        (np.float64(1.5), "float32"),
        (np.array([1, 2]), "float32"),
        (np.array([1j]), "complex64"),
        (np.array(["abcd"]), "<U2"),
    ],
)
def test_other_kinds_and_wider_dtypes_are_refused_by_dtype(values: Any, dtype: str) -> None:
    with pytest.raises(mldb.InvalidTypeError, match=r"are not written as .*Not written\."):
        made(values, dtype)


def test_the_advice_is_one_that_helps() -> None:
    with pytest.raises(mldb.InvalidTypeError, match=r"casting='same_kind', which rounds"):
        made(np.array([1.5]), "float32")
    with pytest.raises(mldb.InvalidTypeError, match=r"\.real, \.imag"):
        made(np.array([1j]), "float32", "same_kind")
    with pytest.raises(mldb.InvalidTypeError, match=r"astype\('int8'\), or pass casting='unsafe'"):
        made(np.array([1.0]), "int8", "same_kind")


def test_same_kind_rounds_and_lets_nothing_become_something_else() -> None:
    np.testing.assert_array_equal(
        made(np.array([0.1, 1e-50, np.inf, np.nan]), "float32", "same_kind"),
        np.array([0.1, 0, np.inf, np.nan], np.float32),
    )
    assert made(np.array([100, -100]), "int8", "same_kind").tolist() == [100, -100]
    assert made(np.array(["ab"], "<U5"), "<U2", "same_kind").tolist() == ["ab"]
    wrong: list[tuple[Any, str]] = [
        (np.array([1.0, 1e300]), "float32"),
        (np.array([300]), "int8"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array(["abc"]), "<U2"),
        (np.array([1e39 + 0j]), "complex64"),
        (np.array([1e5]), "float16"),
    ]
    for values, dtype in wrong:
        with pytest.raises(mldb.InvalidValueError, match="would become"):
            made(values, dtype, "same_kind")


def test_the_message_names_the_first_such_value_and_its_place() -> None:
    values = np.zeros((3, 4))
    values[1, 2] = values[2, 0] = 1e300
    with pytest.raises(mldb.InvalidValueError, match=r"the value 1e\+300 at \[1, 2\] does not fit"):
        made(values, "float32", "same_kind")


def test_times_that_leave_the_range_of_a_unit_are_refused_though_numpy_calls_it_safe() -> None:
    """np.can_cast says that days fit nanoseconds; the year 3000 came back as 1830."""
    with pytest.raises(mldb.InvalidValueError, match="3000-01-01"):
        made(np.array(["2000-01-01", "3000-01-01"], "M8[D]"), "M8[ns]")
    fine = made(np.array(["2000-01-01", "NaT"], "M8[D]"), "M8[ns]")
    assert fine.astype("M8[D]").astype(str).tolist() == ["2000-01-01", "NaT"]
    assert made(np.array([1500], "m8[ms]"), "m8[s]", "same_kind").tolist() == [
        np.timedelta64(1, "s").item()
    ]


def test_unsafe_takes_what_comes_without_a_warning() -> None:
    assert made(np.array([300]), "int8", "unsafe").tolist() == [44]
    assert made(1e300, "float32", "unsafe").tolist() == np.inf
    assert made(np.array([np.nan]), "int32", "unsafe").shape == (1,)


def test_what_has_the_dtype_already_is_not_copied() -> None:
    array = np.arange(3.0)
    assert made(array, "float64", "no") is array
    with pytest.raises(mldb.InvalidTypeError):
        made(array, ">f8", "no")
    assert made(array, ">f8", "equiv").tolist() == [0, 1, 2]


def test_casting_itself_is_checked() -> None:
    assert [check_casting(name) for name in get_args(Casting)] == list(get_args(Casting))
    with pytest.raises(mldb.InvalidValueError, match="'samekind' is not one of 'no', 'equiv'"):
        check_casting("samekind")
    with pytest.raises(mldb.InvalidTypeError, match="int"):
        check_casting(4)
