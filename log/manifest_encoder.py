"""Manifest files encoded, so that a whole one costs what joining its parts costs.

What a file says is a :class:`mldb.log.manifest_codec.StoredManifest`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

import msgpack

from mldb.deferred import field_names, replace
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.frame import pack, unpack
from mldb.log.lone import decode_lone, encode_lone
from mldb.log.manifest_codec import (
    SegmentInfo,
    StoredManifest,
    decode_manifest,
    decode_segment,
)

_BUFFER: Final = 1 << 12  # a packer that is made for each manifest takes 256 KiB otherwise
_KIND: Final = fmt.KIND_MANIFEST | fmt.MUST_UNDERSTAND
_SEGMENT_FIELDS: Final = field_names(SegmentInfo)
_SEGMENT_VALUES: Final = attrgetter(*_SEGMENT_FIELDS)


class PackedSegments:
    """Segments as the bytes that they have in a manifest, packed once and looked at once.

    A whole manifest then joins what is there, so that the seal that installs one holds up no commit
    for long. Only the owner of the commit lock calls it; the bases of a handle share one. Costs
    some 400 bytes for each segment.
    """

    __slots__ = ("_next", "_packed")

    def __init__(self) -> None:
        self._packed: dict[bytes, tuple[SegmentInfo, bytes]] = {}
        self._next = 0

    def bytes_of(self, info: SegmentInfo) -> bytes:
        """Return the bytes of a segment, which were decoded once.

        Raises CorruptError for one that is impossible, AssertionError when they read differently.
        """
        known = self._packed.get(info.id)
        if known is not None and (known[0] is info or known[0] == info):
            return known[1]
        data = pack(dict(zip(_SEGMENT_FIELDS, _SEGMENT_VALUES(info), strict=True)))
        try:
            found = decode_segment(unpack(data), info.id)
        except ValueError as error:
            raise CorruptError(f"a segment cannot be stored in a manifest: {error}") from None
        if found != info:
            raise AssertionError(f"{info} would not read as it was meant")
        self._packed[info.id] = info, data
        return data

    def make_ahead(self, segments: Sequence[SegmentInfo], turns: int) -> None:
        """Pack some of the *segments* of a base: all of them within so many calls."""
        rest = len(segments) - self._next
        some = segments[self._next : self._next - (-rest // max(turns, 1))] if rest > 0 else ()
        for info in some:
            self.bytes_of(info)
        self._next += len(some)

    def keep(self, segments: Iterable[SegmentInfo]) -> None:
        """Forget all others: these are the segments of the next base, and packed."""
        self._packed = {info.id: (info, self.bytes_of(info)) for info in segments}
        self._next = len(self._packed)


def encode_manifest(stored: StoredManifest, packed: PackedSegments | None = None) -> bytes:
    """Return the bytes of a manifest file of the newest version.

    *packed* has the bytes of segments that were in manifests before, and is added to.
    """
    lists = {"changes", "jumps", "kept", "version"}
    body = {
        name: getattr(stored, name) for name in field_names(StoredManifest) if name not in lists
    }
    for name in ("mark", "features"):
        part = body[name]
        body[name] = {item: getattr(part, item) for item in field_names(type(part))}
    header = encode_file_header(
        fmt.FILE_MANIFEST, stored.store_id, stored.created, number=stored.number
    )
    payload = _packed_lists(stored, packed or PackedSegments())
    parts = encode_lone(header, _KIND, pack(body), payload, fmt.MANIFEST_BODY_VERSION)
    return b"".join(parts)


def _packed_lists(stored: StoredManifest, packed: PackedSegments) -> bytes:
    """Return what ``pack((changes, jumps, kept))`` would, of segments packed one by one."""
    packer = msgpack.Packer(use_bin_type=True, autoreset=False, buf_size=_BUFFER)
    packer.pack_array_header(3)
    packer.pack_array_header(len(stored.changes))
    parts = [packer.bytes()]
    for position, count, come in stored.changes:
        packer.reset()
        packer.pack_array_header(3)
        packer.pack(position)
        packer.pack(count)
        packer.pack_array_header(len(come))
        parts.append(packer.bytes())
        parts += map(packed.bytes_of, come)
    return b"".join([*parts, pack(stored.jumps), pack(stored.kept)])


def reads_as_meant(data: bytes, name: str, stored: StoredManifest) -> bool:
    """Whether a manifest that was just encoded says what it should.

    Its segments were looked at when they were packed; so all else is encoded once more, without
    them, and decoded. Raises CorruptError where that is impossible.
    """
    outline = replace(stored, changes=())
    other = encode_manifest(outline)
    if decode_manifest(other, name) != outline:
        return False
    one, two = (
        decode_lone(memoryview(image), name, fmt.FILE_MANIFEST, fmt.KIND_MANIFEST)
        for image in (data, other)
    )
    tail = pack(stored.jumps) + pack(stored.kept)
    return one.end == len(data) and one.body == two.body and bytes(one.payload).endswith(tail)
