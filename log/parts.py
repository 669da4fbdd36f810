"""The sealed segments of the newest manifest, as the views show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mldb.log.grown import Grown
from mldb.log.index.pause import collection_paused
from mldb.log.manifest import SegmentInfo
from mldb.log.sealed import SealedPart
from mldb.log.segment import Segment


class SealedParts:
    """The parts of a manifest's segments, in log order. Guarded by ``LogState.mutex``.

    ``sealed`` and ``segments`` belong to views too: what is in them stays, and may be joined by
    more. So a seal costs one part. When a segment goes, both are made anew. An interrupt leaves
    what the next call can begin with.
    """

    def __init__(self, make: Callable[[SegmentInfo], SealedPart]) -> None:
        self.sealed: Grown[SealedPart] = Grown()
        self.segments: dict[bytes, Segment] = {}
        self._infos: Grown[SegmentInfo] = Grown()
        self._active = b""
        self._make = make

    @property
    def last_lsn(self) -> int:
        """LSN of the last commit in them, 0 when there is none."""
        return self.sealed[-1].until if self.sealed else 0

    def follow(self, infos: Grown[SegmentInfo], active: Segment) -> None:
        """Show these segments and the *active* one, and let go of those that are no more."""
        before = self.sealed
        if len(before) == len(self._infos) and infos.starts_with(self._infos):
            come = self._parts(infos[len(before) :], {}, self.last_lsn)
            self.sealed = before.then(come)
            names = {active.id, *(part.info.id for part in come)}
            stay = not self._active or (self._active in names and not self._is_cut(come))
        else:
            old = {part.info.id: part for part in before}
            come = self._parts(infos, old, 0)
            self.sealed = Grown(come)
            for part in old.values():
                part.release()
            stay = False
        segments = self.segments if stay else {}
        for part in come if stay else self.sealed:
            segments[part.info.id] = part.segment
        segments[active.id] = active
        self.segments = segments
        self._infos, self._active = infos, active.id

    def _is_cut(self, come: Iterable[SealedPart]) -> bool:
        """Whether the segment that was active is among these, and shorter than it was read.

        Its last commits are dropped. Views of them go on with the segment that they have.
        """
        was = self.segments.get(self._active)
        return was is not None and any(
            part.segment.valid < was.valid for part in come if part.info.id == was.id
        )

    def _parts(
        self, infos: Iterable[SegmentInfo], old: dict[bytes, SealedPart], until: int
    ) -> list[SealedPart]:
        """Make the parts of these segments, or take them out of the *old* ones."""
        parts = []
        with collection_paused():  # of thousands of them, when a store is opened
            for info in infos:
                part = old.pop(info.id, None)
                if part is None or part.info != info:
                    part = self._make(info)
                until = part.until = max(until, info.last_lsn)
                parts.append(part)
        return parts
