"""Read the rows of a lake at one commit: gathers of whole batches from mapped blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Numbers
from mldb.errors import InvalidTypeError, MissingError
from mldb.lake.projection import LakeState
from mldb.lake.rows.block import MappedBlock, Selection
from mldb.lake.rows.chain import Chain
from mldb.lake.rows.mosaic import Mosaic
from mldb.lake.rows.row_numbers import checked_rows
from mldb.lake.rows.schema import ColumnForm, Schema
from mldb.lake.states import LakeStates
from mldb.log.log import Log
from mldb.tensors.scope import Scope

_T = TypeVar("_T")

_FEW_ROWS: Final = 32  # of a gather: their blocks are asked one by one
_MANY_ROWS: Final = 1 << 16  # so many are read block by block as well


class Rows:
    """The live rows of a lake at one commit, numbered 0..N-1 in the order they were added.

    Any thread. Making one costs nothing; what is computed of it is kept with the lake, for all who
    read the same state. It maps segments and copies what is asked for; what it returns is the
    caller's own where nothing else is said. What it maps stays readable as long as it lives.
    """

    def __init__(self, scope: Scope, state: LakeState, states: LakeStates) -> None:
        self.state = state
        self.name = state.name
        self.dim = state.info.dim
        self.chain = state.chain
        self._scope = scope
        self.states = states
        self._size = state.size
        self._count = self.chain.live_count(state.size)
        self.mosaics: dict[str, Mosaic] = {}  # by column; of those that are read in any order
        self.pinned: dict[Hashable, Any] = {}
        """What was computed of these rows for other processes: here whatever the cache holds."""
        self._shared: dict[Hashable, Any] = {}  # the rest of it, for forked ones alone
        self._is_sharing = False

    def __len__(self) -> int:
        """How many rows are live."""
        return self._count

    @property
    def lsn(self) -> int:
        """The commit that these rows are fixed at."""
        return self._scope.commit.lsn

    def derived(self, what: Hashable, make: Callable[[], _T], nbytes: Callable[[_T], int]) -> _T:
        """Return what *make* computes of these rows: made once while the cache has room for it."""
        for kept in (self.pinned, self._shared):
            if what in kept:
                return kept[what]  # type: ignore[no-any-return]
        found = self.states.compute(self.state, what, make, nbytes)
        if self._is_sharing:
            self._shared[what] = found
        return found

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside of it, what is derived is kept for processes that are forked from this one.

        As long as these rows live, whatever the cache has room for. They share its memory.
        """
        self._is_sharing = True
        try:
            if self._live is not None:
                self._shared["live"] = self._live
            yield
        finally:
            self._is_sharing = False

    def known(self, what: Hashable, version: int) -> Any:
        """What is kept of the lake at the commit *version* that made a state, or None."""
        if what in self.pinned and version == self.state.version:
            return self.pinned[what]
        found = self.states.derived.find((self.state.info.lake_id, version, what))
        return None if found is None else found[0]

    def keep(self, what: Hashable, value: Any, nbytes: int) -> None:
        """Keep what was computed of these rows while the cache has room for it."""
        key = (self.state.info.lake_id, self.state.version, what)
        self.states.derived.put(key, value, nbytes)

    def versions(self, what: Hashable) -> list[int]:
        """The commits, by what made them, of which the cache has this."""
        lake_id = self.state.info.lake_id
        keys = self.states.derived.keys()
        return [key[1] for key in keys if (key[0], key[2]) == (lake_id, what)]

    def adopt(self, others: Rows) -> None:
        """Take over what was computed of lakes in the process that this one was forked from."""
        self.states.derived.adopt(others.states.derived)
        self.pinned.update(others.pinned)
        self._shared.update(others._shared)

    # --- blocks -----------------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._size.blocks

    def block(self, number: int) -> MappedBlock:
        """One block. Raises CorruptError."""
        return self.chain.block(self._scope, number)

    def is_verified(self, name: str) -> bool:
        """Whether a column is known to need no further check in any block, without asking each."""
        if self.blocks == 1:
            return self.block(0).is_verified(name)
        mosaic = self.mosaics.get(name)
        return mosaic is not None and mosaic.is_verified

    @cached_property
    def _stops(self) -> Numbers:
        return self.chain.stops.first(self._size.blocks)

    @cached_property
    def _live(self) -> Numbers | None:
        """Stored numbers of the live rows; None when all are."""
        if not self._size.removals:
            return None
        return self.derived("live", self._find_live, lambda live: live.nbytes)

    def _find_live(self) -> Numbers:
        live = self.chain.live(self._size)
        assert live is not None
        live.setflags(write=False)
        return live

    # --- columns ----------------------------------------------------------------------------------

    @property
    def columns(self) -> dict[str, ColumnForm]:
        """The dtype and the shape of one value of every column that can be read of all rows.

        The dtype is one that holds every value of all blocks; see :func:`schema_of`.
        """
        return self._schema.columns

    @cached_property
    def _schema(self) -> Schema:
        return self.chain.schema(self._size)

    def require_column(self, name: str) -> ColumnForm:
        """Return the dtype and shape of a column.

        Raises MissingError; InvalidTypeError for one whose blocks do not fit together.
        """
        self.refuse_unfit(name)
        have = self.columns
        if name not in have:
            raise MissingError(
                f"lake {self.name!r} has no column {name!r} in every block; it has "
                f"{sorted(have)}. Rows added without labels or columns lack them."
            )
        return have[name]

    def refuse_unfit(self, name: str) -> None:
        """Raise InvalidTypeError for a column whose blocks do not fit together."""
        reason = self._schema.refused.get(name)
        if reason is not None:
            raise InvalidTypeError(
                f"column {name!r} of lake {self.name!r} was added with {reason}. What is stored is "
                "safe, and read as of the commits before they differed; give the rows a column of "
                "another name, all in one form."
            )

    def gather(self, name: str, rows: Selection, out: npt.NDArray[Any] | None = None) -> Any:
        """Return one column of these rows, in their order; written to *out* when given.

        *rows*: numbers from 0 to N-1, or a slice of them with both ends. Blocks of stored bytes are
        verified when first touched. Raises InvalidValueError and InvalidTypeError for other rows,
        MissingError, CorruptError.
        """
        rows = checked_rows(rows, len(self), self.name)
        if out is None:
            dtype, shape = self.require_column(name)
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            out = np.empty((count, *shape), dtype)
        return self.gather_checked(name, rows, out)

    def gather_checked(self, name: str, rows: Selection, out: npt.NDArray[Any]) -> Any:
        """As :meth:`gather`, for int64 rows or a slice of step 1 that are known to be rows."""
        return self._gather(name, self._stored(rows), out)

    def gather_stored(self, name: str, stored: Numbers) -> Any:
        """Return one column of rows that :meth:`stored_of` found."""
        dtype, shape = self.require_column(name)
        return self._gather(name, stored, np.empty((len(stored), *shape), dtype))

    def _gather(self, name: str, stored: Selection, out: npt.NDArray[Any]) -> Any:
        if self.blocks == 1:
            self.block(0).gather(name, stored, out)
        elif isinstance(stored, slice):
            self._gather_run(name, stored, out)
        elif len(stored):
            self._gather_scattered(name, stored, out)
        if name == "id":
            return out.view(np.int64) if out.dtype == np.uint64 else out
        return out

    def _stored(self, rows: Selection) -> Selection:
        """Turn live numbers into stored ones."""
        if self._live is None:
            return rows
        found: Numbers = self._live[rows]
        if len(found) and found[-1] - found[0] == len(found) - 1 and isinstance(rows, slice):
            return slice(int(found[0]), int(found[-1]) + 1)
        return found

    def stored_numbers(self, rows: Numbers) -> Numbers:
        """Return the stored numbers of live rows: what stays as it is when others end."""
        return rows if self._live is None else np.asarray(self._live[rows])

    def _gather_run(self, name: str, rows: slice, out: npt.NDArray[Any]) -> None:
        done = 0
        number = int(np.searchsorted(self._stops, rows.start, "right"))
        while done < rows.stop - rows.start and number < self.blocks:
            block = self.block(number)
            low, high = max(rows.start, block.start), min(rows.stop, block.stop)
            part = slice(low - block.start, high - block.start)
            block.gather(name, part, out[done : done + high - low])
            done += high - low
            number += 1

    def _gather_scattered(self, name: str, rows: Numbers, out: npt.NDArray[Any]) -> None:
        mosaic = self.mosaics.get(name)
        if mosaic is not None and len(rows) <= _MANY_ROWS and mosaic.gather_known(rows, out):
            return
        rows = np.clip(rows, 0, self.state.stored - 1)
        if _FEW_ROWS < len(rows) <= _MANY_ROWS and out.flags.c_contiguous:
            if mosaic is None:
                dtype, shape = self.require_column(name)
                made = Mosaic(name, self._stops, dtype, shape, self.block)
                mosaic = self.mosaics.setdefault(name, made)
            if mosaic.gather(rows, out):
                return
        which = np.searchsorted(self._stops, rows, "right")
        order = np.argsort(which, kind="stable")
        numbers, starts = np.unique(which[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            block = self.block(number)
            part = np.empty((len(places), *out.shape[1:]), out.dtype)
            block.gather(name, rows[places] - block.start, part)
            out[places] = part

    def parts(self, rows: slice, least: int = 0) -> Iterator[tuple[MappedBlock, slice]]:
        """The blocks of at least so many rows that hold a run of rows, with the part of each.

        Ended rows between them are in it.
        """
        if rows.start >= rows.stop:
            return
        low, high = rows.start, rows.stop
        if self._live is not None:
            low, high = int(self._live[low]), int(self._live[high - 1]) + 1
        number = int(np.searchsorted(self._stops, low, "right"))
        while low < high:
            start, stop = self.chain.start(number), int(self._stops[number])
            if stop - start >= least:
                yield self.block(number), slice(low - start, min(high, stop) - start)
            low, number = stop, number + 1

    def block_of(self, rows: slice) -> tuple[int, slice] | None:
        """The block that holds all of a run of rows, and where in it; None when none does."""
        stored = self._stored(rows)
        if not isinstance(stored, slice):
            return None
        number = 0
        if self.blocks > 1:
            number = int(np.searchsorted(self._stops, stored.start, "right"))
        start, stop = self.chain.start(number), int(self._stops[number])
        if stored.stop > stop:
            return None
        return number, slice(stored.start - start, stored.stop - start)

    # --- ids and removals -------------------------------------------------------------------------

    def ids(self) -> Numbers:
        """The id of every row, in row order: 8 bytes a row, kept with the lake."""
        return self.derived("ids", self._read_ids, lambda ids: ids.nbytes)

    def _read_ids(self) -> Numbers:
        ids = self._indexed().index.in_order(self.state.stored)
        if self._live is not None:
            ids = ids[self._live]
        ids.setflags(write=False)  # all who ask share it
        return ids

    def _indexed(self) -> Chain:
        """The chain with the ids of all of its rows. Raises CorruptError."""
        chain, stored = self.chain, self.state.stored
        if chain.index.count >= stored:
            return chain
        guard = chain.lock.hold_unless_inside()
        if guard is None:  # inside the call that reads them
            chain = chain.fork(self._size)
            chain.learn_ids(self._scope)
            return chain
        with guard:
            chain.learn_ids(self._scope)
        return chain

    def stored_of(self, ids: npt.NDArray[np.int64]) -> Numbers:
        """Return the stored number of the live row of every id; -1 where there is none.

        O(log N) an id, whatever was changed before. Raises CorruptError.
        """
        chain = self._indexed()
        rows = chain.index.newest(ids, self.state.stored)
        return np.where(chain.are_live(rows, self._size_in(chain)), rows, -1)

    def newest_of(self, ids: npt.NDArray[np.int64]) -> Numbers:
        """Return the stored number of the newest row of every id, live or not; -1 for none."""
        return self._indexed().index.newest(ids, self.state.stored)

    def _size_in(self, chain: Chain) -> Any:
        return self._size if chain is self.chain else chain.size

    def find(self, ids: npt.NDArray[np.int64]) -> Numbers:
        """Return the row number of every id, -1 where no live row has it."""
        stored = self.stored_of(ids)
        if self._live is None:
            return stored
        return np.where(stored >= 0, np.searchsorted(self._live, stored), -1)

    def lsns(self, rows: Selection) -> Numbers:
        """Return the commit that added each row; *rows* as for :meth:`gather`."""
        stored = self._stored(checked_rows(rows, len(self), self.name))
        if isinstance(stored, slice):
            stored = np.arange(stored.start, stored.stop)
        commits = self.chain.commits.first(self._size.blocks)
        return np.asarray(commits[np.searchsorted(self._stops, stored, "right")])

    # --- whole blocks -----------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """The log that the rows are read from."""
        return self._scope.source.log

    @property
    def scope(self) -> Scope:
        """What is seen."""
        return self._scope

    def table(self) -> npt.NDArray[np.float32]:
        """All rows as one verified array [N, d], shared by all who ask: not to be written to.

        The mapped block where the lake is one, else a copy that the lake keeps where there is room.
        """
        if self.blocks == 1 and self._live is None:
            if not self.block(0).is_verified("mu"):
                self.block(0).verify("mu", slice(0, len(self)))
            whole: npt.NDArray[np.float32] = self.block(0).array("mu")
            return whole
        return self.derived("table", self._read_table, lambda table: table.nbytes)

    def _read_table(self) -> npt.NDArray[np.float32]:
        copy: npt.NDArray[np.float32] = self.gather("mu", slice(0, len(self)))
        copy.setflags(write=False)
        return copy


def found_rows(rows: Rows, ids: Numbers) -> Numbers:
    """Return the stored numbers of the live rows of *ids*. Raises MissingError."""
    found = rows.stored_of(ids)
    missing: Bools = found < 0
    if missing.any():
        raise MissingError(
            f"lake {rows.name!r} has no live row of id {int(ids[missing][0])} at commit {rows.lsn} "
            f"({int(missing.sum())} of {len(ids)} ids are missing). Nothing was changed."
        )
    return found


def rows_in(scope: Scope, name: str, known: LakeStates) -> Rows:
    """The live rows of a lake in *scope*, by what *known* has of it.

    Raises MissingError, CorruptError.
    """
    return Rows(scope, known.fold(scope, name), known)
