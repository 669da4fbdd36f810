"""What users type, and how values are written: moments, sizes, times, counts. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from mldb.printable import printable, shown_bytes, shown_shape, shown_time

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf

__all__ = [
    "MOMENT_TYPE",
    "SIZE_TYPE",
    "SPAN_TYPE",
    "ByteSize",
    "MomentType",
    "Span",
    "moment",
    "shown_bytes",
    "shown_shape",
    "shown_span",
    "shown_time",
]

_EPOCH: Final = re.compile(r"-?\d+\Z", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d([T ]|\Z)", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b?)\Z", re.ASCII | re.IGNORECASE)
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])\Z", re.ASCII)
_SPAN_UNITS: Final = {
    "w": "weeks",
    "d": "days",
    "h": "hours",
    "m": "minutes",
    "s": "seconds",
}
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class MomentType(click.ParamType[Any]):
    """AS_OF as typed: ``3`` is an epoch, ``lsn:17``, ``tag:3``, a time with its zone, a name."""

    name = "AS_OF"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what ``as_of=`` takes; None is the head."""
        if not isinstance(value, str):
            return value
        try:
            return moment(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def moment(text: str) -> AsOf:
    """Return what ``as_of=`` takes for a typed moment. Raises ValueError with what would do."""
    from mldb.log.index.address import Lsn

    if text in ("", "head"):
        return None
    if _EPOCH.match(text):
        return int(text)
    kind, colon, rest = text.partition(":")
    if colon and kind == "lsn":
        if not rest.isascii() or not rest.isdigit():
            raise ValueError(f"{printable(text)!r}: lsn: is followed by a number, as in lsn:17")
        return Lsn(int(rest))
    if colon and kind == "tag":
        return rest
    if _TIME.match(text):
        return _time(text)
    return text


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{printable(text)!r} is no time; write it as 2026-11-30T09:00:00Z"
        ) from None
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no zone; write {text}Z for UTC, or {text}+02:00")
    return found


class ByteSize(click.ParamType[int]):
    """A number of bytes: ``4096``, ``64k``, ``1.5GiB``; powers of 1024."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number as an int."""
        if not isinstance(value, str):
            return value
        found = _SIZE.match(value.strip())
        if found is None:
            self.fail(f"{printable(value)!r} is no size; write 4096, 64k or 1.5GiB", param, ctx)
        return int(float(found[1]) * 1024 ** _POWERS[found[2].lower()])


class Span(click.ParamType[timedelta]):
    """A length of time: ``7d``, ``12h``, ``30m``, ``90s``, ``2w``."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the span as a timedelta."""
        if not isinstance(value, str):
            return value
        found = _SPAN.match(value.strip())
        if found is None:
            self.fail(f"{printable(value)!r} is no span; write 7d, 12h, 30m or 90s", param, ctx)
        try:
            return timedelta(**{_SPAN_UNITS[found[2]]: float(found[1])})
        except OverflowError:
            self.fail(f"{printable(value)!r} is longer than there are days", param, ctx)


MOMENT_TYPE: Final = MomentType()
SIZE_TYPE: Final = ByteSize()
SPAN_TYPE: Final = Span()


def shown_span(span: timedelta | None) -> str:
    """A span as it is typed: ``7d``, ``90s``; ``-`` where there is none."""
    if span is None:
        return "-"
    seconds = span.total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:g}s"
