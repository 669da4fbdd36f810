"""Changes of which segments make up the store: what compaction asks of the writing half of a log.

The segments of a manifest are replaced, never the one that is appended to. All of it is done under
the commit lock, on the newest head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from mldb.errors import MldbError
from mldb.log.manifest import Manifest, refuse_to_write
from mldb.log.sequencer import Sequencer
from mldb.log.state import LogState

_T = TypeVar("_T")

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

    def change(state: LogState) -> Manifest | None:
        refuse_to_write(state.fs, state.manifest)
        wanted = decide(state)
        if wanted is None:
            return None
        sequencer.sealer.install(wanted)
        return state.manifest

    return _locked(sequencer, change, publishing=True)


def seal_active(sequencer: Sequencer) -> bool:
    """Seal what the active segment holds, as a commit does that does not fit; tell whether it did.

    Raises as :func:`change_outline` does.
    """

    def seal(state: LogState) -> bool:
        if not state.active.has_commits():
            return False
        sequencer.seal_now()
        return True

    return _locked(sequencer, seal, publishing=False)


def _locked(sequencer: Sequencer, act: Callable[[LogState], _T], *, publishing: bool) -> _T:
    """Return what *act* returns, called under the commit lock on the newest head."""
    results: list[_T] = []
    sequencer.promptly(lambda: results.append(_act(sequencer, act, publishing=publishing)))
    return results[0]


def _act(sequencer: Sequencer, act: Callable[[LogState], _T], *, publishing: bool) -> _T:
    state = sequencer.state
    guard = sequencer.lock.hold()
    try:
        state.begin_writing(guard.key)
        sequencer.catch_up()
        return act(state)
    except MldbError as error:
        if not sequencer.syncing.note(error):
            raise
        raise sequencer.syncing.retire(error, publishing=publishing) from error
    finally:
        state.end_writing()
        guard.free()
