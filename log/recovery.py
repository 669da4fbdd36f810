"""Repair of the active segment by the writer that holds the commit lock. FORMAT.md section 8.

The rule. Bytes behind the last complete batch are

* **corruption**, when anything proves that a commit in them was durable: the manifest's mark, or a
  durable mark in an intact commit or footer, before or behind the damage. CorruptError; nothing is
  changed.
* a **torn tail** otherwise. It was never acknowledged as durable. It is copied to ``lost+found/``,
  the segment is closed in front of it, and writing goes on in a new one. LSNs go on at the ceiling,
  so that none is reused. The next commit does this; opening only says what it found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mldb.deferred import dataclass, replace
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.frame import is_zero
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.lone import discard
from mldb.log.segment import Segment
from mldb.log.state import LogState

if TYPE_CHECKING:
    from mldb.log.tail import Tail

LOST = "lost+found"
_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found torn when a store was opened, or by a commit after another process died.

    ``clean`` says that it was nothing. ``dropped_bytes`` and ``dropped_transactions`` were never
    acknowledged as durable. The first commit of this handle repairs the log; from then on
    ``saved_as`` names a copy of what was dropped, unless it held only zeros. ``distrusted`` says
    which files were ignored, and why.
    """

    clean: bool = True
    file: str = ""
    offset: int = 0
    dropped_bytes: int = 0
    dropped_transactions: int = 0
    reason: str = ""
    saved_as: str = ""
    distrusted: tuple[str, ...] = ()


def refuse_corruption(state: LogState) -> Tail | None:
    """Raise CorruptError when bytes behind the valid part of the active segment were durable.

    Otherwise return what was found there, None where there are none.
    """
    active = state.active
    cursor = active.cursor
    _refuse_short(state)
    if cursor.index is not None or cursor.offset >= active.seen:
        return None
    from mldb.log.tail import survey

    tail = survey(active.file.map(active.seen), cursor.offset, active.segment.seed)
    if tail.durable > cursor.last_lsn:
        raise _corrupt(
            state,
            f"behind it, at offset {tail.offset}, stands {tail.what}, which says that commit "
            f"{tail.durable} was durable",
        )
    return tail


def _refuse_short(state: LogState) -> None:
    cursor, mark = state.active.cursor, state.manifest.mark
    if mark.segment == state.active.id and cursor.offset < mark.offset:
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


def describe_tail(state: LogState, tail: Tail | None) -> Recovery:
    """Say what the bytes behind the valid part are; changes nothing."""
    active = state.active
    return Recovery(
        clean=False,
        file=active.segment.name,
        offset=active.cursor.offset,
        dropped_bytes=active.seen - active.cursor.offset,
        dropped_transactions=1 if tail is None else max(1, tail.commits),
        reason=active.cursor.problem,
        distrusted=tuple(state.distrusted),
    )


def save_tail(state: LogState, tail: Tail | None, before: Recovery) -> Recovery:
    """Copy the torn tail of the active segment to ``lost+found/`` and describe it.

    Nothing else is changed. *before* is what the last call returned: where the repair behind it
    failed, the same tail is not copied again.
    """
    active, report = state.active, describe_tail(state, tail)
    if report == replace(before, saved_as=""):
        return before
    data = active.file.map(active.seen)[report.offset :]
    if not _all_zero(data):
        text = fmt.id_text(active.id)
        saved = f"{LOST}/segment-{text}-{report.offset}-{state.fs.time_ns()}"
        _copy(state.fs, saved, data, active.segment)
        report = replace(report, saved_as=saved)
    import logging

    logging.getLogger("mldb").warning(
        "%s: dropped a torn tail of %d bytes (%d transactions, never acknowledged as durable) at "
        "offset %d: %s; %s",
        report.file,
        report.dropped_bytes,
        report.dropped_transactions,
        report.offset,
        report.reason,
        f"saved as {report.saved_as}" if report.saved_as else "it held only zeros",
    )
    return report


def _all_zero(data: memoryview) -> bool:
    return all(is_zero(data[low : low + _COPY_BYTES]) for low in range(0, len(data), _COPY_BYTES))


def _copy(fs: FileSystem, name: str, data: memoryview, segment: Segment) -> None:
    file = fs.open(name, "create")
    try:
        header: list[Buffer] = [
            encode_file_header(fmt.FILE_LOST, segment.store_id, fs.time_ns(), segment_id=segment.id)
        ]
        file.pwritev([*header, data], 0)
        file.sync()
        fs.sync_dir(LOST)
    except BaseException:
        discard(fs, name)  # the next try makes another, and half a copy is no evidence
        raise
    finally:
        file.close()
