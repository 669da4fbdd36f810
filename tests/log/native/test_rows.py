"""The copy of rows: what the compiled twin and NumPy make of the same tables, rows and damage."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.lake.rows import mosaic
from mldb.lake.rows.live import Rows
from mldb.lake.rows.take import take_rows
from mldb.log import native

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

DTYPES = ("<f4", "<f8", "<u8", "<i2", "|b1", "|u1")
FIELDS = ("mu", "id", "label", "kappa", "pair")


def gather(*arguments: Any) -> Any:
    return native.twin.gather_rows(*arguments)


@given(
    seed=st.integers(0, 1 << 30),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (1,), (7,), (2, 3), (640,), (0,)]),
    length=st.integers(1, 300),
    count=st.sampled_from([0, 1, 8, 9, 200, 1024, 1025, 2500]),
    beyond=st.booleans(),
    rows_dtype=st.sampled_from(["<i8", "<i4", ">i8"]),
    step=st.sampled_from([1, 2]),
)
def test_rows_of_one_table(
    seed: int,
    dtype: str,
    shape: tuple[int, ...],
    length: int,
    count: int,
    beyond: bool,
    rows_dtype: str,
    step: int,
) -> None:
    """Any dtype and width; numbers outside, strides and other numbers are the twin's business."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 250, (step * length, *shape)).astype(dtype)[::step]
    low, high = (-3, length + 3) if beyond else (0, length)
    rows = rng.integers(low, high, count).astype(rows_dtype)
    out, other = np.empty((count, *shape), dtype), np.empty((count, *shape), dtype)
    with native.switched_off():
        take_rows(table, rows, out)
    take_rows(table, rows, other)
    assert other.tobytes() == out.tobytes() == table[np.clip(rows, 0, length - 1)].tobytes()


@given(
    seed=st.integers(0, 1 << 30),
    size=st.sampled_from([1, 2, 4, 8]),
    numbers=st.integers(1, 40),
    tables=st.integers(1, 5),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    count=st.integers(0, 3000),
    adds=st.booleans(),
)
def test_rows_of_many_blocks_in_several_tables(
    seed: int, size: int, numbers: int, tables: int, lengths: list[int], count: int, adds: bool
) -> None:
    rng = np.random.default_rng(seed)
    width, adds = size * numbers, adds and size * numbers == 8
    pieces = [rng.bytes(40 * width + int(rng.integers(0, 99))) for _ in range(tables)]
    mapping = rng.integers(0, tables, len(lengths)).astype(np.int16)
    offset = np.array(
        [
            rng.integers(0, (len(pieces[m]) - n * width) // size + 1)
            for m, n in zip(mapping, lengths, strict=True)
        ]
    )
    stops = np.cumsum(lengths)
    added = rng.integers(-9, 9, len(lengths))
    known = [stops, mapping, offset, np.ones(len(lengths), np.bool_), *([added] if adds else [])]
    if not stops[-1]:
        return
    rows = rng.integers(0, stops[-1], count)
    out = np.empty((count, width), np.uint8)
    assert gather(tuple(pieces), rows, out, numbers, size, tuple(known)) is True
    for row, found in zip(rows.tolist(), out, strict=True):
        block = int(np.searchsorted(stops, row, "right"))
        start = (offset[block] + (row - stops[block] + lengths[block]) * numbers) * size
        want = np.frombuffer(pieces[mapping[block]][start : start + width], np.uint8)
        if adds:
            want = (want.view(np.int64) + added[block]).view(np.uint8)
        assert found.tobytes() == want.tobytes()


def plain() -> dict[str, Any]:
    """What is copied as it stands: three blocks in two tables."""
    return {
        "tables": (np.arange(40, dtype=np.float32), np.arange(40, 90, dtype=np.float32)),
        "rows": np.array([0, 5, 8, 2]),
        "out": np.zeros((4, 4), np.float32),
        "numbers": 4,
        "size": 4,
        "blocks": (
            np.array([3, 6, 9]),
            np.array([0, 1, 0], np.int16),
            np.array([2, 7, 28]),
            np.ones(3, np.bool_),
        ),
    }


def block_of(place: int, value: Any) -> tuple[Any, ...]:
    blocks = list(plain()["blocks"])
    blocks[place] = value
    return tuple(blocks)


def test_the_plain_case_is_copied() -> None:
    given_ = plain()
    assert gather(*given_.values()) is True
    starts = np.array([2, 40 + 7 + 8, 28 + 8, 2 + 8])
    assert (given_["out"] == starts[:, None] + np.arange(4)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": np.array([0, 9, 1, 2])},
        {"rows": np.array([0, -1, 1, 2])},
        {"rows": np.array([0, 1 << 62, 1, 2])},
        {"rows": np.array([0.0, 1, 2, 3])},
        {"rows": np.array([0, 1, 2, 3], np.int32)},
        {"rows": np.array([0, 1, 2, 3], ">i8")},
        {"rows": np.arange(8)[::2]},
        {"rows": np.arange(4).reshape(2, 2)},
        {"rows": [0, 1, 2, 3]},
        {"rows": np.arange(3)},
        {"out": np.zeros((4, 4), np.float64)},
        {"out": np.zeros((4, 8), np.float32)[:, ::2]},
        {"out": np.broadcast_to(np.float32(0), (4, 4))},
        {"out": bytes(64)},
        {"out": None},
        {"tables": ()},
        {"tables": (np.arange(40, dtype=np.float32),)},
        {"tables": (np.arange(39, dtype=np.float32), np.arange(40, 90, dtype=np.float32))},
        {"tables": (np.zeros(2, np.float32),) * 2},
        {"tables": (np.arange(80, dtype=np.float32)[::2],) * 2},
        {"tables": (None, None)},
        {"tables": (np.arange(40, dtype=np.float32),) * 65},
        {"numbers": 0},
        {"numbers": -4},
        {"size": 0},
        {"size": -4},
        {"blocks": ()},
        {"blocks": plain()["blocks"][:3]},
        {"blocks": (*plain()["blocks"], np.zeros(3, np.int64))},
        {"blocks": block_of(0, np.array([3, 6]))},
        {"blocks": block_of(0, np.array([3, 6, 9], np.int32))},
        {"blocks": block_of(1, np.array([0, 1, 2], np.int16))},
        {"blocks": block_of(1, np.array([0, -1, 0], np.int16))},
        {"blocks": block_of(1, np.array([0, -2, 0], np.int16))},
        {"blocks": block_of(2, np.array([2, 7, -1 << 40]))},
        {"blocks": block_of(2, np.array([2, 7, 29]))},
        {"blocks": block_of(3, np.array([True, False, True]))},
        {"blocks": block_of(3, np.ones(3, np.uint8))},
    ],
    ids=str,
)
def test_what_is_not_plain_is_given_back(changes: dict[str, Any]) -> None:
    assert gather(*(plain() | changes).values()) is None


def test_nothing_is_held_after_a_call() -> None:
    """Neither of what was copied, nor of what was given back."""
    table, out = bytearray(range(200)), bytearray(16)
    assert gather((table,), np.array([3, 1]), out, 2, 4) is True
    assert gather((table,), np.array([3, 900]), out, 2, 4) is None
    assert gather((table, None), np.array([3, 1]), out, 2, 4) is None
    table.append(1)  # BufferError while there is an export
    out.append(1)


def fill(path: Path, rng: np.random.Generator, *, dim: int) -> None:
    """Blocks in several segments, with ids given and assigned, some unlabelled."""
    with mldb.open(path, durability="os", segment_bytes=1 << 15) as db:
        lake = db.lake(dim=dim)
        for number in range(24):
            count = int(rng.integers(1, 60))
            lake.add_splats(
                rng.standard_normal((count, dim)),
                ids=rng.permutation(count) + 10_000 * (number + 1) if number % 3 == 0 else None,
                labels=rng.integers(0, 5, count) if number % 2 else None,
                columns={"pair": rng.integers(-9, 9, (count, 3)).astype(np.int16)},
            )


def drawn(rows: Rows, seed: int) -> list[bytes | str]:
    """What a few gathers of all fields return, or raise."""
    rng = np.random.default_rng(seed)
    found: list[bytes | str] = []
    for _ in range(12):
        some = rng.integers(0, len(rows), int(rng.integers(1, 200)))
        for name in FIELDS:
            try:
                found.append(rows.gather(name, some).tobytes())
            except mldb.CorruptError as error:
                found.append(str(error))
    return found


@pytest.mark.parametrize("whole_bytes", [0, 1 << 16])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_lake_reads_alike_with_and_without(
    store_path: Path,
    rng: np.random.Generator,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    is_damaged: bool,
    whole_bytes: int,
) -> None:
    """Rows of blocks that are not verified are read by Python, which raises for damaged ones."""
    monkeypatch.setattr(mosaic, "_WHOLE_BYTES", whole_bytes)
    fill(store_path, rng, dim=33)
    if is_damaged:
        with mldb.open(store_path, mode="r") as db:
            row = db.lake().rows().gather("mu", slice(70, 71)).tobytes()
        file = next(p for p in (store_path / "segments").iterdir() if row in p.read_bytes())
        data = bytearray(file.read_bytes())
        data[data.find(row)] ^= 1
        file.write_bytes(data)
    found = []
    for mode in (nullcontext, native.switched_off):
        with mldb.open(store_path, mode="r") as db, mode():
            found.append(drawn(db.lake().rows(), abs(seed)))
    assert found[0] == found[1]
    assert any(isinstance(item, str) for item in found[0]) is is_damaged
