"""``mldb.repair``: what is readable of a damaged store, in a new one."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from mldb.errors import InvalidValueError
from mldb.log import format as fmt
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow
from mldb.log.index.lineage import Jumps, is_left, newest_visible
from mldb.log.manifest import Kept
from mldb.log.rebuild import StoreBuilder
from mldb.log.salvage import FoundCommit, FoundFile
from mldb.log.segment import segment_name
from mldb.tensors.metadata import metadata_columns
from mldb.tools.repair.deciding import Deciding
from mldb.tools.repair.finding import DamagedStore, best_commits, damage_of, look_through
from mldb.tools.repair.report import Lost, RepairReport
from mldb.tools.replay.source import store_folder
from mldb.tools.replay.unfinished import UnfinishedStore

_TOLD_EVERY: Final = 1024
_Best = dict[int, tuple[FoundFile, FoundCommit]]


def repair(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Salvage what is readable of the damaged store *source* into a new one at *target*.

    Nothing of the source is changed or opened for writing; close it in other processes first.
    Neither its manifests nor its indexes need to be there: segments are searched for whole frames,
    and the names of what is lost come from whatever index is left. Commits keep their LSN, epoch,
    time and id. What is reported as lost by name does not exist from its commit on, until it was
    stored again; what is lost without a name may show an older value. *progress* is told how far it
    is, done and in all: half of it is reading, half writing; it may raise to stop. One thread.
    Raises CorruptError when nothing of a store is there, InvalidValueError for a target that is not
    empty, StorageFullError, StorageIOError.
    """
    files = store_folder(source)
    one = os.path.realpath(files.root)
    two = os.path.realpath(os.path.expanduser(os.fspath(target)))
    if two == one or two.startswith(one + os.sep):
        raise InvalidValueError(
            f"the target {two} is the damaged store, or lies inside it. Give a new folder "
            "elsewhere; nothing was changed."
        )
    advance = progress or (lambda done, total: None)
    found = look_through(files, advance)
    folder = store_folder(target, create=True)
    return _Repair(files, folder, found, advance).run()


class _Repair:
    """One repair. One thread."""

    def __init__(
        self,
        source: FileSystem,
        folder: FileSystem,
        found: DamagedStore,
        progress: Callable[[int, int], None],
    ) -> None:
        self.source = source
        self.folder = folder
        self.found = found
        self.progress = progress
        self.deciding = Deciding()
        self.lost = self.deciding.lost
        self.reattached: list[tuple[int, int]] = []

    def run(self) -> RepairReport:
        """Write the new store and say what is in it."""
        found = self.found
        unfinished = UnfinishedStore(self.folder, {"repair": found.store_id})
        try:
            unfinished.begin_anew()
            builder = StoreBuilder(self.folder, found.store_id, metadata_columns)
            try:
                best = best_commits(found)
                self._lose_segments(best)
                self._write(builder, best)
                self._lose_ends(best)
                builder.publish(self._kept(best), ())
            finally:
                builder.close()
            unfinished.finished()
        finally:
            unfinished.close()
        return RepairReport(
            source=self.source.root,
            target=self.folder.root,
            commits=builder.commits,
            versions=self.deciding.versions,
            bytes=sum(info.length for info in builder.segments),
            files=len(found.files),
            lost=tuple(self.lost),
            damage=tuple(damage_of(found)),
            unused=tuple(found.unused),
            reattached=tuple(self.reattached),
            uncertain=found.manifest is None or found.lacks_manifest,
            notes=tuple(found.notes),
        )

    # --- commits ----------------------------------------------------------------------------------

    def _write(self, builder: StoreBuilder, best: _Best) -> None:
        there: list[int] = []
        jumps = self._jumps(best)
        known = set(best)
        total = len(best)
        before: tuple[FoundFile | None, int] = None, 0  # the file and the LSN of the one before
        for number, (lsn, (file, commit)) in enumerate(best.items()):
            row, (its_file, last), before = commit.row, before, (file, lsn)
            if row is None:
                self._lose_commit(file, commit)
                if its_file is file:
                    self._lose_before(file, commit, last)
                continue
            records = self.deciding.records(file, commit)
            parent = self._parent(row, there, jumps, known)
            extra = {} if commit.body is None else commit.body.extra
            builder.append(row._replace(parent=parent), records, extra)
            there.append(lsn)
            if number % _TOLD_EVERY == 0:
                self.progress(total + number, 2 * total)
        self.progress(2 * total, 2 * total)

    def _parent(self, row: CommitRow, there: Sequence[int], jumps: Jumps, known: set[int]) -> int:
        """The commit that one continues from: its parent, or the nearest before that is there."""
        parent = row.parent
        if not parent:
            return 0
        place = newest_visible(there, jumps.intervals_at(parent))
        nearest = there[place] if place >= 0 else 0
        if nearest != parent:
            self.reattached.append((row.lsn, nearest))
            if parent not in known:
                known.add(parent)
                first = there[-1] + 1 if there else 1
                why = "nothing of these was found; a later commit names the last as its parent"
                self.lost.append(Lost("commit", "", None, min(first, parent), "", 0, why, parent))
        return nearest

    def _jumps(self, best: _Best) -> Jumps:
        """Where the lineage jumps: as manifests, indexes and commits say, whichever are left."""
        found: dict[int, int] = {}
        if self.found.manifest is not None:
            found.update(self.found.manifest.jumps[:])
        before = 0
        for lsn, (_, commit) in best.items():
            row = commit.row
            if row is None:
                continue
            # A parent that is not there may have been the one just before, so that is no jump.
            if row.parent < before and row.parent != before:
                found[lsn] = row.parent
            before = lsn
        return Jumps.of(sorted((lsn, to) for lsn, to in found.items() if 0 <= to < lsn))

    def _lose_commit(self, file: FoundFile, commit: FoundCommit) -> None:
        """Note a commit of which frames were found, but not what closed it."""
        last = max(file.commits)
        at = min((frame.frame.offset for frame in commit.frames), default=0)
        why = "its commit frame is damaged, and no index has its epoch and time"
        if commit.lsn == last and not file.has_index:
            why = "it was never committed, or its commit frame is damaged"
        self.lost.append(Lost("commit", "", None, commit.lsn, file.name, at, why))

    def _lose_before(self, file: FoundFile, commit: FoundCommit, before: int) -> None:
        """Note what stood between commit *before* of a file and one that lost its parent."""
        first = min((frame.frame.header.lsn for frame in commit.frames), default=0)
        if before + 1 < first:
            why = "nothing of these was found, and the commit behind them is damaged"
            self.lost.append(Lost("unknown", "", None, before + 1, file.name, 0, why, first - 1))

    def _lose_ends(self, best: _Best) -> None:
        """Note commits that a segment began or ended with, and of which nothing is left.

        Who follows names the last as its parent, unless that is damaged as well.
        """
        manifest, there, lsns = self.found.manifest, {}, list(best)
        for file in self.found.files:
            if file.identity.kind == fmt.FILE_SEGMENT:
                there[file.identity.segment_id] = file.name
        told = [
            range(lost.lsn, (lost.last_lsn or lost.lsn) + 1)
            for lost in self.lost
            if lost.what in ("unknown", "commit") and lost.lsn is not None
        ]
        for info in () if manifest is None else manifest.segments:
            name = there.get(info.id)
            if name is None or info.kind != fmt.FILE_SEGMENT or not info.last_lsn:
                continue
            found = lsns[bisect_left(lsns, info.first_lsn) : bisect_right(lsns, info.last_lsn)]
            first, last = (found[0], found[-1]) if found else (info.last_lsn + 1, info.last_lsn)
            for low, high in ((info.first_lsn, first - 1), (last + 1, info.last_lsn)):
                if low <= high and not any(low in each and high in each for each in told):
                    why = "the manifest names these, and nothing of them was found"
                    self.lost.append(Lost("unknown", "", None, low, name, 0, why, high))

    def _lose_segments(self, best: _Best) -> None:
        """Note what is lost with the segments that are not there, as far as the manifest says."""
        for info in self.found.missing:
            if any(info.first_lsn <= lsn <= info.last_lsn for lsn in best):
                continue  # a copy that compaction left, or that it was made of, stands for it
            self.lost.append(
                Lost(
                    *("unknown", "", info.first_epoch, info.first_lsn, segment_name(info.id), 0),
                    "the segment is missing",
                    info.last_lsn,
                )
            )
        manifest = self.found.manifest
        last = max(best, default=0)
        if manifest is not None and (last < manifest.mark.lsn or self.found.lacks_active):
            is_gone = self.found.lacks_active
            until = manifest.lsn_ceiling if is_gone else manifest.mark.lsn
            name = segment_name(manifest.active if is_gone else manifest.mark.segment)
            why = "the active segment is missing" if is_gone else "the end of the log is missing"
            self.lost.append(Lost("unknown", "", None, last + 1, name, 0, why, until))
        for file in self.found.files:
            if file.identity.kind == fmt.FILE_COMPACTED and not file.has_index and file.damage:
                item = file.damage[0]
                why = "the index of a compacted segment is damaged: what its frames held is unknown"
                self.lost.append(Lost("unknown", "", None, None, file.name, item.offset, why))

    # --- retention --------------------------------------------------------------------------------

    def _kept(self, best: _Best) -> Kept | None:
        """The commits that retention left.

        Of a compacted segment that the manifest does not name, or where there is none, nobody knows
        which of its commits were left; they are not said to be.
        """
        manifest = self.found.manifest
        kept = None if manifest is None else manifest.kept
        listed = set() if manifest is None else {info.id for info in manifest.segments}
        unsafe = {
            file.identity.segment_id
            for file in self.found.files
            if file.identity.kind == fmt.FILE_COMPACTED and file.identity.segment_id not in listed
        }
        lsns = [lsn for lsn, (_, commit) in best.items() if commit.row is not None]
        doubted = {lsn for lsn in lsns[:-1] if best[lsn][0].identity.segment_id in unsafe}
        if not doubted:
            return kept
        self.found.notes.append(
            "which commits retention left is not known of compacted segments that no manifest "
            "names: they cannot be visited, but each version in them is there"
        )
        left = [lsn for lsn in lsns if lsn not in doubted and is_left(lsn, kept)]
        return tuple((lsn, lsn) for lsn in left)
