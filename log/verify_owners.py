"""Whether every version that has its bytes from another one finds it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.chain import base_fault
from mldb.log.index.address import Entry
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import IndexPart
from mldb.log.segment import segment_name
from mldb.log.view import View


class Unowned(NamedTuple):
    """A version whose owner, or base, is missing or no such version."""

    key: bytes
    entry: Entry
    what: str

    @property
    def file(self) -> str:
        """The file that it lies in, relative to the store."""
        return segment_name(self.entry.segment)

    @property
    def message(self) -> str:
        """What is wrong with it."""
        entry = self.entry
        return (
            f"the version of {self.key!r:.80} that commit {entry.commit_lsn} stored has its bytes "
            f"from one of commit {entry.base}, which {self.what}"
        )


def unowned(view: View) -> Iterator[Unowned]:
    """Yield the versions of a view that do not find the bytes they refer to, or build on.

    Costs a lookup for each owner, not for each reference. A damaged index is passed over: it is
    reported by who reads all of it. What retention dropped, and still lies in a segment that was
    not rewritten, may have lost its base: nobody reads it.
    """
    found = list(_all_unowned(view))
    if view.kept is None or not found:
        yield from found
        return
    lost = {(item.key, item.entry.commit_lsn): item for item in found}
    users: dict[tuple[bytes, int], list[tuple[bytes, int]]] = {}
    for key, entry in _dependents(view):
        users.setdefault((entry.owner or key, entry.base), []).append((key, entry.commit_lsn))
    for at, item in lost.items():
        waiting, asked = [at], {at}
        while waiting:
            one = waiting.pop()
            if _is_seen(view, *one):
                yield item
                break
            following = [user for user in users.get(one, ()) if user not in asked]
            asked.update(following)
            waiting += following


def _is_seen(view: View, key: bytes, lsn: int) -> bool:
    """Whether a commit that is kept sees this version.

    In each run of commits only the first one that is kept can: others in it see no older ones.
    """
    for low in (lsn, *(start for start, _ in view.jumps.up_to(view.commit.lsn) if start > lsn)):
        first = _first_kept(view, low)
        if first is None:
            return False
        seen = view.newest(key, view.jumps.intervals_at(first))
        if seen is not None and seen.commit_lsn == lsn:
            return True
    return False


def _first_kept(view: View, low: int) -> int | None:
    """The first commit that is kept, from *low* on."""
    for first, last in view.kept or ():
        if last >= low:
            for _, row in view.commits(max(first, low), last):
                return row.lsn
    for _, row in view.commits(max(low, _after_kept(view)), view.commit.lsn):
        return row.lsn
    return None


def _after_kept(view: View) -> int:
    """From here on commits were made since retention took effect: all of them are kept."""
    return view.kept[-1][1] + 1 if view.kept else 0


def _all_unowned(view: View) -> Iterator[Unowned]:
    known: dict[tuple[bytes, int], Entry | None] = {}
    for key, entry in _dependents(view):
        at = (entry.owner or key, entry.base)
        try:
            if at not in known:
                known[at] = view.version_at(*at)
        except MldbError as error:
            yield Unowned(key, entry, f"cannot be looked up: {error}")
            continue
        what = base_fault(entry, known[at])
        if what:
            yield Unowned(key, entry, what)


def _dependents(view: View) -> Iterator[tuple[bytes, Entry]]:
    """Yield the versions that name another one."""
    for sealed in view.sealed:
        try:
            index = sealed.index
            if isinstance(index, MappedIndex):  # otherwise another segment has its versions
                yield from _dependents_in(index)
        except MldbError:
            continue
    for part in reversed(view.active):
        yield from _dependents_in(part)


def _dependents_in(part: IndexPart) -> Iterator[tuple[bytes, Entry]]:
    if isinstance(part, MappedIndex):
        for row in part.rows_with_base().tolist():
            yield part.version(row)
        return
    for key, versions in part.dump()[0].items():
        for entry in versions:
            if entry.encoding in fmt.BUILT_ENCODINGS:
                yield key, entry
