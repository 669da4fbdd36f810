"""The chain of a lake, saved: ``hints/lake-ID.rows``. It may be deleted at any time.

Columns as they are in memory. It is believed when the commit of its last change is in the log, the
same one by its id and time, so that no other store's, and no other lineage's, is taken for this
one; a snapshot then takes as much of it as it sees.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.history.splats import BLOCK_ROWS_MAX, USER_COLUMNS_MAX
from mldb.lake.rows.chain import BlockShape, Chain, Size
from mldb.lake.rows.ends import LIVE, TRIPLE
from mldb.log.hints import load_hint_bytes, save_hint
from mldb.log.index.address import CommitRow
from mldb.tensors.scope import Scope

_VERSION: Final = 2
_IDS_BYTES_MAX: Final = 64 << 20  # beyond, ids are read from the blocks when they are asked for
_SHAPES_MAX: Final = 1 << 12
_FIELDS: Final = 11


def chain_hint_name(lake_id: bytes) -> str:
    """The name of the hint of a lake."""
    return f"lake-{lake_id.hex()}.rows"


def save_chain(scope: Scope, chain: Chain) -> None:
    """Save what was told of *chain*; any thread. Failures are ignored: a hint may be missing."""
    size = chain.size
    row = scope.view.commit_at(chain.last_commit(size)) if sum(size) else None
    if row is None:
        return
    stored = chain.stored(size)
    restored = chain.ends.triples()
    restored = restored[restored[:, 2] < size.removals]
    merges = chain.merges(size)
    ended = chain.ends.ended.first(min(chain.ends.ended.count, stored))
    dead = np.flatnonzero(ended < size.removals)
    runs = _runs(chain.index.in_order(stored)) if chain.index.count >= stored else _NO_RUNS
    if runs.nbytes > _IDS_BYTES_MAX:
        runs = _NO_RUNS
    columns: list[npt.NDArray[Any]] = [
        chain.heads.first(size.blocks),
        chain.commits.first(size.blocks),
        chain.stops.first(size.blocks),
        chain.shape_of.first(size.blocks).astype(np.int64),
        chain.ends.commits.first(size.removals),
        chain.ends.gone.first(size.removals),
        dead,
        ended[dead].astype(np.int64),
        restored.reshape(-1),
        merges.reshape(-1),
        runs.reshape(-1),
    ]
    value = [
        _VERSION,
        chain.lake_id,
        *(size.blocks, size.removals, len(dead), len(runs), len(restored), len(merges)),
        _token(row),
        chain.columns(size),
        chain.shape_from[: len(chain.columns(size))],
    ]
    payload = b"".join(column.astype("<i8", copy=False).tobytes() for column in columns)
    save_hint(scope.source.log.fs, chain_hint_name(chain.lake_id), value, payload)
    chain.saved = max(chain.saved, sum(size))
    chain.saved_ids = chain.index.count >= stored  # too many of them are not saved later either


def load_chain(scope: Scope, name: str, lake_id: bytes) -> Chain | None:
    """Return the saved chain of a lake; None when there is none that can be believed."""
    found = load_hint_bytes(scope.source.log.fs, chain_hint_name(lake_id))
    if found is None:
        return None
    try:
        return _chain(scope, name, lake_id, *found)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None  # whoever wrote it meant something else


def _token(row: CommitRow) -> list[Any]:
    """What a commit of another store, or one that took its number, does not share with it."""
    return [row.lsn, row.parent, row.time, row.clock, row.id]


def _chain(
    scope: Scope, name: str, lake_id: bytes, value: Any, payload: memoryview
) -> Chain | None:
    if not isinstance(value, list) or len(value) != _FIELDS or value[:2] != [_VERSION, lake_id]:
        return None
    blocks, removals, dead, runs, back, merged = counts = value[2:8]
    token, shapes, shape_from = value[8:]
    if any(type(count) is not int or not 0 <= count < 1 << 40 for count in counts):
        return None
    triples = [TRIPLE * back, TRIPLE * merged]
    lengths = [blocks] * 4 + [removals] * 2 + [dead] * 2 + triples + [2 * runs]
    data = np.frombuffer(payload, "<i8").astype(np.int64)
    if len(data) != sum(lengths) or not blocks:
        return None
    parts = np.split(data, np.cumsum(lengths)[:-1])
    heads, commits, stops, shape_of, removal_commits, gone, rows, ended, restored, merges, flat = (
        parts
    )
    chain = Chain(name, lake_id)
    chain.shapes, chain.shape_from = _shapes(shapes), list(map(int, shape_from))
    sizes = np.diff(stops, prepend=0)
    sound = (
        _ascend(commits, 1)
        and _ascend(removal_commits, 1)
        and bool((heads >= 0).all() and (heads < commits).all())
        and bool((sizes > 0).all() and (sizes <= BLOCK_ROWS_MAX).all())
        and bool((shape_of >= 0).all() and (shape_of < len(chain.shapes)).all())
        and len(shape_from) == len(shapes)
        and _ascend(np.array(shape_from), 0)
        and shape_from[-1] < blocks
        and _ascend(rows, 0)
        and (not dead or int(rows[-1]) < int(stops[-1]))
        and bool((ended >= 0).all() and (ended < removals).all())
        and bool((gone >= 0).all())
        and _are_restored(restored.reshape(-1, TRIPLE), int(stops[-1]), removals)
        and _are_merges(merges.reshape(-1, TRIPLE), removal_commits)
        and (not removals or int(gone[-1]) == dead)
    )
    if not sound:
        return None
    ids = _expanded(flat.reshape(-1, 2), int(stops[-1])) if runs else None
    for column, values in (
        *((chain.heads, heads), (chain.commits, commits), (chain.stops, stops)),
        *((chain.shape_of, shape_of), (chain.ends.commits, removal_commits)),
        *((chain.ends.gone, gone), (chain.ends.restored, restored), (chain.merged, merges)),
    ):
        column.append(values)
    if removals:
        chain.ends.ended.append(np.full(int(stops[-1]), LIVE, np.int32))
        chain.ends.ended.first(chain.ends.ended.count)[rows] = ended
    if ids is not None:
        chain.index.add(ids)
    chain.size = Size(blocks, removals)
    chain.saved, chain.saved_ids = sum(chain.size), ids is not None
    row = scope.view.commit_at(chain.last_commit(chain.size))
    return chain if row is not None and _token(row) == token else None


def _shapes(stored: Any) -> list[BlockShape]:
    if not isinstance(stored, list) or not 0 < len(stored) <= _SHAPES_MAX:
        raise ValueError("a lake of no shape")
    found: list[BlockShape] = []
    for columns in stored:
        if len(columns) > USER_COLUMNS_MAX + 8:
            raise ValueError("too many columns")
        found.append(
            tuple((str(n), np.dtype(d).str, tuple(map(int, shape))) for n, d, shape in columns)
        )
    return found


def _ascend(values: Numbers, least: int) -> bool:
    return not len(values) or bool(values[0] >= least and (np.diff(values) > 0).all())


def _are_restored(triples: Numbers, stored: int, removals: int) -> bool:
    row, ended, by = triples.T
    inside = bool(((row >= 0) & (row < stored) & (ended >= 0) & (by < removals)).all())
    return inside and bool((ended < by).all() and (np.diff(by) >= 0).all())


def _are_merges(triples: Numbers, removal_commits: Numbers) -> bool:
    commit, head, target = triples.T
    if not bool(((head >= 0) & (head < commit) & (target >= 0) & (target < commit)).all()):
        return False
    return _ascend(commit, 1) and bool(np.isin(commit, removal_commits).all())


_NO_RUNS: Final = np.empty((0, 2), np.int64)


def _runs(ids: Numbers) -> npt.NDArray[np.int64]:
    """Ids in row order as runs of ids that follow each other: [n, 2], the first and how many."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
    return np.stack([ids[starts], np.diff(starts, append=len(ids))], axis=1)


def _expanded(runs: npt.NDArray[np.int64], count: int) -> Numbers | None:
    first, lengths = runs[:, 0], runs[:, 1]
    if not ((lengths > 0).all() and (lengths <= count).all() and int(lengths.sum()) == count):
        raise ValueError("ids of another number of rows")
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(first - offsets, lengths) + np.arange(count)
