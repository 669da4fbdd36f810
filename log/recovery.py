"""Repair of the active segment by the writer that holds the commit lock. FORMAT.md section 8.

The rule. Bytes behind the last complete batch are

* **corruption**, when anything proves that a commit in them was durable: the manifest's mark, or a
  durable mark in an intact commit or footer, before or behind the damage. CorruptError; nothing is
  changed.
* a **torn tail** otherwise. It was never acknowledged as durable. It is copied to ``lost+found/``,
  the segment is closed in front of it, and writing goes on in a new one. LSNs jump, so that none is
  reused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.frame import DamagedFrame, decode_file_header, encode_file_header, is_zero
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.scan import Cursor, durable_claim_after, lost_commits, scan
from mldb.log.segment import segment_name
from mldb.log.state import LogState

LOST = "lost+found"
_COPY_BYTES = 8 << 20
_log = logging.getLogger("mldb")


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a store, or a commit after another process died, had to repair.

    ``clean`` says that it was nothing. ``dropped_bytes`` and ``dropped_transactions`` were never
    acknowledged as durable; a copy of them is ``saved_as``. ``distrusted`` says which files were
    ignored, and why.
    """

    clean: bool = True
    file: str = ""
    offset: int = 0
    dropped_bytes: int = 0
    dropped_transactions: int = 0
    reason: str = ""
    saved_as: str = ""
    distrusted: tuple[str, ...] = ()


def refuse_corruption(state: LogState) -> None:
    """Raise CorruptError when bytes behind the valid part of the active segment were durable."""
    active = state.active
    cursor = active.cursor
    if cursor.index is not None or cursor.offset >= active.seen:
        _refuse_short(state)
        return
    _refuse_short(state)
    data = active.file.map(active.seen)
    found = durable_claim_after(data, cursor.offset, active.segment.seed, cursor.last_lsn)
    if found is not None:
        offset, what = found
        raise _corrupt(state, f"behind it, at offset {offset}, stands {what}")


def refuse_lost_manifest(state: LogState) -> None:
    """Raise CorruptError when the segment behind the active one is in use, but in no manifest.

    A process that dies between naming a segment and installing its manifest leaves at most one
    batch there, of which nobody was told. More can only have been written under a manifest that is
    gone.
    """
    number = state.active.segment.number + 1
    name = segment_name(number)
    if not state.fs.exists(name):
        return
    file = state.fs.open(name, "r")
    try:
        data = file.map(file.size())
    finally:
        file.close()
    try:
        header = decode_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]), name)
    except (DamagedFrame, FormatVersionError):
        return
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(header.store_id, number))
    seed = fmt.file_seed(header.store_id, number)
    batches = len(list(islice(scan(data, cursor, seed, number), 2)))
    if (batches < 2 and cursor.index is None) or state.manifest_waits():
        return
    raise CorruptError(
        f"segment {number} holds commits, but no manifest names it: the newest manifest was "
        "deleted. Nothing was changed and everything is still there; restore the MANIFEST files "
        "from a backup.",
        file=name,
        offset=0,
    )


def _refuse_short(state: LogState) -> None:
    cursor, mark = state.active.cursor, state.manifest.mark
    if mark.segment == state.active.segment.number and cursor.offset < mark.offset:
        raise _corrupt(
            state, f"the manifest says that everything up to offset {mark.offset} was durable"
        )
    if cursor.durable > cursor.last_lsn:
        raise _corrupt(state, f"the log says that commit {cursor.durable} was durable")


def _corrupt(state: LogState, proof: str) -> CorruptError:
    cursor = state.active.cursor
    problem = cursor.problem or "the file ends"
    return CorruptError(
        f"the log is damaged after commit {cursor.last_lsn}: {problem}; {proof}. This is not a "
        "torn tail, so nothing was dropped or changed. Everything in other segments is intact. "
        "Restore this file from a backup, or copy the store and cut the copy's file at this "
        "offset to keep the commits before it.",
        file=state.active.segment.name,
        offset=cursor.problem_offset or cursor.offset,
    )


def save_tail(state: LogState, size: int) -> Recovery:
    """Copy the torn tail of the active segment to ``lost+found/`` and describe it.

    *size* is the length of the file. Nothing else is changed.
    """
    active = state.active
    cursor = active.cursor
    data = active.file.map(size)
    tail = data[cursor.offset : size]
    saved = ""
    if not _all_zero(tail):
        saved = f"{LOST}/segment-{active.segment.number:010d}-{cursor.offset}-{state.fs.time_ns()}"
        _copy(state.fs, saved, tail, active.segment.store_id, active.segment.number)
    report = Recovery(
        clean=False,
        file=active.segment.name,
        offset=cursor.offset,
        dropped_bytes=len(tail),
        dropped_transactions=max(1, lost_commits(data, cursor.offset, active.segment.seed)),
        reason=cursor.problem,
        saved_as=saved,
    )
    _log.warning(
        "%s: dropped a torn tail of %d bytes (%d transactions, never acknowledged as durable) at "
        "offset %d: %s; %s",
        report.file,
        report.dropped_bytes,
        report.dropped_transactions,
        report.offset,
        report.reason,
        f"saved as {saved}" if saved else "it held only zeros",
    )
    return report


def _all_zero(data: memoryview) -> bool:
    return all(is_zero(data[low : low + _COPY_BYTES]) for low in range(0, len(data), _COPY_BYTES))


def _copy(fs: FileSystem, name: str, data: memoryview, store_id: bytes, number: int) -> None:
    file = fs.open(name, "create")
    try:
        header: list[Buffer] = [
            encode_file_header(fmt.FILE_LOST, store_id, number, 0, fs.time_ns())
        ]
        file.pwritev([*header, data], 0)
        file.sync()
    finally:
        file.close()
    fs.sync_dir(LOST)
