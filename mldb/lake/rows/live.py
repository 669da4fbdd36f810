"""Read the rows of a lake at one commit: gathers of whole batches from mapped blocks."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import InvalidValueError, MissingError
from mldb.lake.projection import LakeState, Removal, fold
from mldb.lake.rows.block import MappedBlock, Selection
from mldb.log.log import Log
from mldb.log.ownership import OwnedLock
from mldb.tensors.scope import Scope


class Rows:
    """The live rows of a lake at one commit, numbered 0..N-1 in the order they were added.

    Any thread. It maps segments and copies what is asked for; what it returns is the caller's own
    where nothing else is said. What it maps stays readable as long as it lives. ``_lock`` guards
    what is computed once; a call inside the one that computes it computes it for itself.
    """

    def __init__(self, scope: Scope, state: LakeState) -> None:
        self.state = state
        self.name = state.name
        self.dim = state.info.dim
        self.derived: dict[object, Any] = {}
        """What others computed of these rows and may use again; a race costs time."""
        self._scope = scope
        self.blocks = [MappedBlock(scope, block, state.name) for block in state.blocks]
        self._starts = np.array([block.start for block in state.blocks], np.int64)
        self._commits = np.array([block.entry.commit_lsn for block in state.blocks], np.int64)
        self._lock = OwnedLock(f"the ids of lake {state.name!r}")
        self._live: Numbers | None = None  # stored numbers of the live rows; None when all are
        self._ids: Numbers | None = None
        self._order: Numbers | None = None  # row numbers in the order of ids
        if state.removals:
            self._live = np.flatnonzero(self._alive())

    def __len__(self) -> int:
        """How many rows are live."""
        return self.state.stored if self._live is None else len(self._live)

    @property
    def lsn(self) -> int:
        """The commit that these rows are fixed at."""
        return self._scope.commit.lsn

    # --- columns ----------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and the shape of one value of every column that all blocks have.

        Labels count when any block has them: rows that were added without one have UNLABELLED.
        """
        blocks = [{c.name: (c.dtype, c.shape) for c in b.info.columns} for b in self.blocks]
        if any("label" in block for block in blocks):
            blocks = [{"label": ("<i8", ()), **block} for block in blocks]
        first = blocks[0] if blocks else {}
        return {k: v for k, v in first.items() if all(block.get(k) == v for block in blocks)}

    def require_column(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return the dtype and shape of a column. Raises MissingError."""
        have = self.columns
        if name not in have:
            raise MissingError(
                f"lake {self.name!r} has no column {name!r} in every block; it has "
                f"{sorted(have)}. Rows added without labels or columns lack them."
            )
        return have[name]

    def gather(self, name: str, rows: Selection, out: npt.NDArray[Any] | None = None) -> Any:
        """Return one column of these rows, in their order; written to *out* when given.

        Blocks of stored bytes are verified when first touched. Raises MissingError, CorruptError.
        """
        if out is None:
            dtype, shape = self.require_column(name)
            out = np.empty((_count(rows, len(self)), *shape), dtype)
        stored = self._stored(rows)
        if len(self.blocks) == 1:
            self.blocks[0].gather(name, stored, out)
        elif isinstance(stored, slice):
            self._gather_run(name, stored, out)
        else:
            self._gather_scattered(name, stored, out)
        if name == "id":
            return out.view(np.int64) if out.dtype == np.uint64 else out
        return out

    def _stored(self, rows: Selection) -> Selection:
        """Turn live numbers into stored ones. Rows out of range raise IndexError or are clipped."""
        if self._live is None:
            return rows
        found: Numbers = self._live[rows]
        if len(found) and found[-1] - found[0] == len(found) - 1 and isinstance(rows, slice):
            return slice(int(found[0]), int(found[-1]) + 1)
        return found

    def _gather_run(self, name: str, rows: slice, out: npt.NDArray[Any]) -> None:
        done = 0
        for block in self.blocks:
            low, high = max(rows.start, block.start), min(rows.stop, block.stop)
            if low < high:
                part = slice(low - block.start, high - block.start)
                block.gather(name, part, out[done : done + high - low])
                done += high - low

    def _gather_scattered(self, name: str, rows: Numbers, out: npt.NDArray[Any]) -> None:
        which = np.searchsorted(self._starts, rows, "right") - 1
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(self.blocks) + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            block = self.blocks[number]
            places = order[bounds[number] : bounds[number + 1]]
            part = np.empty((len(places), *out.shape[1:]), out.dtype)
            block.gather(name, rows[places] - block.start, part)
            out[places] = part

    def block_of(self, rows: slice) -> tuple[int, slice] | None:
        """The block that holds all of a run of rows, and where in it; None when none does."""
        stored = self._stored(rows)
        if not isinstance(stored, slice):
            return None
        number = 0
        if len(self.blocks) > 1:
            number = int(np.searchsorted(self._starts, stored.start, "right")) - 1
        start, stop = self.blocks[number].start, self.blocks[number].stop
        if stored.stop > stop:
            return None
        return number, slice(stored.start - start, stored.stop - start)

    # --- ids and removals -------------------------------------------------------------------------

    def ids(self) -> Numbers:
        """The id of every row, in row order; computed once, 8 bytes a row."""
        if self._ids is not None:
            return self._ids
        guard = self._lock.hold_unless_inside()
        if guard is None:
            return self._read_ids()
        with guard:
            if self._ids is None:
                self._ids = self._read_ids()
            return self._ids

    def _read_ids(self) -> Numbers:
        ids = np.empty(len(self), np.int64)
        if len(self):
            self.gather("id", slice(0, len(self)), ids.view(np.uint64))
        ids.setflags(write=False)  # all who ask share it
        return ids

    def find(self, ids: npt.NDArray[np.int64]) -> Numbers:
        """Return the row number of every id, -1 where no live row has it."""
        have, order = self.ids(), self._order_of_ids()
        if not len(have):
            return np.full(len(ids), -1, np.int64)
        place = np.minimum(np.searchsorted(have, ids, sorter=order), len(have) - 1)
        rows: Numbers = order[place]
        return np.where(have[rows] == ids, rows, -1)

    def _order_of_ids(self) -> Numbers:
        """The row numbers in the order of ids; computed once, as the ids are."""
        if self._order is not None:
            return self._order
        ids = self.ids()
        guard = self._lock.hold_unless_inside()
        if guard is None:
            return np.argsort(ids, kind="stable")
        with guard:
            if self._order is None:
                self._order = np.argsort(ids, kind="stable")
            return self._order

    def lsns(self, rows: Numbers) -> Numbers:
        """Return the commit that added each row."""
        stored = np.asarray(self._stored(rows))
        return np.asarray(self._commits[np.searchsorted(self._starts, stored, "right") - 1])

    def _alive(self) -> npt.NDArray[np.bool_]:
        """Fold the removals: which stored rows are live. A removal concerns rows before it only."""
        alive = np.ones(self.state.stored, np.bool_)
        for removal in self.state.removals:
            gone = self._removed(removal)
            for block in self.blocks:
                if block.start < removal.before:
                    alive[block.start : block.stop] &= ~block.holds(gone)
        return alive

    def _removed(self, removal: Removal) -> npt.NDArray[np.uint64]:
        door, entry = self._scope.source.door, removal.entry
        data = door.version(self._scope.view, removal.key, entry, entry.length, self.name)
        return np.frombuffer(data, "<u8")

    # --- whole blocks -----------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """The log that the rows are read from."""
        return self._scope.source.log

    def table(self) -> npt.NDArray[np.float32]:
        """All rows as one verified array [N, d]: the mapped block where the lake is one."""
        if len(self.blocks) == 1 and self._live is None:
            self.verify_all()
            whole: npt.NDArray[np.float32] = self.blocks[0].array("mu")
            return whole
        copy: npt.NDArray[np.float32] = self.gather("mu", slice(0, len(self)))
        return copy

    def verify_all(self) -> None:
        """Verify every stored byte of mu now. Raises CorruptError."""
        for block in self.blocks:
            block.verify("mu", slice(0, block.info.rows))


def found_rows(rows: Rows, ids: Numbers) -> Numbers:
    """Return the row numbers of *ids*. Raises MissingError."""
    found = rows.find(ids)
    if (found < 0).any():
        missing = ids[found < 0]
        raise MissingError(
            f"lake {rows.name!r} has no live row of id {int(missing[0])} at commit {rows.lsn} "
            f"({len(missing)} of {len(ids)} ids are missing). Nothing was changed."
        )
    return found


def rows_in(scope: Scope, name: str, known: dict[str, Any]) -> Rows:
    """The live rows of a lake in *scope*: those that *known* has, where the lake is the same there.

    *known*, by lake, is kept up to date. Raises MissingError, CorruptError.
    """
    rows: Rows | None = known.get(name)
    state = fold(scope, name, None if rows is None else rows.state)
    if rows is None or state is not rows.state:
        rows = known[name] = Rows(scope, state)
    return rows


def _count(rows: Selection, total: int) -> int:
    if not isinstance(rows, slice):
        return len(rows)
    if rows.start is None or rows.stop is None or not 0 <= rows.start <= rows.stop <= total:
        raise InvalidValueError(f"rows {rows} of a lake of {total}")
    return int(rows.stop - rows.start)
