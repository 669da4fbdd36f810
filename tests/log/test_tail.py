"""What stands behind damage: proof that it was durable, found at once among anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log import format as fmt
from mldb.log import tail as tail_module
from mldb.log.checksum import check64
from mldb.log.frame import encode_commit, encode_head, pack
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import CommitRow
from mldb.log.tail import Tail, survey
from tests.support.logs import SEGMENT_ID, STORE_ID, build_segment, flip
from tests.support.parts import examples

SEED = fmt.file_seed(STORE_ID, SEGMENT_ID)
INDEX = fmt.KIND_INDEX | fmt.MUST_UNDERSTAND
TORN = 4 << 20


def commit(offset: int, durable: int, lsn: int = 9) -> bytes:
    """A commit frame that says how far the log was durable; its digest is wrong."""
    row = CommitRow(lsn, 0, 0, 0, 0, 0, offset, bytes(16))
    return encode_commit(row, 0, bytes(16), durable, SEED)


def footer(offset: int, body: object, payload: int = 0) -> bytes:
    """The head of a footer; a payload is promised and not there."""
    log2 = fmt.INDEX_BLOCK_LOG2 if payload else 0
    checks = bytes(8 * fmt.block_count(payload, log2)) if payload else b""
    return encode_head(
        INDEX, 1, 0, pack(body), checks, payload, log2, 6 if payload else 0, 9, 9, SEED, offset
    )


def durable_segment() -> tuple[bytes, list[int]]:
    """Three commits, the last of which says that the second was durable; and where each starts."""
    built = build_segment([[], [], []], durable=[0, 0, 2])
    return built.data, [written.row.start for written in built.written]


def test_a_commit_behind_damage_proves_that_earlier_ones_were_durable() -> None:
    data, starts = durable_segment()
    damaged = memoryview(flip(data, 8 * starts[1] + 8))
    assert survey(damaged, starts[1], SEED) == Tail(1, 2, starts[2], "a commit")


def test_commits_are_counted_by_their_headers() -> None:
    data, starts = durable_segment()
    assert survey(memoryview(data), fmt.FILE_HEADER_SIZE, SEED).commits == 3
    assert survey(memoryview(data), starts[1] + 1, SEED).commits == 1
    assert survey(memoryview(data), fmt.FILE_HEADER_SIZE, SEED + 1) == Tail()


def test_a_commit_whose_body_is_damaged_counts_and_proves_nothing() -> None:
    data, starts = durable_segment()
    for place in range(starts[2] + fmt.FRAME_HEADER_SIZE, len(data)):
        found = survey(memoryview(flip(data, 8 * place)), starts[2], SEED)
        assert (found.commits, found.durable) == (1, 0), place


@pytest.mark.parametrize("window", [64, 128, 1 << 22])
@given(
    st.lists(st.integers(0, 40), max_size=5),
    st.lists(st.integers(0, 300).map(lambda number: 8 * number), max_size=5),
    st.integers(0, 9),
)
def test_every_commit_is_found_at_any_distance(
    window: int, marks: list[int], gaps: list[int], ragged: int
) -> None:
    """Also one that spans the border of two windows, and one in front of a ragged end."""
    data = bytearray(fmt.FILE_HEADER_SIZE)
    best = (0, 0)
    for mark, gap in zip(marks, [*gaps, *[0] * len(marks)], strict=False):
        data += b"\xa5" * gap
        if mark > best[0]:
            best = (mark, len(data))
        data += commit(len(data), mark)
    data += bytes(ragged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_module, "_WINDOW_BYTES", window)
        found = survey(memoryview(bytes(data)), fmt.FILE_HEADER_SIZE, SEED)
    assert (found.commits, found.durable, found.offset) == (len(marks), *best)


def test_frames_are_found_at_multiples_of_8_and_nowhere_else() -> None:
    for shift in range(9):
        offset = 128 + shift
        data = bytes(offset) + commit(offset, 5)
        assert survey(memoryview(data), 128, SEED).durable == (0 if shift % 8 else 5), shift


def test_a_footer_proves_what_it_says_though_its_payload_is_not_there() -> None:
    data = bytes(128) + footer(128, {"durable": 7}) + bytes(64)
    assert survey(memoryview(data), 128, SEED) == Tail(0, 7, 128, "a footer")
    promised = bytes(128) + footer(128, {"durable": 7}, payload=500)
    whole = promised + bytes(500 + 8)
    assert survey(memoryview(whole), 128, SEED).durable == 7
    cut = survey(memoryview(promised), 128, SEED)  # the frame ends behind the file
    assert cut == Tail()


@pytest.mark.parametrize("body", [7, None, [], {}, {"durable": "7"}, {"durable": None}, b"durable"])
def test_a_footer_with_another_body_proves_nothing(body: object) -> None:
    data = bytes(128) + footer(128, body) + bytes(64)
    assert survey(memoryview(data), 128, SEED) == Tail()


@given(st.binary(max_size=700))
def test_any_bytes_are_looked_at_without_an_error(data: bytes) -> None:
    assert survey(memoryview(data), 0, SEED) == Tail()


# --- four MiB of anything -------------------------------------------------------------------------


class Work:
    """Counts hashes, and the bytes that they cover, while a tail is surveyed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.hashes = 0
        self.bytes = 0

        def counted(data: Buffer, seed: int = 0) -> int:
            self.hashes += 1
            self.bytes += memoryview(data).nbytes
            return check64(data, seed)

        for module in ("tail", "frame"):
            patch.setattr(f"mldb.log.{module}.check64", counted)


def header(kind: int, body_length: int, payload: int) -> bytes:
    """A frame header as any writer makes it, but for its checksum, which is wrong."""
    return fmt.FRAME_HEADER.pack(
        fmt.FRAME_MAGIC, kind, 1, 0, body_length, 20, 6, 0, payload, 1, 1, 0, 0
    )


def repeated(part: bytes) -> bytes:
    return part * (TORN // len(part))


EVENT = 16 | fmt.MUST_UNDERSTAND
COMMIT = fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND
KINDS: dict[str, tuple[Callable[[], bytes], int]] = {
    "zeros": (lambda: bytes(TORN), 0),
    "magic": (lambda: repeated(fmt.FRAME_MAGIC), 0),
    "magic at each 8": (lambda: repeated(fmt.FRAME_MAGIC + bytes(4)), 0),
    "events": (lambda: repeated(header(EVENT, 40, 0)), 0),
    "random": (lambda: np.random.default_rng(1).bytes(TORN), 0),
    # The beginning of a commit's header at every multiple of 8: each has to be hashed, once.
    "commits of a word": (
        lambda: repeated(fmt.FRAME_MAGIC + COMMIT.to_bytes(2, "little") + b"\x01\x00"),
        0,
    ),
    "commit headers": (lambda: repeated(header(COMMIT, 60, 0)), 1),
    "footer headers of long bodies": (lambda: repeated(header(INDEX, TORN, 0)), 1),
    "footer headers of long payloads": (lambda: repeated(header(INDEX, 40, TORN // 2)), 1),
    "footer headers beyond the end": (lambda: repeated(header(INDEX, 40, TORN + 256)), 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_torn_tail_of_four_mib_of_anything_takes_little_work(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MiB of the magic took 17 seconds: each place was decoded, and its checksum computed.

    Only a header that may be a commit's or footer's is hashed, 48 bytes of it and once; so never
    more bytes than the tail has.
    """
    make, each = KINDS[name]
    work = Work(monkeypatch)
    data = memoryview(bytes(128) + make())
    assert survey(data, 128, SEED) == Tail()
    assert work.hashes <= each * (TORN // fmt.FRAME_HEADER_SIZE + 1)
    assert work.bytes <= TORN


def test_forged_footers_whose_bodies_overlap_take_little_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Headers with the right checksum for their place, each of a body of half the tail.

    Frames do not overlap, so hashing every body took seconds and could prove nothing.
    """
    parts: list[bytes] = []
    for offset in range(128, 128 + TORN // 2, fmt.FRAME_HEADER_SIZE):
        start = header(INDEX, TORN // 2 - 64, 0)[: fmt.FRAME_CHECKED_SIZE]
        check = check64(start, (SEED + offset) & (2**64 - 1))
        parts.append(start + check.to_bytes(8, "little"))
    data = memoryview(bytes(128) + b"".join(parts) + bytes(TORN // 2))
    work = Work(monkeypatch)
    assert survey(data, 128, SEED).durable == 0
    assert work.bytes <= 8 * TORN


def test_a_tail_of_whole_commits_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[bytes] = []
    offset = 128
    while offset < TORN:
        parts.append(commit(offset, len(parts) % 1000))
        offset += len(parts[-1])
    data = memoryview(bytes(128) + b"".join(parts))
    work = Work(monkeypatch)
    found = survey(data, 128, SEED)
    assert (found.commits, found.durable) == (len(parts), 999)
    assert work.hashes <= 3 * len(parts)
    assert work.bytes <= 2 * len(data)


@examples(30)
@given(st.binary(min_size=1, max_size=64).map(repeated), st.integers(0, 200))
def test_no_pattern_takes_more_hashes_than_it_has_headers(data: bytes, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        work = Work(patch)
        survey(memoryview(data), start, SEED)
    assert work.hashes <= len(data) // 8
