"""What the tests of compaction share: all that a commit shows, policies by hand, deltas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

import mldb
from mldb import keys
from mldb.compaction import planning
from mldb.compaction.plan import Group
from mldb.compaction.report import CompactionReport
from mldb.compaction.retention import Retention
from mldb.compaction.table import VersionTable
from mldb.compaction.zstd import zstd_module
from mldb.history.as_of import snapshot_intervals
from mldb.history.kinds import TENSOR_STORED
from mldb.history.kinds.tensors import tensor_referring
from mldb.log import format as fmt
from mldb.log.chain import Stored
from mldb.log.frame import Record
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.lineage import is_visible
from mldb.log.view import View
from mldb.tensors import encoding
from mldb.write import compacting
from tests.support.model import value_of

NEVER_COLD: Any = "none"
_decode_stored = encoding.decode_stored


def view_of(db: mldb.MLDatabase) -> View:
    """The newest view of a store."""
    return db._log.head()


def commits_of(db: mldb.MLDatabase) -> list[CommitRow]:
    """Every commit of a store, on every lineage."""
    return [row for _, row in view_of(db).commits(1, fmt.LSN_MAX)]


def kept_of(db: mldb.MLDatabase) -> list[int]:
    """The commits that can be read."""
    found = []
    for row in commits_of(db):
        try:
            db._scope(mldb.Lsn(row.lsn))
        except mldb.VersionGoneError as error:
            assert error.below is not None or error.above is not None
            continue
        found.append(row.lsn)
    return found


def shown_at(db: mldb.MLDatabase, lsn: int) -> dict[str, Any]:
    """Everything that a commit shows: tensors, metadata, relationships, checkpoints, lakes."""
    with db.at(lsn=lsn) as snapshot:
        names = snapshot.names()
        return {
            "commit": (int(snapshot.lsn), snapshot.epoch),
            "tensors": {name: value_of(snapshot[name]) for name in names},
            "metadata": {name: snapshot.metadata(name) for name in names},
            "relations": snapshot.relationships(),
            "checkpoints": snapshot.checkpoints(),
            "state": {name: value_of(value) for name, value in _state(snapshot).items()},
            "lakes": {name: _lake(db, name, lsn) for name in db.lakes(as_of=mldb.Lsn(lsn))},
            "newest": {name: int(snapshot.tensor(name).lsn) for name in names},
        }


def _state(snapshot: Any) -> dict[str, Any]:
    return dict(snapshot.state_dict()) if snapshot.checkpoints() else {}


def _lake(db: mldb.MLDatabase, name: str, lsn: int) -> Any:
    lake = db.lake(name).at(mldb.Lsn(lsn))
    try:
        rows = lake.get(fields=("mu", "kappa", "alpha")) if len(lake) else {}
        return lake.ids().tolist(), {field: rows[field].tobytes() for field in rows}
    finally:
        lake.close()


def store_shown(db: mldb.MLDatabase) -> dict[str, Any]:
    """What belongs to the store as it is now."""
    return {
        "tags": db.tags(),
        "pins": db.pins(),
        "retention": db.retention.get(),
        "head": (db.lsn, db.epoch),
        "commits": [(*row[:5], row.id) for row in commits_of(db)],
    }


def events_at(db: mldb.MLDatabase, lsn: int) -> list[Any]:
    """The events of one commit."""
    return list(db.events(mldb.Lsn(lsn), mldb.Lsn(lsn)))


def refer(db: mldb.MLDatabase, name: str, owner: str, entry: Entry) -> int:
    """Store *name* as a reference to a version of *owner*; return the commit."""
    key, own = keys.TENSORS + name.encode(), keys.TENSORS + owner.encode()
    draft = tensor_referring(key, entry.attr, own, entry.commit_lsn, entry.digest)
    record = Record(TENSOR_STORED, [draft])
    return db._log.commit([record], lambda view: (view.commit.epoch, view.commit)).lsn


def owners_in(db: mldb.MLDatabase, prefix: str = "") -> list[tuple[str, Entry]]:
    """Versions of tensors that have bytes of their own, on any lineage."""
    view = view_of(db)
    return [
        (keys.name_of(key), entry)
        for key in view.keys(keys.TENSORS + prefix.encode())
        for entry in view.versions(key)
        if not entry.flags & fmt.ENTRY_TOMBSTONE and entry.encoding != fmt.ENCODING_REFERENCE
    ]


def compact_all(db: mldb.MLDatabase, **options: Any) -> CompactionReport:
    """Rewrite every segment, the active one too, into one."""

    def everything(table: VersionTable, *args: object, **more: object) -> tuple[Group, ...]:
        return (Group(0, len(table.sizes)),) if len(table.sizes) else ()

    with mock.patch.object(planning, "choose_groups", everything):
        return db.compact(**{"cold": "none", **options})


# --- by hand --------------------------------------------------------------------------------------


def kept_by_hand(
    policy: Retention, rows: Sequence[CommitRow], view: View, named: set[int], now: int
) -> set[int]:
    """What a policy keeps of these commits, one after another as the docstring says it."""
    lineage = [row for row in rows if is_visible(row.lsn, view.intervals)]
    last = {row.epoch: row.lsn for row in lineage}
    epochs = sorted(last)
    kept = {rows[-1].lsn} | named
    for row in rows:
        if row not in lineage:
            span = policy.abandoned
            if span is None or row.time > now - span.total_seconds() * 1e9:
                kept.add(row.lsn)
            continue
        is_last = last[row.epoch] == row.lsn
        if policy.last is None and policy.every is None and policy.within is None:
            kept.add(row.lsn)
        if policy.last is not None and is_last and row.epoch in epochs[-policy.last :]:
            kept.add(row.lsn)
        if policy.every is not None and is_last and row.epoch % policy.every == 0:
            kept.add(row.lsn)
        if policy.within is not None and row.time > now - policy.within.total_seconds() * 1e9:
            kept.add(row.lsn)
    return kept


def needed_by_hand(db: mldb.MLDatabase, kept: Sequence[int]) -> set[tuple[bytes, int]]:
    """The versions that commits see, key by key and commit by commit, and what they refer to."""
    view = view_of(db)
    found: set[tuple[bytes, int]] = set()
    paths = {lsn: snapshot_intervals(view, _row(view, lsn)) for lsn in kept}
    versions = {key: view.versions(key) for key in view.keys(b"")}
    for key, entries in versions.items():
        wide = key[:1] in (keys.TAGS, keys.PINS, keys.RETENTION)
        for lsn in kept:
            path = ((1, lsn),) if wide else paths[lsn]
            seen = [entry.commit_lsn for entry in entries if is_visible(entry.commit_lsn, path)]
            if seen:
                found.add((key, seen[-1]))
    by_place = {(key, entry.commit_lsn): entry for key in versions for entry in versions[key]}
    waiting = list(found)
    while waiting:
        key, lsn = waiting.pop()
        entry = by_place[key, lsn]
        base = (entry.owner or key, entry.base)
        if entry.base and base in by_place and base not in found:
            found.add(base)
            waiting.append(base)
    return found


def _row(view: View, lsn: int) -> CommitRow:
    row = view.commit_at(lsn)
    assert row is not None
    return row


def versions_of(db: mldb.MLDatabase) -> dict[tuple[bytes, int], tuple[bytes, bytes, int]]:
    """Attr, digest and flags of every version, by key and commit."""
    view = view_of(db)
    settled = fmt.ENTRY_SETTLED
    return {
        (key, entry.commit_lsn): (entry.attr, entry.digest, entry.flags & ~settled)
        for key in view.keys(b"")
        for entry in view.versions(key)
    }


# --- deltas ---------------------------------------------------------------------------------------


def _xor(data: memoryview, base: memoryview) -> bytes:
    found = np.frombuffer(data, np.uint8) ^ np.frombuffer(base, np.uint8)
    return found.tobytes()


def _encode(attr: bytes, data: memoryview, base: memoryview | None) -> tuple[int, bytes] | None:
    """The XOR against the base without the zeros at its end; else zstd."""
    if base is not None:
        packed = _xor(data, base).rstrip(b"\0") + b"x"
        return (fmt.ENCODING_DELTA, packed) if len(packed) < len(data) else None
    packed = zstd_module().compress(bytes(data))
    return (encoding.ENCODING_ZSTD, b"\1" + packed) if len(packed) + 1 < len(data) else None


def _decode(
    chain: list[Stored], size: int, key: str, base: memoryview | None = None, start: int = 0
) -> memoryview:
    for item in chain:
        if item.encoding != fmt.ENCODING_DELTA:
            base = _decode_stored([item], size, key)
            continue
        assert base is not None
        packed = bytes(item.data)
        assert packed[-1:] == b"x"
        change = packed[:-1].ljust(size, b"\0")[start : start + len(base)]
        base = memoryview(_xor(memoryview(change), base))
    assert base is not None
    return base


@contextmanager
def made_up_deltas() -> Iterator[None]:
    """Encode cold versions as XOR against their base."""
    with (
        mock.patch.object(compacting, "_encode", _encode),
        mock.patch.object(encoding, "decode_stored", _decode),
    ):
        yield


def depth_of(db: mldb.MLDatabase, name: str) -> list[int]:
    """How many versions each version of a tensor builds on, oldest first."""
    view, key = view_of(db), keys.TENSORS + name.encode()
    depths: dict[tuple[bytes, int], int] = {}

    def depth(key: bytes, entry: Entry) -> int:
        if entry.encoding not in (fmt.ENCODING_DELTA, fmt.ENCODING_REFERENCE):
            return 0
        owner = entry.owner or key
        base = view.version_at(owner, entry.base)
        assert base is not None
        found = depth(owner, base) + (entry.encoding == fmt.ENCODING_DELTA)
        depths[key, entry.commit_lsn] = found
        return found

    return [depth(key, entry) for entry in view.versions(key)]
