"""Sealing: footers, side indexes, hints, new segments and the manifests that publish them.

Everything here is done by the writer, which holds the commit lock. Order matters: the old segment
is synced before the new one is named, the new one before the manifest names it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace

from mldb.errors import StorageError, StorageIOError
from mldb.log import format as fmt
from mldb.log.active import chain_start, hint_name
from mldb.log.frame import decode_commit, encode_file_header
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import Entry
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe, index_frame
from mldb.log.index.memory import MemoryIndex
from mldb.log.manifest import PENDING, Manifest, Mark, SegmentInfo, install_manifest
from mldb.log.recovery import LOST
from mldb.log.segment import SEGMENTS, segment_name
from mldb.log.state import LogState

_log = logging.getLogger("mldb")


class Sealer:
    """The file work of a writer. Only the thread that holds the commit lock calls it."""

    def __init__(self, state: LogState, metadata_of: MetadataOf | None) -> None:
        self._state = state
        self._metadata_of = metadata_of

    def append_footer(self, durable: int) -> SegmentInfo:
        """Append the footer to the active segment, not yet synced; return its description."""
        state = self._state
        active = state.active
        offset = active.cursor.offset
        buffers = self._index(state.last_lsn(), durable, offset)
        end = offset + active.file.pwritev(buffers, offset)
        return describe(active, state.last_lsn(), end, "", offset)

    def _index(self, last_lsn: int, durable: int, offset: int) -> list[Buffer]:
        return index_frame(self._state.active, last_lsn, durable, offset, self._metadata_of)

    def roll(self, info: SegmentInfo, lsn_floor: int = 0) -> None:
        """Start the next segment and install the manifest that seals this one."""
        state = self._state
        number = info.number + 1
        known = (info.last_lsn, lsn_floor, state.manifest.lsn_floor, state.active.cursor.last_lsn)
        last_lsn = max(known)
        name = f"{PENDING}/{os.urandom(16).hex()}-0.seg"
        store_id = state.manifest.store_id
        header = encode_file_header(
            fmt.FILE_SEGMENT, store_id, number, last_lsn + 1, state.fs.time_ns()
        )
        try:
            self._write_file(name, [header], sync=True)
            self.install_segment(info, number, name, last_lsn)
        finally:
            state.fs.unlink(name)

    def install_segment(
        self, info: SegmentInfo | None, number: int, name: str, last_lsn: int
    ) -> None:
        """Publish file *name* as segment *number*, the new active one, and *info* as sealed."""
        state = self._state
        fs = state.fs
        if not fs.link(name, segment_name(number)):
            self._set_aside(number)
            fs.link(name, segment_name(number))
        fs.sync_dir(SEGMENTS)
        manifest = state.manifest
        store_id = manifest.store_id
        self.install(
            replace(
                manifest,
                segments=manifest.segments if info is None else (*manifest.segments, info),
                active=number,
                active_origin=store_id,
                mark=Mark(number, fmt.FILE_HEADER_SIZE, last_lsn, chain_start(store_id, number)),
                lsn_floor=max(manifest.lsn_floor, last_lsn),
                jumps=(*manifest.jumps, *state.active.jumps),
            )
        )
        with contextlib.suppress(StorageError):  # the segment is published, whatever this does
            fs.unlink(hint_name(number - 1))

    def _set_aside(self, number: int) -> None:
        """Free the name of a segment that no manifest names.

        A process that died before its manifest left it, so nobody was told of what it holds. It is
        kept all the same when it holds anything: the manifest may have been deleted by hand.
        """
        fs = self._state.fs
        name = segment_name(number)
        file = fs.open(name, "r")
        try:
            empty = file.size() <= fmt.FILE_HEADER_SIZE
        finally:
            file.close()
        if empty:
            fs.unlink(name)
            return
        saved = f"{LOST}/{number:010d}-{fs.time_ns()}.seg"
        fs.rename(name, saved)
        fs.sync_dir(LOST)
        self._state.distrusted.append(f"{name}: no manifest names it; it was moved to {saved}")
        _log.warning("%s: no manifest names it; it was moved to %s", name, saved)

    def install(self, manifest: Manifest) -> None:
        """Install the next manifest and follow it."""
        state = self._state
        state.announce(state.next_number)
        if not install_manifest(state.fs, replace(manifest, number=state.next_number)):
            raise StorageIOError(
                f"manifest {state.next_number} appeared although this process holds the commit "
                "lock. Nothing was stored. Does another machine use this folder over a network "
                "file system without locks?"
            )
        state.named = state.next_number
        with state.mutex:
            state.follow()
            state.publish()

    def close_at(self, last_lsn: int, durable: int) -> None:
        """Close the active segment behind commit *last_lsn* and go on in a new one, LSNs far ahead.

        *durable* is the last commit known to be durable. What follows in the file stays and is
        ignored; the index goes to a file of its own, because nothing is ever appended behind a torn
        tail.
        """
        state = self._state
        active = state.active
        highest = active.cursor.last_lsn
        self._cut(last_lsn)
        number = active.segment.number
        name = segment_name(number).replace(".seg", ".idx")
        header = encode_file_header(
            fmt.FILE_INDEX, active.segment.store_id, number, 0, state.fs.time_ns()
        )
        buffers = self._index(last_lsn, durable, fmt.FILE_HEADER_SIZE)
        state.fs.unlink(name)
        self._write_file(name, [header, *buffers], sync=True)
        info = describe(active, last_lsn, active.cursor.offset, name, fmt.FILE_HEADER_SIZE)
        self.roll(info, max(highest, last_lsn) + fmt.LSN_JUMP)

    def _cut(self, last_lsn: int) -> None:
        """Forget the commits of the active segment above *last_lsn*."""
        state = self._state
        active = state.active
        if state.last_lsn() <= last_lsn:
            return
        memory = MemoryIndex()
        entries, commits = active.memory.dump()
        by_lsn: dict[int, list[tuple[bytes, Entry]]] = {}
        for key, versions in entries.items():
            for entry in versions:
                by_lsn.setdefault(entry.commit_lsn, []).append((key, entry))
        for row in commits:
            if row.lsn <= last_lsn:
                memory.add(row, by_lsn.get(row.lsn, []))
        active.count -= active.memory.entry_count() - memory.entry_count()
        active.memory = memory
        active.jumps = [item for item in active.jumps if item[0] <= last_lsn]
        cursor = active.cursor
        cursor.offset = fmt.FILE_HEADER_SIZE
        cursor.chain = chain_start(active.segment.store_id, active.segment.number)
        for part in active.parts():
            last = part.commit_at(last_lsn)
            if last is not None:
                frame, body = active.segment.frame(last.end)
                cursor.offset = frame.end
                cursor.chain = decode_commit(body).digest

    def write_hint(self, durable: int) -> None:
        """Save the index of the active segment as a hint; *durable* is the last durable commit.

        Losing it costs a scan and nothing else, so it is not synced.
        """
        state = self._state
        segment = state.active.segment
        temporary = f"{PENDING}/{os.urandom(16).hex()}.idx"
        header = encode_file_header(
            fmt.FILE_HINT, segment.store_id, segment.number, 0, state.fs.time_ns()
        )
        buffers = self._index(state.last_lsn(), durable, fmt.FILE_HEADER_SIZE)
        self._write_file(temporary, [header, *buffers], sync=False)
        state.fs.rename(temporary, hint_name(segment.number))

    def _write_file(self, name: str, buffers: list[Buffer], *, sync: bool) -> None:
        file = self._state.fs.open(name, "create")
        try:
            file.pwritev(buffers, 0)
            if sync:
                file.sync()
        finally:
            file.close()
