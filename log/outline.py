"""Changes of which segments make up the store: what compaction asks of the writing half of a log.

The segments of a manifest are replaced, never the one that is appended to. All of it is done under
the commit lock, on the newest head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from mldb.errors import MldbError
from mldb.log.manifest import Manifest, refuse_to_write
from mldb.log.sequencer import Sequencer
from mldb.log.state import LogState

DecideOutline: TypeAlias = "Callable[[LogState], Manifest | None]"
"""Called under the commit lock, behind a look at the files; returns what is to be installed.

Its number and predecessor are filled in. None, or an error, leaves everything as it is.
"""


def change_outline(sequencer: Sequencer, decide: DecideOutline) -> Manifest | None:
    """Install what *decide* makes of the newest manifest; return it as installed, or None.

    Raises what *decide* raises, and ReentryError, ClosedError, LockedError, FormatVersionError,
    StoreMovedError, StorageFullError, StorageIOError. After a failed fsync the handle writes no
    more, and the manifest may be there all the same.
    """
    installed: list[Manifest] = []
    sequencer.promptly(lambda: installed.extend(_change(sequencer, decide)))
    return installed[0] if installed else None


def _change(sequencer: Sequencer, decide: DecideOutline) -> tuple[Manifest, ...]:
    state = sequencer.state
    guard = sequencer.lock.hold()
    try:
        state.begin_writing(guard.key)
        sequencer.catch_up()
        refuse_to_write(state.fs, state.manifest)
        wanted = decide(state)
        if wanted is None:
            return ()
        sequencer.sealer.install(wanted)
        return (state.manifest,)
    except MldbError as error:
        if not sequencer.syncing.note(error):
            raise
        raise sequencer.syncing.retire(error, publishing=True) from error
    finally:
        state.end_writing()
        guard.free()


def seal_active(sequencer: Sequencer) -> bool:
    """Seal what the active segment holds, as a commit does that does not fit; tell whether it did.

    Raises as :func:`change_outline` does.
    """
    sealed: list[bool] = []
    sequencer.promptly(lambda: sealed.append(_seal(sequencer)))
    return sealed[0]


def _seal(sequencer: Sequencer) -> bool:
    state = sequencer.state
    guard = sequencer.lock.hold()
    try:
        state.begin_writing(guard.key)
        sequencer.catch_up()
        if not state.active.has_commits():
            return False
        sequencer.seal_now()
        return True
    except MldbError as error:
        if not sequencer.syncing.note(error):
            raise
        raise sequencer.syncing.retire(error, publishing=False) from error
    finally:
        state.end_writing()
        guard.free()
