"""FORMAT.md taken apart: its tables, its prose, its example."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from mldb.log import format as fmt

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


EXAMPLE_SEED = fmt.file_seed(bytes(range(16)), bytes(range(16, 32)))


@cache
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
