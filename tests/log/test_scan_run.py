"""Runs of common batches: taken where they pay, cut where asked, and the same as one by one.

That every odd value and every flipped bit leads to what the careful reader says is proved, with the
shortest runs, in ``test_scan_usual.py``.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log import scan_run
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.scan import Batch
from mldb.log.scan_run import BatchRun, scan_runs
from tests.support.logs import SEGMENT_ID, Built, build_segment, flip

STORED = 16 | fmt.MUST_UNDERSTAND


def small(number: int, entries: int = 1, kind: int = STORED) -> list[Record]:
    """A batch of one frame: entries that share its payload."""
    payload = bytes([number % 251]) * (number % 40)
    digest = TO_BE_HASHED if payload else b""
    names = [f"\x01name{number % 7}.{each}".encode() for each in range(entries)]
    drafts = [Draft(name, 0, 0, 0, len(payload), digest, 0, b"attr", b"") for name in names]
    return [Record(kind, drafts, [payload], len(payload))]


def odd(number: int) -> list[Record]:
    """A batch of two frames."""
    return [*small(number), *small(number + 1)]


def scanned(built: Built, data: bytes | None = None, **options: Any) -> tuple[list[Any], Any]:
    cursor = built.cursor()
    view = memoryview(built.data if data is None else data)
    options.setdefault("verify_after", 0)
    return list(scan_runs(view, cursor, built.seed, SEGMENT_ID, **options)), cursor


def taken_apart(found: list[BatchRun | Batch]) -> list[Any]:
    rows: list[Any] = []
    for item in found:
        if isinstance(item, BatchRun):
            rows += item.taken_apart()
        else:
            rows.append((item.row, item.entries))
    return rows


def one_by_one(built: Built, data: bytes | None = None) -> list[Any]:
    return [(batch.row, batch.entries) for batch in built.scan(data)[0]]


def test_common_batches_come_as_runs_that_grow() -> None:
    built = build_segment([small(number, 1 + number % 3) for number in range(900)])
    with mock.patch.object(scan_run, "scan", side_effect=AssertionError):
        found, cursor = scanned(built)
    assert [len(run) for run in found] == [64, 128, 256, 452]
    assert taken_apart(found) == one_by_one(built)
    cursor.problem_offset = built.scan()[1].problem_offset  # says nothing without a problem
    assert cursor == built.scan()[1]


@pytest.mark.parametrize("spacing", [1, 3, 17, 40, 100])
def test_other_batches_between_are_read_one_by_one(spacing: int) -> None:
    content = [odd(number) if number % spacing == 0 else small(number) for number in range(1, 300)]
    built = build_segment(content)
    found, cursor = scanned(built)
    assert taken_apart(found) == one_by_one(built)
    assert (cursor.offset, cursor.chain) == (len(built.data), built.scan()[1].chain)
    assert any(isinstance(item, BatchRun) for item in found) == (spacing >= 17)


def test_damage_in_a_run_ends_the_scan_where_it_is() -> None:
    built = build_segment([small(number) for number in range(200)])
    for number in (0, 1, 63, 64, 65, 150, 199):
        row = built.written[number].row
        for place in (row.start + 2, row.start + 60, row.end - 8, row.end + 30, row.end + 70):
            damaged = flip(built.data, 8 * place)
            found, cursor = scanned(built, damaged)
            assert taken_apart(found) == one_by_one(built, damaged)
            assert cursor == built.scan(damaged)[1]
            assert cursor.problem
            assert cursor.offset == row.start


def test_a_payload_is_verified_only_where_asked() -> None:
    built = build_segment([small(39) for _ in range(40)])
    row = built.written[20].row
    damaged = flip(built.data, 8 * (row.end - 8))
    assert scanned(built, damaged)[1].offset == row.start
    for verify_after in (None, row.lsn):
        found, cursor = scanned(built, damaged, verify_after=verify_after)
        assert [type(item) for item in found] == [BatchRun]
        assert not cursor.problem


@pytest.mark.parametrize("content", [small, odd])
def test_it_ends_at_the_commit_that_is_asked_for(content: Any) -> None:
    built = build_segment([content(number) for number in range(1, 150)])
    for number in (0, 5, 15, 16, 63, 64, 100, 148):
        row = built.written[number].row
        found, cursor = scanned(built, until=row.lsn)
        assert taken_apart(found) == one_by_one(built)[: number + 1]
        assert cursor.chain == built.written[number].chain
        assert cursor.offset == built.written[number].end


def test_a_kind_that_is_not_known_is_named_with_its_place() -> None:
    built = build_segment([small(n, kind=STORED + (n > 30)) for n in range(64)])
    (run,) = scanned(built)[0]
    run.refuse_unknown(frozenset({16, 17}), "segments/x.seg")
    place = built.written[31].row.start
    with pytest.raises(FormatVersionError, match=f"kind 17 at offset {place}"):
        run.refuse_unknown(frozenset({16}), "segments/x.seg")
    built = build_segment([small(n, kind=16 + (n > 30)) for n in range(64)])
    (run,) = scanned(built)[0]
    run.refuse_unknown(frozenset(), "segments/x.seg")  # they need not be understood
