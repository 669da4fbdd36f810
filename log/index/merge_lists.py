"""The half of a merge that is about attrs, owners and metadata: lists in the order of occurrence.

An item stands in its list where a row names it first, so merged lists are ordered anew.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import msgpack
import numpy as np

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.index.columns import ATTR_COLUMNS, META_PREFIX, frequent
from mldb.log.index.merge_parts import (
    Columns,
    MergePlan,
    UnmergeableError,
    items_of,
    let_in,
    taken,
)
from mldb.log.index.steps import Column

_CODE: Final = ":code"
_VALUES: Final = ":values"
_ITEMS_A_STEP: Final = 1 << 13


class Attrs(NamedTuple):
    """The older attrs, then the new ones: their merged order, and the number of each newer one."""

    order: Column
    newer_number: Column
    older_count: int


def _numbers(name: str, older: Columns, newer: Columns) -> Generator[None, None, Column]:
    """The numbers of the newer items in a list of the older ones and of those that are new."""
    heap, offsets = older[f"{name}_heap"].tobytes(), older[f"{name}_offset"]
    wanted = {
        item: number
        for number, item in enumerate(
            items_of(newer[f"{name}_offset"], newer[f"{name}_heap"].tobytes())
        )
    }
    count = len(offsets) - 1
    numbers = np.full(len(wanted), -1, dtype="<i8")
    for low in range(0, count, _ITEMS_A_STEP):
        for at, item in enumerate(items_of(offsets[low : low + _ITEMS_A_STEP + 1], heap), low):
            number = wanted.get(item)
            if number is not None:
                numbers[number] = at
        yield
    fresh = numbers < 0
    numbers[fresh] = count + np.arange(np.count_nonzero(fresh))
    return numbers


def _by_occurrence(ids: Column, count: int) -> Column:
    """The items 0..count in the order in which *ids* name them first; each is named."""
    first = np.full(count, len(ids), dtype="<i8")
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)  # of equal places the last one stays
    return np.argsort(first, kind="stable")


def _first_rows(
    plan: MergePlan, older_ids: Column, older_count: int, newer_ids: Column, count: int
) -> Column:
    """The merged row in which each of the items 0..count is named first.

    Older rows keep their order, so the older items still come one after another, unless a newer row
    names one before.
    """
    total = len(plan.is_newer)
    first = np.full(count, total, dtype="<i8")
    rows = _rises(older_ids, older_count)
    before = plan.newer_row - np.arange(len(plan.newer_row))
    first[:older_count] = rows + np.searchsorted(before, rows, side="right")
    own = np.full(count, total, dtype="<i8")
    own[newer_ids[::-1]] = plan.newer_row[::-1]  # of equal places the last one stays
    np.minimum(first, own, out=own)
    return own


def _rises(ids: Column, count: int) -> Column:
    """The row in which each of the items 0..count is named first; one past the end for none."""
    tops = np.maximum.accumulate(ids)
    rows = np.concatenate(([0], np.flatnonzero(tops[1:] != tops[:-1]) + 1))[: len(ids)]
    if len(rows) == count and (tops[rows] == np.arange(count)).all():
        return rows  # numbered as they come, which is the rule
    first = np.full(count, len(ids), dtype="<i8")
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)
    return first


def _inverse(order: Column) -> Column:
    ranks = np.empty(len(order), dtype="<i8")
    ranks[order] = np.arange(len(order))
    return ranks


def merge_attrs(
    merged: dict[str, Column], older: Columns, newer: Columns, plan: MergePlan
) -> Generator[None, None, Attrs]:
    """Merge the attrs and the numbers that rows have of them; in steps."""
    numbers = yield from _numbers("attr", older, newer)
    count = len(older["attr_offset"]) - 1
    total = max(int(numbers.max(initial=-1)) + 1, count)
    newer_ids = numbers[newer["row_attr"]].astype("<u4")
    order = np.argsort(_first_rows(plan, older["row_attr"], count, newer_ids, total), kind="stable")
    merged["row_attr"] = let_in(plan.is_newer, older["row_attr"], newer_ids)
    yield
    if (order != np.arange(total)).any():
        merged["row_attr"] = _inverse(order).astype("<u4")[merged["row_attr"]]
        yield
    own = np.empty(total, dtype="<i8")  # the place of each in both heaps, one behind the other
    own[:count] = np.arange(count)
    fresh = np.flatnonzero(numbers >= count)
    own[numbers[fresh]] = count + fresh
    offset, heap = ATTR_COLUMNS
    merged[offset], merged[heap] = taken("attr", older, newer, own[order])
    yield
    return Attrs(order, numbers, count)


def merge_owners(
    merged: dict[str, Column], older: Columns, newer: Columns, plan: MergePlan
) -> Generator[None, None, None]:
    """Merge the owners, of which number 0 is none; most segments have no such columns."""
    if "row_owner" not in older and "row_owner" not in newer:
        return
    older, newer = _with_owners(older), _with_owners(newer)
    numbers = yield from _numbers("owner", older, newer)
    numbers = np.concatenate(([0], numbers + 1))
    count = len(older["owner_offset"]) - 1
    total = max(int(numbers.max()), count) + 1
    newer_ids = numbers[newer["row_owner"]].astype("<u4")
    ids = let_in(plan.is_newer, older["row_owner"], newer_ids)
    order = _by_occurrence(np.concatenate((np.zeros(1, "<u4"), ids)), total)
    merged["row_owner"] = _inverse(order)[ids].astype("<u4")
    own = np.empty(total, dtype="<i8")
    own[: count + 1] = np.arange(-1, count)
    fresh = np.flatnonzero(numbers > count)
    own[numbers[fresh]] = count + fresh - 1
    merged["owner_offset"], merged["owner_heap"] = taken("owner", older, newer, own[order][1:])
    yield


def _with_owners(columns: Columns) -> Columns:
    if "row_owner" in columns:
        return columns
    none = {
        "row_owner": np.zeros(len(columns["row_commit"]), dtype="<u4"),
        "owner_offset": np.zeros(1, dtype="<u8"),
        "owner_heap": np.empty(0, dtype="u1"),
    }
    return {**columns, **none}


# --- metadata -------------------------------------------------------------------------------------


def _fields(columns: Columns) -> list[str]:
    """The metadata fields with columns. Raises UnmergeableError where some may have none."""
    fields = [
        name[len(META_PREFIX) : -len(_CODE)]
        for name in columns
        if name.startswith(META_PREFIX) and name.endswith(_CODE)
    ]
    if len(fields) >= fmt.META_COLUMNS_MAX:
        raise UnmergeableError
    return fields


def merge_metadata(
    merged: dict[str, Column], older: Columns, newer: Columns, attrs: Attrs
) -> Generator[None, None, None]:
    """Merge the columns of metadata fields; in steps. Raises UnmergeableError, CorruptError."""
    found: dict[str, tuple[Column, list[bytes]]] = {}
    for field in sorted({*_fields(older), *_fields(newer)}):
        found[field] = _merged_field(field, older, newer, attrs)
        yield
    counts = {field: int(np.count_nonzero(codes)) for field, (codes, _) in found.items()}
    for field in frequent(counts):
        codes, values = found[field]
        order = _by_occurrence(np.concatenate((np.zeros(1, "<i8"), codes)), len(values) + 1)
        merged[f"{META_PREFIX}{field}{_CODE}"] = _inverse(order)[codes].astype("<u4")
        heap = b"".join([values[number - 1] for number in order[1:].tolist()])
        merged[f"{META_PREFIX}{field}{_VALUES}"] = np.frombuffer(heap, dtype="u1")
        yield


def _merged_field(
    field: str, older: Columns, newer: Columns, attrs: Attrs
) -> tuple[Column, list[bytes]]:
    """The codes of a field for the attrs in their merged order, and its values, not yet in theirs.

    An attr that both have may be metadata in one of them only: the same bytes under another key.
    """
    codes = np.zeros(len(attrs.order), dtype="<i8")
    values: dict[bytes, int] = {}
    for columns, numbers in ((older, np.arange(attrs.older_count)), (newer, attrs.newer_number)):
        own = columns.get(f"{META_PREFIX}{field}{_CODE}")
        if own is None:
            continue
        packed = _packed_values(columns[f"{META_PREFIX}{field}{_VALUES}"].tobytes())
        if len(own) != len(numbers) or int(own.max(initial=0)) > len(packed):
            raise CorruptError(f"the index column of the field {field!r:.80} contradicts itself")
        known = [0, *(values.setdefault(value, len(values) + 1) for value in packed)]
        has = np.flatnonzero(own)
        codes[numbers[has]] = np.array(known, dtype="<i8")[own[has]]
    return codes[attrs.order], list(values)


def _packed_values(heap: bytes) -> list[bytes]:
    """Cut packed values apart. Raises CorruptError."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(heap)
    values: list[bytes] = []
    start = 0
    try:
        while start < len(heap):
            unpacker.skip()
            stop = unpacker.tell()
            values.append(heap[start:stop])
            start = stop
    except (msgpack.UnpackException, ValueError) as error:
        raise CorruptError(f"an index column of metadata is damaged: {error}") from None
    return values
