"""``mldb.replay``: one store's events into a new store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from mldb.arrays import Numbers
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.history.as_of import AsOf
from mldb.history.kinds import KNOWN_KINDS
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import Lsn
from mldb.log.index.opened import open_index
from mldb.log.log import Log
from mldb.log.manifest import refuse_to_write
from mldb.log.rebuild import StoreBuilder
from mldb.log.segment import Segment
from mldb.options import Options
from mldb.tensors.metadata import metadata_columns
from mldb.tools.replay.changed import TensorChange, Transform
from mldb.tools.replay.chosen import NameChoice
from mldb.tools.replay.records import batch_extra
from mldb.tools.replay.report import ReplayReport
from mldb.tools.replay.selection import WantedNames, chooser, described_names, function_name
from mldb.tools.replay.source import ReplaySource, store_folder
from mldb.tools.replay.staying import Staying
from mldb.tools.replay.unfinished import UnfinishedStore
from mldb.tools.replay.whole import ReplayProgress, replay_whole

_TOLD_EVERY: Final = 1024


def replay(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    until: AsOf = None,
    names: WantedNames = None,
    transform: Transform | None = None,
    verify: bool = False,
    progress: ReplayProgress | None = None,
) -> ReplayReport:
    """Write the store *source* anew at *target* from its events, and return what was done.

    *until* (epoch, Lsn, datetime, tag or checkpoint name; None is the head): the last commit, with
    all lineages up to it. *names*: prefixes, globs, or a function of a name; tensors and lakes that
    it leaves out are left out, with relationships to such tensors and checkpoints of such tensors.
    *transform*: ``(name, array, metadata)`` to the three of the new store, or None to leave a
    tensor out; the array is read-only, and what is returned as it came is stored as it was. Every
    commit keeps its LSN, epoch, time and id; those with nothing left are left out, but for the last
    one and those that tags, pins and rewinds name. Of a compacted source goes over what is left.

    The source is opened read-only, may be written to and compacted meanwhile, and is never changed.
    The target is a store at the very end; a call with the same arguments continues a killed one
    (functions are known by their names).
    *verify* then compares every commit. *progress* is told LSNs, done and in all; it may raise to
    stop. One thread. Raises InvalidValueError (a target that is not empty, or is the source),
    MissingError, VersionGoneError, LockedError, CorruptError, StorageFullError, StorageIOError.
    """
    if transform is not None and not callable(transform):
        raise InvalidTypeError(f"transform is a {type(transform).__name__}, not a function")
    chosen = chooser(names)
    files, folder = store_folder(source), _target_folder(source, target)
    began = time.monotonic()
    advance = progress or (lambda done, total: None)
    with ReplaySource(files) as found:
        refuse_to_write(files, found.log.state.manifest)  # what cannot be written anew
        work = _Replay(found, folder, chosen, transform, advance)
        report = work.run(until, names, began)
    if not verify:
        return report
    from mldb.tools.replay.comparing import compare_stores

    compared = compare_stores(files, folder, report.until, chosen, transform, progress=advance)
    return replace(report, verified=compared, seconds=time.monotonic() - began)


def _target_folder(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> FileSystem:
    """The folder of the target. Raises InvalidValueError for the source, or one inside it."""
    one = os.path.realpath(os.fspath(store_folder(source).root))
    two = os.path.realpath(os.path.expanduser(os.fspath(target)))
    if two == one or two.startswith(one + os.sep):
        raise InvalidValueError(
            f"the target {two} is the source, or lies inside it. Give a new folder elsewhere; "
            "nothing was changed."
        )
    return store_folder(target, create=True)


class _Replay:
    """One replay. One thread."""

    def __init__(
        self,
        source: ReplaySource,
        folder: FileSystem,
        chosen: Callable[[str], bool] | None,
        transform: Transform | None,
        advance: ReplayProgress,
    ) -> None:
        self.source = source
        self.folder = folder
        self.chosen = chosen
        self.transform = transform
        self.advance = advance
        self.left_out = 0

    def run(self, until: AsOf, names: WantedNames, began: float) -> ReplayReport:
        """Build the target, or go on with it, and say what is there."""
        source = self.source
        last = source.find(until)
        function = None if self.transform is None else function_name(self.transform)
        plan = {
            "source": source.log.store_id,
            "until": None if until is None else last.lsn,
            "names": described_names(names),
            "transform": function,
            "found_until": last.lsn,
        }
        unfinished = UnfinishedStore(self.folder, plan)
        try:
            last_lsn = unfinished.plan["found_until"]
            choice = None
            if not unfinished.is_published:
                choice = self._build(unfinished, last_lsn)
            unfinished.finished()
        finally:
            unfinished.close()
        return self._report(last_lsn, choice, began, resumed=bool(unfinished.built))

    def _build(self, unfinished: UnfinishedStore, until: int) -> NameChoice | None:
        source = self.source
        store_id = source.log.store_id
        builder = StoreBuilder(
            self.folder, store_id, metadata_columns, known=KNOWN_KINDS, done=unfinished.note
        )
        try:
            for built in unfinished.built:
                builder.adopt(built)
            choice = self._choice(builder.last_lsn)
            if choice is None:
                replay_whole(source, builder, until, self.advance)
            else:
                for built in unfinished.built:
                    choice.note_stored(_entries_of(self.folder, built.info))
                self._choose(builder, choice, until)
            builder.publish(source.kept(until), source.log.state.manifest.origins)
        finally:
            builder.close()
        return choice

    def _choice(self, trusted_from: int) -> NameChoice | None:
        if self.transform is not None:
            chosen = self.chosen or (lambda name: True)
            return TensorChange(self.source, chosen, self.transform, trusted_from)
        return None if self.chosen is None else NameChoice(self.source, self.chosen)

    def _choose(self, builder: StoreBuilder, choice: NameChoice, until: int) -> None:
        """Write what is left of each commit."""
        source, advance = self.source, self.advance
        staying = Staying(source, until)
        jumps = dict(source.jumps(1, until))
        for count, batch in enumerate(source.batches(builder.last_lsn + 1, until)):
            row = batch.row
            records = choice.records(batch)
            if records or staying.keeps(row.lsn, builder.last_lsn):
                parent = jumps.get(row.lsn, builder.last_lsn)
                extra = batch_extra(source, batch)
                builder.append(row._replace(parent=parent), records, extra)
            if count % _TOLD_EVERY == 0:
                advance(row.lsn, until)
        advance(until, until)

    def _report(
        self, until: int, choice: NameChoice | None, began: float, *, resumed: bool
    ) -> ReplayReport:
        options = Options(mode="r", note_reads=False)
        log = Log(self.folder, options, known=KNOWN_KINDS)
        try:
            view = log.head()
            lsns = _lsns_of(log)
            figures = log.stats()
        finally:
            log.close()
        every = sum(1 for _ in self.source.view.commits(1, until)) if choice else len(lsns)
        left_out = () if choice is None else tuple(choice.checkpoints_left_out)
        return ReplayReport(
            source=self.source.fs.root,
            target=self.folder.root,
            until=Lsn(until),
            epoch=view.commit.epoch,
            commits=len(lsns),
            left_out=every - len(lsns),
            versions=figures["versions"],
            bytes=figures["bytes"],
            segments=figures["segments"] - 1,
            resumed=resumed,
            seconds=time.monotonic() - began,
            checkpoints_left_out=left_out,
            commit_lsns=lsns,
        )


def _entries_of(fs: FileSystem, info: Any) -> Iterable[tuple[bytes, Any]]:
    """Every version that a finished segment of the target has."""
    segment = Segment(fs, info.id, info.origin, info.length)
    index, _ = open_index(segment, info.index_offset, "first")
    for key, entries in index.dump()[0].items():
        for entry in entries:
            yield key, entry


def _lsns_of(log: Log) -> Numbers:
    found = [
        part.own_index().reader.whole("commit_lsn").astype(np.int64)
        for part in log.head().sealed
        if part.info.last_lsn
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
