"""Tags and pins: names for commits, and commits kept whatever retention says.

Both belong to the store and are never rewound.
"""

from __future__ import annotations

from mldb import keys
from mldb.history.as_of import store_intervals
from mldb.history.kinds.timeline import unpack_tag
from mldb.log.index.address import Lsn
from mldb.log.view import View


def tags(view: View) -> dict[str, Lsn]:
    """Return the tags and the commits that they name."""
    return {
        keys.name_of(key): unpack_tag(key, entry.attr)
        for key, entry in view.live(keys.TAGS, store_intervals(view))
    }


def pins(view: View) -> list[Lsn]:
    """Return the pinned commits, ascending."""
    return [Lsn(keys.pinned_by(key)) for key, _ in view.live(keys.PINS, store_intervals(view))]
