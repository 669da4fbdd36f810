"""Packs, filled by the compiled twin and by Python: the same bytes and entries, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest

from mldb.errors import MldbError
from mldb.log import native
from mldb.tensors.codec import Prepared, known_arrays, prepare
from mldb.write.buffers import BufferPool
from mldb.write.packs import PACK_BELOW, PACK_BYTES, PACK_ENTRIES, Packs

needs_native = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")


def new_packs(below: int = PACK_BELOW) -> Packs:
    return Packs(BufferPool(), set(), below)


def state(packs: Packs) -> Any:
    """All that is staged: entries and bytes of each pack, and which has which key."""
    where = {key: packs._packs.index(pack) for key, pack in packs.where.items()}
    each = [
        (pack.size, list(pack.drafts.items()), bytes(pack.data[: pack.size]))
        for pack in packs._packs
    ]
    return each, where, packs._seen


def values(rng: np.random.Generator, count: int) -> Iterator[tuple[str, Any]]:
    """Names, some of them again, and tensors of all sizes around the limits."""
    sizes = (0, 1, 15, 16, 17, 1024, 9000, PACK_BELOW // 4 - 1, PACK_BELOW // 4, 40_000)
    for _ in range(count):
        size = int(rng.choice(sizes))
        data: Any = rng.standard_normal(size, dtype=np.float32)
        turn = rng.integers(8)
        if turn == 0:
            data = data[::2]
        elif turn == 1 and size % 2 == 0:
            data = data.reshape(2, -1).T
        elif turn == 2:
            data = data.astype(np.int8)
        yield f"name/{rng.integers(count)}", data


@pytest.mark.parametrize("way", ["array", "tensor"])
def test_the_twin_and_python_pack_the_same(rng: np.random.Generator, way: str) -> None:
    taken = 0
    many = list(values(rng, 400))
    packs: list[Packs] = []
    for off in (False, True):
        packs.append(new_packs())
        with native.switched_off() if off else nullcontext():
            for name, data in many:
                key = b"\x01" + name.encode()
                if way == "array" and packs[-1].put_array(name, data):
                    taken += 1
                    continue
                before = len(packs[-1].where)
                done = packs[-1].put(key, prepare(data))
                assert done == (len(packs[-1].where) > before)
    assert state(packs[0]) == state(packs[1])
    assert len(packs[0]._packs) > 2
    if way == "array" and native.twin is not None:
        assert taken > 100
    for one in packs:
        assert [record.checks for record in one.records()]
        one.give_back()
        assert one.records() == []


def test_what_consists_of_parts_is_packed_in_order(rng: np.random.Generator) -> None:
    from scipy import sparse

    matrices = [sparse.random_array((30, 40), density=0.2, rng=rng) for _ in range(10)]
    packs = [new_packs(), new_packs()]
    for number, matrix in enumerate(matrices):
        assert packs[0].put(b"\x01%d" % number, prepare(matrix))
        with native.switched_off():
            assert packs[1].put(b"\x01%d" % number, prepare(matrix))
    assert len(prepare(matrices[0]).buffers) > 1
    assert state(packs[0]) == state(packs[1])


def test_a_key_that_was_staged_and_what_is_too_large_are_left_alone() -> None:
    packs = new_packs(below=100)
    small, large = np.zeros(24, np.float32), np.zeros(25, np.float32)
    assert packs.put(b"\x01a", prepare(small))
    before = state(packs)
    assert not packs.put(b"\x01a", prepare(small))
    assert not packs.put(b"\x01b", prepare(large))
    assert not packs.put_array("a", small)
    assert not packs.put_array("b", large)
    assert state(packs) == before


@needs_native
def test_a_new_array_goes_into_a_pack_with_room_only(monkeypatch: pytest.MonkeyPatch) -> None:
    packs = new_packs()
    data = np.arange(1000, dtype=np.float32)
    prepare(data)
    assert not packs.put_array("first", data)  # there is no pack yet
    assert packs.put(b"\x01first", prepare(data))
    assert packs.put_array("second", data)
    with native.switched_off():
        assert not packs.put_array("third", data)
    pack = packs._packs[-1]
    pack.size = PACK_BYTES - data.nbytes - 63
    assert not packs.put_array("third", data)
    pack.size -= 1
    assert packs.put_array("third", data)
    pack.size = 0
    draft = pack.drafts[b"\x01first"]
    pack.drafts.update({bytes([1, *divmod(number, 256)]): draft for number in range(PACK_ENTRIES)})
    before = state(packs)
    assert not packs.put_array("fourth", data)
    assert state(packs) == before


ODD: list[Any] = [
    ("a..b", np.zeros(4)),
    ("é", np.zeros(4)),
    (7, np.zeros(4)),
    ("n", np.zeros(8)[::2]),
    ("n", np.zeros((2, 3), order="F")),
    ("n", np.zeros(0)),
    ("n", np.array([None])),
    ("n", np.ma.masked_array([1.0], [True])),
    ("n", [1.0]),
    ("n", None),
]


@needs_native
@pytest.mark.parametrize("number", range(len(ODD)))
def test_what_is_not_plain_changes_nothing(number: int) -> None:
    packs = new_packs()
    packs.put(b"\x01first", prepare(np.zeros(4)))
    name, data = ODD[number]
    with suppress(MldbError):
        prepare(data)
    before = state(packs)
    assert not packs.put_array(name, data)
    assert state(packs) == before


@needs_native
def test_a_tensor_that_is_not_what_it_says_changes_nothing() -> None:
    twin: Any = native.twin
    packs = new_packs()
    good: Any = prepare(np.arange(4.0))
    packs.put(b"\x01first", good)
    held = packs._seen, packs.where, packs._packs, PACK_ENTRIES
    before = state(packs)
    odd: list[Any] = [
        good._replace(nbytes=31),
        good._replace(nbytes=33),
        good._replace(nbytes=-1),
        good._replace(nbytes=1 << 62),
        good._replace(buffers=[*good.buffers]),
        good._replace(buffers=(None,)),
        good._replace(buffers=(memoryview(bytes(64))[::2],)),
        good[:3],
        None,
    ]
    for prepared in odd:
        assert twin.pack_tensor(b"\x01second", prepared, *held) is None
        assert state(packs) == before
    packs._packs[-1].data = packs._packs[-1].data.toreadonly()
    assert twin.pack_tensor(b"\x01second", good, *held) is None
    assert state(packs) == before


@needs_native
def test_a_tensor_goes_the_longer_way_where_something_has_its_digest() -> None:
    twin: Any = native.twin
    packs = new_packs()
    first, second = prepare(np.arange(4.0)), prepare(np.arange(5.0))
    packs.put(b"\x01first", first)
    held = packs._seen, packs.where, packs._packs, PACK_ENTRIES
    digest = packs._packs[0].drafts[b"\x01first"][5]
    before = state(packs)
    for rival, digests in ((digest, {}), (b"", {digest: b"\x01other"}), (b"", {digest: b""})):
        known = dict(digests)
        assert twin.pack_tensor(b"\x01again", first, *held, rival, digests) is None
        assert (state(packs), digests) == (before, known)
    digests = {digest: b"\x01first"}
    made = twin.pack_tensor(b"\x01second", second, *held, digest, digests)
    assert packs._packs[0].drafts[b"\x01second"][5] == made
    assert digests == {digest: b"\x01first", made: b"\x01second"}


def test_what_the_twin_knows_of_arrays_is_what_prepare_knows() -> None:
    """A shape that nobody prepared is left to Python, which learns it."""
    packs = new_packs()
    data = np.arange(77, dtype=np.uint16)
    known_arrays.pop((data.dtype, data.shape), None)
    packs.put(b"\x01first", prepare(np.zeros(4)))
    assert not packs.put_array("a", data)
    learned: Prepared = prepare(data)
    assert packs.put_array("a", data) == (native.twin is not None)
    if native.twin is not None:
        assert packs._packs[0].drafts[b"\x01a"][7] == learned.attr
