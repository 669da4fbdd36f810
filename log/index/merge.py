"""Two indexes merged column by column: what was saved or sealed before, and what came since.

The result is byte for byte what :func:`mldb.log.index.columns.build_index` makes of everything, at
a fraction of its cost: the older rows are moved as whole columns, and only the keys that are new
cost a step of Python each. Pure functions over columns, which are never changed in place.

The work comes in steps of a few milliseconds, so that who does it between two commits holds neither
up: each generator here yields behind such a step and returns its result.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator
from math import isqrt
from typing import Final

import numpy as np

from mldb.log import native
from mldb.log.index.columns import COMMIT_COLUMNS, ROW_COLUMNS
from mldb.log.index.merge_lists import merge_attrs, merge_metadata, merge_owners
from mldb.log.index.merge_parts import (
    Columns,
    MergePlan,
    UnmergeableError,
    commit_column,
    items_of,
    let_in,
    let_in_items,
    places_of,
)
from mldb.log.index.steps import Column, Steps, finish

__all__ = [
    "Columns",
    "UnmergeableError",
    "merge_columns",
    "merge_steps",
]

_BLOCK_MIN: Final = 4  # keys that are cut out of their heap at once
_ALL: Final = 16  # with more than one newer key for so many older ones, all are
_STEP_MASK: Final = (1 << 11) - 1


def merge_columns(older: Columns, newer: Columns) -> dict[str, Column]:
    """Merge two indexes of one segment; see :func:`merge_steps`."""
    return finish(merge_steps(older, newer))


def merge_steps(older: Columns, newer: Columns, tails: dict[str, Column] | None = None) -> Steps:
    """Merge two indexes of one segment, in their order, into the columns of both.

    With *tails*, what only follows the older rows of a column is put there and not joined to them,
    for :func:`mldb.log.index.columns.image_of`: that spares a third of the copying.

    Every commit of *newer* must be above every one of *older*; or *newer* holds versions of the
    same commits that stand behind those of *older* by key, and one of them no commits. O(rows of
    both) in NumPy, O(keys and attrs of *newer*) in Python. What was read from a file went through
    :func:`mldb.log.index.merge_parts.check_columns`. Raises UnmergeableError, and CorruptError when
    columns of metadata contradict themselves.
    """
    places, is_fresh = yield from _places(older, newer)
    yield
    plan = _plan(older, newer, places, is_fresh)
    yield
    merged: dict[str, Column] = {}
    yield from _merge_keys(merged, older, newer, plan)
    for name in ROW_COLUMNS:
        if name == "row_attr":
            merged[name] = older[name]  # holds its place; the attrs come below
        else:
            merged[name] = let_in(plan.is_newer, older[name], newer[name])
        yield
    yield from merge_owners(merged, older, newer, plan)
    attrs = yield from merge_attrs(merged, older, newer, plan)
    for name in (*COMMIT_COLUMNS, "commit_id"):
        first, second = (commit_column(columns, name) for columns in (older, newer))
        if tails is None:
            merged[name] = np.concatenate((first, second))
        else:
            merged[name], tails[name] = first, second
    yield
    yield from merge_metadata(merged, older, newer, attrs)
    return merged


# --- keys and rows --------------------------------------------------------------------------------


def _places(older: Columns, newer: Columns) -> Generator[None, None, tuple[Column, Column]]:
    """For each newer key, its number among the older ones or where it would stand; is it new?

    The older keys are cut out of their heap in blocks, and only in those where one is looked for;
    all at once where many are.
    """
    twin, count = native.twin, len(newer["key_offset"]) - 1
    if twin is not None:
        found_at = np.empty(count, dtype="<i8"), np.empty(count, dtype="?")
        heaps = [columns[name] for columns in (older, newer) for name in ("key_offset", "key_heap")]
        if twin.find_items(*heaps, *found_at):
            return found_at
    heap, offsets = older["key_heap"].tobytes(), older["key_offset"]
    wanted = items_of(newer["key_offset"], newer["key_heap"].tobytes())
    size = max(isqrt(len(offsets) // (len(wanted) + 1)), _BLOCK_MIN)
    if len(offsets) < _ALL * len(wanted):
        size = len(offsets)  # one block
    starts, stops = offsets[:-1:size].tolist(), offsets[1::size].tolist()
    firsts = [heap[low:high] for low, high in zip(starts, stops, strict=True)]
    yield
    places: list[int] = []
    fresh: list[bool] = []
    block, keys = -1, list[bytes]()
    for count, key in enumerate(wanted):  # they ascend, so no block is cut twice
        if not count & _STEP_MASK:
            yield
        found = max(bisect_right(firsts, key, max(block, 0)) - 1, 0)
        if found != block:
            block = found
            keys = items_of(offsets[block * size : (block + 1) * size + 1], heap)
        inside = bisect_left(keys, key)
        places.append(block * size + inside)
        fresh.append(inside == len(keys) or keys[inside] != key)
    return np.array(places, dtype="<i8"), np.array(fresh, dtype="?")


def _plan(older: Columns, newer: Columns, places: Column, is_fresh: Column) -> MergePlan:
    older_starts, newer_counts = older["key_row"], np.diff(newer["key_row"])
    before = places[is_fresh]
    numbers = places + np.cumsum(is_fresh) - is_fresh  # behind the fresh ones in front of it
    keys = len(older_starts) - 1 + len(before)
    is_new_key = places_of(before, keys)
    counts = let_in(is_new_key, np.diff(older_starts), newer_counts[is_fresh])
    known = ~is_fresh
    counts[numbers[known]] += newer_counts[known]
    starts = np.zeros(keys + 1, dtype="<u4")
    np.cumsum(counts, out=starts[1:], dtype="<u4")
    # The rows of a key go behind its older ones, those of a new key in front of the next one's.
    rows = np.repeat(older_starts[places + known].astype("<i8"), newer_counts)
    newer_row = rows + np.arange(len(rows))
    is_newer = places_of(rows, len(older["row_commit"]) + len(rows))
    return MergePlan(before, is_fresh, numbers, starts, newer_row, is_newer)


def _merge_keys(
    merged: dict[str, Column], older: Columns, newer: Columns, plan: MergePlan
) -> Generator[None, None, None]:
    fresh = np.flatnonzero(plan.is_fresh)
    some, others = [(columns["key_offset"], columns["key_heap"]) for columns in (older, newer)]
    merged["key_offset"], merged["key_heap"] = let_in_items(plan.before, some, others, fresh)
    merged["key_row"] = plan.starts
    yield
    by_key = np.empty(len(plan.is_fresh), dtype="<u8")
    by_key[newer["hash_key"]] = newer["hash"]
    hashes, numbers = by_key[fresh], plan.newer_number[fresh]
    sorting = np.argsort(hashes, kind="stable")
    hashes, numbers = hashes[sorting], numbers[sorting].astype("<u4")
    keys = np.arange(len(older["key_row"]) - 1, dtype="<u4")
    keys += np.cumsum(np.bincount(plan.before, minlength=len(keys))[: len(keys)], dtype="<u4")
    older_keys = keys[older["hash_key"]]
    at = np.searchsorted(older["hash"], hashes)
    equal = np.searchsorted(older["hash"], hashes, side="right") != at
    if equal.any():  # by number then, as a stable sort leaves them
        both = np.concatenate((older["hash"], hashes))
        all_keys = np.concatenate((older_keys, numbers))
        sorting = np.lexsort((all_keys, both))
        merged["hash"], merged["hash_key"] = both[sorting], all_keys[sorting]
    else:
        is_newer = places_of(at, len(older_keys) + len(numbers))
        merged["hash"] = let_in(is_newer, older["hash"], hashes)
        merged["hash_key"] = let_in(is_newer, older_keys, numbers)
    yield
