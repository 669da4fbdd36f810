"""The attrs of lakes and blocks: what is written comes back, anything else is a ValueError."""

from __future__ import annotations

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import FormatVersionError
from mldb.history import splats
from mldb.history.splats import BlockInfo, LakeInfo, RemovalInfo

names = st.text("abc_", min_size=1, max_size=8).filter(lambda name: name not in splats.RESERVED)
user = st.lists(
    st.tuples(names, st.sampled_from(["<f4", "<i8", "|b1", "<f8"]), st.sampled_from([(), (3,)])),
    max_size=3,
    unique_by=lambda column: column[0],
)


@given(st.integers(1, 5000), st.integers(2, 700), st.booleans(), user)
def test_a_block_comes_back(rows: int, dim: int, labels: bool, columns: list[object]) -> None:
    placed = splats.lay_out(rows, dim, labels=labels, user=columns)  # type: ignore[arg-type]
    info = BlockInfo(rows, 7, placed, 2.0, 1.0, 0.5, 3.0)
    attr = splats.pack_block(info)
    assert splats.unpack_splats(attr, info.nbytes) == info
    assert placed[0].name == "mu"
    assert placed[0].offset == 0
    ends = [column.offset + rows * column.row_bytes for column in placed]
    assert all(end <= after.offset for end, after in zip(ends, placed[1:], strict=False))
    for length in (info.nbytes - 1, info.nbytes + 1):
        with pytest.raises(ValueError, match=r"payload|behind"):
            splats.unpack_splats(attr, length)


def test_the_place_of_a_payload_does_not_depend_on_what_the_commit_decides() -> None:
    """Rows are written before the commit gives them their ids."""
    placed = splats.lay_out(5, 4, labels=False)
    sizes = {
        len(splats.pack_block(BlockInfo(5, base, placed, 5.0, 1.0, 1.0, 1.0)))
        for base in (0, 1, 1 << 20, splats.ID_MAX)
    }
    assert len(sizes) == 1
    lakes = {
        len(splats.pack_lake(LakeInfo(bytes(16), 640, "sphere", next_id)))
        for next_id in (0, 255, 1 << 40, splats.ID_MAX + 1)
    }
    assert len(lakes) == 1


def test_lakes_and_removals_come_back() -> None:
    info = LakeInfo(bytes(range(16)), 640, "euclid", 1 << 40)
    assert splats.unpack_lake(splats.pack_lake(info)) == info
    gone = RemovalInfo(3)
    assert splats.unpack_splats(splats.pack_removal(gone), 24) == gone
    with pytest.raises(ValueError, match="removed ids"):
        splats.unpack_splats(splats.pack_removal(gone), 16)


PLACED = [(c.name, c.dtype, c.shape, c.offset) for c in splats.lay_out(4, 2, labels=False)]
GOOD = [1, 0, 4, bytes(8), PLACED, [1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),
        (0, "1"),
        (1, 5),
        (2, 0),
        (2, -1),
        (2, 1 << 50),
        (2, "4"),
        (4, PLACED[1:]),
        (4, PLACED[:-1]),
        (4, [*PLACED, PLACED[0]]),
        (4, [*PLACED, ("x", "|O8", [], 0)]),
        (4, [*PLACED, ("x", "<f4", [1 << 40], 0)]),
        (4, [*PLACED, ("x", "<f4", [], 1 << 40)]),
        (4, [*PLACED, ("x", "<f4", [], 8)]),
        (4, [*PLACED, ("x", "<f4", [-1], 64)]),
        (4, [*PLACED, (5, "<f4", [], 64)]),
    ],
)
def test_blocks_of_other_shapes_are_refused(place: int, value: object) -> None:
    size = splats.lay_out(4, 2, labels=False)
    length = size[-1].offset + 4 * size[-1].row_bytes
    splats.unpack_splats(msgpack.packb(GOOD), length)
    changed = [*GOOD]
    changed[place] = value
    with pytest.raises((ValueError, TypeError)):
        splats.unpack_splats(msgpack.packb(changed), length)


@given(st.binary(max_size=80))
def test_noise_is_a_value_or_type_error(data: bytes) -> None:
    for decode in (splats.unpack_lake, lambda attr: splats.unpack_splats(attr, 64)):
        with contextlib.suppress(ValueError, TypeError, FormatVersionError):
            decode(data)


def test_what_a_newer_version_adds_is_read_over_and_a_newer_version_refused() -> None:
    length = splats.lay_out(4, 2, labels=False)[-1].offset + 4 * 8
    columns = [[*column, "more"] for column in PLACED]
    more = [*GOOD[:4], columns, [1.0, 1.0, 1.0, 1.0, 9.0], "more"]
    assert splats.unpack_splats(msgpack.packb(more), length) == splats.unpack_splats(
        msgpack.packb(GOOD), length
    )
    assert splats.unpack_splats(msgpack.packb([1, 1, 3, "more"]), 24) == RemovalInfo(3)
    info = LakeInfo(bytes(16), 640, "sphere", 7)
    fields = msgpack.unpackb(splats.pack_lake(info))
    assert splats.unpack_lake(msgpack.packb([*fields, "more"])) == info
    with pytest.raises(FormatVersionError, match=r"version 2.*newer mldb"):
        splats.unpack_lake(msgpack.packb([2, *fields[1:]]))
    for other in ([2, 0, 1], [3, 1, 3], [2, *GOOD[1:]]):
        with pytest.raises(FormatVersionError, match="newer mldb"):
            splats.unpack_splats(msgpack.packb(other), 24)


def test_columns_have_names_of_their_own() -> None:
    for bad in ("mu", "id", "", "a\0b", "x" * 200, 5):
        with pytest.raises(ValueError, match="column"):
            splats.check_column_name(bad)  # type: ignore[arg-type]
    assert splats.check_column_name("loss") == "loss"
    assert np.dtype(splats.lay_out(1, 2, labels=True)[-1].dtype) == np.int64
