"""FORMAT.md against the code: every table and every number; and the pure functions of it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb import keys
from mldb.compaction import deltas
from mldb.compaction.compactor import COMPACTION_LOCK
from mldb.compaction.gate import WISH_KINDS, WISHES
from mldb.compaction.reads import READS, READS_LOCK
from mldb.compaction.status import STATUS, WORKER_LOCK
from mldb.errors import FormatVersionError
from mldb.history import splats
from mldb.log import active, hints, lock, lone, manifest, manifest_codec, readers
from mldb.log import format as fmt
from mldb.log.active import HINTS, hint_name
from mldb.log.batch import (
    LSN_ROOM,
)
from mldb.log.birth import FOLDERS, UNFINISHED_MARK
from mldb.log.checksum import check64, checks_and_digest
from mldb.log.directory.catalog import CATALOG
from mldb.log.directory.maker import MAKER_LOCK
from mldb.log.directory.part import PartInfo
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.frame import (
    CommitBody,
    DamagedFrame,
    Draft,
    check_body,
    decode_header,
    encode_head,
    pack,
    unpack,
)
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry
from mldb.log.index.columns import (
    COLUMN_TYPES,
    COMPACTED_COLUMNS,
    DIRECTORY_COLUMNS,
    META_PREFIX,
    OPTIONAL_COLUMNS,
    build_index,
)
from mldb.log.index.footer import index_frame
from mldb.log.patch import PATCH_HEADER, PATCH_VERSION, Patch, encode_patch
from mldb.log.recovery import LOST
from mldb.log.segment import segment_name
from mldb.query.statistics_cache import HINT as STATISTICS
from mldb.tensors import metadata
from mldb.tensors.descriptor import COMPONENT_ALIGN
from mldb.tensors.encoding import ENCODING_ZSTD
from mldb.write import packs
from tests.support.files import append_to, read_file
from tests.support.format_events import (
    check_block,
    check_events,
    check_layouts,
    check_parts,
    check_spaces,
    check_tags,
)
from tests.support.format_page import EXAMPLE_SEED, Row, code, document, example, number
from tests.support.logs import SEGMENT_ID, STORE_ID, open_log, store

# --- layouts --------------------------------------------------------------------------------------

_TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "q": "i64"}


def layout(packed: struct.Struct, names: Sequence[str]) -> list[tuple[int, int, str, str]]:
    """Offset, bytes, type and name of every field of a struct."""
    found, offset, left = [], 0, iter(names)
    for count, kind in re.findall(r"(\d*)([a-zA-Z])", packed.format):
        size = struct.calcsize(f"<{count}{kind}")
        name = "(zero)" if kind == "x" else next(left)
        shown = "-" if kind == "x" else f"bytes {size}" if kind == "s" else _TYPES[kind]
        found.append((offset, size, shown, name))
        offset += size
    assert list(left) == []
    return found


def check_layout(rows: list[Row], packed: struct.Struct, names: Sequence[str]) -> None:
    said = [(int(row["offset"]), int(row["bytes"]), row["type"], row["field"]) for row in rows]
    assert said == layout(packed, names)


def check_file_header(rows: list[Row]) -> None:
    check_layout(rows, fmt.FILE_HEADER, fmt.FileHeader._fields)
    assert fmt.FILE_MAGIC.hex(" ") in rows[0]["meaning"]
    assert f"version, {fmt.FORMAT_VERSION};" in rows[1]["meaning"]
    assert number(rows[3]["meaning"]) == fmt.FILE_HEADER_SIZE
    assert rows[9]["bytes"] == str(len(fmt.NO_ID))
    assert rows[-1]["meaning"].endswith(f"0 to {fmt.FILE_HEADER_SIZE - 9}")


def check_frame_header(rows: list[Row]) -> None:
    check_layout(rows, fmt.FRAME_HEADER, fmt.FrameHeader._fields)
    assert fmt.FRAME_MAGIC.hex(" ") in rows[0]["meaning"]
    versions = f"{fmt.MANIFEST_BODY_VERSION} in manifests, in frames of any other kind, "
    assert rows[2]["meaning"].endswith(f"{versions}{fmt.BODY_VERSION}")
    assert f"0 to {fmt.FRAME_CHECKED_SIZE - 1} " in rows[-1]["meaning"]


def check_elements(rows: list[Row], names: Sequence[str], *, column: str = "element") -> None:
    assert [(int(row[column]), row["field"]) for row in rows] == list(enumerate(names))


def check_entry_and_commit(rows: list[Row]) -> None:
    """Names, order, and the types that an encoder writes."""
    entries, commit = rows[: len(Draft._fields)], rows[len(Draft._fields) :]
    check_elements(entries, Draft._fields)
    check_elements(commit, CommitBody._fields)
    data = example()
    frame = decode_header(data, 128, EXAMPLE_SEED, len(data))
    ((stored,), _) = unpack(check_body(data, frame))
    assert [row["type"] for row in entries] == list(map(msgpack_type, stored))
    closing = decode_header(data, frame.end, EXAMPLE_SEED, len(data))
    body = unpack(check_body(data, closing))
    assert [row["type"] for row in commit] == list(map(msgpack_type, body))


def check_file_kinds(rows: list[Row]) -> None:
    assert {int(row["file kind"]): row["name"] for row in rows} == fmt.FILE_KINDS


def check_frame_kinds(rows: list[Row]) -> None:
    said = {row["name"].replace(" ", "_").upper(): int(row["frame kind"]) for row in rows}
    assert said == constants(fmt, "KIND_")


def constants(module: object, prefix: str) -> dict[str, Any]:
    """The constants of a module that start with a prefix, without it."""
    return {
        name[len(prefix) :]: value
        for name, value in vars(module).items()
        if name.startswith(prefix)
    }


def check_frame_flags(rows: list[Row]) -> None:
    said = {row["name"].upper(): int(row["frame flag"]) for row in rows}
    assert said == constants(fmt, "FLAG_")
    known = [row["name"] for row in rows if "reserved" not in row["meaning"]]
    assert known == ["keyed"]


def check_entry_flags(rows: list[Row]) -> None:
    said = {row["name"].upper(): int(row["entry flag"]) for row in rows}
    assert said == {"TOMBSTONE": fmt.ENTRY_TOMBSTONE, "SETTLED": fmt.ENTRY_SETTLED}


def check_encodings(rows: list[Row]) -> None:
    said = {row["name"]: int(row["encoding"]) for row in rows}
    assert said == {
        "raw": fmt.ENCODING_RAW,
        "zstd": ENCODING_ZSTD,
        "reference": fmt.ENCODING_REFERENCE,
        "delta": fmt.ENCODING_DELTA,
        "patch": fmt.ENCODING_PATCH,
    }


def check_deltas(rows: list[Row]) -> None:
    places = [int(row["offset in the delta"]) for row in rows[:5]]
    assert places == [0, 1, 2, 3, deltas.HEADER.size]
    assert [row["what"] for row in rows[:5]] == ["method", "width", "bias", "chunk", "lengths"]
    assert [row["what"] for row in rows[5:]] == ["planes"]
    method, width, bias, chunk, lengths, _ = (row["meaning"] for row in rows)
    assert lengths.startswith("of each chunk, u32")
    assert method == f"{deltas.SUBTRACT} difference, {deltas.XOR} exclusive or"
    assert ", ".join(map(str, deltas.WIDTHS)).replace(", 8", " or 8") in width
    assert bias.startswith("below 8 * width")
    assert f"at most {deltas.CHUNK_LOG2_MAX}" in chunk


def check_patches(rows: list[Row]) -> None:
    fields = [row["what"] for row in rows]
    assert fields == [
        *("version", "width", "(zero)", "count", "row_bytes", "(zero)", "rows", "values"),
    ]
    sizes = [int(row["bytes"]) for row in rows[:6]]
    assert PATCH_HEADER.size == sum(sizes) == int(rows[6]["offset in the patch"])
    values = np.arange(24, dtype=np.uint8).reshape(2, 12)
    stored = b"".join(map(bytes, encode_patch(Patch(np.array([3, 7]), values, 12))))
    at = {row["what"]: int(row["offset in the patch"]) for row in rows[:7]}
    assert [stored[at["version"]], stored[at["width"]]] == [PATCH_VERSION, 4]
    assert struct.unpack_from("<QQ", stored, at["count"]) == (2, 12)
    assert struct.unpack_from("<II", stored, at["rows"]) == (3, 7)
    assert rows[7]["offset in the patch"] == "at a multiple of 64"
    assert stored[64:] == values.tobytes()


def is_read(align_log2: int, block_log2: int) -> bool:
    """Whether a reader takes a frame with this alignment and block size."""
    start = fmt.FRAME_HEADER.pack(
        fmt.FRAME_MAGIC, 16, 1, 0, 1, block_log2, align_log2, 0, 1, 1, 1, 0, 0
    )[: fmt.FRAME_CHECKED_SIZE]
    data = start + check64(start, 0).to_bytes(8, "little")
    try:
        decode_header(data, 0, 0, 1 << 40)
    except DamagedFrame:
        return False
    return True


def check_sizes(rows: list[Row]) -> None:
    said = {row["what"]: number(row["bytes"]) for row in rows}
    aligned = [1 << log2 for log2 in range(40) if is_read(log2, fmt.BLOCK_LOG2)]
    blocks = [1 << log2 for log2 in range(40) if is_read(fmt.PAYLOAD_ALIGN_LOG2, log2)]
    large = f"tensor from {fmt.PAGE_ALIGN_FROM} bytes on, with a payload of its own"
    assert said == {
        "start of a frame": fmt.FRAME_ALIGN,
        "smallest payload alignment read": min(aligned),
        "largest payload alignment read": max(aligned),
        "payload": 1 << fmt.PAYLOAD_ALIGN_LOG2,
        large: 1 << fmt.PAGE_ALIGN_LOG2,
        "block of an event's payload": 1 << fmt.BLOCK_LOG2,
        "block of an index": 1 << fmt.INDEX_BLOCK_LOG2,
        "smallest block read": min(blocks),
        "largest block read": max(blocks),
    }
    assert (min(blocks), max(blocks)) == (1 << fmt.BLOCK_LOG2_MIN, 1 << fmt.BLOCK_LOG2_MAX)
    assert (min(aligned), max(aligned)) == (1 << fmt.ALIGN_LOG2_MIN, 1 << fmt.ALIGN_LOG2_MAX)


# --- files ----------------------------------------------------------------------------------------


def check_folder(rows: list[Row]) -> None:
    number, unique = f"{7:010d}", SEGMENT_ID.hex()
    said = {}
    for row in rows:
        name = code(row["name"])
        if name == "MANIFEST-N":
            name = f"MANIFEST-{number}"
        said[name.replace("ID", unique)] = row["file kind"]
    lakes = [f"hints/lake-{unique}.{kind}" for kind in ("graph", "labels", "rows")]
    assert said == {
        lock.LOCK: "-",
        lock.GATE: "-",
        manifest.manifest_name(7): str(fmt.FILE_MANIFEST),
        segment_name(SEGMENT_ID): f"{fmt.FILE_SEGMENT}, {fmt.FILE_COMPACTED}",
        segment_name(SEGMENT_ID).replace(".seg", ".idx"): str(fmt.FILE_INDEX),
        f"blobs/{unique}": str(fmt.FILE_BLOB),
        lone.PENDING + "/": "-",
        readers.READERS + "/": str(fmt.FILE_READER),
        hint_name(SEGMENT_ID): str(fmt.FILE_HINT),
        "hints/border": str(fmt.FILE_HINT),
        PartInfo(SEGMENT_ID, 0, 1, 1, b"").name: str(fmt.FILE_HINT),
        f"{HINTS}/{CATALOG}": str(fmt.FILE_HINT),
        MAKER_LOCK: "-",
        COMPACTION_LOCK: "-",
        f"{HINTS}/{STATUS}": str(fmt.FILE_HINT),
        WORKER_LOCK: "-",
        f"{HINTS}/{READS}": str(fmt.FILE_HINT),
        f"{HINTS}/{STATISTICS}": str(fmt.FILE_HINT),
        READS_LOCK: "-",
        **dict.fromkeys((f"{HINTS}/{WISHES}{kind}-{unique}" for kind in WISH_KINDS), "-"),
        **dict.fromkeys(lakes, str(fmt.FILE_HINT)),
        LOST + "/": str(fmt.FILE_LOST),
        UNFINISHED_MARK: str(fmt.FILE_HINT),
        f"{UNFINISHED_MARK}-N": str(fmt.FILE_HINT),
    }
    assert {name.split("/")[0] for name in said if "/" in name} == {*FOLDERS, "blobs"}


def check_places(rows: list[Row]) -> None:
    assert [row["file kind"] for row in rows] == [
        str(kind) for kind in (fmt.FILE_SEGMENT, fmt.FILE_INDEX, fmt.FILE_HINT, fmt.FILE_HINT)
    ]
    assert [row["offset"] for row in rows[1:]] == [str(fmt.FILE_HEADER_SIZE)] * 3


def check_reader(rows: list[Row]) -> None:
    there = fields(readers.Reader)[1:]
    check_elements(rows, [field.name for field in there])
    assert [row["type"] for row in rows] == [str(field.type) for field in there]
    none = rows[3]["meaning"].split("; ")[1].removesuffix(" when none")
    assert number(none) == readers.NEEDS_NOTHING


# --- indexes --------------------------------------------------------------------------------------

_COLUMN_TYPES = {"u1": "u8", "<u4": "u32", "<u8": "u64", "<i8": "i64", "V16": "bytes 16"}


def check_columns(rows: list[Row]) -> None:
    said = {row["column"]: row["type"] for row in rows}
    kinds_of = {**COLUMN_TYPES, **OPTIONAL_COLUMNS, **DIRECTORY_COLUMNS, **COMPACTED_COLUMNS}
    expected = {name: _COLUMN_TYPES[kind] for name, kind in kinds_of.items()}
    expected |= {f"{META_PREFIX}FIELD:code": "u32", f"{META_PREFIX}FIELD:values": "u8"}
    assert said == expected
    assert list(said)[: len(COLUMN_TYPES)] == list(COLUMN_TYPES), "those that must be there first"
    row = CommitRow(1, 0, 0, 0, 0, 128, 256, bytes(16))
    entry = Entry(1, SEGMENT_ID, 128, 256, 0, b"attr", 0, 0, 0, b"", b"owner")
    image = build_index({b"key": [entry]}, [row], None)
    more = {item["column"] for item in rows if "and one more" in item["one value for each"]}
    lengths = {name: place[1] for name, place in image.directory.items()}
    assert {name for name, count in lengths.items() if count == 2} == more
    heaps = {"key_heap": 3, "attr_heap": 4, "owner_heap": 5}
    assert {name: lengths[name] for name in heaps} == heaps
    assert {item["one value for each"] for item in rows if item["column"] in heaps} == {"byte"}


def index_body() -> dict[str, Any]:
    """The body of an index frame that the code writes."""
    log = open_log(MemoryFileSystem())
    data = b"".join(map(bytes, index_frame(log.state.active, 0, 0, 128, None)))
    frame = decode_header(data, 128, log.state.active.segment.seed, 128 + len(data), 128)
    body: dict[str, Any] = unpack(check_body(data, frame, 128))
    return body


def check_fields(rows: list[Row]) -> None:
    """The body of an index is a map; the types are those of MessagePack."""
    said = {row["field"]: row["type"] for row in rows}
    assert said == {name: msgpack_type(value) for name, value in index_body().items()}


def msgpack_type(value: object) -> str:
    names = {int: "int", bytes: "bin", str: "str", dict: "map", list: "array", tuple: "array"}
    return names[type(value)]


# --- manifests ------------------------------------------------------------------------------------


@cache
def stored_manifest() -> tuple[dict[str, Any], list[Any]]:
    """Body and payload of the manifest of a store with a sealed segment, as the code writes it.

    It is the fourth one, so it has a base.
    """
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=300)
    for turn in range(4):
        store(log, b"\x01key", bytes(200), turn)
    name = manifest.manifest_name(log.state.manifest.number)
    found = lone.decode_lone(
        memoryview(read_file(fs, name)), name, fmt.FILE_MANIFEST, fmt.KIND_MANIFEST
    )
    return unpack(found.body), unpack(bytes(found.payload))


def check_map(rows: list[Row], stored: dict[str, Any]) -> None:
    column = next(iter(rows[0]))
    said = {row[column]: row["type"] for row in rows}
    assert said == {name: msgpack_type(value) for name, value in stored.items()}


def check_manifest(rows: list[Row]) -> None:
    body, _ = stored_manifest()
    assert body["base"] is not None
    check_map(rows, body)
    assert body["features"].keys() == set(re.findall(r"`(read|write|ignore)`", features_prose()))


def features_prose() -> str:
    prose = document().prose[7]
    return prose[prose.index("**Features.**") : prose.index("Manifests are numbered")]


def check_mark(rows: list[Row]) -> None:
    check_map(rows, stored_manifest()[0]["mark"])


def check_lists(rows: list[Row]) -> None:
    _, payload = stored_manifest()
    check_elements(rows, ["changes", "jumps", "kept"], column="payload element")
    assert {row["type"] for row in rows} == {"array"}
    changes, jumps, kept = payload
    assert (type(changes), jumps, kept) == (list, [], None)


def check_segment_info(rows: list[Row]) -> None:
    _, ((splice, *_), _, _) = stored_manifest()
    position, count, (info, *_) = splice
    assert (type(position), type(count)) == (int, int)
    check_map(rows, info)
    assert list(info) == [field.name for field in fields(manifest_codec.SegmentInfo)]


def check_ceilings(rows: list[Row]) -> None:
    """Each row as it says, done to a store."""
    step = fmt.LSN_CEILING_STEP
    said = {row["when"]: (row["lsn_floor"], row["lsn_ceiling"]) for row in rows}
    fs = MemoryFileSystem()
    log = open_log(fs)
    bounds = [(log.state.manifest.lsn_floor, log.state.manifest.lsn_ceiling)]
    store(log, b"\x01a", b"1")
    assert log.head().commit.lsn == 2, "the creating handle goes on with the first LSNs"
    fs.kill()
    log = open_log(fs)
    store(log, b"\x01a", b"2")
    bounds.append((log.state.manifest.lsn_floor, log.state.manifest.lsn_ceiling))
    name = log.state.active.segment.name
    fs.kill()
    append_to(fs, name, b"torn tail")
    log = open_log(fs)
    store(log, b"\x01a", b"3")
    bounds.append((log.state.manifest.lsn_floor, log.state.manifest.lsn_ceiling))
    last = log.head().commit.lsn
    log.close()
    bounds.append((log.state.manifest.lsn_floor, log.state.manifest.lsn_ceiling))
    assert said == {
        "the store is created, by a handle that goes on to write": ("0", "1 + 2^24"),
        "the first commit of any other handle": ("the old ceiling - 1", "raised by 2^24"),
        "a torn tail is repaired, or a segment closed early": (
            "the old ceiling - 1",
            "raised by 2^24",
        ),
        "the next LSNs would reach it": ("the last LSN", "the next LSN + 2^24"),
        "a clean close": ("as it is", "1 above the last LSN or the floor, whichever is higher"),
    }
    assert step == 2**24
    assert bounds == [
        (0, 1 + step),
        (step, 1 + 2 * step),
        (2 * step, 1 + 3 * step),
        (2 * step, last + 1),
    ]
    log = open_log(fs)
    for turn in range(3):
        store(log, b"\x01a", b"%d" % turn)
    assert log.head().commit.lsn == last + 6, "dense after a clean close"
    assert log.state.manifest.lsn_ceiling == last + 1 + step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fmt, "LSN_CEILING_STEP", 6)
        log = open_log(MemoryFileSystem())
        raised = [(0, 7)]
        for turn in range(9):  # two LSNs each
            before = log.head().commit.lsn
            store(log, b"\x01a", b"%d" % turn)
            stored = log.state.manifest
            assert log.head().commit.lsn == before + 2 < stored.lsn_ceiling
            if raised[-1] != (stored.lsn_floor, stored.lsn_ceiling):
                raised.append((stored.lsn_floor, stored.lsn_ceiling))
                assert raised[-1] == (before, before + 1 + 6)
        assert len(raised) == 3


# --- numbers --------------------------------------------------------------------------------------


def check_limits(rows: list[Row]) -> None:
    for row in rows:
        assert getattr(fmt, row["limit"]) == number(row["value"]), row
    every = {name for name in vars(fmt) if name.endswith("_MAX") and "LOG2" not in name}
    assert every <= {row["limit"] for row in rows}
    assert fmt.LSN_MAX - LSN_ROOM == 2**24
    assert metadata.MAX_METADATA_BYTES <= fmt.ATTR_BYTES_MAX


def check_read_limits(rows: list[Row]) -> None:
    assert {row["file"]: number(row["bytes"]) for row in rows} == {
        "manifest": manifest._BYTES_MAX,
        "value hint without payload": hints._BYTES_MAX,
        "value hint with payload": hints._PAYLOAD_MAX,
        "registration": readers._BYTES_MAX,
        "commit frame in front of the end of an index hint": active._COMMIT_BYTES_MAX,
    }


def check_numbers(rows: list[Row]) -> None:
    said = {row["number"]: (row["bits"], row["from"]) for row in rows}
    bits = str(fmt.LSN_MAX.bit_length())
    assert said["LSN"] == (bits, str(EMPTY_COMMIT.lsn + 1))
    assert said["epoch"] == (str(fmt.EPOCH_MAX.bit_length()), "0")
    assert said["segment number"] == said["manifest number"] == (bits, "1")
    assert said["position"] == ("64", str(fmt.FILE_HEADER_SIZE))
    random = {name for name, bounds in said.items() if bounds == ("128", "-")}
    assert random == {"store id", "segment id", "blob id", "commit id"}
    assert said.keys() - random == {
        *("LSN", "epoch", "segment number", "manifest number", "position", "file id")
    }
    assert [row["kept by compaction"] for row in rows if row["number"] == "position"] == ["no"]


def check_reserved(rows: list[Row]) -> None:
    what = " ".join(row["what"] for row in rows)
    assert f"encodings from {fmt.ENCODING_PATCH + 1}" in what
    assert f"frame flag {fmt.FLAG_EXTERNAL}" in what
    assert f"file kind {fmt.FILE_BLOB}, frame kind {fmt.KIND_BLOB}" in what
    spaces = f"key spaces {keys.BRANCHES[0]} to {keys.PATCHES[0]}"
    assert spaces in what
    assert f"frame kinds {fmt.KIND_BLOB + 1} to {fmt.KIND_FIRST_EVENT - 1}" in what
    reserved = {
        int(row["kind"]) for row in document().tables[5, "kind"] if row["state"] == "reserved"
    }
    assert reserved == {35, 36}
    assert "event kinds " + ", ".join(map(str, sorted(reserved))) in what
    zero = next(row for row in document().tables[2, "offset"] if row["field"] == "(zero)")
    end = int(zero["offset"]) + int(zero["bytes"]) - 1
    assert f"bytes {zero['offset']} to {end} of the file header" in what


def check_blob(rows: list[Row]) -> None:
    """The layout of a blob, built here as the page says; a reader of frames takes it."""
    payload = bytes(range(256)) * 5000
    checks, _ = checks_and_digest([payload], fmt.BLOCK_LOG2)
    head = encode_head(
        fmt.KIND_BLOB | fmt.MUST_UNDERSTAND,
        *(1, 0, pack({}), checks, len(payload), fmt.BLOCK_LOG2),
        *(fmt.payload_align_log2(len(payload)), 0, 0),
        fmt.file_seed(STORE_ID, SEGMENT_ID),
        fmt.FILE_HEADER_SIZE,
    )
    header = encode_file_header(fmt.FILE_BLOB, STORE_ID, 0, segment_id=SEGMENT_ID)
    data = memoryview(header + head + payload + bytes(-len(payload) % 8))
    found = lone.decode_lone(data, "blob", fmt.FILE_BLOB, fmt.KIND_BLOB)
    assert found.payload == payload
    offsets = [row["offset in the blob"] for row in rows]
    body = fmt.FILE_HEADER_SIZE + fmt.FRAME_HEADER_SIZE
    assert offsets[:3] == ["0", str(fmt.FILE_HEADER_SIZE), str(body)]
    assert data[body : body + 1] == pack({})
    assert (found.header.file_id, found.header.base_lsn, found.header.published) == (0, 0, 0)
    assert f"kind {fmt.FILE_BLOB}:" in rows[0]["what"]
    assert f"kind {fmt.KIND_BLOB} with" in rows[1]["what"]


def check_versions(rows: list[Row]) -> None:
    assert [int(row["version"]) for row in rows] == list(range(1, fmt.FORMAT_VERSION + 1))


# --- all of it ------------------------------------------------------------------------------------

CHECKS: dict[tuple[int, str], Callable[[list[Row]], None]] = {
    (1, "name"): check_folder,
    (2, "offset"): check_file_header,
    (2, "file kind"): check_file_kinds,
    (3, "offset"): check_frame_header,
    (3, "frame kind"): check_frame_kinds,
    (3, "frame flag"): check_frame_flags,
    (3, "what"): check_sizes,
    (4, "element"): check_entry_and_commit,
    (4, "entry flag"): check_entry_flags,
    (4, "encoding"): check_encodings,
    (4, "offset in the delta"): check_deltas,
    (4, "offset in the patch"): check_patches,
    (5, "kind"): check_events,
    (5, "space"): check_spaces,
    (5, "layout"): check_layouts,
    (5, "tag"): check_tags,
    (5, "column"): check_block,
    (5, "part"): check_parts,
    (6, "place"): check_places,
    (6, "field"): check_fields,
    (6, "column"): check_columns,
    (7, "field"): check_manifest,
    (7, "mark field"): check_mark,
    (7, "payload element"): check_lists,
    (7, "segment field"): check_segment_info,
    (7, "when"): check_ceilings,
    (9, "element"): check_reader,
    (11, "number"): check_numbers,
    (12, "limit"): check_limits,
    (12, "file"): check_read_limits,
    (13, "what"): check_reserved,
    (13, "offset in the blob"): check_blob,
    (16, "version"): check_versions,
}


def test_every_table_has_a_check() -> None:
    """Those of the example are read in ``test_format_example.py``."""
    assert document().tables.keys() - {(14, "offset"), (14, "field")} == CHECKS.keys()


@pytest.mark.parametrize("place", CHECKS, ids=lambda place: f"{place[0]} {place[1]}")
def test_tables_say_what_the_code_does(place: tuple[int, str]) -> None:
    rows = document().tables[place]
    assert rows
    CHECKS[place](rows)


def test_sections_are_those_that_the_code_names() -> None:
    text = files("mldb.log").joinpath("FORMAT.md").read_text(encoding="utf-8")
    titles = dict(re.findall(r"^## (\d+)\. (.*)$", text, re.MULTILINE))
    assert list(map(int, titles)) == list(range(1, 17))
    for section, word in {"3": "Frames", "5": "Events", "6": "Indexes", "7": "Manifest"}.items():
        assert word in titles[section]
    assert titles["8"] == "Torn or corrupt"


def test_numbers_in_the_prose_are_those_of_the_code() -> None:
    """Every number of two digits and more that is no part of a name, a date or a version."""
    known = {
        fmt.MUST_UNDERSTAND,
        packs.PACK_BYTES,
        COMPONENT_ALIGN,
        1 << fmt.PAYLOAD_ALIGN_LOG2,
        (1 << fmt.PAYLOAD_ALIGN_LOG2) - 1,
        (1 << fmt.PAGE_ALIGN_LOG2) - 1,
        fmt.META_COLUMNS_MAX,
        fmt.KEY_BYTES_MAX,
        fmt.FRAME_HEADER_SIZE,
        splats.COLUMN_ALIGN,
        1 << splats.PAGE_LOG2,
        (1 << splats.CHECK_LOG2) >> 10,  # "16 KiB" in section 5
        16,  # the largest element size of an encoding
        32,  # hexadecimal digits of a registration's name
    }
    assert fmt.PAGE_ALIGN_FROM == 1 << 20  # "1 MiB" in section 15
    names = r"xxh3-\d+|[uif]\d+|2\^\d+|RFC \d+|1970(-01-01)?|section \d+|`[^`]*`"
    for section, prose in document().prose.items():
        if section == 0:
            continue
        text = re.sub(names, "", prose)
        found = {int(word) for word in re.findall(r"\d\d+", text)}
        assert found <= known, (section, found - known)


def test_kinds_in_the_prose_are_those_of_the_code() -> None:
    expected = {
        4: {fmt.KIND_COMMIT, fmt.FILE_COMPACTED},
        6: {fmt.KIND_INDEX, fmt.KIND_HINT},
        7: {fmt.KIND_MANIFEST},
        9: {fmt.KIND_READER},
        10: {fmt.FILE_LOST},
    }
    prose = document().prose
    found = {at: set(map(int, re.findall(r"\bkind (\d+)", text))) for at, text in prose.items()}
    assert {at: kinds for at, kinds in found.items() if kinds} == expected


def test_the_document_of_a_newer_format_is_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of a file header never changes, so that a newer version is named."""
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 3)
    newer = encode_file_header(fmt.FILE_SEGMENT, bytes(16), 0, segment_id=SEGMENT_ID)
    monkeypatch.undo()
    with pytest.raises(FormatVersionError, match="version 3"):
        decode_file_header(newer, "x")


# --- pure functions -------------------------------------------------------------------------------


@given(st.integers(0, 2**50), st.integers(0, 21))
def test_align_up_is_the_next_multiple(offset: int, log2: int) -> None:
    found = fmt.align_up(offset, log2)
    assert found % (1 << log2) == 0
    assert offset <= found < offset + (1 << log2)


@given(st.integers(0, 2**48), st.integers(12, 30))
def test_block_count_covers_the_payload(length: int, log2: int) -> None:
    count = fmt.block_count(length, log2)
    assert (count - 1) << log2 < length or count == length == 0
    assert length <= count << log2


@given(st.binary(min_size=1, max_size=70_000))
def test_block_count_is_the_number_of_checksums(data: bytes) -> None:
    for log2 in (fmt.BLOCK_LOG2_MIN, fmt.INDEX_BLOCK_LOG2):
        checks, _ = checks_and_digest([data], log2)
        assert len(checks) == 8 * fmt.block_count(len(data), log2)


@given(st.integers(1, 2**40), st.integers(0, 10**6), st.integers(0, 2**40), st.integers(0, 63))
def test_payloads_lie_behind_their_checksums(
    frame: int, body: int, length: int, shift: int
) -> None:
    offset = 8 * frame + 8 * shift
    align = fmt.payload_align_log2(length)
    place = fmt.payload_offset(offset, body, length, fmt.BLOCK_LOG2, align)
    least = offset + fmt.FRAME_HEADER_SIZE + body + 8 * fmt.block_count(length, fmt.BLOCK_LOG2)
    assert least <= place < least + (1 << align)
    assert length == 0 or place % (1 << align) == 0
    assert align == (
        fmt.PAGE_ALIGN_LOG2 if length >= fmt.PAGE_ALIGN_FROM else fmt.PAYLOAD_ALIGN_LOG2
    )


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16) | st.integers(0, 2**63).map(fmt.number_id),
    st.binary(min_size=16, max_size=16) | st.integers(0, 2**63).map(fmt.number_id),
)
def test_seeds_differ_from_file_to_file(store_id: bytes, one: bytes, other: bytes) -> None:
    same = fmt.file_seed(store_id, one) == fmt.file_seed(store_id, other)
    assert same == (one == other)
    assert 0 <= fmt.file_seed(store_id, one) < 1 << 64
