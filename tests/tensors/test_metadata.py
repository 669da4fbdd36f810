"""Metadata: plain values come back, others are refused with their path."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mldb.errors import CorruptError, InvalidTypeError, InvalidValueError, LimitError, MldbError
from mldb.tensors.codec import (
    pack_metadata,
    unpack_metadata,
)

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=30))])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.binary(max_size=8)
    | st.datetimes(timezones=ZONES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal with exact types, NaN equal to NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes()
    if isinstance(left, datetime):
        return bool(left == right and left.utcoffset() == right.utcoffset())
    return bool(left == right)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), VALUES, max_size=5))
def test_metadata_comes_back(metadata: dict[str, Any]) -> None:
    assert same(unpack_metadata(pack_metadata(metadata)), metadata)


def test_numpy_scalars_tuples_and_zones_become_plain() -> None:
    summer = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    metadata = {"i": np.int8(3), "f": np.float32(0.5), "b": np.True_, "t": (1, (2,)), "d": summer}
    back = unpack_metadata(pack_metadata(metadata))
    assert same({**back, "d": None}, {"i": 3, "f": 0.5, "b": True, "t": [1, [2]], "d": None})
    assert back["d"] == summer
    assert back["d"].utcoffset() == timedelta(hours=2)
    extremes = {"low": datetime.min.replace(tzinfo=UTC), "high": datetime.max.replace(tzinfo=UTC)}
    assert unpack_metadata(pack_metadata(extremes)) == extremes


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (object(), InvalidTypeError, r"metadata\['k'\] is a object"),
        ([1, {2}], InvalidTypeError, r"metadata\['k'\]\[1\] is a set"),
        ({"a": {3: 1}}, InvalidTypeError, r"metadata\['k'\]\['a'\] has a key 3"),
        (np.zeros(2), InvalidTypeError, "store an array as a tensor"),
        (torch.zeros(1), InvalidTypeError, "Tensor"),
        (np.longdouble(1), InvalidTypeError, "longdouble"),
        (1 + 2j, InvalidTypeError, "complex"),
        (2**64, InvalidValueError, "beyond 64 bits"),
        (-(2**63) - 1, InvalidValueError, "beyond 64 bits"),
        (datetime(2024, 1, 1), InvalidValueError, "time zone"),  # noqa: DTZ001
        ("\ud800", InvalidValueError, "surrogate"),
        ("a" * (1 << 20), LimitError, "1048576 bytes"),
        (b"a" * (2 << 20), LimitError, "1048576 bytes"),
        ([None] * (1 << 20), LimitError, "1048576"),
    ],
)
def test_refused_metadata_names_the_path(value: Any, error: type[MldbError], words: str) -> None:
    with pytest.raises(error, match=words):
        pack_metadata({"k": value})


def test_metadata_has_a_depth() -> None:
    nested: dict[str, Any] = {}
    for _ in range(15):
        nested = {"k": nested}
    assert unpack_metadata(pack_metadata(nested)) == nested
    with pytest.raises(LimitError, match="deeper than 16"):
        pack_metadata({"k": nested})
    itself: dict[str, Any] = {}
    itself["k"] = [itself]
    with pytest.raises(LimitError, match="holds itself"):
        pack_metadata(itself)
    with pytest.raises(InvalidTypeError, match="dict of plain values"):
        pack_metadata([])  # type: ignore[arg-type]


@given(st.binary(max_size=40))
@example(b"\x91" * 2000)
@example(b"\x81\xa1a" * 20 + b"\xc0")
@example(msgpack.packb({1: 2}, use_bin_type=True))
@example(msgpack.packb({b"k": 2}))
@example(msgpack.packb({"t": msgpack.Timestamp(1, 1)}))
@example(msgpack.packb({"t": msgpack.ExtType(1, b"\xff" * 11 + b"\x7f")}))
@example(msgpack.packb({"t": msgpack.ExtType(1, b"\xff" * 8 + b"\xff\xff\xff\x7f")}))
@example(msgpack.packb({"t": msgpack.ExtType(9, b"")}))
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xa1\xff")
def test_hostile_metadata_gives_only_corrupt(data: bytes) -> None:
    try:
        metadata = unpack_metadata(data)
    except CorruptError:
        return
    assert same(unpack_metadata(pack_metadata(metadata)), metadata)


@given(st.dictionaries(st.text("ab", max_size=3), VALUES, max_size=4), st.data())
def test_damaged_metadata_gives_corrupt_or_plain_values(
    metadata: dict[str, Any], data: st.DataObject
) -> None:
    packed = bytearray(pack_metadata(metadata))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    try:
        back = unpack_metadata(bytes(packed))
    except CorruptError:
        return
    assert isinstance(back, dict)
