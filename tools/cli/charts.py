"""Charts of one line or a few: bars and curves of block characters, or of ASCII. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LEVELS: Final = "▁▂▃▄▅▆▇█"
_PARTS: Final = " ▏▎▍▌▋▊▉█"
_ASCII_LEVELS: Final = "_.-=+*#@"
_GAP: Final = "·"
_ASCII_GAP: Final = "?"


def prints_blocks() -> bool:
    """Whether the encoding of stdout has the block characters."""
    try:
        (_LEVELS + _PARTS + _GAP).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def sparkline(values: Sequence[float], *, blocks: bool = True) -> str:
    """Return a character for each value, the higher the larger; a dot for NaN and infinities."""
    levels, gap = (_LEVELS, _GAP) if blocks else (_ASCII_LEVELS, _ASCII_GAP)
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return gap * len(values)
    low, high = min(known), max(known)
    # Halves, since the span itself may be beyond the largest float.
    span = high / 2 - low / 2

    def level(value: float) -> str:
        if not math.isfinite(value):
            return gap
        if span <= 0:
            return levels[len(levels) // 2]
        share = (value / 2 - low / 2) / span
        return levels[min(int(share * len(levels)), len(levels) - 1)]

    return "".join(map(level, values))


def bar(share: float, width: int, *, blocks: bool = True) -> str:
    """Return a bar that fills *share* of *width* characters; something is always seen of it."""
    if share <= 0 or width < 1:
        return ""
    if not blocks:
        return "#" * max(round(share * width), 1)
    eighths = max(round(min(share, 1.0) * width * 8), 1)
    whole, part = divmod(eighths, 8)
    return _PARTS[-1] * whole + (_PARTS[part] if part else "")


@dataclass(frozen=True, slots=True)
class Bins:
    """How many values lie between ascending edges; the last bin has its upper edge as well.

    ``single``: each bin is one integer, the lower of its edges. What lies at the infinities is in
    ``below`` and ``above``.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    single: bool = False
    below: int = 0
    above: int = 0


def bin_lines(bins: Bins, width: int, *, blocks: bool = True) -> list[str]:
    """Return a line for each bin: its lower edge, a bar, and how many; at most *width* wide."""
    lows = [f"{edge:.4g}" for edge in bins.edges[: len(bins.counts)]]
    counts = [f"{count:,}" for count in bins.counts]
    rows = list(zip(lows, bins.counts, counts, strict=True))
    if bins.below:
        rows.insert(0, ("-inf", bins.below, f"{bins.below:,}"))
    if bins.above:
        rows.append(("inf", bins.above, f"{bins.above:,}"))
    if not rows:
        return []
    label = max(len(low) for low, _, _ in rows)
    number = max(len(text) for _, _, text in rows)
    room = max(width - label - number - 2, 1)
    most = max(count for _, count, _ in rows) or 1
    lines = []
    for low, count, text in rows:
        shown = bar(count / most, room, blocks=blocks)
        lines.append(f"{low:>{label}} {shown:<{room}} {text:>{number}}"[:width].rstrip())
    return lines
