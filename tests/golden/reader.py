"""A second reader of the files of a store, written from ``log/FORMAT.md`` alone.

It imports nothing of mldb, reads everything at once, and checks all there is to check. The numbers
in parentheses are the sections of that page.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from xxhash import xxh3_64_intdigest as hash64
from xxhash import xxh3_128_digest as hash128

FILE_MAGIC = bytes.fromhex("894d4c44420d0a1a")
FRAME_MAGIC = bytes.fromhex("f76d6672")
FILE_HEADER = struct.Struct("<8sHHI16sQQq16s16sQ24xQ")
FRAME_HEADER = struct.Struct("<4sHBBIBBHQQQQQ")
MUST_UNDERSTAND = 1 << 15
SEGMENT, INDEX_FILE, MANIFEST_FILE, HINT = 1, 3, 4, 7
COMMIT, INDEX, MANIFEST = 1, 2, 3
TENSORS, METADATA, RELATIONS, TAGS, PINS, LAKES, SPLATS, METRICS = (
    bytes([n]) for n in (1, 2, 3, 6, 7, 9, 10, 11)
)


class DamagedError(Exception):
    """The bytes are not what was written."""


def require(good: object, what: str) -> None:
    """Raise DamagedError unless *good*."""
    if not good:
        raise DamagedError(what)


# --- file headers and frames (2, 3) ---------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The first 128 bytes of a file."""

    version: int
    kind: int
    store_id: bytes
    file_id: int
    base_lsn: int
    id: bytes
    published: int

    @property
    def segment_id(self) -> bytes:
        """The id of the segment that the file is, or is about."""
        return self.id if self.version > 1 else self.file_id.to_bytes(8, "little")

    @property
    def seed(self) -> int:
        """What the header checksums of frames start from, before their offset is added.

        The only hints read here are indexes.
        """
        about_segment = self.kind in (SEGMENT, INDEX_FILE, HINT)
        name = self.segment_id if about_segment else self.file_id.to_bytes(8, "little")
        return hash64(self.store_id + name)


def read_header(data: bytes, kind: int) -> Header:
    """Decode and check a file header."""
    require(len(data) >= 128, "a file is shorter than its header")
    magic, version, found, size, store, file_id, base, _, _, own, published, check = (
        FILE_HEADER.unpack_from(data)
    )
    require(magic == FILE_MAGIC, "no file of mldb")
    require(check == hash64(data[:120]), "the checksum of a file header is wrong")
    require(version in (1, 2) and size == 128, "an unknown version")
    require(found == kind, f"kind {found}, not {kind}")
    return Header(version, found, store, file_id, base, own, published)


class Frame(NamedTuple):
    """One frame; ``head`` is its header as it stands there."""

    kind: int
    flags: int
    body: Any
    payload: bytes
    lsn: int
    commit_lsn: int
    offset: int
    payload_offset: int
    end: int
    head: bytes


def read_frame(data: bytes, offset: int, seed: int) -> Frame:
    """Decode and check the frame at *offset*, its payload too."""
    require(offset % 8 == 0 and offset + 56 <= len(data), "no room for a frame")
    head = data[offset : offset + 56]
    magic, kind, version, flags, length, blocks, align, reserved, size, lsn, commit, check, own = (
        FRAME_HEADER.unpack(head)
    )
    require(magic == FRAME_MAGIC, "no frame")
    require(own == hash64(head[:48], seed=(seed + offset) % 2**64), "a header checksum is wrong")
    require(kind & ~MUST_UNDERSTAND and not reserved, "an impossible frame")
    is_manifest = kind & ~MUST_UNDERSTAND == MANIFEST
    require(version == 1 or (version == 2 and is_manifest), "an unknown version of a body")
    count = -(-size >> blocks) if size else 0
    end = offset + 56 + length + 8 * count
    require(end <= len(data), "a frame ends behind the file")
    require(check == hash64(data[offset + 56 : end]), "a body checksum is wrong")
    payload = -(-end >> align) << align if size else end
    stop = payload + size
    last = -(-stop // 8) * 8
    require(last <= len(data), "a payload ends behind the file")
    require(not any(data[end:payload]) and not any(data[stop:last]), "padding is not zero")
    for number in range(count):
        low = payload + (number << blocks)
        stored = data[end - 8 * (count - number) :][:8]
        block = data[low : min(low + (1 << blocks), stop)]
        require(hash64(block).to_bytes(8, "big") == stored, "a block checksum is wrong")
    body = msgpack.unpackb(
        data[offset + 56 : offset + 56 + length], strict_map_key=False, ext_hook=extension
    )
    kind &= ~MUST_UNDERSTAND
    content = data[payload:stop]
    return Frame(kind, flags, body, content, lsn, commit, offset, payload, last, head)


def extension(code: int, data: bytes) -> object:
    """Extension type 1 is a time with its zone (5)."""
    if code != 1:
        return msgpack.ExtType(code, data)
    micros, offset = struct.unpack("<qi", data)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return moment.astimezone(timezone(timedelta(seconds=offset)))


def unpack(data: bytes) -> Any:
    """MessagePack, with times."""
    return msgpack.unpackb(data, strict_map_key=False, ext_hook=extension)


# --- manifests (7, 16) ----------------------------------------------------------------------------


@dataclass
class Manifest:
    """The newest outline of the store: its segments, which one is active, its mark, its jumps."""

    body: dict[str, Any]
    version: int
    digest: bytes
    segments: list[dict[str, Any]]
    jumps: list[tuple[int, int]]
    kept: list[tuple[int, int]] | None

    @property
    def active(self) -> bytes:
        """The id of the active segment."""
        if self.version == 1:
            return int(self.body["active"]).to_bytes(8, "little")
        return bytes(self.body["active"])


def read_manifest(folder: Path, number: int) -> Manifest:
    """Read a manifest with its base."""
    data = (folder / f"MANIFEST-{number:010d}").read_bytes()
    header = read_header(data, MANIFEST_FILE)
    frame = read_frame(data, 128, header.seed)
    body, digest = frame.body, hash128(data)
    require(frame.end == len(data) and frame.kind == MANIFEST, "no manifest")
    require((body["number"], body["store_id"]) == (number, header.store_id), "another manifest")
    if header.version == 1:
        named = [item | {"id": item["number"].to_bytes(8, "little")} for item in body["segments"]]
        kept = body["kept"] and [(lsn, lsn) for lsn in body["kept"]]
        return Manifest(body, 1, digest, named, [*map(tuple, body["jumps"])], kept)
    changes, jumps, ranges = unpack(frame.payload)[:3]
    segments: list[dict[str, Any]] = []
    before: list[tuple[int, int]] = []
    kept = None
    if body["base"] is not None:
        base = read_manifest(folder, body["base"][0])
        require(base.digest == body["base"][1] and base.body["base"] is None, "another base")
        segments, before, kept = base.segments, base.jumps, base.kept
    for index, count, come in changes:
        require(index + count <= len(segments), "a splice out of range")
        segments = [*segments[:index], *come, *segments[index + count :]]
    kept = kept if ranges is None else [*map(tuple, ranges)]
    return Manifest(body, 2, digest, segments, [*before, *map(tuple, jumps)], kept)


def newest_manifest(folder: Path) -> Manifest:
    """The one with the highest number."""
    names = [path.name for path in folder.glob("MANIFEST-??????????")]
    return read_manifest(folder, max(int(name[9:]) for name in names))


# --- segments (4) ---------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A version of a key: the elements of an index entry, and where its frame and payload are."""

    key: bytes
    flags: int
    encoding: int
    offset: int
    length: int
    digest: bytes
    base: int
    attr: bytes
    owner: bytes
    commit_lsn: int
    frame: Frame


class Commit(NamedTuple):
    """A commit with its versions; ``start`` and ``end`` are where its batch and its frame start."""

    lsn: int
    parent: int
    epoch: int
    time: int
    clock: int
    durable: int
    extra: dict[str, Any]
    id: bytes
    entries: list[Entry]
    start: int
    end: int


@dataclass
class Segment:
    """A segment that was scanned to its end."""

    name: str
    commits: list[Commit]
    chain: bytes
    index: dict[str, np.ndarray[Any, Any]] | None


def id_text(segment_id: bytes) -> str:
    """An id as file names have it (1)."""
    number = int.from_bytes(segment_id, "little")
    return f"{number:010d}" if len(segment_id) == 8 else segment_id.hex()


def entry_of(item: list[Any], commit_lsn: int, frame: Frame) -> Entry:
    """An index entry; in version 1 it has no owner."""
    key, flags, encoding, offset, length, digest, base, attr, *more = item
    require(0 <= offset <= offset + length <= len(frame.payload), "an entry out of its payload")
    place = (offset, length)
    owner = more[0] if more else b""
    return Entry(key, flags, encoding, *place, digest, base, attr, owner, commit_lsn, frame)


def batches(data: bytes, header: Header, stop: int) -> Iterator[tuple[Commit, bytes]]:
    """Yield the commits up to *stop* with the digests of their batches."""
    chain = hash128(header.store_id + header.segment_id)
    offset = start = 128
    frames: list[Frame] = []
    last = header.base_lsn - 1
    while offset < stop:
        frame = read_frame(data[:stop], offset, header.seed)
        offset = frame.end
        if frame.kind != COMMIT:
            require(frame.kind >= 16, "a frame that belongs elsewhere")
            frames.append(frame)
            continue
        parent, epoch, time, clock, count, digest, durable, extra, *more = frame.body
        chain = hash128(chain + b"".join(item.head for item in frames))
        require(digest == chain and count == len(frames), "the digest of a batch is wrong")
        lsns = [item.lsn for item in (*frames, frame)]
        require(lsns == [*range(frame.lsn - count, frame.lsn + 1)], "LSNs do not follow")
        require(last < lsns[0] and parent < frame.lsn, "LSNs do not ascend")
        require({item.commit_lsn for item in (*frames, frame)} == {frame.lsn}, "another commit")
        entries = [
            entry_of(item, frame.lsn, one)
            for one in frames
            if one.flags & 1
            for item in one.body[0]
        ]
        own = more[0] if more else b""
        times = (time, clock, durable)
        places = (entries, start, frame.offset)
        yield Commit(frame.lsn, parent, epoch, *times, extra, own, *places), chain
        frames, start, last = [], offset, frame.lsn


def read_segment(folder: Path, info: dict[str, Any]) -> Segment:
    """Read a sealed segment and its index, and see whether they agree with the manifest."""
    name = f"segments/{id_text(info['id'])}.seg"
    data = (folder / name).read_bytes()[: info["length"]]
    header = read_header(data, SEGMENT)
    require((header.store_id, header.segment_id) == (info["origin"], info["id"]), "another segment")
    place = folder / info["index_file"] if info["index_file"] else None
    stop = len(data) if place else info["index_offset"]
    commits, chain = [], hash128(header.store_id + header.segment_id)
    for commit, chain in batches(data, header, stop):  # noqa: B007 - the last one is wanted
        commits.append(commit)
    require(chain == info["chain"], "the chain of a segment is another")
    ends = (commits[0], commits[-1])
    require([info["first_lsn"], info["last_lsn"]] == [item.lsn for item in ends], "other LSNs")
    require([info["first_epoch"], info["last_epoch"]] == [item.epoch for item in ends], "epochs")
    index = place.read_bytes() if place else data
    own = read_header(index, INDEX_FILE) if place else header
    require(own.segment_id == info["id"], "the index of another segment")
    columns = read_index(index, info["index_offset"], own.seed, commits, chain)
    return Segment(name, commits, chain, columns)


def read_index(
    data: bytes, offset: int, seed: int, commits: list[Commit], chain: bytes
) -> dict[str, np.ndarray[Any, Any]]:
    """Read the columns of an index (6)."""
    frame = read_frame(data, offset, seed)
    body = frame.body
    require(frame.kind == INDEX and frame.end == len(data), "no index")
    require((body["lsn"], body["chain"]) == (commits[-1].lsn, chain), "an index of something else")
    return {
        name: np.frombuffer(frame.payload, np.dtype(code), count, start)
        for name, (start, count, code) in body["columns"].items()
    }


def read_active(folder: Path, manifest: Manifest) -> Segment:
    """Read the active segment, all of which is whole after a clean close."""
    name = f"segments/{id_text(manifest.active)}.seg"
    data = (folder / name).read_bytes()
    header = read_header(data, SEGMENT)
    require(header.segment_id == manifest.active, "another segment")
    require(header.store_id == manifest.body["active_origin"], "a segment of another store")
    commits, chain = [], hash128(header.store_id + header.segment_id)
    for commit, chain in batches(data, header, len(data)):  # noqa: B007
        commits.append(commit)
    hint = folder / f"hints/{id_text(manifest.active)}.idx"
    columns = None
    if hint.exists():
        raw = hint.read_bytes()
        own = read_header(raw, HINT)
        require(own.segment_id == header.segment_id, "a hint for another segment")
        columns = read_index(raw, 128, own.seed, commits, chain)
    return Segment(name, commits, chain, columns)


# --- the store ------------------------------------------------------------------------------------


@dataclass
class Store:
    """A whole store, read and checked."""

    folder: Path
    manifest: Manifest = field(init=False)
    segments: list[Segment] = field(init=False)
    commits: dict[int, Commit] = field(init=False)

    def __post_init__(self) -> None:
        """Read everything."""
        self.manifest = manifest = newest_manifest(self.folder)
        sealed = [read_segment(self.folder, info) for info in manifest.segments]
        self.segments = [*sealed, read_active(self.folder, manifest)]
        ordered = [commit for segment in self.segments for commit in segment.commits]
        self.commits = {commit.lsn: commit for commit in ordered}
        require([*self.commits] == sorted(self.commits), "the log is out of order")
        before = [0, *self.commits]
        jumps = [
            (commit.lsn, commit.parent)
            for last, commit in zip(before, ordered, strict=False)
            if commit.parent != last
        ]
        count = len(manifest.jumps)
        require(jumps[:count] == manifest.jumps, "the jumps are others")

    @property
    def head(self) -> int:
        """The LSN of the last commit."""
        return max(self.commits, default=0)

    def lineage(self, lsn: int) -> list[Commit]:
        """The commits that lead to one, oldest first."""
        found: list[Commit] = []
        while lsn:
            found.append(self.commits[lsn])
            lsn = found[-1].parent
        return found[::-1]

    def state(self, lsn: int, space: bytes, *, of_the_store: bool = False) -> dict[bytes, Entry]:
        """The newest version of each key of a space, as the commit *lsn* sees it.

        *of_the_store*: tags and pins, which a rewind does not touch.
        """
        commits = self.lineage(lsn)
        if of_the_store:
            commits = [commit for commit in self.commits.values() if commit.lsn <= lsn]
        found: dict[bytes, Entry] = {}
        for commit in commits:
            for entry in commit.entries:
                if entry.key[:1] == space:
                    found[entry.key[1:]] = entry
        return {key: entry for key, entry in found.items() if not entry.flags & 1}


def stored_bytes(entry: Entry) -> bytes:
    """The bytes of a version as they are stored."""
    return entry.frame.payload[entry.offset : entry.offset + entry.length]


def decoded_bytes(entry: Entry) -> bytes:
    """The bytes of a version, decoded and compared with their digest (4)."""
    data = stored_bytes(entry)
    if entry.encoding == 1:
        data = planes_to_elements(data)
    require(not entry.digest or hash128(data) == entry.digest, "a version has another digest")
    return data


def planes_to_elements(data: bytes) -> bytes:
    """Undo encoding 1: zstd over byte planes."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    raw = np.frombuffer(zstd.decompress(data[1:]), "u1")
    return raw.reshape(data[0], -1).T.tobytes()


class Tensor(NamedTuple):
    """A descriptor (5): dtype and shape, who gave the tensor, and the parts of a sparse one."""

    dtype: str
    shape: tuple[int, ...]
    framework: str
    layout: str
    components: list[tuple[str, str, tuple[int, ...], int]]


def descriptor(attr: bytes) -> Tensor:
    """Decode a descriptor of either version."""
    fields = unpack(attr)
    if not isinstance(fields[0], str):
        require(fields.pop(0) == 2, "a descriptor of another version")
    require(len(fields) in (2, 3, 6), "an impossible descriptor")
    dtype, shape, framework, layout, _, parts = [*fields, *["", "", "", []][len(fields) - 2 :]][:6]
    components = [(name, code, tuple(axes), offset) for name, code, axes, offset in parts]
    return Tensor(dtype, tuple(shape), framework, layout, components)


Columns = dict[str, np.ndarray[Any, Any]]


def splat_rows(store: Store, lsn: int, lake: bytes) -> Columns:
    """The rows of a lake that a commit sees: columns in the order of its blocks (5)."""
    blocks: list[Columns] = []
    lives: list[np.ndarray[Any, Any]] = []
    splats = store.state(lsn, SPLATS)
    for key in sorted(key for key in splats if key.startswith(lake + b"\0")):
        attr, data = unpack(splats[key].attr), decoded_bytes(splats[key])
        require(attr[0] == 1, "a splat block of another version")
        if attr[1] in (0, 2):  # rows added, rows merged
            made = splat_block(attr, data)
            if attr[1] == 2:
                _mark(blocks, lives, splat_sources(attr, data), live=False)
            if made:
                blocks.append(made)
                lives.append(np.ones(len(made["id"]), np.bool_))
            continue
        ids = np.frombuffer(data, "<u8")
        count = attr[2] if attr[1] == 1 else attr[3]
        require(len(ids) == sum(attr[2:3] if attr[1] == 1 else attr[3:5]), "other ids")
        _mark(blocks, lives, ids[:count], live=False)
        _mark(blocks, lives, ids[count:], live=True)
    blocks = [
        {name: column[live] for name, column in block.items()}
        for block, live in zip(blocks, lives, strict=True)
    ]
    labelled = any("label" in block for block in blocks)
    for block in blocks:
        if labelled and "label" not in block:
            block["label"] = np.full(len(block["id"]), -1, "<i8")
    names = set.intersection(*(set(block) for block in blocks))
    return {name: np.concatenate([block[name] for block in blocks]) for name in sorted(names)}


def splat_block(attr: list[Any], data: bytes) -> Columns:
    """The columns of the block of an attr of rows added or merged; none where no row was made."""
    count, base = attr[2], int.from_bytes(attr[3], "little")
    made = {
        name: np.frombuffer(data, code, count * int(np.prod(shape)), offset).reshape(count, *shape)
        for name, code, shape, offset in attr[4]
    }
    if made:
        made["id"] = made["id"] + np.uint64(base)
    return made


def splat_sources(attr: list[Any], data: bytes) -> np.ndarray[Any, Any]:
    """The ids of the rows that were merged."""
    end = 0
    for _, code, shape, offset in attr[4]:
        end = offset + np.dtype(code).itemsize * attr[2] * int(np.prod(shape))
    starts = -(-end // 64) * 64
    place = -(-(starts + 8 * (attr[2] + 1)) // 64) * 64
    found = np.frombuffer(data, "<u8", attr[6], place)
    require(np.frombuffer(data, "<u8", attr[2] + 1, starts)[-1] == len(found), "other sources")
    return found


def _mark(
    blocks: list[Columns], lives: list[np.ndarray[Any, Any]], ids: Any, *, live: bool
) -> None:
    """End the live rows of *ids*, or restore the newest that has each."""
    left = {int(i) for i in ids}
    for block, lived in zip(reversed(blocks), reversed(lives), strict=True):
        for row in np.flatnonzero(np.isin(block["id"], ids)).tolist():
            if int(block["id"][row]) in left:
                left.discard(int(block["id"][row]))
                lived[row] = live


class Point(NamedTuple):
    """A number logged (5): its commit, the epoch of that, and what its row says."""

    lsn: int
    epoch: int
    step: int
    time: int
    value: float


def metrics_of(key: bytes) -> list[str]:
    """The names of a METRICS key without its space byte."""
    names = key.removeprefix(b"\0").split(b"\0")
    require(all(names) and names == sorted(set(names)), "names that do not ascend")
    require((key[:1] == b"\0") == (len(names) > 1), "a NUL in front of one name")
    return [name.decode() for name in names]


def points_of(entry: Entry) -> Iterator[tuple[int, int, dict[str, float]]]:
    """The rows of a version: step, time, values by name."""
    names = metrics_of(entry.key[1:])
    row = struct.Struct(f"<qq{len(names)}d")
    require(entry.attr and not len(entry.attr) % row.size, "points that are no rows")
    require((entry.length, entry.digest) == (0, b""), "points with bytes beside their attr")
    for step, time, *values in row.iter_unpack(entry.attr):
        require(step >= -1, "a step below -1")
        yield step, time, dict(zip(names, values, strict=True))


def curves(store: Store, lsn: int) -> dict[str, list[Point]]:
    """The points of each metric that a commit sees."""
    found: dict[str, list[Point]] = {}
    sources: dict[str, set[bytes]] = {}
    for commit in store.lineage(lsn):
        for entry in commit.entries:
            if entry.key[:1] != METRICS:
                continue
            require(not entry.flags & 1, "points that were deleted")
            for step, time, values in points_of(entry):
                for name, value in values.items():
                    point = Point(commit.lsn, commit.epoch, step, time, value)
                    found.setdefault(name, []).append(point)
                    sources.setdefault(name, set()).add(entry.key)
    for name, points in found.items():
        if len(sources[name]) > 1:
            points.sort(key=lambda point: (point.lsn, point.time))
    return found


def calls(commit: Commit) -> list[tuple[int, int, dict[str, float]]]:
    """What was logged in a commit, call by call: by time, then in the order of rows."""
    found: dict[tuple[int, int, int], dict[str, float]] = {}
    for entry in commit.entries:
        if entry.key[:1] == METRICS:
            for step, time, values in points_of(entry):
                twin = 0
                while found.get((time, step, twin), {}).keys() & values.keys():
                    twin += 1
                found.setdefault((time, step, twin), {}).update(values)
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [(step, time, values) for (time, step, _), values in ordered]
