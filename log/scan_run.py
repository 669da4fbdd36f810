"""A run of common batches, read column by column: what many small commits cost to check.

A frame that is checked by itself costs what Python's calls cost, and a store of small records is
little else. Here the sizes of some thousand batches are read one after another, and what they hold
then goes through NumPy, or through ``map``, all at once: fields of headers, checksums, digests,
bodies. The rules are those of ``mldb.log.scan_usual``, with any number of entries in a frame. A run
is sound as a whole or it is none: what is odd or damaged is left to the readers of single batches,
who also say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from operator import add
from typing import Any, Final

import numpy as np

from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.index.address import CommitRow, Entry, make_entry, make_row
from mldb.log.index.pause import collection_paused
from mldb.log.run_columns import (
    Heads,
    are_checked,
    batch_places,
    commit_columns,
    count_usual,
    draft_columns,
    parsed_heads,
    repeated,
)
from mldb.log.scan import Batch, Cursor, refuse_kind, scan

_HEAD: Final = fmt.FRAME_HEADER_SIZE
_BATCHES_MIN: Final = 16
"""A run below this costs more than its batches do one by one."""
_BATCHES_FIRST: Final = 64
_BATCHES_MAX: Final = 4096
_BYTES_OF_BATCH: Final = 1 << 10
"""So many bytes are read for each batch of a run: larger ones are hashed longer than looked at."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """Common batches that stand one after another, all of them sound, as columns. Any thread.

    Copied out of the file; lives for ever. *drafts* are the entries of all batches, *counts* how
    many each of them has.
    """

    segment: bytes
    heads: Heads
    starts: Sequence[int]
    closings: Sequence[int]
    payloads: Sequence[int]
    commits: Sequence[tuple[Any, ...]]
    drafts: Sequence[tuple[Any, ...]]
    counts: Sequence[int]
    end: int

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self.starts)

    def rows(self) -> list[CommitRow]:
        """The commits, ascending."""
        parents, epochs, times, clocks, _, _, _, _, ids, _ = self.commits
        lsns = self.heads["last"].tolist()
        columns = (lsns, parents, epochs, times, clocks, self.starts, self.closings, ids)
        return list(map(make_row, zip(*columns, strict=True)))

    def entries(self) -> list[tuple[bytes, Entry]]:
        """What they stored, commit by commit."""
        keys, flags, codes, offsets, sizes, digests, bases, attrs, owners = self.drafts
        lsns = repeated(self.heads["last"].tolist(), self.counts)
        frames = repeated(self.starts, self.counts)
        at = map(add, repeated(self.payloads, self.counts), offsets)
        columns = (sizes, attrs, flags, codes, bases, digests, owners)
        made = map(make_entry, zip(lsns, repeat(self.segment), frames, at, *columns))
        return list(zip(keys, made, strict=True))

    def taken_apart(self) -> Iterator[tuple[CommitRow, list[tuple[bytes, Entry]]]]:
        """Each commit with what it stored."""
        entries = iter(self.entries())
        for row, count in zip(self.rows(), self.counts, strict=True):
            yield row, list(islice(entries, count))

    def refuse_unknown(self, known: frozenset[int], file: str) -> None:
        """Raise FormatVersionError where a must-understand kind is not *known*."""
        kinds, first = np.unique(self.heads["kind"], return_index=True)
        for kind, at in sorted(zip(kinds.tolist(), first.tolist(), strict=True), key=_place):
            refuse_kind(kind, self.starts[at], known, file)


def _place(kind: tuple[int, int]) -> int:
    return kind[1]


def scan_runs(
    data: memoryview,
    cursor: Cursor,
    seed: int,
    segment: bytes,
    *,
    verify_after: int | None = None,
    until: int = fmt.LSN_MAX,
) -> Iterator[BatchRun | Batch]:
    """Yield what :func:`mldb.log.scan.scan` does, common batches as runs of some thousand.

    The cursor stands behind what was yielded. It goes on to the end, or to the first commit that is
    not below *until*, and says of damage what ``scan`` says.
    """
    room, patience = _BATCHES_FIRST, _BATCHES_MIN
    while cursor.offset < len(data) and cursor.index is None and cursor.last_lsn < until:
        with collection_paused():
            run = read_run(data, cursor, seed, segment, verify_after, until, room)
        if run is not None:
            cursor.offset, cursor.last_lsn = run.end, int(run.heads["last"][-1])
            cursor.chain = run.commits[5][-1]
            cursor.durable = max(cursor.durable, *run.commits[6])
            room = min(max(2 * len(run), _BATCHES_FIRST), _BATCHES_MAX)
            patience = _BATCHES_MIN
            yield run
            continue
        read = 0
        for batch in islice(scan(data, cursor, seed, segment, verify_after=verify_after), patience):
            read += 1
            yield batch
            if batch.row.lsn >= until:
                return
        if read < patience:
            return
        room, patience = _BATCHES_FIRST, min(2 * patience, _BATCHES_MAX)


def read_run(
    data: memoryview,
    cursor: Cursor,
    seed: int,
    segment: bytes,
    verify_after: int | None,
    until: int,
    room: int,
) -> BatchRun | None:
    """Read up to *room* common batches from the cursor on, none of commits above *until*.

    None where fewer stand here than pay, or where any of them is odd or damaged in any way. Changes
    nothing. *verify_after* is that of ``scan``.
    """
    base = cursor.offset
    if not cursor.chain:
        return None
    piece = bytes(data[base : base + room * _BYTES_OF_BATCH])
    places = batch_places(piece, base, room)
    if len(places) < _BATCHES_MIN:
        return None
    heads = [piece[place[0] : place[0] + _HEAD] for place in places]
    closings = [piece[place[4] : place[4] + _HEAD] for place in places]
    count = count_usual(parsed_heads(heads), parsed_heads(closings), cursor.last_lsn, until)
    if count < _BATCHES_MIN:
        return None
    heads, closings, places = heads[:count], closings[:count], places[:count]
    at = (np.array(places, np.int64) + base).T
    if not are_checked(piece, places, at, heads, closings, seed, verify_after):
        return None
    lsns = parsed_heads(heads)["lsn"].tolist()
    befores = [piece[place[4] + _HEAD : place[5]] for place in places]
    commits = commit_columns(befores, lsns)
    if commits is None:
        return None
    digests = commits[5]
    if list(map(digest128, map(add, (cursor.chain, *digests), heads))) != [*digests]:
        return None
    sizes = [place[3] - place[2] for place in places]
    found = draft_columns([piece[place[0] + _HEAD : place[1]] for place in places], sizes)
    if found is None:
        return None
    return BatchRun(
        *(segment, parsed_heads(heads), at[0].tolist(), at[4].tolist(), at[2].tolist()),
        *(commits, *found, int(at[6][-1])),
    )
