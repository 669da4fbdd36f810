"""The index of the active segment, saved as a hint while commits go on.

Every ``fmt.HINT_VERSIONS`` versions the newest part of the index is *frozen*: later commits go to a
new one. What is frozen is merged with the hint of before, written to a file in ``pending/``, and
published in the place of that hint. So an opening scans few commits, whatever happened; a seal and
a close merge few versions; and the index in memory stays small.

All of this is done by the threads that commit, after they let the commit lock go, in steps of a few
milliseconds: so many for each commit as it stored versions. There is no thread to be joined, to be
forked or to outlive the program, and nobody saves where nobody commits. Only two moments need the
commit lock: the freeze, inside a commit, and the publication, which never waits for the lock.

A hint covers nothing that is not durable: what an opening starts from a power loss cannot take
back. So the segment is synced first, where that is not done yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Final

from mldb.deferred import replace
from mldb.errors import MldbError, ReentryError
from mldb.log import format as fmt
from mldb.log.active import HALF_DONE, Active, hint_name
from mldb.log.file_header import encode_file_header
from mldb.log.fs.gather import groups
from mldb.log.fs.protocol import Buffer
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import column_steps, frame_of
from mldb.log.index.memory import MemoryIndex
from mldb.log.index.merge import UnmergeableError
from mldb.log.index.opened import index_source, open_index
from mldb.log.index.pause import collection_paused
from mldb.log.lock import CommitLock
from mldb.log.lone import PENDING, discard
from mldb.log.ownership import OwnedLock
from mldb.log.state import LogState
from mldb.log.syncing import Syncing

_ROWS_AT_ONCE: Final = fmt.HINT_VERSIONS  # versions whose columns are made in one go
_BYTES_A_STEP: Final = 1 << 20
_VERSIONS_A_STEP: Final = 1 << 3  # so that all steps are done before as many versions came again
_STEPS_EACH: Final = 1  # for each commit at least
_STEPS_MAX: Final = 24  # for one commit, however much it stored


class _Overtaken(Exception):
    """The segment went on without this hint: sealed, closed early, or read anew."""


class _Saving:
    """One hint on its way. ``still`` is the segment as it was at the freeze, which nobody changes.

    ``active`` is the segment itself, ``steps`` what is still to be done.
    """

    __slots__ = ("active", "steps", "still")

    def __init__(self, active: Active) -> None:
        self.active = active
        self.still = replace(
            active,
            cursor=replace(active.cursor),
            jumps=list(active.jumps),
            memory=MemoryIndex(),
        )
        self.steps: Generator[None, None, None] = _nothing()


def _nothing() -> Generator[None, None, None]:
    yield from ()


class HintSaver:
    """Saves the index of the active segment while commits go on; one hint at a time.

    :meth:`look` is called under the commit lock, everything else by any thread. ``_turn`` guards
    the steps; a call that finds it taken does nothing. ``saving`` is set under the commit lock and
    cleared under ``_turn``. ``saved`` and ``failed`` count the hints of this handle.
    """

    def __init__(
        self,
        state: LogState,
        lock: CommitLock,
        syncing: Syncing,
        owner: Callable[[], str],
        metadata_of: MetadataOf | None,
    ) -> None:
        self.saving: _Saving | None = None
        self.saved = 0
        self.failed = 0
        self._closed = False
        self._state = state
        self._lock = lock
        self._syncing = syncing
        self._owner = owner
        self._metadata_of = metadata_of
        self._turn = OwnedLock("the saving of an index")

    # --- under the commit lock --------------------------------------------------------------------

    def look(self, entries_max: int) -> int:
        """Freeze the newest part when it is due; return at how many versions to look again.

        *entries_max* is when the segment is sealed: shortly before, the last part is frozen.
        """
        active = self._state.active
        if self.saving is None and not self._closed and active.count >= _due(active, entries_max):
            self._change(active.freeze)
            saving = _Saving(active)
            saving.steps = self._steps(saving)
            self.saving = saving
        if self.saving is not None:
            return min(active.count + (fmt.HINT_VERSIONS >> 3), entries_max)
        return min(_due(active, entries_max), entries_max)

    def _change(self, change: Callable[[], None]) -> None:
        """Change the parts of the index and publish them; an interrupt in between leaves HALF_DONE.

        Views that are there keep the parts that they have, which hold the same versions.
        """
        state, active = self._state, self._state.active
        seen, active.seen = active.seen, HALF_DONE
        change()
        state.publish()
        active.seen = seen

    # --- between commits --------------------------------------------------------------------------

    def advance(self, versions: int) -> None:
        """Do some of what is to be done, after a commit of so many *versions*. Never waits.

        Whatever fails, the answers stay right without the hint: it is given up, and the next one
        has more to do. Raises only when a sync failed, since then a commit may be lost.
        """
        guard = self._turn.try_hold()
        if guard is None:
            return
        with guard:
            saving = self.saving
            if saving is None:
                return
            try:
                for _ in range(min(_STEPS_EACH + versions // _VERSIONS_A_STEP, _STEPS_MAX)):
                    if self._closed or saving.active is not self._state.active:
                        raise _Overtaken
                    with collection_paused():
                        next(saving.steps)
            except StopIteration:
                self.saved += 1
                self._end(saving)
            except _Overtaken:
                self._end(saving)
            except (MldbError, UnmergeableError) as error:
                self.failed += 1
                self._end(saving)
                if error is self._syncing.failed or error.__cause__ is self._syncing.failed:
                    raise
            except BaseException:
                self._end(saving)
                raise

    def _end(self, saving: _Saving) -> None:
        self.saving = None
        saving.active.merged = None  # as much memory as the hint is long
        saving.steps.close()

    def close(self) -> None:
        """Begin no more, and give up what is on its way; waits for a step in another thread."""
        self._closed = True
        guard = self._turn.hold_unless_inside()
        if guard is None:
            return  # the outer call gives it up
        with guard:
            saving = self.saving
            if saving is not None:
                self.saving = None
                saving.steps.close()  # what is merged already serves the hint of the close

    # --- the steps --------------------------------------------------------------------------------

    def _steps(self, saving: _Saving) -> Generator[None, None, None]:
        """All of it, in steps of a few milliseconds."""
        still, active = saving.still, saving.active
        last, state = still.cursor.last_lsn, self._state
        if last > self._syncing.durable_lsn:
            # Nothing waits for it; the sync below finds most of it done.
            active.file.start_writeback(0, still.cursor.offset)
            yield
        columns = yield from column_steps(still, last, self._metadata_of, rows=_ROWS_AT_ONCE)
        active.merged = still.frozen, columns
        yield
        yield from self._make_durable(last, active)
        header = encode_file_header(
            fmt.FILE_HINT, still.segment.store_id, state.fs.time_ns(), segment_id=still.id
        )
        buffers = frame_of(still, columns, last, last, fmt.FILE_HEADER_SIZE)
        yield
        name = f"{PENDING}/{self._owner()}-{os.urandom(8).hex()}.tmp"
        try:
            yield from self._write(name, [header, *buffers])
            while not self._publish(saving, name):
                yield
        except BaseException:
            discard(state.fs, name)
            raise
        yield
        hinted = active.hinted
        if hinted is not None:
            hinted.columns()  # looks through them now, so that a seal under the lock need not

    def _make_durable(self, lsn: int, active: Active) -> Generator[None, None, None]:
        """Sync what the hint covers; mostly the commits saw to that."""
        while True:
            try:
                self._syncing.make_durable(lsn, active)
                return
            except ReentryError:  # inside a handler that came in the middle of a sync
                yield

    def _write(self, name: str, buffers: Sequence[Buffer]) -> Generator[None, None, None]:
        """Write a file piece by piece. It is not synced: losing it costs a scan."""
        file = self._state.fs.open(name, "create")
        try:
            offset = 0
            for piece in groups(buffers, _BYTES_A_STEP):
                offset += file.pwritev(piece, offset)
                yield
        finally:
            file.close()

    def _publish(self, saving: _Saving, name: str) -> bool:
        """Put the hint in its place and start from it; False to be tried again.

        Raises _Overtaken when the segment is not what it was.
        """
        state, still = self._state, saving.still
        guard = self._lock.try_hold()
        if guard is None:
            return False
        with guard:
            state.begin_writing(guard.key)
            try:
                if state.active is not saving.active or state.active.frozen is not still.frozen:
                    raise _Overtaken
                if self._syncing.has_ended:
                    raise _Overtaken
                if not state.is_current():
                    return False  # who commits next follows, and may repair
                path = hint_name(still.id)
                state.fs.rename(name, path)
                source = index_source(
                    state.fs, path, still.segment.store_id, still.id, fmt.FILE_HINT
                )
                index = open_index(source, fmt.FILE_HEADER_SIZE, state.verify)[0]
                self._change(partial(state.active.start_from, index))
            finally:
                state.end_writing()
        return True


def _due(active: Active, entries_max: int) -> int:
    """At how many versions the newest part is frozen next.

    A seal merges what came since under the commit lock: so there is one freeze shortly before it.
    """
    due = active.settled + fmt.HINT_VERSIONS
    last = entries_max - (fmt.HINT_VERSIONS >> 4)
    if due <= last:
        return due
    return last if last - active.settled >= fmt.HINT_VERSIONS >> 1 else entries_max
