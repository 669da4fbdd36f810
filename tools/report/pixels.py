"""A picture of shares as PNG bytes in a data URI: one byte a cell before it is compressed.

Format: the PNG specification, third edition, sections 5 and 11 (signature, chunks, IHDR, PLTE,
tRNS, IDAT, IEND). Pure.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Final

import numpy as np

from mldb.tools.report.facts import NumberColumn

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PALETTE_COLOUR: Final = 3
_COLOUR: Final = (37, 118, 235)


def heat_image(shares: NumberColumn) -> str:
    """Return a data URI of *shares* [rows, columns], 0..1: one colour, as opaque as they are high.

    So it shows on light and on dark ground alike. Roots of shares: small ones are seen as well.
    """
    cells = np.rint(np.sqrt(np.clip(shares, 0, 1)) * 255).astype(np.uint8)
    height, width = cells.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each starts with its filter: none
    lines[:, 1:] = cells
    header = struct.pack(">IIBBBBB", width, height, 8, _PALETTE_COLOUR, 0, 0, 0)
    data = b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", bytes(_COLOUR) * 256),
            _chunk(b"tRNS", bytes(range(256))),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
