"""Text from a store made safe for a terminal or a page, and how values are written. Pure.

Names, metadata and messages may hold anything that is UTF-8: escape sequences that clear a screen,
marks that turn the direction of writing, line breaks that forge a line. They are shown as escapes.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

# C0, C1, DEL; line and paragraph separators; marks and overrides of direction; zero widths, the
# byte order mark, lone surrogates and tag characters.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, *, limit: int | None = None) -> str:
    """Return *text* with what a terminal would obey as escapes, cut to *limit* characters."""
    safe = _UNSAFE.sub(_escaped, text)
    return safe if limit is None or len(safe) <= limit else safe[: max(limit - 1, 0)] + "…"


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown_bytes(count: int) -> str:
    """Bytes for people: ``512 B``, ``1.5 KiB``, ``20 GiB``; three digits are enough."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000:
            return f"{int(value)} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def shown_time(moment_: datetime) -> str:
    """A time in UTC to the second: ``2026-11-30 09:00:00Z``."""
    return moment_.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def shown_shape(shape: tuple[int, ...]) -> str:
    """A shape: ``768x3072``, or ``scalar``."""
    return "x".join(map(str, shape)) if shape else "scalar"
