"""What FORMAT.md says of events, keys, lakes and descriptors, against the code."""

from __future__ import annotations

import re
import struct

from mldb import keys
from mldb.history import kinds, merged, splats
from mldb.log import format as fmt
from mldb.state import skeleton as state_skeleton
from mldb.tensors import descriptor
from tests.support.format_page import Row

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


_BLOCK_TYPES = {"<f4": "f32", "<f8": "f64", "<u8": "u64", "<u4": "u32"}


def check_block(rows: list[Row]) -> None:
    columns = splats.lay_out(7, 5, labels=False)
    types = [_BLOCK_TYPES[c.dtype] + " x dimension" * bool(c.shape) for c in columns]
    assert [row["column"] for row in rows] == [c.name for c in columns]
    assert [row["type"] for row in rows] == types
    assert all(c.offset % splats.COLUMN_ALIGN == 0 for c in columns)
    assert splats.ID_MAX == 2**48 - 1


def check_parts(rows: list[Row]) -> None:
    """The columns behind the block of a merge."""
    info = merged.MergeInfo(None, 0, 0, is_whole=False)
    types = [_BLOCK_TYPES[part.dtype] for part in info.parts]
    assert [row["part"] for row in rows] == [part.name for part in info.parts]
    assert [row["type"] for row in rows] == types
    assert all(part.offset % splats.COLUMN_ALIGN == 0 for part in info.parts)


def check_layouts(rows: list[Row]) -> None:
    """The sparse layouts, their variants and components, as descriptors have them."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in rows:
        framework, layout = row["framework"], row["layout"]
        assert (framework, layout) not in found
        components = row["components"].split("; ")[0]
        if components == "as coo":
            names = found[framework, "coo"]
        else:
            axes = "coords0, coords1, ... one for each axis"
            names = tuple(components.replace(axes, "coords").split(", "))
        found[framework, layout] = names
        variants = re.findall(r"`(\w+)`", row["variant"]) + ["empty"] * ("empty" in row["variant"])
        allowed = ["" if name == "empty" else name for name in variants]
        assert set(allowed) <= set(descriptor._VARIANTS[framework])
        assert (len(allowed) == 2) == (framework == "scipy" or layout == "coo")
    assert found == descriptor._PARTS


def check_tags(rows: list[Row]) -> None:
    names = [row["name"] for row in rows]
    assert [int(row["tag"]) for row in rows] == [getattr(state_skeleton, name) for name in names]
    assert len(set(names)) == len(names) == 15
