"""The border between copying and mapping: measured, remembered, and what it decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.hints import load_hint, save_hint
from mldb.tensors import border
from mldb.tensors.border import SIZES, START_BYTES, MapBorder, measure_border


def folder(size: int = SIZES[-1]) -> MemoryFileSystem:
    fs = MemoryFileSystem()
    for name in ("hints", "pending"):
        fs.mkdir(name)
    fs.open("file", "create").pwritev([bytes(size)], 0)
    return fs


def costs(
    monkeypatch: pytest.MonkeyPatch, view: Callable[[int], float], copy: Callable[[int], float]
) -> None:
    """Let reading *n* bytes take so many seconds, by view and by copy."""

    def seconds(read: Callable[[], memoryview]) -> float:
        data = read()
        whole = isinstance(data.obj, bytes)  # a copy was made of it
        return copy(len(data)) if whole else view(len(data))

    monkeypatch.setattr(border, "_best", seconds)


@pytest.mark.parametrize("expected", [*SIZES, START_BYTES])
def test_the_border_is_the_smallest_size_at_which_a_view_costs_no_more(
    monkeypatch: pytest.MonkeyPatch, expected: int
) -> None:
    fs = folder()
    source = memoryview(fs.open("file", "r").map(SIZES[-1])).obj
    if isinstance(source, bytes):
        pytest.skip("views and copies look alike here")
    costs(monkeypatch, view=lambda size: 1.0, copy=lambda size: 1.0 if size >= expected else 0.5)
    assert measure_border(fs, "file") == expected


def test_only_sizes_that_the_file_has_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def seconds(read: Callable[[], memoryview]) -> float:
        seen.append(len(read()))
        return float(len(seen))  # whatever comes second, the copy, is slower

    monkeypatch.setattr(border, "_best", seconds)
    assert measure_border(folder(SIZES[0] - 1), "file") == START_BYTES
    assert seen == []
    assert measure_border(folder(SIZES[0]), "file") == SIZES[0]
    assert seen == [SIZES[0]] * 2


def test_measuring_for_real_gives_one_of_the_sizes() -> None:
    assert measure_border(folder(), "file") in {*SIZES, START_BYTES}


@pytest.mark.parametrize("writable", [True, False])
def test_what_was_measured_is_remembered_by_who_may_write(
    monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    fs = folder()
    monkeypatch.setattr(border, "measure_border", lambda *_: SIZES[2])
    first = MapBorder(fs, fixed=None, writable=writable)
    assert (first.value, first.origin, first.known) == (START_BYTES, "start", False)
    first.learn("file")
    assert (first.value, first.origin, first.known) == (SIZES[2], "measured", True)
    assert load_hint(fs, "border") == (SIZES[2] if writable else None)
    monkeypatch.setattr(border, "measure_border", lambda *_: SIZES[0])
    second = MapBorder(fs, fixed=None, writable=writable)
    second.learn("file")
    expected = (SIZES[2], "hint") if writable else (SIZES[0], "measured")
    assert (second.value, second.origin) == expected


@pytest.mark.parametrize(
    "hint", [None, 0, SIZES[0] - 1, START_BYTES + 1, -1, "65536", [1], 2.0**16]
)
def test_a_hint_that_cannot_be_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, hint: object
) -> None:
    fs = folder()
    save_hint(fs, "border", hint)
    monkeypatch.setattr(border, "measure_border", lambda *_: SIZES[1])
    found = MapBorder(fs, fixed=None, writable=True)
    found.learn("file")
    assert (found.value, found.origin) == (SIZES[1], "measured")
    assert load_hint(fs, "border") == SIZES[1]


def test_a_file_that_went_away_leaves_the_start_value() -> None:
    fs = folder()
    found = MapBorder(fs, fixed=None, writable=True)
    found.learn("gone")
    assert (found.value, found.origin, found.known) == (START_BYTES, "start", True)
    assert load_hint(fs, "border") is None


@pytest.mark.parametrize("fixed", [0, 5000, 1 << 40])
def test_the_border_decides_between_views_and_copies(fixed: int) -> None:
    """The option is the border itself: views from it on, copies below, and figures of both."""
    fs = MemoryFileSystem()
    sizes = (0, 1, 4999, 5000, 20_000)
    with mldb.MLDatabase.on(fs) as db:
        for size in sizes:
            db[f"x{size}"] = np.ones(size, "u1")
    # What a handle wrote itself lies beyond its mapping, until that is renewed.
    with mldb.MLDatabase.on(fs, map_bytes=fixed) as db:
        for size in sizes:
            before = db.stats()["map_border"]
            one, two = db[f"x{size}"], db[f"x{size}"]
            after = db.stats()["map_border"]
            mapped = size >= fixed
            assert after["mapped_reads"] - before["mapped_reads"] == 2 * mapped
            assert after["copied_reads"] - before["copied_reads"] == 2 * (not mapped)
            if size:
                assert np.shares_memory(one, two) == mapped
        assert (after["bytes"], after["origin"], after["measured_ms"]) == (fixed, "option", 0.0)


def test_nothing_is_measured_before_a_tensor_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def measured(*place: Any) -> int:
        calls.append(place)
        return SIZES[0]

    monkeypatch.setattr(border, "measure_border", measured)
    with mldb.MLDatabase.on(MemoryFileSystem()) as db:
        db["small"], db["large"] = np.ones(SIZES[0] - 1, "u1"), np.ones(SIZES[0], "u1")
        db["small"]
        assert (calls, db.stats()["map_border"]["origin"]) == ([], "start")
        db["large"], db["large"], db["small"]
        assert len(calls) == 1
        assert db.stats()["map_border"]["origin"] == "measured"
