"""The log of one store: open or create it, take heads, commit, close. The face of ``mldb.log``.

Everything above talks to this class. It hands out immutable views and raw entries; what they mean
is decided in ``mldb.tensors`` and ``mldb.history``.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mldb.deferred import NamedTuple, replace
from mldb.errors import (
    ClosedError,
    CorruptError,
    FormatVersionError,
    LockedError,
    MldbError,
    ReadOnlyError,
    StorageFullError,
)
from mldb.log import native
from mldb.log.active import Active
from mldb.log.birth import FOLDERS, restore_folders
from mldb.log.frame import Record
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow
from mldb.log.lock import CommitLock
from mldb.log.manifest import Manifest, refuse_to_write
from mldb.log.opening import find_store, open_state
from mldb.log.readers import Hold, Registration, registrations, sweep_dead
from mldb.log.recovery import Recovery, describe_tail, refuse_corruption
from mldb.log.state import LogState
from mldb.log.view import View
from mldb.options import Options

if TYPE_CHECKING:
    from mldb.log.batches import StoredBatch
    from mldb.log.directory.maker import Maker
    from mldb.log.index.columns import MetadataOf
    from mldb.log.pending import PendingSegment
    from mldb.log.sequencer import Decide, Sequencer

__all__ = ["FOLDERS", "Log", "Still"]

_NO_EXTRA: Mapping[str, object] = {}
_LOOKS = 8


class Still(NamedTuple):
    """One moment of the log, of which the writer changes nothing any more."""

    manifest: Manifest
    active: Active
    view: View


class Log:
    """One open log. Any thread; refuse use in a forked child is the caller's duty.

    Views and memoryviews handed out live as long as they are held, also after :meth:`close`.
    """

    def __init__(
        self,
        fs: FileSystem,
        options: Options,
        *,
        known: frozenset[int],
        metadata_of: MetadataOf | None = None,
    ) -> None:
        """Open the store in *fs*, creating it in an empty folder when ``mode="rw"``.

        *known* are the event kinds that the caller understands.
        Writes nothing into an existing store: what a dead process left is repaired by the first
        commit. Raises FormatVersionError, CorruptError, LockedError, StorageIOError, ReadOnlyError.
        """
        self.fs = fs
        self.options = options
        self.closed = False
        self._swept = False  # a race costs one more listing
        self._lock: CommitLock | None = None
        self._metadata_of = metadata_of
        # Made when first needed, for which two threads may each make one: setdefault keeps one.
        self._sequencers: dict[int, Sequencer] = {}
        self._makers: dict[int, Maker] = {}
        writable = options.mode == "rw"
        distrusted: list[str] = []
        manifest, announced, born = find_store(fs, options, distrusted)
        if writable:
            refuse_to_write(fs, manifest)
            restore_folders(fs)
            self._lock = CommitLock(fs, options.lock_timeout)
            if announced is None:
                self._lock.make_file()
        self._state = open_state(
            fs,
            manifest,
            distrusted,
            lambda found: LogState(
                fs,
                found,
                verify=options.verify,
                writable=writable,
                known=known,
                max_mapped=options.max_mapped,
                announced=announced,
                lock_slot=None if self._lock is None else self._lock.slot,
            ),
        )
        self._state.distrusted[:0] = distrusted
        self._born = born
        self.registration = Registration(fs, manifest.store_id)
        if self._lock is not None:
            self._state.directory.on_need = partial(_wake_maker, weakref.ref(self))
        try:
            self._found = self._look()
        except BaseException:
            self._state.close()
            if self._lock is not None:
                self._lock.close()
            raise

    # --- opening ----------------------------------------------------------------------------------

    def _look(self) -> Recovery:
        """Say what the bytes behind the last batch are. Raises CorruptError when it is damage."""
        state = self._state
        self._refuse_lost_manifest()
        tail = refuse_corruption(state)
        active = state.active
        torn = active.cursor.index is None and active.cursor.offset < active.seen
        if torn and self._lock is not None and not self._is_being_written():
            return describe_tail(state, tail)
        clean = not state.distrusted
        return Recovery(clean=clean, distrusted=tuple(state.distrusted))

    def _refuse_lost_manifest(self) -> None:
        """Raise CorruptError when the newest manifest was deleted; one that just comes is not."""
        state = self._state
        for _ in range(_LOOKS):
            if state.announced_number == state.manifest.number:
                return
            from mldb.log.orphans import refuse_lost_manifest

            try:
                refuse_lost_manifest(self.fs, state.manifest)
                return
            except CorruptError:
                if not state.manifest_waits():
                    raise
            state.head()

    def _is_being_written(self) -> bool:
        """Whether another process is in the middle of a commit, so that a tail is nothing torn."""
        assert self._lock is not None
        state = self._state
        guard = self._lock.try_hold()
        if guard is None:
            return True
        with guard, state.mutex.hold():
            state.follow()
            return state.active.cursor.offset >= state.active.seen

    def _sweep(self) -> None:
        """Remove what dead processes left in ``pending/`` and ``readers/``, once per handle.

        Done before the first spill and at the close of a handle that wrote, not at every opening: a
        listing costs more than the rest of it. Skipped while another process holds the lock.
        """
        sequencer = self._sequencers.get(0)
        if self._swept or self._lock is None or sequencer is None:
            return
        self._swept = True
        with contextlib.suppress(LockedError), self._lock.hold():
            self._state.check_identity()
            sweep_dead(self.fs, self.registration.name, sequencer.syncing.logged)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def store_id(self) -> bytes:
        """The identity of this store."""
        return self._state.manifest.store_id

    @property
    def recovery(self) -> Recovery:
        """What was found torn or distrusted, and what the repair of this handle did about it."""
        sequencer = self._sequencers.get(0)
        repaired = None if sequencer is None else sequencer.recovery
        return repaired if repaired is not None and not repaired.clean else self._found

    @property
    def state(self) -> LogState:
        """The state, for the parts of ``mldb.log`` that work on a whole store."""
        return self._state

    def head(self) -> View:
        """Return the newest view."""
        return self._state.head()

    def still(self) -> Still:
        """Return manifest, active segment and view of one moment; the segment is a copy.

        Writers of this process are kept out meanwhile. Raises ReentryError inside a commit.
        """
        state = self._state
        guard = contextlib.nullcontext() if self._lock is None else self._lock.hold_in_process()
        with guard, state.mutex.hold():
            state.follow()
            active = state.active
            fixed = replace(active, cursor=replace(active.cursor), jumps=list(active.jumps))
            return Still(state.manifest, fixed, state.view)

    def hold(self, lsn: int) -> tuple[Hold, View]:
        """Register that commit *lsn* must stay readable; return the hold and a view since then.

        First it is written, then looked for a manifest that was announced meanwhile: who prunes
        does so the other way round. Whether the view still has the commit is for the caller to see.
        Raises StorageIOError.
        """
        state = self._state
        hold = Hold(self.registration, lsn)
        view = state.head()
        for _ in range(_LOOKS):
            if state.announced_number in (0, state.manifest.number):
                return hold, view
            view = state.head()
        self._wait_for_announced()
        return hold, state.head()

    def _wait_for_announced(self) -> None:
        """Wait until nobody is about to install a manifest; a dead process may have announced it.

        Who announced may have read the registrations before this one was written. It holds the
        commit lock until its manifest is there.
        """
        lock = self._lock or CommitLock(self.fs, self.options.lock_timeout)
        try:
            if not lock.is_inside():
                # Who may not write cannot register either; who waits too long goes on without.
                with contextlib.suppress(MldbError), lock.hold():
                    pass
        finally:
            if lock is not self._lock:
                lock.close()

    def batches(self, view: View, low: int, high: int) -> Iterator[StoredBatch]:
        """Yield every commit with low <= LSN <= high and its frames, in log order, all lineages.

        The one iterator over batches, whatever kind of segment they lie in.
        """
        from mldb.log.batches import read_batches

        return read_batches(view, self.head, low, high)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def sequencer(self) -> Sequencer:
        """The sequencer. Raises ReadOnlyError on a read-only handle."""
        return self._sequencers.get(0) or self._made_sequencer()

    def _made_sequencer(self) -> Sequencer:
        if self._lock is None:
            raise ReadOnlyError(
                f"{self.fs.root} is open with mode='r'. Nothing was stored; open it with mode='rw' "
                "to write."
            )
        made = self._make_sequencer(self._lock)
        if self.closed:  # looked at last: close() sets it and then looks for a sequencer
            made.syncing.close()
        return made

    def _make_sequencer(self, lock: CommitLock) -> Sequencer:
        from mldb.log.on_demand import make_sequencer

        parts = self._state, lock, self.registration, self.options, self._metadata_of
        made = make_sequencer(*parts, began=self._born)
        return self._sequencers.setdefault(0, made)

    @property
    def _maker(self) -> Maker | None:
        """The maker of the directory; None on a read-only handle."""
        if self._lock is None:
            return None
        made = self._makers.get(0)
        if made is None:
            from mldb.log.on_demand import make_maker

            made = self._makers.setdefault(0, make_maker(self._state, self.registration))
            if self.closed:
                made.stop()
        return made

    def commit(
        self,
        records: Sequence[Record],
        decide: Decide,
        pending: PendingSegment | None = None,
        extra: Mapping[str, object] = _NO_EXTRA,
    ) -> CommitRow:
        """Store records as one batch; see Sequencer.commit."""
        return self.sequencer.commit(records, decide, pending, extra)

    def tidy_directory(self) -> None:
        """Have the directory fit the segments that there are, after some were replaced."""
        maker = self._maker
        if maker is not None:
            maker.make()

    def pending_segment(self) -> PendingSegment:
        """Start a pending segment for a large batch."""
        from mldb.log.pending import PendingSegment

        self.sequencer  # noqa: B018 - raises ReadOnlyError
        self._sweep()
        return PendingSegment(self.fs, self.registration.ensure())

    def stats(self) -> dict[str, Any]:
        """Return figures of the log: its size, its parts, what this handle did."""
        view = self.head()
        state, active, sequencer = self._state, self._state.active, self._sequencers.get(0)
        segments = [*(part.segment for part in view.sealed), active.segment]
        return {
            "store_id": self.store_id.hex(),
            "epoch": view.commit.epoch,
            "lsn": view.commit.lsn,
            "head_ahead_seconds": max(0, view.commit.time - state.fs.time_ns()) / 1e9,
            "manifest": view.number,
            "segments": len(segments),
            "bytes": sum(info.length for info in state.manifest.segments) + active.cursor.offset,
            "active_bytes": active.cursor.offset,
            "active_versions": active.count,
            "versions": active.count
            + sum(unit.lookup.entry_count() for unit in view.units.newest_first),
            "mapped_bytes": sum(segment.mapped_bytes for segment in segments),
            "max_mapped": state.mappings.limit,
            "mappings_released": state.mappings.released,
            "mapped_segments": sum(segment.mapped_bytes > 0 for segment in segments),
            "durable_lsn": active.cursor.durable
            if sequencer is None
            else sequencer.syncing.durable_lsn,
            "commits": 0 if sequencer is None else sequencer.commits,
            "hints_saved": 0 if sequencer is None else sequencer.saver.saved,
            "hints_failed": 0 if sequencer is None else sequencer.saver.failed,
            "native": native.status,
            "free_bytes": self.fs.free_bytes(),
            "distrusted": list(state.distrusted),
            "readers": len(registrations(self.fs)),
            "directory": state.directory.stats(view.units),
        }

    def sync(self) -> None:
        """Make every commit so far durable, those of other processes too."""
        self.sequencer.syncing.sync()

    def close(self) -> None:
        """Close the handle; a writing one records a durable mark. Closing twice is harmless.

        Waits for who is inside a commit.
        """
        if self.closed:
            return
        self.closed = True
        logged = 0
        maker = self._makers.get(0)
        if maker is not None:
            maker.stop()
        try:
            sequencer = self._sequencers.get(0)
            active = self._state.active
            lacks_hint = active.hinted is None and active.has_commits()
            if sequencer is None and lacks_hint and self._lock is not None:
                sequencer = self._make_sequencer(self._lock)  # it may restore the hint
            if sequencer is not None:
                sequencer.close()
                logged = sequencer.syncing.logged
                if sequencer.commits:
                    self._sweep()
        except (LockedError, ClosedError, StorageFullError, FormatVersionError):
            pass  # the next opening scans instead of starting from the mark
        finally:
            with contextlib.suppress(MldbError):
                self.registration.close(logged)
            self._state.close()
            if self._lock is not None:
                self._lock.close()


def _wake_maker(log: weakref.ref[Log]) -> None:
    """Have parts of the directory made. The state that asks does not keep the log alive."""
    found = log()
    maker = None if found is None else found._maker
    if maker is not None:
        maker.wake()
