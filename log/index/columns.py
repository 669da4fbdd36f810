"""The mapped index: sorted columns in a footer, a side index or a hint. FORMAT.md section 6.

Building turns lists into NumPy columns once; reading maps them and searches in place, so opening a
segment costs the same for ten records and ten million. Every page (16 KiB block) is verified when
it is first touched.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgpack
import numpy as np

from mldb.deferred import dataclass
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.checksum import check64
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.memory import after_prefix
from mldb.log.index.steps import Column, Steps, finish

ROW_COLUMNS: Final = {  # in the order in which they are laid out
    "row_commit": "<u8",
    "row_frame": "<u8",
    "row_offset": "<u8",
    "row_length": "<u8",
    "row_base": "<u8",
    "row_flags": "u1",
    "row_encoding": "u1",
    "row_attr": "<u4",
    "row_digest": "V16",
}
KEY_COLUMNS: Final = {
    "key_offset": "<u8",
    "key_heap": "u1",
    "key_row": "<u4",
    "hash": "<u8",
    "hash_key": "<u4",
}
ATTR_COLUMNS: Final = {"attr_offset": "<u8", "attr_heap": "u1"}
COMMIT_COLUMNS: Final = {
    "commit_lsn": "<u8",
    "commit_parent": "<u8",
    "commit_epoch": "<i8",
    "commit_time": "<i8",
    "commit_clock": "<i8",
    "commit_start": "<u8",
    "commit_end": "<u8",
}
META_PREFIX: Final = "meta:"
COLUMN_TYPES: Final = {**ROW_COLUMNS, **KEY_COLUMNS, **ATTR_COLUMNS, **COMMIT_COLUMNS}
OPTIONAL_COLUMNS: Final = {
    "commit_id": "V16",
    "row_owner": "<u4",
    "owner_offset": "<u8",
    "owner_heap": "u1",
}
"""Columns since version 2: indexes of version 1 lack them, others where nothing is in them."""
DIRECTORY_COLUMNS: Final = {
    "row_segment": "<u4",
    "commit_segment": "<u4",
    "digest": "<u8",
    "digest_row": "<u4",
}
"""What an index over several segments has besides (``mldb.log.directory``)."""
COMPACTED_COLUMNS: Final = {"row_lsn": "<u8"}
"""What the footer of a compacted segment has besides (``mldb.log.compacted``)."""
_NO_TAILS: Final[Mapping[str, Column]] = {}

MetadataOf = Callable[[bytes, bytes], Mapping[str, object] | None]
"""Returns, for a key and an attr, the metadata that deserves columns; None for other key spaces.

It is asked once for each attr in a key space: of the key only the space counts."""


@dataclass(frozen=True, slots=True)
class IndexImage:
    """A built index: the directory for the frame body, the payload, and its length."""

    directory: dict[str, list[object]]
    payload: list[Buffer]
    length: int


def build_index(
    entries: Mapping[bytes, Sequence[Entry]],
    commits: Sequence[CommitRow],
    metadata_of: MetadataOf | None = None,
) -> IndexImage:
    """Build the columns for these keys, each with its versions (oldest first), and these commits.

    *commits* ascend by LSN. *metadata_of* names the metadata that gets columns; None for none.
    """
    return image_of(build_columns(entries, commits, metadata_of))


def build_columns(
    entries: Mapping[bytes, Sequence[Entry]],
    commits: Sequence[CommitRow],
    metadata_of: MetadataOf | None = None,
) -> dict[str, Column]:
    """Return the columns of :func:`build_index`, in their order."""
    return finish(build_steps(entries, commits, metadata_of))


def build_steps(
    entries: Mapping[bytes, Sequence[Entry]],
    commits: Sequence[CommitRow],
    metadata_of: MetadataOf | None = None,
) -> Steps:
    """Do the work of :func:`build_columns` in steps: at most one of Python's for each version."""
    keys = sorted(entries)
    yield
    versions = list(map(entries.__getitem__, keys))
    rows = list(chain.from_iterable(versions))
    attr_ids: dict[bytes, int] = {}
    columns: dict[str, Column] = {}
    yield
    _put_keys(columns, keys, list(map(len, versions)))
    yield
    yield from _put_rows(columns, rows, attr_ids)
    columns["attr_offset"], columns["attr_heap"] = pack_heap(list(attr_ids))
    names = list(COMMIT_COLUMNS)
    *table, ids = list(zip(*commits, strict=True)) or [()] * (len(names) + 1)
    for name, values in zip(names, table, strict=True):
        columns[name] = np.array(values, dtype=COLUMN_TYPES[name])
    columns["commit_id"] = _digests(ids)
    yield
    if metadata_of is not None:
        columns.update(_metadata_columns(keys, columns, attr_ids, metadata_of))
        yield
    return columns


def _put_keys(columns: dict[str, Column], keys: list[bytes], counts: list[int]) -> None:
    columns["key_offset"], columns["key_heap"], hashes = _pack_keys(keys)
    starts = np.zeros(len(keys) + 1, dtype="<u4")
    np.cumsum(counts, out=starts[1:], dtype="<u4")
    columns["key_row"] = starts
    order = np.argsort(hashes, kind="stable")
    columns["hash"] = hashes[order]
    columns["hash_key"] = order.astype("<u4")


def _pack_keys(keys: list[bytes]) -> tuple[Column, Column, Column]:
    """The heap of the keys, as :func:`pack_heap` makes it, and their checksums."""
    twin = native.twin
    if twin is not None:
        offsets = np.empty(len(keys) + 1, dtype="<u8")
        heap = np.empty(sum(map(len, keys)), dtype="u1")
        hashes = np.empty(len(keys), dtype="<u8")
        if twin.items_to_heap(keys, offsets, heap, hashes):
            return offsets, heap, hashes
    return *pack_heap(keys), np.array([check64(key) for key in keys], dtype="<u8")


def _put_rows(
    columns: dict[str, Column], rows: list[Entry], attr_ids: dict[bytes, int]
) -> Generator[None, None, None]:
    twin = native.twin
    if twin is not None:
        made = {name: np.empty(len(rows), dtype=kind) for name, kind in ROW_COLUMNS.items()}
        *numbers, flags, encoding, attr, digest = made.values()
        if twin.rows_to_columns(rows, attr_ids, tuple(numbers), attr, flags, encoding, digest):
            columns.update(made)
            yield
            return
    yield from _put_any_rows(columns, rows, attr_ids)


def _put_any_rows(
    columns: dict[str, Column], rows: list[Entry], attr_ids: dict[bytes, int]
) -> Generator[None, None, None]:
    fields = zip(*rows, strict=True) if rows else iter([()] * len(Entry._fields))
    commit, _, frame, offset, length, attr, flags, encoding, base, digest, owner = fields
    yield
    for name, values in (
        ("row_commit", commit),
        ("row_frame", frame),
        ("row_offset", offset),
        ("row_length", length),
        ("row_base", base),
        ("row_flags", flags),
        ("row_encoding", encoding),
    ):
        columns[name] = np.array(values, dtype=ROW_COLUMNS[name])
    yield
    ids = [attr_ids.setdefault(value, len(attr_ids)) for value in attr]
    columns["row_attr"] = np.array(ids, dtype="<u4")
    columns["row_digest"] = _digests(digest)
    if any(owner):
        owners: dict[bytes, int] = {b"": 0}
        numbers = [owners.setdefault(value, len(owners)) for value in owner]
        columns["row_owner"] = np.array(numbers, dtype="<u4")
        columns["owner_offset"], columns["owner_heap"] = pack_heap(list(owners)[1:])


def _digests(values: Sequence[bytes]) -> Column:
    """A column of 16 bytes each; zeros where there are none."""
    blank = bytes(fmt.DIGEST_SIZE)
    return np.frombuffer(b"".join([value or blank for value in values]), dtype="V16")


def pack_heap(parts: Sequence[bytes]) -> tuple[Column, Column]:
    """Return the offset and the byte column of items one after another."""
    offsets = np.zeros(len(parts) + 1, dtype="<u8")
    np.cumsum([len(part) for part in parts], out=offsets[1:], dtype="<u8")
    return offsets, np.frombuffer(b"".join(parts), dtype="u1")


def _metadata_columns(
    keys: list[bytes],
    columns: Mapping[str, Column],
    attr_ids: dict[bytes, int],
    metadata_of: MetadataOf,
) -> dict[str, Column]:
    """Dictionary-code the metadata fields that most attrs have: 0 is absent, n the n-th value.

    Values are numbered as the attrs come that have them, fields stand in the order of their names.
    """
    found: dict[int, Mapping[str, object]] = {}
    attrs, row_attr, starts = list(attr_ids), columns["row_attr"], columns["key_row"]
    first = 0
    while first < len(keys):
        beyond = after_prefix(keys[first][:1])
        last = len(keys) if beyond is None else bisect_left(keys, beyond)
        counts = np.bincount(row_attr[starts[first] : starts[last]])
        for attr in np.flatnonzero(counts).tolist():
            metadata = None if attr in found else metadata_of(keys[first], attrs[attr])
            if metadata is not None:
                found[attr] = metadata
        first = last
    codes: dict[str, dict[int, int]] = {}
    values: dict[str, dict[bytes, int]] = {}
    for attr in sorted(found):
        for field, value in found[attr].items():
            packed: bytes = msgpack.packb(value, use_bin_type=True, datetime=True)
            known = values.setdefault(field, {})
            codes.setdefault(field, {})[attr] = known.setdefault(packed, len(known) + 1)
    made: dict[str, Column] = {}
    for field in frequent({field: len(having) for field, having in codes.items()}):
        column = np.zeros(len(attr_ids), dtype="<u4")
        column[list(codes[field])] = list(codes[field].values())
        made[f"{META_PREFIX}{field}:code"] = column
        made[f"{META_PREFIX}{field}:values"] = np.frombuffer(b"".join(values[field]), dtype="u1")
    return made


def frequent(counts: Mapping[str, int]) -> list[str]:
    """Return the fields that get columns, by name; *counts* says how many attrs have each.

    A column is as long as the list of attrs, so a field in each of them would cost the square.
    """
    short = [field for field in counts if len(field.encode()) <= fmt.KEY_BYTES_MAX]
    return sorted(sorted(short, key=lambda field: (-counts[field], field))[: fmt.META_COLUMNS_MAX])


def image_of(columns: Mapping[str, Column], tails: Mapping[str, Column] = _NO_TAILS) -> IndexImage:
    """Lay the columns out one after another, each aligned to 64 bytes.

    *tails* are values that follow those of some columns.
    """
    directory: dict[str, list[object]] = {}
    payload: list[Buffer] = []
    place = 0
    for name, column in columns.items():
        start = fmt.align_up(place, fmt.PAYLOAD_ALIGN_LOG2)
        if start > place:
            payload.append(bytes(start - place))
        pieces = [column, tails[name]] if name in tails else [column]
        directory[name] = [start, sum(map(len, pieces)), column.dtype.str]
        place = start
        for piece in pieces:
            if piece.nbytes:
                payload.append(np.ascontiguousarray(piece).view("u1").data)
            place += piece.nbytes
    return IndexImage(directory, payload, place)
