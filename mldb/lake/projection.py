"""The splat lakes: what each is, and the state of its rows, as of any commit."""

from __future__ import annotations

from typing import NamedTuple

from mldb import keys
from mldb.errors import MissingError
from mldb.history.splats import LakeInfo, unpack_lake
from mldb.lake.rows.chain import Chain, Size, damaged
from mldb.log.index.address import Entry
from mldb.names import check_name
from mldb.tensors.scope import Scope


class LakeState(NamedTuple):
    """What is stored of a lake at one commit: a beginning of a chain.

    ``version`` is the commit that last changed it; with the lake's id it names the state.
    """

    name: str
    version: int
    info: LakeInfo
    chain: Chain
    size: Size

    @property
    def stored(self) -> int:
        """Rows stored, removed ones included."""
        return self.chain.stored(self.size)


def find_lake(scope: Scope, name: str) -> tuple[LakeInfo, Entry] | None:
    """Return what the lake *name* is, or None when there is none in *scope*."""
    entry = scope.find(keys.LAKES + check_name(name))
    if entry is None:
        return None
    try:
        return unpack_lake(entry.attr), entry
    except (ValueError, TypeError) as error:
        raise damaged(scope, entry, name, error) from None


def require_lake(scope: Scope, name: str) -> tuple[LakeInfo, Entry]:
    """Like :func:`find_lake`. Raises MissingError."""
    found = find_lake(scope, name)
    if found is None:
        known = ", ".join(map(repr, names(scope))) or "none"
        raise MissingError(
            f"there is no lake {name!r} at commit {scope.commit.lsn}; there are: {known}. "
            f"add_splats on db.lake({name!r}) makes one."
        )
    return found


def names(scope: Scope) -> list[str]:
    """The names of all lakes."""
    return [keys.name_of(key) for key, _ in scope.view.live(keys.LAKES, scope.intervals)]
