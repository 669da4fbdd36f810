"""Metadata of tensors: plain values only, packed with msgpack, never pickled.

Plain are None, bool, integers of 64 bits, float, str, bytes, aware datetimes, and lists and dicts
(with str keys) of these. Tuples come back as lists, NumPy scalars as Python numbers, datetimes with
their UTC offset and without the name of their zone.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import msgpack
import numpy as np

from mldb import keys
from mldb.errors import CorruptError, InvalidTypeError, InvalidValueError, LimitError

MAX_METADATA_BYTES: Final = 1 << 20
METADATA_DEPTH_MAX: Final = 16

_DATETIME_CODE = 1
_DATETIME = struct.Struct("<qi")  # microseconds since 1970 UTC, UTC offset in seconds
_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)


def pack_metadata(metadata: dict[str, Any], what: str = "metadata") -> bytes:
    """Return *metadata* packed; *what* is what they are called in messages, "metrics" for example.

    Raises InvalidTypeError or InvalidValueError naming the path of a value that is not plain,
    LimitError beyond a depth of 16 or 1 MiB. The dict is not kept.
    """
    if not isinstance(metadata, dict):
        raise InvalidTypeError(
            f"{what}: a dict of plain values is needed, not a {type(metadata).__name__}."
        )
    data = bytes(msgpack.packb(_Packer(what).plain(metadata, what, 0)))
    if len(data) > MAX_METADATA_BYTES:
        raise _too_large(what, f"{len(data)} bytes")
    return data


def unpack_metadata(data: bytes) -> dict[str, Any]:
    """Return the dict that :func:`pack_metadata` packed; raises CorruptError for anything else."""
    if len(data) > MAX_METADATA_BYTES:
        raise _corrupt(f"{len(data)} bytes, at most {MAX_METADATA_BYTES} are allowed")
    try:
        value = msgpack.unpackb(data, ext_hook=_unpack_extension)
    except CorruptError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise _corrupt(f"no msgpack ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise _corrupt("it is no dict")
    _check_unpacked(value, 0)
    return value


class _Packer:
    """One walk over metadata; counts values so that a huge one stops before it is copied."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0

    def plain(self, value: Any, path: str, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_METADATA_BYTES:
            raise _too_large(self._what, f"more than {MAX_METADATA_BYTES} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, dict | list | tuple):
            if depth >= METADATA_DEPTH_MAX:
                raise LimitError(
                    f"{path[:200]} is deeper than {METADATA_DEPTH_MAX}, or holds itself."
                )
            if isinstance(value, dict):
                return self._plain_dict(value, path, depth)
            return [
                self.plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)
            ]
        return _plain_leaf(value, path)

    def _plain_dict(self, value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidTypeError(
                    f"{path[:200]} has a key {key!r:.80} of type {type(key).__name__}, not str."
                )
            inner = f"{path}[{key!r:.80}]"
            result[_plain_text(key, inner)] = self.plain(item, inner, depth + 1)
        return result


def _plain_leaf(value: Any, path: str) -> Any:
    if isinstance(value, str):
        return _plain_text(value, path)
    if isinstance(value, bytes):
        if len(value) > MAX_METADATA_BYTES:
            raise _too_large(path, f"{len(value)} bytes")
        return bytes(value)
    if isinstance(value, int | np.integer):
        number = int(value)
        if not -(1 << 63) <= number < 1 << 64:
            raise InvalidValueError(f"{path[:200]} is an integer beyond 64 bits; use a str.")
        return number
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating) and not isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, datetime):
        return _pack_datetime(value, path)
    raise InvalidTypeError(
        f"{path[:200]} is a {type(value).__name__}, which is no plain value (None, bool, int, "
        f"float, str, bytes, aware datetime, list, dict). {_advice(value)}"
    )


def _advice(value: object) -> str:
    if getattr(value, "shape", None) in ((), (1,)) and hasattr(value, "item"):
        return "Take the number out of it with .item()."
    return "Convert it, or store an array as a tensor."


def _plain_text(value: str, path: str) -> str:
    if len(value) > MAX_METADATA_BYTES:
        raise _too_large(path, f"{len(value)} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidValueError(f"{path[:200]!r} holds a lone surrogate; it is no text.") from error
    return str(value)


def _pack_datetime(value: datetime, path: str) -> msgpack.ExtType:
    offset = value.utcoffset()
    if offset is None:
        raise InvalidValueError(
            f"{path[:200]} is a datetime without a time zone; use datetime.now(timezone.utc) or "
            "value.astimezone()."
        )
    # Zones of history with a fraction of a second keep their instant and lose the fraction.
    seconds = offset // _SECOND
    return msgpack.ExtType(
        _DATETIME_CODE, _DATETIME.pack((value - _START) // _MICROSECOND, seconds)
    )


def _unpack_extension(code: int, data: bytes) -> datetime:
    if code != _DATETIME_CODE or len(data) != _DATETIME.size:
        raise _corrupt(f"unknown extension {code} of {len(data)} bytes")
    microseconds, seconds = _DATETIME.unpack(data)
    try:
        zone = UTC if seconds == 0 else timezone(timedelta(seconds=seconds))
        return (_START + timedelta(microseconds=microseconds)).astimezone(zone)
    except (OverflowError, ValueError) as error:
        raise _corrupt(f"a datetime out of range ({error})") from error


def _check_unpacked(value: object, depth: int) -> None:
    if isinstance(value, msgpack.Timestamp):
        raise _corrupt("unknown extension -1")
    if not isinstance(value, dict | list):
        return
    if depth >= METADATA_DEPTH_MAX:
        raise _corrupt(f"it is nested deeper than {METADATA_DEPTH_MAX}")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise _corrupt("a key is no text")
        for item in value.values():
            _check_unpacked(item, depth + 1)
    else:
        for item in value:
            _check_unpacked(item, depth + 1)


def _too_large(path: str, size: str) -> LimitError:
    return LimitError(
        f"{path[:200]} of {size} is beyond the limit of {MAX_METADATA_BYTES} bytes; nothing was "
        "stored. Store large values as tensors."
    )


def _corrupt(problem: str) -> CorruptError:
    return CorruptError(
        f"stored metadata is damaged: {problem}. The tensors themselves stay readable; run "
        "db.verify() to see what is affected."
    )


def metadata_columns(key: bytes, attr: bytes) -> dict[str, Any] | None:
    """Return the metadata fields of an entry, which get columns of their own in sealed segments.

    Other key spaces have none (None), nor has a deletion, which has no attr.
    """
    return unpack_metadata(attr) if attr and key[:1] == keys.METADATA else None
