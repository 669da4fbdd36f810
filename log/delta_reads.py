"""Reading deltas: the chain that a version is decoded from, and the pieces that a part needs."""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from mldb.log import format as fmt
from mldb.log.chain import DEPTH_MAX, Cache, Decode, stored_form, wrong_base
from mldb.log.index.address import Entry
from mldb.log.view import View

PIECE_LOG2: Final = 20
"""A part of a delta is decoded in pieces of so many bytes: a chunk or a few of what is written."""
FEW_PIECES: Final = 2
"""Parts in so many pieces are decoded by themselves, and kept so."""


class Versions(Protocol):
    """What is asked of the door: see ``mldb.log.door``."""

    def version(
        self, view: View, key: bytes | None, entry: Entry, size: int, name: str, depth: int = ...
    ) -> memoryview:
        """Return the decoded bytes of one version."""

    def part(
        self, view: View, key: bytes | None, entry: Entry, size: int, low: int, high: int, name: str
    ) -> memoryview:
        """Return decoded bytes low..high of one version."""

    def opened(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[View, Entry, memoryview]:
        """Return the stored bytes of a holder, with its entry as it lies now and the view of it."""

    def base_of(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[bytes, Entry]:
        """Return key and entry of the version that this one builds on."""


class DeltaReads:
    """Decodes versions together with those that they build on. Any thread; see ``Door``.

    The door is passed to each call: held here, the two would keep each other, and a forgotten store
    its descriptors, until garbage is collected.
    """

    __slots__ = ("_cache", "_decode")

    def __init__(self, decode: Decode, cache: Cache) -> None:
        self._decode, self._cache = decode, cache

    def decode(
        self,
        door: Versions,
        view: View,
        key: bytes | None,
        entry: Entry,
        data: memoryview,
        size: int,
        span: tuple[int, int],
        name: str,
        depth: int = DEPTH_MAX,
    ) -> memoryview:
        """Return decoded bytes of an encoded version, *data* as stored, with what it builds on.

        This goes down to a version that builds on none, or to one whose bytes are at hand. Those in
        between are not kept: they cost less than the memory that would hold them.
        """
        chain = [stored_form(entry, data)]
        base: memoryview | None = None
        while base is None and entry.encoding == fmt.ENCODING_DELTA:
            if not depth:
                raise wrong_base(entry, name, f"builds on {DEPTH_MAX} others, or on itself")
            above, depth = entry, depth - 1
            key, entry = door.base_of(view, key, entry, name)
            if self._is_link(entry, size, span):
                view, entry, data = door.opened(view, key, entry, name)
                if entry.encoding not in (fmt.ENCODING_RAW, fmt.ENCODING_PATCH):
                    chain.append(stored_form(entry, data))
                    continue
            if span == (0, size):
                base = door.version(view, key, entry, size, name, depth)
            else:
                base = door.part(view, key, entry, size, *span, name)
            if len(base) != span[1] - span[0]:
                raise wrong_base(above, name, f"has {len(base)} bytes, and not {size}")
        return self._decode(chain[::-1], size, name, base, span[0])

    def _is_link(self, entry: Entry, size: int, span: tuple[int, int]) -> bool:
        """Whether a version is decoded together with those on it: it is not at hand, nor kept."""
        if entry.encoding == fmt.ENCODING_DELTA:
            return self._cache.find((entry.segment, entry.offset)) is None
        is_other = entry.encoding in (fmt.ENCODING_RAW, fmt.ENCODING_PATCH)
        return not is_other and span == (0, size) and not self._cache.keeps(size)

    def part(
        self,
        door: Versions,
        view: View,
        key: bytes | None,
        entry: Entry,
        size: int,
        span: tuple[int, int],
        name: str,
    ) -> memoryview:
        """Return bytes of a delta: from the pieces that they lie in, if all is not at hand.

        Few pieces are kept, each by itself; of more, the whole version is, where there is room.
        """
        (low, high), place = span, (entry.segment, entry.offset)
        first = low >> PIECE_LOG2
        stop = max(-(-high >> PIECE_LOG2), first)
        is_few = stop - first <= FEW_PIECES < size >> PIECE_LOG2
        if (not is_few and self._cache.keeps(size)) or self._cache.find(place) is not None:
            return door.version(view, key, entry, size, name)[low:high]
        pieces = partial(self._pieces, door, view, key, entry, size, name)
        start = first << PIECE_LOG2
        if not is_few:
            return pieces(first, stop)[low - start : high - start]
        found = [
            self._cache.get((*place, number), 1 << PIECE_LOG2, partial(pieces, number, number + 1))
            for number in range(first, stop)
        ]
        data = found[0] if len(found) == 1 else memoryview(b"".join(found))
        return data[low - start : high - start]

    def _pieces(
        self,
        door: Versions,
        view: View,
        key: bytes | None,
        entry: Entry,
        size: int,
        name: str,
        first: int,
        stop: int,
    ) -> memoryview:
        """Decode pieces *first* to *stop* of a delta."""
        span = first << PIECE_LOG2, min(stop << PIECE_LOG2, size)
        view, entry, data = door.opened(view, key, entry, name)
        if entry.encoding != fmt.ENCODING_DELTA:  # it was replaced meanwhile
            return door.part(view, key, entry, size, *span, name)
        return self.decode(door, view, key, entry, data, size, span, name)
