"""Manifests with right checksums that cannot be true, and those of a newer mldb.

What is damaged is stepped over where nothing is lost by it, and named; what is newer is refused by
name and never stepped over. Whatever they say, nothing but typed errors comes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError, StorageIOError
from mldb.log import format as fmt
from mldb.log.checksum import check64, digest128
from mldb.log.file_header import encode_file_header
from mldb.log.frame import pack, unpack
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow
from mldb.log.lock import LOCK
from mldb.log.lone import decode_lone, encode_lone
from mldb.log.manifest import (
    install_manifest,
    load_manifest,
    manifest_name,
    manifest_numbers,
)
from mldb.log.manifest_codec import decode_manifest
from mldb.log.newest import load_newest
from mldb.log.readers import READERS, highest_claim, registrations
from mldb.log.segment import segment_name
from tests.support.faults import FaultFileSystem
from tests.support.files import append_to, contents_of, read_file, replace_file
from tests.support.logs import content, mutated, open_log, store
from tests.support.parts import examples
from tests.support.segments import segment_ids

KIND = fmt.KIND_MANIFEST | fmt.MUST_UNDERSTAND
Change = Callable[[dict[str, Any], list[Any]], object]
"""Changes the body of a manifest and its lists: changes, jumps, kept."""


def rewound_store() -> MemoryFileSystem:
    """Several segments and a jump, under a manifest that is changes of a base."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=700)
    for number in range(6):
        store(log, b"\x01%d" % number, bytes(100), number)
    first = next(log.head().commits(1, 9))[1]

    def back(view: object) -> tuple[int, CommitRow]:
        return 9, first

    log.commit([], back)
    for number in range(6, 9):
        store(log, b"\x01%d" % number, bytes(100), 9)
    log.close()
    newest = load_newest(fs, [])
    number = newest.number + 1
    base = replace(newest, number=number, base=None, predecessor=newest.digest)
    assert install_manifest(fs, base, "owner") is not None
    append_to(fs, LOCK, bytes(1))
    log = open_log(fs, segment_bytes=700)
    for number in range(9, 12):
        store(log, b"\x01%d" % number, bytes(100), 9)
    log.close()
    return fs


SMALL = rewound_store().image()
EXPECTED = content(open_log(MemoryFileSystem(image=SMALL), "r"))
NEWEST = load_newest(MemoryFileSystem(image=SMALL), [])
NEXT = NEWEST.number + 1


def disk() -> MemoryFileSystem:
    return MemoryFileSystem(image=SMALL)


def parts_of(fs: MemoryFileSystem, number: int) -> tuple[dict[str, Any], list[Any]]:
    """The body and the lists of a manifest, as MessagePack has them."""
    name = manifest_name(number)
    file = decode_lone(memoryview(read_file(fs, name)), name, fmt.FILE_MANIFEST, fmt.KIND_MANIFEST)
    return unpack(file.body), unpack(bytes(file.payload))


def manifest_bytes(body: object, lists: object, number: int = NEXT) -> bytes:
    header = encode_file_header(fmt.FILE_MANIFEST, NEWEST.store_id, NEWEST.created, number=number)
    return b"".join(encode_lone(header, KIND, pack(body), pack(lists), fmt.MANIFEST_BODY_VERSION))


def follow_with(fs: MemoryFileSystem, change: Change) -> None:
    """Install a manifest behind the newest one, as a writer would whom nothing checks."""
    body, lists = parts_of(fs, NEWEST.number)
    body |= {"number": NEXT, "predecessor": NEWEST.digest}
    change(body, lists)
    replace_file(fs, manifest_name(NEXT), manifest_bytes(body, lists))
    append_to(fs, LOCK, bytes(NEXT - NEWEST.number))


def test_the_store_that_is_damaged_here_is_what_these_tests_need() -> None:
    assert NEWEST.base is not None
    assert len(NEWEST.base.segments) >= 3
    assert len(NEWEST.segments) > len(NEWEST.base.segments)
    assert NEWEST.jumps == NEWEST.base.jumps != ()
    _, (changes, jumps, kept) = parts_of(disk(), NEWEST.number)
    assert changes
    assert (jumps, kept) == ([], None)
    fs = disk()
    follow_with(fs, lambda body, lists: None)
    assert load_newest(fs, []).number == NEXT
    assert content(open_log(fs)) == EXPECTED


# --- what cannot be true --------------------------------------------------------------------------


def info(number: int) -> dict[str, Any]:
    """A sealed segment of the store as a manifest describes it."""
    _, (changes, *_) = parts_of(disk(), NEWEST.base.number)  # type: ignore[union-attr]
    found: dict[str, Any] = changes[0][2][number]
    return found


def of_itself(body: dict[str, Any], lists: list[Any]) -> None:
    """A base that is changes of another one."""
    body["base"] = [NEWEST.number, NEWEST.digest]


IMPOSSIBLE: dict[str, tuple[str, Change]] = {
    "a base that is missing": (
        "its base MANIFEST-0000000999 cannot be read",
        lambda body, lists: body.update(base=[999, bytes(16)]),
    ),
    "a base with another digest": (
        "is not the base that it names",
        lambda body, lists: body.update(base=[body["base"][0], bytes(16)]),
    ),
    "a base that has a base": ("its base has a base itself", of_itself),
    "a base of no number": (
        "the manifest is damaged",
        lambda body, lists: body.update(base=["1", bytes(16)]),
    ),
    "a splice behind the end": (
        r"a change at 5000 of \d segments",
        lambda body, lists: lists[0].append([5000, 0, []]),
    ),
    "a splice of more than there are": (
        r"a change at 0 of \d segments",
        lambda body, lists: lists[0].append([0, 1 << 62, []]),
    ),
    "a splice one too far": (
        r"a change at \d of \d segments",
        lambda body, lists: lists[0].append([len(NEWEST.segments), 1, []]),
    ),
    "a splice in front of the first": (
        "in front of the first segment",
        lambda body, lists: lists[0].append([-1, 1, []]),
    ),
    "a segment twice": (
        "a segment occurs twice",
        lambda body, lists: lists[0].append([0, 0, [info(0)]]),
    ),
    "the active segment among the sealed": (
        "a segment occurs twice",
        lambda body, lists: lists[0].append([0, 0, [info(0) | {"id": body["active"]}]]),
    ),
    "an id of 5 bytes": (
        "is no id of a segment",
        lambda body, lists: lists[0].append([0, 1, [info(0) | {"id": b"short"}]]),
    ),
    "a segment that ends before it begins": (
        "is described impossibly",
        lambda body, lists: lists[0].append([0, 1, [info(0) | {"first_lsn": 9, "last_lsn": 8}]]),
    ),
    "an index in another folder": (
        "is no name of this store",
        lambda body, lists: lists[0].append([0, 1, [info(0) | {"index_file": "../../x.idx"}]]),
    ),
    "a jump that the base has": (
        "the jumps do not ascend",
        lambda body, lists: lists[1].append(list(NEWEST.jumps[-1])),
    ),
    "a jump in front of those of the base": (
        "the jumps do not ascend",
        lambda body, lists: lists[1].append([NEWEST.jumps[-1][0] - 1, 0]),
    ),
    "a jump to a later commit": (
        "the manifest is damaged",
        lambda body, lists: lists[1].append([1 << 40, 1 << 41]),
    ),
    "kept ranges that overlap": (
        "the kept commits do not ascend",
        lambda body, lists: lists.__setitem__(2, [[1, 5], [5, 9]]),
    ),
    "a kept range that is reversed": (
        "the kept commits do not ascend",
        lambda body, lists: lists.__setitem__(2, [[5, 1]]),
    ),
    "a kept range without an end": (
        "the manifest is damaged",
        lambda body, lists: lists.__setitem__(2, [[5]]),
    ),
    "a kept range beyond all LSNs": (
        "the kept commits do not ascend",
        lambda body, lists: lists.__setitem__(2, [[5, 1 << 63]]),
    ),
    "features that are no lists": (
        "the manifest is damaged",
        lambda body, lists: body.update(features={"read": "x", "write": [], "ignore": []}),
    ),
    "no features": ("the manifest is damaged", lambda body, lists: body.pop("features")),
    "another store": (
        "belongs to another number or store",
        lambda body, lists: body.update(store_id=bytes(16)),
    ),
    "another number": (
        "belongs to another number or store",
        lambda body, lists: body.update(number=NEXT + 1),
    ),
    "a mark in a segment of no id": (
        "is no id of a segment",
        lambda body, lists: body["mark"].update(segment=bytes(3)),
    ),
    "a list too few": ("the manifest is damaged", lambda body, lists: lists.pop()),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_manifest_that_cannot_be_true_is_damaged_and_stepped_over(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was published by it, so nothing is lost; without one before it, it is an error."""
    caplog.set_level(logging.ERROR, "mldb")
    words, change = IMPOSSIBLE[what]
    fs = disk()
    follow_with(fs, change)
    with pytest.raises(CorruptError, match=words) as caught:
        load_manifest(fs, NEXT)
    assert caught.value.file == manifest_name(NEXT)
    before = contents_of(fs)
    for mode in ("r", "rw"):
        log = open_log(fs, mode)
        assert content(log) == EXPECTED
        assert any(manifest_name(NEXT) in text for text in log.recovery.distrusted)
        assert not log.recovery.clean
        log.close()
        assert contents_of(fs) == before
    log = open_log(fs)
    store(log, b"\x01later", b"1", 9)
    log.close()
    assert manifest_numbers(fs.list(""))[-1] > NEXT
    assert content(open_log(fs)) == EXPECTED | {b"\x01later": b"1"}


def test_a_manifest_that_cannot_be_true_and_may_have_published_something_is_an_error() -> None:
    fs = disk()
    follow_with(fs, IMPOSSIBLE["a splice behind the end"][1])
    segment = bytes(range(16))
    header = encode_file_header(
        fmt.FILE_SEGMENT, NEWEST.store_id, 1, segment_id=segment, base_lsn=1, published=NEXT
    )
    replace_file(fs, segment_name(segment), header + bytes(8))
    before = contents_of(fs)
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError, match="a change at 5000"):
            open_log(fs, mode)
    assert contents_of(fs) == before


def test_the_loss_of_a_base_is_the_loss_of_what_is_made_of_it() -> None:
    """The two newest have the same one here, so nothing is left; it is named, and comes back."""
    assert NEWEST.base is not None
    fs = disk()
    name = manifest_name(NEWEST.base.number)
    saved = read_file(fs, name)
    fs.unlink(name)
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError, match=f"its base {name} cannot be read"):
            open_log(fs, mode)
    replace_file(fs, name, saved[:-1] + bytes([saved[-1] ^ 1]))
    with pytest.raises(CorruptError, match=f"padding after the payload.*{name}"):
        open_log(fs, "r")
    with pytest.raises(CorruptError, match=f"{name} is not the base that it names"):
        load_manifest(fs, NEWEST.number)
    replace_file(fs, name, saved)
    assert content(open_log(fs)) == EXPECTED


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("length", range(NEXT + 2))
def test_the_newest_manifest_counts_whatever_the_lock_file_says(length: int, mode: Any) -> None:
    """It is not synced. Cut back to the number of a base, it made that the newest manifest again.

    Everything that was sealed since then was gone, and the next commit gave its LSNs again.
    """
    fs = disk()
    assert fs.exists(manifest_name(NEWEST.base.number))  # type: ignore[union-attr]
    replace_file(fs, LOCK, bytes(length))
    log = open_log(fs, mode)
    assert (content(log), log.head().number) == (EXPECTED, NEWEST.number)


@pytest.mark.parametrize("ceiling", [0, 1, 5])
def test_a_ceiling_below_lsns_that_were_given_out_is_raised_before_the_next(ceiling: int) -> None:
    """An LSN in the log is never given again, whatever the manifest says of those that are not."""
    fs = disk()
    follow_with(fs, lambda body, lists: body.update(lsn_ceiling=ceiling))
    before = open_log(fs, "r").head().commit.lsn
    log = open_log(fs)
    lsn = store(log, b"\x01later", b"1", 9)
    assert ceiling < before < lsn
    fs.kill()
    assert load_newest(fs, []).lsn_ceiling > lsn
    assert content(open_log(fs)) == EXPECTED | {b"\x01later": b"1"}


# --- anything at all ------------------------------------------------------------------------------

BODY, LISTS = parts_of(disk(), NEWEST.number)
_, WHOLE = parts_of(disk(), NEWEST.base.number)  # type: ignore[union-attr]
HARMLESS = (CorruptError, FormatVersionError)


def quiet(call: Callable[[], object]) -> None:
    """Run a decoder; any error but the harmless ones fails the test."""
    try:
        call()
    except HARMLESS:
        return


@given(mutated(BODY), mutated(LISTS) | mutated(WHOLE))
@example({0: 1}, {0: 1})
@examples(300)
def test_manifests_with_anything_in_them(body: object, lists: object) -> None:
    fs = disk()
    replace_file(fs, manifest_name(NEXT), manifest_bytes(body, lists))

    def load() -> None:
        manifest = load_manifest(fs, NEXT)
        assert all(0 <= target < lsn for lsn, target in manifest.jumps)
        assert [lsn for lsn, _ in manifest.jumps] == sorted({lsn for lsn, _ in manifest.jumps})
        assert all(info.length >= 0 for info in manifest.segments)
        ids = {manifest.active, *(info.id for info in manifest.segments)}
        assert len(ids) == len(manifest.segments) + 1
        ends = [lsn for pair in manifest.kept or () for lsn in pair]
        assert ends == sorted(ends)

    quiet(load)


@given(mutated(BODY), mutated(LISTS))
@examples(100)
def test_a_store_under_any_manifest_opens_or_says_why_not(body: object, lists: object) -> None:
    """What it hands out then was stored; that it is all cannot be known."""
    fs = disk()
    replace_file(fs, manifest_name(NEXT), manifest_bytes(body, lists))
    append_to(fs, LOCK, bytes(1))

    def use() -> None:
        found = content(open_log(fs, "r"))
        stored = {key: value for key, value in found.items() if EXPECTED.get(key) == value}
        assert found == stored or set(found) <= KEYS

    quiet(use)


KEYS = {b"\x01%d" % number for number in range(12)}
"""All that was ever stored: jumps that are gone bring back what a rewind had left behind."""


def old_manifest(body: bytes) -> bytes:
    """Manifest 3 in the form of version 1."""
    head = fmt.FILE_HEADER.pack(
        *(fmt.FILE_MAGIC, fmt.FIRST_VERSION, fmt.FILE_MANIFEST, 128, NEWEST.store_id, 3, 0, 1),
        *(fmt.WRITER, fmt.NO_ID, 0, 0),
    )[:-8]
    header = head + check64(head).to_bytes(8, "little")
    return b"".join(encode_lone(header, KIND, body))


OLD: dict[str, Any] = {
    "number": 3,
    "store_id": NEWEST.store_id,
    "created": 1,
    "segments": [{name: value for name, value in info(0).items() if name != "id"} | {"number": 1}],
    "active": 2,
    "active_origin": NEWEST.store_id,
    "mark": {"segment": 2, "offset": 128, "lsn": 5, "chain": bytes(16)},
    "lsn_floor": 5,
    "jumps": [[4, 1]],
    "kept": [1, 5],
}


def test_a_manifest_of_version_1_is_read() -> None:
    stored = decode_manifest(old_manifest(pack(OLD)), "m")
    assert (stored.version, stored.lsn_ceiling, stored.base) == (1, 0, None)
    assert stored.kept == ((1, 1), (5, 5))
    assert stored.active == fmt.number_id(2)


@given(mutated(OLD))
@examples(200)
def test_manifests_of_version_1_with_anything_in_them(fields: object) -> None:
    quiet(lambda: decode_manifest(old_manifest(pack(fields)), "m"))


@given(st.binary(max_size=300))
def test_manifests_of_any_bytes(data: bytes) -> None:
    quiet(lambda: decode_manifest(data, "m"))
    quiet(lambda: decode_manifest(old_manifest(data), "m"))
    header = encode_file_header(fmt.FILE_MANIFEST, NEWEST.store_id, 1, number=NEXT)
    for body, payload in ((data, pack(LISTS)), (pack(BODY), data)):
        raw = b"".join(encode_lone(header, KIND, body, payload, fmt.MANIFEST_BODY_VERSION))
        quiet(lambda raw=raw: decode_manifest(raw, "m"))  # type: ignore[misc]


# --- of a newer mldb ------------------------------------------------------------------------------


def newer(data: bytes) -> bytes:
    """The same file with the next format version in its header."""
    head = bytearray(data[: fmt.FILE_HEADER_SIZE - 8])
    head[8:10] = (fmt.FORMAT_VERSION + 1).to_bytes(2, "little")
    return bytes(head) + check64(bytes(head)).to_bytes(8, "little") + data[fmt.FILE_HEADER_SIZE :]


def refused(fs: MemoryFileSystem, mode: Any, words: str) -> None:
    """Opening raises FormatVersionError and changes nothing."""
    before = contents_of(fs)
    with pytest.raises(FormatVersionError, match=words):
        open_log(fs, mode)
    assert contents_of(fs) == before


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_newest_manifest_of_a_newer_mldb_is_never_stepped_over(mode: Any) -> None:
    fs = disk()
    follow_with(fs, lambda body, lists: None)
    replace_file(fs, manifest_name(NEXT), newer(read_file(fs, manifest_name(NEXT))))
    refused(
        fs, mode, rf"MANIFEST-{NEXT:010d} has format version 3.*Nothing was changed.*newer mldb"
    )


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_an_active_segment_of_a_newer_mldb_is_refused(mode: Any) -> None:
    fs = disk()
    name = segment_name(NEWEST.active)
    replace_file(fs, name, newer(read_file(fs, name)))
    refused(fs, mode, f"{name} has format version 3.*Nothing was changed")


def test_a_sealed_segment_of_a_newer_mldb_is_refused_when_it_is_read() -> None:
    fs = disk()
    name = segment_name(segment_ids(fs)[0])
    replace_file(fs, name, newer(read_file(fs, name)))
    log = open_log(fs, "r")
    with pytest.raises(FormatVersionError, match=f"{name} has format version 3"):
        content(log)


FEATURES = {"read": ["columns-of-gold"], "write": ["writes-in-ink"], "ignore": ["a scent of pine"]}


@pytest.mark.parametrize(
    ("use", "modes"), [("read", ("r", "rw")), ("write", ("rw",)), ("ignore", ())]
)
def test_a_feature_that_is_not_known_is_refused_by_name_where_it_must_be_known(
    use: str, modes: tuple[Any, ...]
) -> None:
    fs = disk()
    names: dict[str, list[str]] = {"read": [], "write": [], "ignore": [], use: FEATURES[use]}
    follow_with(fs, lambda body, lists: body.update(features=names))
    for mode in ("r", "rw"):
        if mode in modes:
            refused(fs, mode, f"{FEATURES[use][0]}.*must to {use} it.*Nothing was changed.*newer")
        else:
            assert content(open_log(fs, mode)) == EXPECTED


def test_what_may_be_ignored_is_handed_on() -> None:
    """Features that are not known, and read over, are still those of the store."""
    fs = disk()
    follow_with(fs, lambda body, lists: body["features"].update(ignore=FEATURES["ignore"]))
    log = open_log(fs, segment_bytes=700)
    for number in range(4):
        store(log, b"\x01x%d" % number, bytes(300), 9)
    log.close()
    assert load_newest(fs, []).number > NEXT + 1
    assert load_newest(fs, []).features.ignore == (*FEATURES["ignore"],)


@pytest.mark.parametrize(
    ("use", "looks"), [("read", False), ("write", False), ("write", True)], ids=str
)
def test_an_open_handle_that_meets_a_feature_it_does_not_know_stops(use: str, looks: bool) -> None:
    """Others upgraded the store meanwhile: what must be known to write is known before a commit."""
    fs = disk()
    log, reader = open_log(fs), open_log(fs, "r")
    store(log, b"\x01mine", b"1", 9)
    number = log.head().number
    body, lists = parts_of(fs, number)
    body |= {"number": number + 1, "predecessor": digest128(read_file(fs, manifest_name(number)))}
    body["features"][use] = FEATURES[use]
    replace_file(fs, manifest_name(number + 1), manifest_bytes(body, lists, number + 1))
    append_to(fs, LOCK, bytes(1))
    before = contents_of(fs)
    if looks:
        assert log.head().number == number + 1
    for _ in range(2):
        with pytest.raises(FormatVersionError, match=FEATURES[use][0]):
            store(log, b"\x01mine", b"2", 9)
    if use == "read":
        with pytest.raises(FormatVersionError, match=FEATURES[use][0]):
            reader.head()
    else:
        assert content(reader)[b"\x01mine"] == content(log)[b"\x01mine"] == b"1"
    assert contents_of(fs) == before
    log.close()
    changed = {name for name, data in contents_of(fs).items() if before.get(name) != data}
    assert not changed


@pytest.mark.parametrize("key", ["unheard_of", 7, b"bytes"])
def test_fields_and_elements_that_are_not_known_are_read_over(key: object) -> None:
    fs = disk()

    def more(body: dict[Any, Any], lists: list[Any]) -> None:
        body[key] = body["mark"][key] = body["features"][key] = {"any": ["thing"]}
        lists.append("of a newer mldb")
        lists[0] = [[*splice, "more"] for splice in lists[0]]

    follow_with(fs, more)
    assert load_newest(fs, []).number == NEXT
    assert content(open_log(fs)) == EXPECTED


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
@pytest.mark.parametrize("claim", [1 << 40, fmt.LSN_MAX, (1 << 64) - 1, -1, -(1 << 63)])
def test_an_absurd_claim_keeps_what_is_there_and_no_more(claim: int, alive: bool) -> None:
    """After a failed sync everything up to the highest claim stays: at most all that there is."""
    fs = disk()
    faulty = FaultFileSystem(fs)
    log = open_log(faulty, durability="os")
    lsns = [store(log, b"\x01mine", b"%d" % number, 9) for number in range(3)]
    header = encode_file_header(fmt.FILE_READER, NEWEST.store_id, 1)
    body = pack([7, "host", 1, fmt.LSN_MAX, claim])
    name = f"{READERS}/{7:032x}"
    parts = encode_lone(header, fmt.KIND_READER | fmt.MUST_UNDERSTAND, body)
    replace_file(fs, name, b"".join(parts))
    lock = fs.lock(name)
    assert not alive or lock.try_acquire()
    assert highest_claim(fs) == max(claim, 0)
    assert {reader.acknowledged for reader in registrations(fs)} == {0, claim}

    faulty.fail("sync")
    with pytest.raises(StorageIOError) as caught:
        log.sync()
    kept = lsns[-1] if claim > 0 else NEWEST.mark.lsn
    assert f"closed behind commit {kept}" in str(caught.value)
    again = open_log(fs)
    assert again.head().commit.lsn == kept
    assert store(again, b"\x01again", b"1", 9) > lsns[-1]
    assert store(again, b"\x01again", b"2", 9) < 1 << 40
