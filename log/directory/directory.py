"""The directory of one handle: it finds the parts that fit a manifest, and has new ones made."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from mldb.errors import MldbError
from mldb.log.directory.part import Files, Part, PartInfo, digest_of
from mldb.log.directory.units import Unit, Units
from mldb.log.sealed import SealedPart
from mldb.log.segment import SegmentGoneError

DUE: Final = 16
"""From so many segments without a part on, the directory is worth making."""


class Directory:
    """Finds the parts of the directory. Any thread.

    A part is believed when the manifest has exactly the segments that it covers, in their places;
    where one is missing, damaged or foreign, its segments are asked one by one. ``_known`` are the
    parts found last, by id, and ``_bad`` those that turned out to be no good; both are only ever
    replaced or added to.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.made = 0
        """Parts that this handle made."""
        self.failed = 0
        """Times that it could not make one: a full disk, a damaged footer."""
        self.distrusted = 0
        """Parts that turned out to be damaged or foreign."""
        self.on_loss: Callable[[], None] = lambda: None
        """Called when a part is no more: the units are to be found again."""
        self.on_need: Callable[[], None] = lambda: None
        """Called when parts are due, or one is no more; it does not wait."""
        self.on_seal: Callable[[], None] = lambda: None
        """Called when this handle sealed a segment; the commit lock is held, it does not wait."""
        self._seals = 0
        self._known: dict[bytes, Part] = {}
        self._bad: set[bytes] = set()

    def units(self, sealed: Sequence[SealedPart]) -> list[Unit]:
        """What :meth:`find` returns, for a lookup: where parts are due, they are asked for."""
        found = self.find(sealed)
        if sum(not isinstance(unit, Part) for unit in found) >= DUE:
            self.on_need()
        return found

    def note_seal(self) -> None:
        """Tell that this handle sealed a segment; the commit lock is held."""
        self._seals += 1
        if self._seals >= DUE:
            self._seals = 0
            self.on_need()
        self.on_seal()

    def find(self, sealed: Sequence[SealedPart]) -> list[Unit]:
        """Return the units over these segments, in log order: parts, and segments in none."""
        from mldb.log.directory.catalog import load_catalog

        units: list[Unit] = []
        known: dict[bytes, Part] = {}
        done = 0
        for info in load_catalog(self.files.fs):
            start, stop = info.start, info.start + info.segments
            part = self._part(info, tuple(sealed[start:stop])) if start >= done else None
            if part is not None:
                known[info.id] = part
                units += sealed[done:start]
                units.append(part)
                done = stop
        self._known = known
        units += sealed[done:]
        return units

    def _part(self, info: PartInfo, run: tuple[SealedPart, ...]) -> Part | None:
        """The part over these segments; None when it covers others, or is no good."""
        if info.id in self._bad:
            return None
        part = self._known.get(info.id)
        if part is not None and part.info == info and part.sealed == run:
            return part
        if len(run) < info.segments or digest_of([part.info for part in run]) != info.covers:
            return None  # of a manifest before or after, or of another store
        this = weakref.ref(self)  # a strong one would make a ring

        def lost(part: Part, error: MldbError) -> None:
            directory = this()
            if directory is not None:
                directory._lost(part, error)

        return Part(self.files, info, run, lost)

    def _lost(self, part: Part, error: MldbError) -> None:
        self._bad.add(part.info.id)
        self.on_loss()
        self.on_need()
        if isinstance(error, SegmentGoneError):
            return  # a larger part took its place, which the next lookup finds
        self.distrusted += 1
        import logging

        logging.getLogger("mldb").warning(
            "a part of the directory is no good and will be made anew; nothing is lost: %s", error
        )

    def stats(self, units: Units) -> dict[str, Any]:
        """What it covers, and what lookups touched."""
        from mldb.log.directory.tiers import tier_of

        found = units.newest_first
        parts = [unit for unit in found if isinstance(unit, Part)]
        return {
            "parts": len(parts),
            "segments": sum(part.info.segments for part in parts),
            "uncovered": len(found) - len(parts),
            "versions": sum(part.info.versions for part in parts),
            "tiers": sorted(tier_of(part.info.versions) for part in parts),
            "mapped_bytes": sum(part.mapped_bytes for part in parts),
            "lookups": units.lookups,
            "touched": units.touched,
            "distrusted": self.distrusted,
            "made": self.made,
            "failed": self.failed,
        }
