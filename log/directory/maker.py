"""Make parts of the directory: outside the commit lock, by one maker at a time over all processes.

Segments and parts are immutable and the result may be lost, so that nothing here is synced, and
stopping at any step leaves the directory as it was, or with a file that the next maker removes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mldb.errors import MldbError
from mldb.log.active import HINTS
from mldb.log.directory.catalog import CATALOG, load_catalog, remove_others, save_catalog
from mldb.log.directory.directory import Directory
from mldb.log.directory.part import Part, PartInfo, digest_of, encode_part
from mldb.log.directory.tiers import FANOUT, next_run
from mldb.log.directory.units import Unit
from mldb.log.fs.process import CURRENT
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.pause import collection_paused
from mldb.log.lone import publish_over
from mldb.log.manifest import SegmentInfo
from mldb.log.sealed import SealedPart

if TYPE_CHECKING:
    from mldb.log.directory.merge import MergeInput

MAKER_LOCK: Final = f"{HINTS}/{CATALOG}.lock"


class Stopped(Exception):
    """The maker was told to stop. Internal."""


class Maker:
    """Makes parts for one handle, in a thread that ends when there is nothing to do.

    Any thread may call; :meth:`make` runs in the caller's. ``_running`` holds the thread's token
    while it runs: ``dict.setdefault`` and ``pop`` are one step each, so there is no lock.
    """

    def __init__(
        self,
        directory: Directory,
        sealed: Callable[[], Sequence[SealedPart]],
        owner: Callable[[], str],
        made: Callable[[], None],
    ) -> None:
        """*sealed* returns the segments of the newest manifest, *made* is told of new parts."""
        self._directory = directory
        self._sealed = sealed
        self._owner = owner
        self._made = made
        self._process = CURRENT[0]
        self._stopped = False
        self._wanted = False
        self._running: dict[int, threading.Thread] = {}

    # --- the thread -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have parts made where any are due, by a thread. Never waits; does nothing when it cannot.

        Not in a forked child, after :meth:`stop`, or while the interpreter ends.
        """
        self._wanted = True
        if self._stopped or self._process is not CURRENT[0] or not _main_runs():
            return
        thread = threading.Thread(target=self._run, name="mldb-directory")
        if self._running.setdefault(0, thread) is thread:
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or the system has no more threads
                self._running.pop(0, None)

    def _run(self) -> None:
        try:
            while self._wanted and not self._stopped:
                self._wanted = False
                self.make()
        finally:
            self._running.pop(0, None)
        if self._wanted:  # since the last look at it
            self.wake()

    def stop(self) -> None:
        """Let no more be made, and wait for the step that is going on."""
        self._stopped = True
        thread = self._running.get(0)
        if thread is not None and self._process is CURRENT[0]:
            with suppress(RuntimeError):  # not started yet, or this very thread
                thread.join()

    def _pause(self) -> None:
        if self._stopped or not _main_runs():
            raise Stopped

    # --- making -----------------------------------------------------------------------------------

    def make(self, fanout: int = FANOUT) -> int:
        """Make every part that is due now; return how many. Another maker at work: none.

        Errors end it and are counted: the directory stays as it was.
        """
        directory = self._directory
        made = 0
        try:
            lock = directory.files.fs.lock(MAKER_LOCK)
            try:
                if not lock.try_acquire():
                    return 0
                self._drop_stale()
                while self._make_one(fanout):
                    made += 1
            finally:
                lock.close()
        except Stopped:
            pass
        except MldbError as error:
            directory.failed += 1
            import logging

            logging.getLogger("mldb").info("no part of the directory was made: %s", error)
        return made

    def _drop_stale(self) -> None:
        """Remove the parts over segments that were compacted: no manifest will fit them again."""
        directory, fs = self._directory, self._directory.files.fs
        known = load_catalog(fs)
        if not known:
            return
        fitting = [unit.info for unit in directory.find(self._sealed()) if isinstance(unit, Part)]
        if len(fitting) < len(known):
            save_catalog(fs, self._owner(), fitting)
            self._made()
            remove_others(fs, fitting)

    def _make_one(self, fanout: int) -> bool:
        directory, files = self._directory, self._directory.files
        units = directory.find(self._sealed())
        run = next_run([unit.lookup.entry_count() for unit in units], fanout)
        if run is None:
            return False
        low, high = run
        start = sum(_segments(unit) for unit in units[:low])
        merged = self._merge(units[low:high], start)
        if merged is None:
            return False
        others = [unit.info for unit in (*units[:low], *units[high:]) if isinstance(unit, Part)]
        parts = sorted([*others, merged], key=lambda info: info.start)
        save_catalog(files.fs, self._owner(), parts)
        directory.made += 1
        self._made()
        remove_others(files.fs, parts)
        return True

    def _merge(self, units: Sequence[Unit], start: int) -> PartInfo | None:
        """Write the part over these units; None when a segment was replaced meanwhile."""
        from mldb.log.directory.merge import MergeInput, merge_indexes

        files = self._directory.files
        sources: list[MergeInput] = []
        segments: list[SegmentInfo] = []
        for unit in units:
            was_mapped = unit.mapped_bytes > 0
            index = unit.index
            if not isinstance(index, MappedIndex):
                return None
            # Copied: a run may be of thousands of segments, and each mapping has a descriptor.
            columns = MappedIndex(index.reader.copied()).columns()
            sources.append(MergeInput(columns, len(segments)))
            segments += _infos(unit)
            del index
            if not was_mapped:
                unit.release()
            self._pause()
        with collection_paused():
            image = merge_indexes(sources, self._pause)
        versions = image.directory["row_commit"][1]
        assert isinstance(versions, int)
        part = PartInfo(os.urandom(16), start, len(segments), versions, digest_of(segments))
        clock = files.fs.time_ns()
        buffers = encode_part(image, part, files.store_id, clock, segments[-1].last_lsn)
        publish_over(files.fs, self._owner(), buffers, part.name)
        return part


def _infos(unit: Unit) -> list[SegmentInfo]:
    if isinstance(unit, Part):
        return [part.info for part in unit.sealed]
    assert isinstance(unit, SealedPart)
    return [unit.info]


def _segments(unit: Unit) -> int:
    return unit.info.segments if isinstance(unit, Part) else 1


def _main_runs() -> bool:
    """Whether the interpreter goes on: at its end threads are waited for."""
    return threading.main_thread().is_alive()
