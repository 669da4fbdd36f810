"""FORMAT.md against the code: every table, every number, and the example in both directions."""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb import keys
from mldb.errors import FormatVersionError
from mldb.history import kinds, splats
from mldb.log import active, hints, lock, manifest, readers
from mldb.log import format as fmt
from mldb.log.active import chain_start, hint_name
from mldb.log.batch import Place, place_all, write_batch, write_small
from mldb.log.checksum import check64, checks_and_digest, digest128
from mldb.log.frame import TO_BE_HASHED, CommitBody, DamagedFrame, Draft, Record, check_body, decode_commit, decode_header, unpack
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.index.columns import COLUMN_TYPES, META_PREFIX, build_index
from mldb.log.index.footer import index_frame
from mldb.log.log import FOLDERS
from mldb.log.recovery import LOST
from mldb.log.scan import Cursor, scan
from mldb.log.segment import segment_name
from mldb.state import skeleton as state_skeleton
from mldb.tensors import metadata
from mldb.tensors.descriptor import COMPONENT_ALIGN
from mldb.tensors.encoding import ENCODING_ZSTD
from mldb.write import staging
from tests.support.logs import open_log

Row = dict[str, str]


class Document(NamedTuple):
    """FORMAT.md taken apart: rows of tables by (section, first column), prose, the hex block."""

    tables: dict[tuple[int, str], list[Row]]
    prose: dict[int, str]
    hexdump: str


@cache
def document() -> Document:
    text = files("mldb.log").joinpath("FORMAT.md").read_text(encoding="utf-8")
    tables: dict[tuple[int, str], list[Row]] = defaultdict(list)
    prose: dict[int, str] = defaultdict(str)
    section, header, fence, hexdump = 0, [""], "", ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = "" if fence else line[3:] or "text"
        elif fence == "hex":
            hexdump += line + "\n"
        elif fence:
            continue
        elif found := re.match(r"## (\d+)\. ", line):
            section = int(found.group(1))
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not header[0]:
                header = cells
            elif not set(line) <= set("|- "):
                tables[section, header[0]].append(dict(zip(header, cells, strict=True)))
            continue
        else:
            prose[section] += line + "\n"
        header = [""]
    return Document(dict(tables), dict(prose), hexdump)


def number(text: str) -> int:
    """A number as the document writes it: 1024, 2^20, 2^63 - 1, -2^63."""
    found = re.fullmatch(r"(-?)(\d+)(?:\^(\d+))?( - 1)?", text)
    assert found, text
    sign, base, power, less = found.groups()
    value: int = int(base) ** int(power or 1) - bool(less)
    return -value if sign else value


def code(text: str) -> str:
    return text.strip("`")


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
    assert rows[-1]["meaning"].endswith(f"0 to {fmt.FILE_HEADER_SIZE - 9}")


def check_frame_header(rows: list[Row]) -> None:
    check_layout(rows, fmt.FRAME_HEADER, fmt.FrameHeader._fields)
    assert fmt.FRAME_MAGIC.hex(" ") in rows[0]["meaning"]
    assert rows[2]["meaning"].endswith(f"kind, {fmt.BODY_VERSION}")
    assert f"0 to {fmt.FRAME_CHECKED_SIZE - 1} " in rows[-1]["meaning"]


def check_positions(rows: list[Row], names: Sequence[str]) -> None:
    assert [(int(row["position"]), row["field"]) for row in rows] == list(enumerate(names))


def check_entry_and_commit(rows: list[Row]) -> None:
    check_positions(rows[:8], Draft._fields)
    check_positions(rows[8:], CommitBody._fields)


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
    known = [int(row["frame flag"]) for row in rows if "reserved" not in row["meaning"]]
    assert sum(known) == fmt.FLAGS_KNOWN


def check_entry_flags(rows: list[Row]) -> None:
    said = {row["name"].upper(): int(row["entry flag"]) for row in rows}
    assert said == {"TOMBSTONE": fmt.ENTRY_TOMBSTONE}
    assert sum(said.values()) == fmt.ENTRY_FLAGS_KNOWN


def check_encodings(rows: list[Row]) -> None:
    said = {row["name"]: int(row["encoding"]) for row in rows}
    assert said == {"raw": fmt.ENCODING_RAW, "zstd": ENCODING_ZSTD}


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


# --- files ----------------------------------------------------------------------------------------


def check_folder(rows: list[Row]) -> None:
    ten = "0000000007"
    said = {
        code(row["name"]).replace("N", ten) if row["name"] != "`LOCK`" else "LOCK": row
        for row in rows
    }
    said = {name.replace(f"MA{ten}IFEST", "MANIFEST"): row for name, row in said.items()}
    expected = {
        lock.LOCK: "-",
        lock.GATE: "-",
        manifest.manifest_name(7): str(fmt.FILE_MANIFEST),
        segment_name(7): str(fmt.FILE_SEGMENT),
        segment_name(7).replace(".seg", ".idx"): str(fmt.FILE_INDEX),
        manifest.PENDING + "/": "-",
        readers.READERS + "/": str(fmt.FILE_READER),
        hint_name(7): str(fmt.FILE_HINT),
        "hints/border": str(fmt.FILE_HINT),
        LOST + "/": str(fmt.FILE_LOST),
    }
    assert {name: row["file kind"] for name, row in said.items()} == expected
    assert {name.split("/")[0] for name in expected if "/" in name} == set(FOLDERS)


def check_places(rows: list[Row]) -> None:
    assert [row["file kind"] for row in rows] == [
        str(kind) for kind in (fmt.FILE_SEGMENT, fmt.FILE_INDEX, fmt.FILE_HINT)
    ]
    assert [row["offset"] for row in rows[1:]] == [str(fmt.FILE_HEADER_SIZE)] * 2


def check_reader(rows: list[Row]) -> None:
    check_positions(rows, [field.name for field in fields(readers.Reader)][1:])
    assert (
        number(rows[3]["meaning"].split("; ")[1].removesuffix(" when none"))
        == readers.NEEDS_NOTHING
    )


# --- events and keys ------------------------------------------------------------------------------


def check_events(rows: list[Row]) -> None:
    said = {row["event"]: int(row["kind"]) for row in rows}
    there = {
        name: value & ~fmt.MUST_UNDERSTAND
        for name, value in vars(kinds).items()
        if name.isupper()
        and isinstance(value, int)
        and value & fmt.MUST_UNDERSTAND
        and name[0] != "_"
    }
    assert there.items() <= said.items()
    assert min(said.values()) == fmt.KIND_FIRST_EVENT
    written = {int(row["kind"]) for row in rows if row["state"] == "written"}
    assert written == kinds.KNOWN_KINDS
    assert {row["state"] for row in rows if int(row["kind"]) not in written} == {"reserved"}
    assert len(set(said.values())) == len(rows)


def check_spaces(rows: list[Row]) -> None:
    said = {row["name"]: bytes([int(row["space"])]) for row in rows}
    there = {
        name: value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, bytes) and name not in ("NUL", "LATEST_CHECKPOINT")
    }
    assert said == there
    assert said["CHECKPOINTS"] == keys.LATEST_CHECKPOINT
    assert keys.pin_key(258) == said["PINS"] + struct.pack(">Q", 258)
    assert keys.relation_key(b"s", b"k", b"t") == said["RELATIONS"] + b"s\0k\0t"
    assert keys.reverse_key(b"s", b"k", b"t") == said["REVERSE"] + b"t\0k\0s"


_BLOCK_TYPES = {"<f4": "f32", "<f8": "f64", "<u8": "u64"}


def check_block(rows: list[Row]) -> None:
    columns = splats.lay_out(7, 5, labels=False)
    types = [_BLOCK_TYPES[c.dtype] + " x dimension" * bool(c.shape) for c in columns]
    assert [row["column"] for row in rows] == [c.name for c in columns]
    assert [row["type"] for row in rows] == types
    assert all(c.offset % splats.COLUMN_ALIGN == 0 for c in columns)
    assert splats.ID_MAX == 2**48 - 1


def check_tags(rows: list[Row]) -> None:
    names = [row["name"] for row in rows]
    assert [int(row["tag"]) for row in rows] == [getattr(state_skeleton, name) for name in names]
    assert len(set(names)) == len(names) == 15


# --- indexes --------------------------------------------------------------------------------------

_COLUMN_TYPES = {"u1": "u8", "<u4": "u32", "<u8": "u64", "<i8": "i64", "V16": "bytes 16"}


def check_columns(rows: list[Row]) -> None:
    said = {row["column"]: row["type"] for row in rows}
    expected = {name: _COLUMN_TYPES[kind] for name, kind in COLUMN_TYPES.items()}
    expected |= {f"{META_PREFIX}FIELD:code": "u32", f"{META_PREFIX}FIELD:values": "u8"}
    assert said == expected
    image = build_index({}, [], None)
    lengths = {name: place[1] for name, place in image.directory.items()}
    one_more = {row["column"] for row in rows if "and one more" in row["one value for each"]}
    assert {name for name, count in lengths.items() if count == 1} == one_more


def index_body() -> dict[str, Any]:
    """The body of an index frame that the code writes."""
    log = open_log(MemoryFileSystem())
    data = b"".join(map(bytes, index_frame(log.state.active, 0, 0, 128, None)))
    frame = decode_header(data, 128, log.state.active.segment.seed, 128 + len(data), 128)
    body: dict[str, Any] = unpack(check_body(data, frame, 128))
    return body


def check_fields(rows: list[Row]) -> None:
    """The two tables of section 7 and one of section 6 are maps; the types are those of msgpack."""
    said = {row["field"]: row["type"] for row in rows}
    assert said == {name: msgpack_type(value) for name, value in index_body().items()}


def msgpack_type(value: object) -> str:
    names = {int: "int", bytes: "bin", str: "str", dict: "map", list: "array", tuple: "array"}
    return names[type(value)]


_FIELD_TYPES = {"int": "int", "bytes": "bin", "str": "str", "Mark": "map"}


def check_dataclass(kind: type) -> Callable[[list[Row]], None]:
    def check(rows: list[Row]) -> None:
        assert is_dataclass(kind)
        column = next(iter(rows[0]))
        said = {row[column]: row["type"] for row in rows}
        assert said == {
            field.name: _FIELD_TYPES.get(str(field.type), "array") for field in fields(kind)
        }

    return check


# --- numbers --------------------------------------------------------------------------------------


def check_limits(rows: list[Row]) -> None:
    for row in rows:
        assert getattr(fmt, row["limit"]) == number(row["value"]), row
    every = {name for name in vars(fmt) if name.endswith("_MAX") and not name.startswith("BLOCK_")}
    assert every <= {row["limit"] for row in rows}
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
    assert said["store id"] == ("128", "-")
    assert [row["kept by compaction"] for row in rows if row["number"] == "position"] == ["no"]


def check_reserved(rows: list[Row]) -> None:
    what = " ".join(row["what"] for row in rows)
    assert f"encodings from {ENCODING_ZSTD + 1}" in what
    assert f"frame flag {fmt.FLAG_EXTERNAL}" in what
    assert f"file kind {fmt.FILE_COMPACTED}" in what
    assert f"key space {keys.RETENTION[0]}" in what
    assert f"frame kinds {fmt.KIND_HINT + 1} to {fmt.KIND_FIRST_EVENT - 1}" in what
    reserved = {
        int(row["kind"]) for row in document().tables[5, "kind"] if row["state"] == "reserved"
    }
    assert reserved == {17, 27, 32, 33}
    assert "event kinds 17, 27, 32, 33" in what
    zero = next(row for row in document().tables[2, "offset"] if row["field"] == "(zero)")
    end = int(zero["offset"]) + int(zero["bytes"]) - 1
    assert f"bytes {zero['offset']} to {end} of the file header" in what


def check_versions(rows: list[Row]) -> None:
    assert [int(row["version"]) for row in rows] == list(range(1, fmt.FORMAT_VERSION + 1))


# --- the example ----------------------------------------------------------------------------------


def example() -> bytes:
    """The bytes of the hex dump, whose offsets and text columns are checked on the way."""
    data = b""
    for line in document().hexdump.splitlines():
        offset, raw, text = re.fullmatch(r"(\w{8})  (.{47})  \|(.*)\|", line).groups()  # type: ignore[union-attr]
        part = bytes.fromhex(raw)
        assert int(offset, 16) == len(data)
        assert text == "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        data += part
    return data


def check_parts(rows: list[Row]) -> None:
    """The parts of the example follow each other to its end."""
    data = example()
    offset = 0
    for row in rows:
        assert int(row["offset"]) == offset
        offset += int(row["bytes"])
        if row["what"] == "zeros":
            assert not any(data[offset - int(row["bytes"]) : offset])
    assert offset == len(data)
    frame = decode_header(data, 128, fmt.file_seed(bytes(range(16)), 1), len(data))
    starts = {row["what"].split(":")[0]: int(row["offset"]) for row in rows}
    assert starts["body"] == frame.body_offset
    assert starts["block checksum"] == frame.checks_offset
    assert starts["payload"] == frame.payload_offset


def check_values(rows: list[Row]) -> None:
    said = {row["field"]: code(row["value"]) for row in rows}
    data = example()
    header = decode_file_header(data, "example")
    seed = fmt.file_seed(header.store_id, header.file_id)
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(header.store_id, header.file_id))
    (batch,) = scan(memoryview(data), cursor, seed, 1, verify_after=0)
    assert cursor.offset == len(data)
    ((frame, _),) = batch.frames
    ((key, entry),) = batch.entries
    found: dict[str, object] = {
        "store_id": header.store_id.hex(),
        "writer": header.writer.rstrip(b"\0").decode(),
        "seed S": f"{seed:016x}",
        "body_check": f"{frame.header.body_check:016x}",
        "header_check": f"{frame.header.header_check:016x}",
        "key": key.hex(),
        "attr": entry.attr.hex(),
        "digest of the entry": entry.digest.hex(),
        "payload": data[entry.offset : entry.offset + entry.length].hex(),
        "digest before the batch": chain_start(header.store_id, 1).hex(),
        "digest of the batch": batch.body.digest.hex(),
    }
    for name, value in said.items():
        if name in found:
            assert value == found[name], name
        else:
            sources: list[fmt.FrameHeader | fmt.FileHeader | CommitBody]
            sources = [frame.header, header, batch.body]
            source = next(item for item in sources if name in item._fields)
            assert int(value) == getattr(source, name), name
    assert unpack(entry.attr) == ["<f4", [2]]
    assert np.frombuffer(bytes.fromhex(said["payload"]), "<f4").tolist() == [1.0, -2.0]
    assert said["digest of the entry"] == digest128(bytes.fromhex(said["payload"])).hex()


@pytest.mark.parametrize("small", [True, False])
def test_the_encoder_writes_the_example(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = example()
    header = decode_file_header(data, "example")
    monkeypatch.setattr(fmt, "WRITER", header.writer.rstrip(b"\0"))
    file = MemoryFileSystem().open("example", "create")
    file.pwritev([encode_file_header(fmt.FILE_SEGMENT, header.store_id, 1, 1, header.created)], 0)
    payload = struct.pack("<2f", 1.0, -2.0)
    draft = Draft(keys.TENSORS + b"w", 0, 0, 0, 8, TO_BE_HASHED, 0, msgpack.packb(["<f4", [2]]))
    record = Record(kinds.TENSOR_STORED, [draft], [payload], 8)
    seed, chain = fmt.file_seed(header.store_id, 1), chain_start(header.store_id, 1)
    where = Place(seed, 1, chain, 0, 1, EMPTY_COMMIT, 3, header.created + 1_000_000_000)
    if small:
        write_small(file, [record], fmt.FILE_HEADER_SIZE, where)
    else:
        placed = place_all([record], fmt.FILE_HEADER_SIZE)
        write_batch(file, placed, placed[-1].end, where)
    assert file.pread(1000, 0).hex(" ") == data.hex(" ")


def test_the_checksums_of_the_example_are_those_that_the_text_says() -> None:
    """Recomputed here from the text alone, so that the text is enough to write a reader."""
    data = example()
    xxh = check64
    assert int.from_bytes(data[120:128], "little") == xxh(data[:120])
    seed = xxh(bytes(range(16)) + (1).to_bytes(8, "little"))
    for offset, body in ((128, 40), (264, 42)):
        stored = int.from_bytes(data[offset + 48 : offset + 56], "little")
        assert stored == xxh(data[offset : offset + 48], (seed + offset) % 2**64)
        checks = 8 if offset == 128 else 0
        stored = int.from_bytes(data[offset + 40 : offset + 48], "little")
        assert stored == xxh(data[offset + 56 : offset + 56 + body + checks])
    assert int.from_bytes(data[224:232], "big") == xxh(data[256:264])
    before = digest128(bytes(range(16)) + (1).to_bytes(8, "little"))
    commit = decode_commit(data[320:362])
    assert commit.digest == digest128(before + data[128:184])


# --- all of it ------------------------------------------------------------------------------------

CHECKS: dict[tuple[int, str], Callable[[list[Row]], None]] = {
    (1, "name"): check_folder,
    (2, "offset"): check_file_header,
    (2, "file kind"): check_file_kinds,
    (3, "offset"): check_frame_header,
    (3, "frame kind"): check_frame_kinds,
    (3, "frame flag"): check_frame_flags,
    (3, "what"): check_sizes,
    (4, "position"): check_entry_and_commit,
    (4, "entry flag"): check_entry_flags,
    (4, "encoding"): check_encodings,
    (5, "kind"): check_events,
    (5, "space"): check_spaces,
    (5, "tag"): check_tags,
    (5, "column"): check_block,
    (6, "place"): check_places,
    (6, "field"): check_fields,
    (6, "column"): check_columns,
    (7, "field"): check_dataclass(manifest.Manifest),
    (7, "segment field"): check_dataclass(manifest.SegmentInfo),
    (7, "mark field"): check_dataclass(manifest.Mark),
    (9, "position"): check_reader,
    (11, "number"): check_numbers,
    (12, "limit"): check_limits,
    (12, "file"): check_read_limits,
    (13, "what"): check_reserved,
    (14, "offset"): check_parts,
    (14, "field"): check_values,
    (16, "version"): check_versions,
}


def test_every_table_has_a_check() -> None:
    assert document().tables.keys() == CHECKS.keys()


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
        staging.PACK_BYTES,
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
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 2)
    newer = encode_file_header(fmt.FILE_SEGMENT, bytes(16), 1, 1, 0)
    monkeypatch.undo()
    with pytest.raises(FormatVersionError, match="version 2"):
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


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**63), st.integers(0, 2**63))
def test_seeds_differ_from_file_to_file(store_id: bytes, one: int, other: int) -> None:
    same = fmt.file_seed(store_id, one) == fmt.file_seed(store_id, other)
    assert same == (one == other)
    assert 0 <= fmt.file_seed(store_id, one) < 1 << 64
