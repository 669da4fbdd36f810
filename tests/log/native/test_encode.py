"""The compiled encoder and its Python twin, given the same: equal results, or "not mine"."""

from __future__ import annotations

import copy
import gc
import struct
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.errors import MldbError
from mldb.history.kinds import TENSOR_STORED
from mldb.history.kinds.tensors import small_tensor_stored
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.batch import LSN_ROOM, encode_batch
from mldb.log.frame import Record, hash_record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry
from mldb.log.index.memory import MemoryIndex
from mldb.names import MAX_NAME_BYTES, _is_plain, check_name
from mldb.tensors.codec import known_arrays, prepare
from tests.support.logs import CLOCK, SEGMENT_ID, History, histories, records

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

ID = bytes(range(100, 116))
CHAIN = bytes(range(50, 66))
EDGES = sorted(
    {0, 1, *(abs((1 << bits) + step) for bits in (5, 7, 8, 15, 16, 31, 32) for step in (-1, 0, 1))}
)
INTEGERS = st.sampled_from(EDGES) | st.integers(0, fmt.LSN_MAX)
TIMES = st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]) | st.integers(
    fmt.TIME_MIN, fmt.TIME_MAX
)
ROWS = st.builds(
    CommitRow, INTEGERS, INTEGERS, INTEGERS, TIMES, TIMES, INTEGERS, INTEGERS, st.just(ID)
)
STARTS = st.tuples(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([SEGMENT_ID, fmt.number_id(3)]),
    st.just(CHAIN),
    st.integers(0, 1 << 40).map(lambda number: 8 * number),
    st.integers(1, LSN_ROOM),
    INTEGERS,
    ROWS,
    INTEGERS,
    TIMES,
)
START = (7, SEGMENT_ID, CHAIN, 128, 5, 4, EMPTY_COMMIT, 3, CLOCK)
EXTRAS = st.sampled_from([{}, {"interrupted": True}, {"a": [1, -2, 2.5, None, "x" * 300]}])


def in_python(content: Sequence[Record], start: Any, extra: Any) -> Any:
    with native.switched_off():
        return encode_batch(content, start, extra, ID)


def laid_out(batch: Any) -> Any:
    """All of a batch, each stretch of the file in one piece."""
    return [(at, b"".join(parts)) for at, parts in batch[0]], *batch[1:]


def record(**changes: Any) -> Record:
    """A plain record with a payload, but for *changes*."""
    draft = (b"\x01name", 0, 0, 0, 9, bytes(16), 0, b"attr", b"")
    plain: dict[str, Any] = {
        "kind": TENSOR_STORED,
        "drafts": (draft,),
        "payload": (b"123456789",),
        "payload_length": 9,
        "checks": bytes(8),
    }
    return Record(**(plain | changes))


def drafted(**changes: Any) -> Record:
    """A plain record whose one draft has other fields, by their places (``f3``)."""
    draft = list(record().drafts[0])
    for place, value in changes.items():
        draft[int(place[1:])] = value
    return record(drafts=[tuple(draft)])


# --- batches --------------------------------------------------------------------------------------


@given(st.lists(records(), max_size=4), STARTS, EXTRAS)
def test_batches_are_the_same_bytes_rows_and_entries(
    content: list[Record], start: Any, extra: dict[str, object]
) -> None:
    for item in content:
        hash_record(item)
    before = copy.deepcopy(content)
    made = native.twin.encode_batch(content, start, extra, ID)
    assert made is not None
    assert laid_out(made) == laid_out(in_python(content, start, extra))
    assert content == before
    assert type(made[1]) is CommitRow
    assert {type(entry).__name__ for _, entry in made[2]} <= {"Entry"}
    assert len(made[0]) == 1


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1 << 16])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 300])
def test_lists_and_bytes_of_every_length(size: int, count: int) -> None:
    attr = bytes(size)
    drafts = [
        (b"\x01%d" % number, 0, 0, 0, 0, b"", number << 5, attr if number < 2 else b"", b"o")
        for number in range(count)
    ]
    content = [record(drafts=drafts, payload=(), payload_length=0, checks=b"")] * 2
    made = native.twin.encode_batch(content, START, {}, ID)
    assert laid_out(made) == laid_out(in_python(content, START, {}))


def test_a_batch_of_many_frames_is_not_joined_and_one_of_few_bytes_is() -> None:
    large = [record(), record(payload=(bytes(20_000),), payload_length=20_000)]
    for content in ([record()], large, [record()] * 400):
        made = native.twin.encode_batch(content, START, {}, ID)
        python = in_python(content, START, {})
        assert laid_out(made) == laid_out(python)
        assert (len(made[0][0][1]) == 1) == (len(python[0][0][1]) == 1)


class Text(bytes):
    """Bytes that are no plain ones."""


ODD: dict[str, tuple[Record, Any, Any]] = {
    "an empty key": (drafted(f0=b""), START, {}),
    "a long key": (drafted(f0=bytes(fmt.KEY_BYTES_MAX + 1)), START, {}),
    "a long owner": (drafted(f8=bytes(fmt.KEY_BYTES_MAX + 1)), START, {}),
    "a long attr": (drafted(f7=bytes(fmt.ATTR_BYTES_MAX + 1)), START, {}),
    "a short digest": (drafted(f5=b"short"), START, {}),
    "flags": (drafted(f1=256), START, {}),
    "negative flags": (drafted(f1=-1), START, {}),
    "an encoding": (drafted(f2=256), START, {}),
    "a negative offset": (drafted(f3=-1, f4=1), START, {}),
    "beyond the payload": (drafted(f3=1), START, {}),
    "a negative length": (drafted(f4=-1), START, {}),
    "a base": (drafted(f6=1 << 63), START, {}),
    "a huge base": (drafted(f6=1 << 64), START, {}),
    "a bool": (drafted(f1=True), START, {}),
    "a number of NumPy": (drafted(f4=np.int64(9)), START, {}),
    "other bytes": (drafted(f7=Text(b"x")), START, {}),
    "a bytearray": (drafted(f0=bytearray(b"\x01x")), START, {}),
    "a text": (drafted(f7="x"), START, {}),
    "a short draft": (record(drafts=[record().drafts[0][:8]]), START, {}),
    "a list for a draft": (record(drafts=[list(record().drafts[0])]), START, {}),
    "a kind": (record(kind=1 << 16), START, {}),
    "a version": (record(body_version=256), START, {}),
    "a block": (record(block_log2=fmt.BLOCK_LOG2_MAX + 1), START, {}),
    "an alignment": (record(align_log2=fmt.ALIGN_LOG2_MAX + 1), START, {}),
    "an extra": (record(extra=object()), START, {}),
    "a number beyond 64 bits": (record(extra=1 << 70), START, {}),
    "written": (record(written=True), START, {}),
    "an epoch": (record(), (*START[:7], -1, CLOCK), {}),
    "a huge epoch": (record(), (*START[:7], 1 << 63, CLOCK), {}),
    "a time": (record(), (*START[:8], 1 << 63), {}),
    "a bool for a time": (record(), (*START[:8], True), {}),
    "an LSN": (record(), (*START[:4], LSN_ROOM + 1, *START[5:]), {}),
    "a plain parent": (record(), (*START[:6], tuple(EMPTY_COMMIT), *START[7:]), {}),
    "what a commit says": (record(), START, {"x": object()}),
    "too much said": (record(), START, {"x": bytes(fmt.BODY_BYTES_MAX)}),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_plain_is_left_to_python(name: str) -> None:
    item, start, extra = ODD[name]
    if type(item.drafts) is not tuple:
        item.drafts = tuple(item.drafts)
    before = copy.copy(item)
    assert native.twin.encode_batch([item], start, extra, ID) is None
    assert item == before
    ends: list[Any] = []
    for encode in (
        lambda: encode_batch([item], start, extra, ID),
        lambda: in_python([item], start, extra),
    ):
        try:
            ends.append(laid_out(encode()))
        except (
            MldbError,
            ArithmeticError,
            ValueError,
            TypeError,
            AttributeError,
            struct.error,
        ) as e:
            ends.append((type(e), str(e)))
    assert ends[0] == ends[1]


def test_nothing_that_is_no_batch_ends_the_process() -> None:
    for content in (None, [None], [1], 7, [record(drafts=None)], [record(payload=None)]):
        assert native.twin.encode_batch(content, START, {}, ID) is None
    for start in (None, (), START[:8], (*START, 0), (None,) * 9):
        assert native.twin.encode_batch([record()], start, {}, ID) is None
    assert native.twin.encode_batch([record()], START, {}, b"short") is None
    assert native.twin.encode_batch([record()], START, {}, None) is None


# --- the index in memory --------------------------------------------------------------------------


@given(histories())
def test_the_index_in_memory_grows_the_same(history: History) -> None:
    mine, python = MemoryIndex(), MemoryIndex()
    for row, entries in zip(history.rows, history.entries, strict=True):
        mine.add(row, entries)
        with native.switched_off():
            python.add(row, entries)
    mine.check()
    assert mine.dump() == python.dump()
    assert mine._log == python._log
    assert mine._order == python._order


def test_entries_that_are_not_plain_are_left_to_python() -> None:
    row, entry = EMPTY_COMMIT, Entry(1, SEGMENT_ID, 0, 0, 0, b"", 0, 0, 0, b"", b"")
    odd: list[tuple[Any, Any]] = [
        *((row, entries) for entries in ((), [1], [(b"k",)], [(b"k", entry), ("k", entry)], None)),
        *((row, entries) for entries in ([(bytearray(b"k"), entry)], [(b"k", tuple(entry))])),
        *((other, [(b"k", entry)]) for other in (tuple(row), None)),
    ]
    for other, entries in odd:
        table: dict[bytes, list[Any]] = {}
        lists: list[list[Any]] = [[], [], []]
        assert not native.twin.add_versions(table, *lists, other, entries)
        assert (table, lists) == ({}, [[], [], []])


def test_what_is_stored_is_kept_from_the_cycle_collector() -> None:
    """Else each full collection goes through every version of the newest segment."""
    memory, segment = MemoryIndex(), bytes(SEGMENT_ID)
    rows: list[CommitRow] = []
    for lsn in range(1, 200):
        entries = [
            (b"\x01%d" % (lsn * each % 70), Entry(lsn, segment, 0, 0, 0, b"", 0, 0, 0, b"", b""))
            for each in range(1, 4)
        ]
        rows.append(EMPTY_COMMIT._replace(lsn=lsn))
        memory.add(rows[-1], list(dict(entries).items()))
    table, commits = memory.dump()
    memory.check()
    kept = [row for row in commits if not gc.is_tracked(row)]
    assert kept == commits == rows
    assert len(table) == 70
    for versions in table.values():
        assert not gc.is_tracked(versions)
        assert not any(map(gc.is_tracked, versions))
    own = memory._entries, memory._order, memory._log, memory._commits
    assert not any(map(gc.is_tracked, own))


def test_what_a_batch_makes_is_kept_from_it_as_well() -> None:
    """Else the newest of them are gone through at each young collection, several in a batch."""
    db = mldb.MLDatabase.on(MemoryFileSystem())
    db["known"] = np.zeros(4)  # what the twin packs was prepared once
    with db.transaction() as txn:
        txn["first"] = np.zeros(4)
        for number in range(20):
            txn[f"n{number}"] = np.full(4, number, np.float64)
        pack = txn._staging._packs._packs[0]
        tracked = [key for key, draft in pack.drafts.items() if gc.is_tracked(draft)]
        assert tracked == [b"\x01first"]  # that of Python
        record, segment = pack.record(), bytes(SEGMENT_ID)
    start = (1, segment, bytes(16), 128, 1, 0, EMPTY_COMMIT, 0, 1)
    entries = native.loaded.encode_batch([record], start, {}, bytes(16))[2]
    assert len(entries) == 21
    assert not any(map(gc.is_tracked, entries))
    assert not any(gc.is_tracked(entry) for _, entry in entries)


def test_a_row_that_may_lead_to_itself_is_left_to_the_collector() -> None:
    ring: Any = []
    odd = Entry(1, SEGMENT_ID, 0, 0, 0, b"", 0, 0, 0, b"", ring)
    memory = MemoryIndex()
    memory.add(EMPTY_COMMIT._replace(lsn=1), [(b"k", odd)])
    assert gc.is_tracked(odd)


# --- small tensors --------------------------------------------------------------------------------

NAMES = [
    *("a", "layer.0.weight", "a/b-c_d.9", "A" * MAX_NAME_BYTES, "0", "-", "_"),
    *("", ".", "/", "a.", ".a", "a..b", "a//b", "a/", "/a", "a./b", "A" * (MAX_NAME_BYTES + 1)),
    *("é", "a b", "a\\b", "a\0b", "\ud800", "名", "a%b", "a\x7f", 7, None, b"a", np.str_("a")),
]
BLOCK = np.arange(64, dtype=np.float32)
MASKED: npt.NDArray[Any] = np.ma.masked_array(BLOCK, BLOCK > 3)
ARRAYS: list[Any] = [
    *(BLOCK, BLOCK[1:], BLOCK[::2], BLOCK.reshape(8, 8), BLOCK.reshape(8, 8).T, BLOCK[3]),
    *(np.asfortranarray(BLOCK.reshape(8, 8)), np.array(2.5), np.zeros((0, 3)), MASKED),
    *(BLOCK.astype(">f4"), BLOCK > 3, BLOCK.astype(np.complex64), BLOCK.astype(np.float16)),
    *(BLOCK.astype(ml_dtypes.bfloat16), BLOCK.astype("S4"), BLOCK.astype("M8[s]"), BLOCK.tolist()),
    *(
        np.zeros(3, "u1,f8"),
        np.broadcast_to(BLOCK[:1], (5,)),
        BLOCK.view(np.recarray),
        7,
        b"bytes",
    ),
    *(np.zeros(16 << 10, np.float32), np.zeros((16 << 10) - 1, np.float32)),
]


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.copy()
    array.setflags(write=False)
    return array


def check_key_of(name: Any) -> None:
    """Plain names, and no others, have a key, which is that of Python."""
    prepare(BLOCK)
    made = native.twin.small_record(TENSOR_STORED, name, BLOCK, known_arrays, Record, 1 << 16)
    plain = type(name) is str and len(name) <= MAX_NAME_BYTES and _is_plain(name)
    assert (made is not None) == plain
    if made is not None:
        assert made.drafts[0][0] == keys.TENSORS + check_name(name)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_the_keys_of_names(name: Any) -> None:
    check_key_of(name)


@given(st.text("aZ09_-./ %\\:@[`{\0\x7f\u00e9", max_size=6))
def test_the_keys_of_many_names(name: str) -> None:
    check_key_of(name)


@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_records_of_small_arrays(number: int) -> None:
    data = ARRAYS[number]
    try:
        known = prepare(data)
    except MldbError:
        known = None
    make: Callable[[], Any] = lambda: native.twin.small_record(  # noqa: E731
        TENSOR_STORED, "a/b", data, known_arrays, Record, 1 << 16
    )
    made = make()
    is_plain = number in (0, 1, 3, 7, 10, 11, 12, 13)
    is_plain |= number == len(ARRAYS) - 1
    assert (made is not None) == is_plain
    if made is not None:
        assert known is not None
        assert made == small_tensor_stored(b"a/b", known)
        assert made.payload[0].tobytes() == data.tobytes()
        known_arrays.pop((data.dtype, data.shape))
        assert make() is None
        prepare(data)


def test_read_only_arrays_are_taken_and_those_that_are_too_large_are_not() -> None:
    data = read_only(BLOCK)
    take: Callable[[int], Any] = lambda below: native.twin.small_record(  # noqa: E731
        TENSOR_STORED, "a", data, known_arrays, Record, below
    )
    assert take(data.nbytes + 1) == small_tensor_stored(b"a", prepare(data))
    assert take(data.nbytes) is None
