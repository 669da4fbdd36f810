"""Up to which commit the log is durable, and what a failed sync means.

Two rules make true what is said of a commit, whatever happens at once:

- A durable commit is acknowledged when the file *it is in* was synced without error and the newest
  manifest still has it. A failed sync is recorded before anything else can raise; from then on no
  call of the handle acknowledges.
- Before it acknowledges, a process writes that into its registration, then looks for an announced
  manifest, and follows it under the lock first. Who closes a segment early announces, then reads
  these claims, and keeps everything up to the highest. So one of the two sees the other.
"""

from __future__ import annotations

from threading import get_ident
from typing import Final

from mldb.errors import (
    ClosedError,
    LockedError,
    MldbError,
    ReadOnlyError,
    StorageError,
    StorageFullError,
    StorageIOError,
    StoreMovedError,
)
from mldb.log import format as fmt
from mldb.log.active import Active
from mldb.log.fs.protocol import File
from mldb.log.lock import CommitLock
from mldb.log.manifest import manifest_name
from mldb.log.ownership import Guard, OwnedLock
from mldb.log.readers import Registration, highest_claim
from mldb.log.sealing import Sealer
from mldb.log.state import LogState

# Whatever an fsync fails with, the pages it was about may be gone: a full disk is no exception.
_FAILED_SYNC: Final = (StorageIOError, StorageFullError, ReadOnlyError)


class Syncing:
    """What a handle knows of durability. Any thread; threads that wait share one fdatasync.

    ``failed`` is set once and never taken back. ``_lock`` is held by who syncs or closes, and is
    taken before the commit lock; ``durable`` changes under either.
    """

    def __init__(
        self, state: LogState, lock: CommitLock, registration: Registration, sealer: Sealer
    ) -> None:
        self.failed: MldbError | None = None
        self.closed = False
        self.has_ended = False  # either of the two: no more commits are taken
        self.durable = 0  # the highest commit that this handle made durable
        self._state = state
        self._commit_lock = lock
        self._registration = registration
        self._sealer = sealer
        self._lock = OwnedLock("the sync of this handle")
        self.doubts: set[int] = set()  # threads cut off while they took in how a sync ended

    def hold(self) -> Guard:
        """Wait until nobody syncs, and keep it so."""
        return self._lock.hold()

    @property
    def durable_lsn(self) -> int:
        """The highest commit known to be durable."""
        return max(self.durable, self._state.active.cursor.durable)

    def close(self) -> None:
        """Take no more commits."""
        self.closed = self.has_ended = True

    def refuse_ended(self) -> None:
        """Raise ClosedError when the handle takes no more commits."""
        if self.doubts:
            self._take_doubt()
        if self.failed is not None:
            raise ClosedError(
                f"this handle is closed for writing since an fsync failed ({self.failed}). What "
                "is readable now is what is known to be stored; reopen the store to write again."
            )
        if self.closed:
            raise ClosedError(f"the store {self._state.fs.root} was closed. Nothing was stored.")

    def refuse_nested(self) -> None:
        """Raise ReentryError when an outer call of this thread syncs or closes."""
        if self._lock.is_inside():
            raise self._lock.reentry()

    def note(self, error: MldbError) -> bool:
        """Record *error* if it is the first failed sync of this handle; tell whether it is."""
        if not error.failed_sync or self.failed is not None:
            return False
        self.failed = error
        self.has_ended = True
        return True

    def _sync(self, file: File) -> None:
        """Sync a file; whatever ends this, a failure that the kernel told is recorded.

        The kernel tells it once. An interrupt while the failure is handled is taken for the failure
        that it hides. Python looks for signals behind calls, so none comes before there is a doubt.
        """
        thread = get_ident()
        try:
            file.sync()
        except BaseException as error:
            self.doubts.add(thread)
            hidden = _failed_sync_in(error)
            if hidden is not None:
                self.note(hidden)
            self.doubts.discard(thread)
            raise

    def _take_doubt(self) -> None:
        """Take a sync of this thread that was cut off in between for one that failed."""
        if get_ident() in self.doubts:
            error = StorageIOError("an fdatasync was interrupted, and how it ended is not known.")
            error.failed_sync = True
            self.note(error)

    def sync(self) -> None:
        """Make every commit so far durable, those of other processes too."""
        state = self._state
        state.check_identity()
        view = state.head()
        self.make_durable(view.commit.lsn, state.active)

    def make_durable(self, lsn: int, active: Active) -> None:
        """Return when commit *lsn* of segment *active* is durable; threads share one fdatasync.

        Raises StorageIOError when that is not so or not known, ReentryError, ClosedError.
        """
        state = self._state
        if self.durable >= lsn and self.failed is None and state.active is active:
            return
        with self._lock.hold():
            if self.doubts:
                self._take_doubt()
            if self.failed is not None:
                raise self._not_durable(lsn)
            if self.durable < lsn:
                reached = self._sync_segment(lsn, active)
                try:
                    if reached > self._logged_durable():
                        self._registration.acknowledge(reached)
                    if state.announced_number != state.manifest.number:
                        self._follow_announced()
                except (LockedError, StorageError, ReadOnlyError, ClosedError) as error:
                    raise _not_known(lsn, error) from error
                if self.failed is not None:
                    raise self._not_durable(lsn)
                self.durable = max(self.durable, reached)
            view = state.view
            if view.active_id != active.id and lsn and view.commit_at(lsn) is None:
                raise StorageIOError(
                    f"commit {lsn} is not stored: another process could not sync the segment and "
                    "closed it in front of this commit. The handle can be used; store it again."
                )

    def _sync_segment(self, lsn: int, active: Active) -> int:
        """Sync the file that commit *lsn* is in; return up to which commit that reaches."""
        state = self._state
        view = state.view
        reached = max(lsn, view.commit.lsn) if view.active_id == active.id else lsn
        try:
            if view.number > state.named:
                # Its writer may have died before the name was durable.
                state.fs.sync_dir("")
                state.named = view.number
            if lsn > self._logged_durable():
                self._sync(active.file)
            else:
                reached = lsn
        except _FAILED_SYNC as error:
            if not self.note(error) and self.failed is not error:
                raise
            try:
                guard = self._commit_lock.hold()
            except MldbError as second:
                raise _closed_for_writing(
                    error, f"Whether commit {lsn} is stored is not known ({second})."
                ) from error
            with guard:
                state.begin_writing(guard.key)
                try:
                    raise self._abandon(error, active) from error
                finally:
                    state.end_writing()
        return reached

    def _logged_durable(self) -> int:
        """The highest commit that the newest manifest known here calls durable."""
        manifest = self._state.manifest
        sealed = manifest.segments[-1].last_lsn if manifest.segments else 0
        mark = manifest.mark
        return max(sealed, mark.lsn if mark.offset > fmt.FILE_HEADER_SIZE else 0)

    @property
    def logged(self) -> int:
        """The highest commit that log and manifest themselves call durable."""
        return max(self._logged_durable(), self._state.active.cursor.durable)

    def _follow_announced(self) -> None:
        """Follow a manifest that is being installed: it may say that commits are no more."""
        state = self._state
        with self._commit_lock.hold() as guard:
            state.begin_writing(guard.key)
            try:
                state.check_identity()
                state.follow()
            finally:
                state.end_writing()

    def _not_durable(self, lsn: int) -> StorageIOError:
        return StorageIOError(
            f"whether commit {lsn} is stored is not known: an fsync of this handle failed "
            f"({self.failed}). The handle is closed for writing, reads go on and show what is "
            "stored. Check the disk, then reopen the store.",
            errno=getattr(self.failed, "errno", None),
        )

    # --- under the commit lock -------------------------------------------------------------------

    def sync_active(self) -> None:
        """Sync the active segment; the commit lock is held."""
        try:
            self._sync(self._state.active.file)
        except _FAILED_SYNC as error:
            self.note(error)
            raise self._abandon(error, self._state.active) from error

    def _abandon(self, error: MldbError, active: Active) -> StorageIOError:
        """Give a segment up behind its last durable commit, for every process.

        Called when an fsync of it failed, with the commit lock held. fsync is never retried: the
        kernel may have dropped the dirty pages and reports the failure once (Rebello et al., "Can
        Applications Recover from fsync Failures?", USENIX ATC 2020).
        """
        state = self._state
        known = max(self.durable, active.cursor.durable)
        try:
            state.check_identity()
            state.follow()
            if state.active.id == active.id:
                state.announce(state.next_number)
                claimed = min(highest_claim(state.fs), state.last_lsn())
                known = max(known, claimed, self.logged)
                self._sealer.close_at(known, known)
            outcome = (
                f"The segment was closed behind commit {known}, the last one known to be durable; "
                "later commits are not stored."
            )
        except MldbError as second:
            outcome = (
                f"The last commit known to be durable is {known}; closing the segment behind it "
                f"failed too ({second}). Whether later commits are stored is not known."
            )
        return _closed_for_writing(error, outcome)

    def retire(self, error: MldbError, *, publishing: bool) -> StorageIOError:
        """Write no more with this handle: an fsync failed, not of the active segment but beside it.

        The commit lock is held. *publishing*: the commit exists once its manifest has its name.
        """
        state = self._state
        if publishing and state.fs.exists(manifest_name(state.next_number)):
            return _closed_for_writing(error, "Whether this commit is stored is not known.")
        return _closed_for_writing(error, "Nothing was stored.")


def _failed_sync_in(error: BaseException) -> MldbError | None:
    """The failed sync that *error* is, or that was being handled when it was raised."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MldbError):
            return found if found.failed_sync else None
        if isinstance(found, OSError):
            hidden = StorageIOError(f"fdatasync failed: {found}.", errno=found.errno)
            hidden.failed_sync = True
            return hidden
        found = found.__context__
    return None


def _not_known(lsn: int, error: MldbError) -> StorageIOError:
    """What is raised for a commit that is synced but may not be acknowledged."""
    kind = StoreMovedError if isinstance(error, StoreMovedError) else StorageIOError
    cause = str(error).partition(". ")[0].rstrip(".")  # what follows says that nothing was stored
    return kind(
        f"commit {lsn} was written and synced, but then {cause}. Whether it is "
        "stored is not known: look at db.last_commit before you store it again.",
        errno=getattr(error, "errno", None),
    )


def _closed_for_writing(error: MldbError, outcome: str) -> StorageIOError:
    return StorageIOError(
        f"{error} {outcome} This handle is closed for writing, reads go on. Check the disk, then "
        "reopen the store.",
        errno=getattr(error, "errno", None),
    )
