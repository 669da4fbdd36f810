"""The parts of a log that writing brings: the sequencer, and the maker of the directory.

Their modules would be a quarter of what an opening loads, and who only reads needs neither.
Nothing here has effects: whoever makes one too many drops it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from mldb.log.directory.maker import Maker
from mldb.log.index.columns import MetadataOf
from mldb.log.lock import CommitLock
from mldb.log.readers import Registration
from mldb.log.sealed import SealedPart
from mldb.log.sequencer import Sequencer
from mldb.log.state import LogState
from mldb.options import Options


def make_sequencer(
    state: LogState,
    lock: CommitLock,
    registration: Registration,
    options: Options,
    metadata_of: MetadataOf | None,
    *,
    began: bool,
) -> Sequencer:
    """Return a sequencer of the log that *state* follows. Any thread."""
    return Sequencer(state, lock, registration, options, metadata_of, began=began)


def make_maker(state: LogState, registration: Registration) -> Maker:
    """Return a maker of the directory of *state*, which it does not keep alive. Any thread."""
    kept = weakref.ref(state)  # a strong one would make a ring

    def sealed() -> Sequence[SealedPart]:
        found = kept()
        return () if found is None else found.view.sealed

    def made() -> None:
        found = kept()
        if found is not None:
            found.units.refresh()

    return Maker(state.directory, sealed, registration.ensure, made)
