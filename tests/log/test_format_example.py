"""The example of FORMAT.md: read and written by the code, and checked by the text alone."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mldb import keys
from mldb.history import kinds
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.batch import (
    BatchStart,
    encode_batch,
    place_all,
    write_batch,
    write_payloads,
)
from mldb.log.checksum import check64, digest128
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.frame import (
    TO_BE_HASHED,
    CommitBody,
    Draft,
    Record,
    decode_commit,
    decode_header,
    hash_record,
    unpack,
)
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.scan import Cursor, scan
from mldb.tensors import descriptor
from tests.support.format_page import EXAMPLE_SEED, code, document, example


def test_the_parts_of_the_example_follow_each_other_to_its_end() -> None:
    rows, data = document().tables[14, "offset"], example()
    offset = 0
    for row in rows:
        assert int(row["offset"]) == offset
        offset += int(row["bytes"])
        if row["what"] == "zeros":
            assert not any(data[offset - int(row["bytes"]) : offset])
    assert offset == len(data)
    frame = decode_header(data, 128, EXAMPLE_SEED, len(data))
    starts = {row["what"].split(":")[0]: int(row["offset"]) for row in rows}
    assert starts["body"] == frame.body_offset
    assert starts["block checksum"] == frame.checks_offset
    assert starts["payload"] == frame.payload_offset


def test_the_values_of_the_example_are_those_that_a_reader_finds() -> None:
    rows = document().tables[14, "field"]
    said = {row["field"]: code(row["value"]) for row in rows}
    data = example()
    header = decode_file_header(data, "example")
    seed = fmt.file_seed(header.store_id, header.segment_id)
    start = chain_start(header.store_id, header.segment_id)
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, start)
    (batch,) = scan(memoryview(data), cursor, seed, header.segment_id, verify_after=0)
    assert cursor.offset == len(data)
    ((frame, _),) = batch.frames
    ((key, entry),) = batch.entries
    found: dict[str, object] = {
        "store_id": header.store_id.hex(),
        "id": header.id.hex(),
        "writer": header.writer.rstrip(b"\0").decode(),
        "seed S": f"{seed:016x}",
        "body_check": f"{frame.header.body_check:016x}",
        "header_check": f"{frame.header.header_check:016x}",
        "key": key.hex(),
        "attr": entry.attr.hex(),
        "digest of the entry": entry.digest.hex(),
        "payload": data[entry.offset : entry.offset + entry.length].hex(),
        "digest before the batch": start.hex(),
        "digest of the batch": batch.body.digest.hex(),
        "id of the commit": batch.body.id.hex(),
    }
    for name, value in said.items():
        if name in found:
            assert value == found[name], name
        else:
            sources: list[fmt.FrameHeader | fmt.FileHeader | CommitBody]
            sources = [frame.header, header, batch.body]
            source = next(item for item in sources if name in item._fields)
            assert int(value) == getattr(source, name), name
    assert unpack(entry.attr) == [descriptor.DESCRIPTOR_VERSION, "<f4", [2]]
    assert entry.attr == descriptor.pack_descriptor(descriptor.dense_descriptor([2], "<f4"))
    assert descriptor.unpack_descriptor(entry.attr) == descriptor.dense_descriptor([2], "<f4")
    assert np.frombuffer(bytes.fromhex(said["payload"]), "<f4").tolist() == [1.0, -2.0]
    assert said["digest of the entry"] == digest128(bytes.fromhex(said["payload"])).hex()


@pytest.mark.parametrize("ahead", [True, False])
def test_the_encoder_writes_the_example(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = example()
    header = decode_file_header(data, "example")
    monkeypatch.setattr(fmt, "WRITER", header.writer.rstrip(b"\0"))
    monkeypatch.setattr("mldb.log.batch.new_commit_id", lambda: bytes(range(32, 48)))
    file = MemoryFileSystem().open("example", "create")
    head = encode_file_header(
        fmt.FILE_SEGMENT,
        header.store_id,
        header.created,
        segment_id=header.id,
        base_lsn=1,
        published=1,
    )
    file.pwritev([head], 0)
    attr = descriptor.pack_descriptor(descriptor.dense_descriptor([2], "<f4"))
    draft = Draft(keys.TENSORS + b"w", 0, 0, 0, 8, TO_BE_HASHED, 0, attr, b"")
    record = Record(kinds.TENSOR_STORED, [draft], [struct.pack("<2f", 1.0, -2.0)], 8)
    start = BatchStart(
        EXAMPLE_SEED,
        header.id,
        chain_start(header.store_id, header.id),
        *(fmt.FILE_HEADER_SIZE, 1, 0, EMPTY_COMMIT, 3, header.created + 1_000_000_000),
    )
    if ahead:
        write_payloads(file, list(place_all([record], fmt.FILE_HEADER_SIZE)))
    hash_record(record)
    write_batch(file, encode_batch([record], start))
    assert file.pread(1000, 0).hex(" ") == data.hex(" ")


def test_the_checksums_of_the_example_are_those_that_the_text_says() -> None:
    """Recomputed here from the text alone, so that the text is enough to write a reader."""
    data = example()
    xxh = check64
    store_id, segment_id = bytes(range(16)), bytes(range(16, 32))
    assert int.from_bytes(data[120:128], "little") == xxh(data[:120])
    seed = xxh(store_id + segment_id)
    for offset, body in ((128, 43), (264, 61)):
        stored = int.from_bytes(data[offset + 48 : offset + 56], "little")
        assert stored == xxh(data[offset : offset + 48], (seed + offset) % 2**64)
        checks = 8 if offset == 128 else 0
        stored = int.from_bytes(data[offset + 40 : offset + 48], "little")
        assert stored == xxh(data[offset + 56 : offset + 56 + body + checks])
    assert int.from_bytes(data[227:235], "big") == xxh(data[256:264])
    before = digest128(store_id + segment_id)
    commit = decode_commit(data[320:381])
    assert commit.digest == digest128(before + data[128:184])
    assert commit.id == bytes(range(32, 48))
