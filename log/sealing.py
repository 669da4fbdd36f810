"""Sealing: footers, side indexes, hints, new segments and the manifests that publish them.

Everything here is done by the sequencer, which holds the commit lock. Order matters: the old
segment is synced before the new one is named, the new one before the manifest names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from mldb.deferred import replace
from mldb.errors import StorageError, StorageIOError
from mldb.log import format as fmt
from mldb.log.active import chain_start, hint_name
from mldb.log.file_header import encode_file_header
from mldb.log.frame import decode_commit
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import Entry
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe, index_frame
from mldb.log.index.memory import MemoryIndex
from mldb.log.lone import discard, publish_over, write_pending
from mldb.log.manifest import (
    Manifest,
    Mark,
    SegmentInfo,
    install_manifest,
    refuse_to_write,
    remove_old,
)
from mldb.log.orphans import is_needed, orphans
from mldb.log.recovery import LOST
from mldb.log.segment import SEGMENTS, segment_name
from mldb.log.state import LogState


class Sealer:
    """The file work of a sequencer. Only the thread that holds the commit lock calls it.

    *owner* returns the name of the registration, which prefixes the files it makes.
    """

    def __init__(
        self, state: LogState, metadata_of: MetadataOf | None, owner: Callable[[], str]
    ) -> None:
        self._state = state
        self._metadata_of = metadata_of
        self._owner = owner

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

    def roll(self, info: SegmentInfo | None, *, jump: bool = False) -> None:
        """Start the next segment and install the manifest that seals this one as *info* says.

        *jump*: LSNs go on at the ceiling, because some below it may have been given out that the
        log does not hold any more.
        """
        state = self._state
        manifest = state.manifest
        floor = max(manifest.lsn_floor, state.active.cursor.last_lsn)
        if jump:
            floor = max(floor, ceiling_of(state) - 1)
        segment_id = os.urandom(len(fmt.NO_ID))
        header = encode_file_header(
            fmt.FILE_SEGMENT,
            manifest.store_id,
            state.fs.time_ns(),
            segment_id=segment_id,
            base_lsn=floor + 1,
            published=state.next_number,
        )
        name = write_pending(state.fs, self._owner(), [header], sync=True)
        try:
            start = chain_start(manifest.store_id, segment_id)
            mark = Mark(segment_id, fmt.FILE_HEADER_SIZE, floor, start)
            self.install_segment(info, name, mark, floor)
        finally:
            discard(state.fs, name)

    def install_segment(
        self, info: SegmentInfo | None, name: str, mark: Mark, lsn_floor: int
    ) -> None:
        """Publish file *name* as the new active segment, which *mark* names, and *info* as sealed.

        Without *info* the segment that was active holds nothing and is never read again.
        """
        state = self._state
        fs, manifest, old = state.fs, state.manifest, state.active
        if not fs.link(name, segment_name(mark.segment)):
            raise StorageIOError(
                f"{segment_name(mark.segment)} exists already. Nothing was stored."
            )
        fs.sync_dir(SEGMENTS)
        self.install(
            replace(
                manifest,
                segments=manifest.segments.then([] if info is None else [info]),
                active=mark.segment,
                active_origin=manifest.store_id,
                mark=mark,
                lsn_floor=lsn_floor,
                lsn_ceiling=max(ceiling_of(state), lsn_floor + 1 + fmt.LSN_CEILING_STEP),
                jumps=state.jumps,
            )
        )
        with contextlib.suppress(StorageError):  # the segment is published, whatever this does
            fs.unlink(hint_name(old.id))
        state.directory.note_seal()

    def install(self, manifest: Manifest) -> None:
        """Install the next manifest and follow it."""
        state = self._state
        fs, previous = state.fs, state.manifest
        refuse_to_write(fs, previous)
        number = state.next_number
        state.announce(number)
        wanted = replace(
            manifest,
            number=number,
            origins=manifest.origins or (manifest.store_id,),
            predecessor=previous.digest,
            version=fmt.FORMAT_VERSION,
        )
        installed = install_manifest(fs, wanted, self._owner())
        if installed is None:
            raise StorageIOError(
                f"manifest {number} appeared although this process holds the commit lock. Nothing "
                "was stored. Does another machine use this folder over a network file system "
                "without locks?"
            )
        state.named = number
        remove_old(fs, previous, installed)
        state.adopt(installed)
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
        self._cut(last_lsn)
        if not active.has_commits():
            self.roll(None, jump=True)
            return
        name = segment_name(active.id).replace(".seg", ".idx")
        header = encode_file_header(
            fmt.FILE_INDEX, active.segment.store_id, state.fs.time_ns(), segment_id=active.id
        )
        buffers = self._index(last_lsn, durable, fmt.FILE_HEADER_SIZE)
        publish_over(state.fs, self._owner(), [header, *buffers], name, sync=True)
        info = describe(active, last_lsn, active.cursor.offset, name, fmt.FILE_HEADER_SIZE)
        self.roll(info, jump=True)

    def _cut(self, last_lsn: int) -> None:
        """Forget the commits of the active segment above *last_lsn*."""
        state = self._state
        active = state.active
        if state.last_lsn() <= last_lsn:
            return
        memory = MemoryIndex()
        by_lsn: dict[int, list[tuple[bytes, Entry]]] = {}
        for part in (*reversed(active.frozen), active.memory):
            entries, commits = part.dump()
            for key, versions in entries.items():
                for entry in versions:
                    by_lsn.setdefault(entry.commit_lsn, []).append((key, entry))
            for row in commits:
                stored = by_lsn.get(row.lsn, [])
                if row.lsn <= last_lsn:
                    memory.add(row, stored)
                else:
                    active.count -= len(stored)
        active.memory, active.frozen, active.merged = memory, (), None
        active.settled = active.count - memory.entry_count()
        active.jumps = [item for item in active.jumps if item[0] <= last_lsn]
        state.jumps = state.manifest.jumps.after(active.jumps)
        cursor = active.cursor
        cursor.offset = fmt.FILE_HEADER_SIZE
        cursor.chain = chain_start(active.segment.store_id, active.id)
        for index in active.parts():
            last = index.commit_at(last_lsn)
            if last is not None:
                frame, body = active.segment.frame(last.end)
                cursor.offset = frame.end
                cursor.chain = decode_commit(body).digest

    def clear_orphans(self) -> None:
        """Clear away segments that were named for a manifest which was never installed.

        A process that died in between left them, so nobody was told of what they hold. One that
        holds anything is kept all the same: the manifest may have been deleted by hand.
        """
        state = self._state
        fs = state.fs
        for orphan in orphans(fs, state.manifest):
            if orphan.published <= state.manifest.number:
                continue
            if orphan.is_empty or orphan.kind == fmt.FILE_COMPACTED:
                if not is_needed(fs, state.manifest, orphan):
                    discard(fs, orphan.name)
                continue
            saved = f"{LOST}/{fmt.id_text(orphan.id)}-{fs.time_ns()}.seg"
            fs.rename(orphan.name, saved)
            fs.sync_dir(LOST)
            text = f"{orphan.name}: no manifest names it; it was moved to {saved}"
            state.distrusted.append(text)
            import logging

            logging.getLogger("mldb").warning("%s", text)

    def hint_will_do(self, commits: int) -> bool:
        """Whether the hint that is there may stay at a close; *commits* are those of this handle.

        Who committed much leaves little to be scanned. Who added a few to what a killed process
        left does not pay for that: the hint is merged when as much has come as between two others.
        """
        active = self._state.active
        versions = 0 if active.hinted is None else active.hinted.entry_count()
        if versions < fmt.HINT_VERSIONS >> 3:
            return False  # a new one costs next to nothing
        newer = max(
            active.count - versions, sum(part.commit_count() for part in active.parts()[:-1])
        )
        room = fmt.HINT_LACKS_MAX
        if commits <= fmt.HINT_LACKS_MAX:
            room += fmt.HINT_VERSIONS
        return newer <= min(versions >> 3, room)

    def write_hint(self, durable: int) -> None:
        """Save the index of the active segment as a hint; *durable* is the last durable commit.

        Losing it costs a scan and nothing else, so it is not synced.
        """
        state = self._state
        segment = state.active.segment
        header = encode_file_header(
            fmt.FILE_HINT, segment.store_id, state.fs.time_ns(), segment_id=segment.id
        )
        buffers = self._index(state.last_lsn(), durable, fmt.FILE_HEADER_SIZE)
        publish_over(state.fs, self._owner(), [header, *buffers], hint_name(segment.id))


def ceiling_of(state: LogState) -> int:
    """The LSN that none has reached: in version 1, which has no ceiling, one far enough ahead."""
    manifest, active = state.manifest, state.active
    if manifest.lsn_ceiling:
        return manifest.lsn_ceiling
    last = max(active.cursor.last_lsn, manifest.lsn_floor)
    mark = manifest.mark
    is_clean = mark.segment == active.id and mark.offset == active.cursor.offset == active.seen
    return last + 1 if is_clean else last + fmt.LSN_CEILING_STEP
