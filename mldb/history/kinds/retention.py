"""How much of the past is kept: RetentionSet. It belongs to the store and is not rewound."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from mldb import keys
from mldb.compaction.retention import Retention
from mldb.errors import CorruptError, FormatVersionError, UsageError
from mldb.history.kinds import RETENTION_SET
from mldb.history.kinds.changes import KeyChange
from mldb.log.frame import Draft, pack, unpack

RETENTION_VERSION: Final = 1
_FIELDS: Final = 7
_MICROSECOND: Final = timedelta(microseconds=1)


def retention_set(policy: Retention) -> KeyChange:
    """From here on the store keeps what *policy* says."""
    return KeyChange(RETENTION_SET, keys.RETENTION, pack_retention(policy))


def pack_retention(policy: Retention) -> bytes:
    """The attr of a policy; spans are microseconds."""
    return pack(
        (
            RETENTION_VERSION,
            policy.last,
            policy.every,
            _microseconds(policy.within),
            policy.checkpoints,
            policy.max_bytes,
            _microseconds(policy.abandoned),
        )
    )


def _microseconds(span: timedelta | None) -> int | None:
    return None if span is None else span // _MICROSECOND


def unpack_retention(attr: bytes) -> Retention:
    """Decode a policy. Raises CorruptError, and FormatVersionError for one of a newer mldb."""
    try:
        version, *fields = unpack(attr)[:_FIELDS]
        if type(version) is int and version > RETENTION_VERSION:
            raise FormatVersionError(
                f"the retention of this store has version {version}, this mldb knows "
                f"{RETENTION_VERSION}. Nothing was dropped; use a newer mldb to compact it."
            )
        last, every, within, checkpoints, max_bytes, abandoned = fields
        return Retention(
            last=last,
            every=every,
            within=None if within is None else timedelta(microseconds=within),
            checkpoints=checkpoints,
            max_bytes=max_bytes,
            abandoned=None if abandoned is None else timedelta(microseconds=abandoned),
        )
    except (ValueError, TypeError, LookupError, OverflowError, UsageError) as error:
        raise CorruptError(f"the retention of the store cannot be decoded: {error}") from None


def read_retention_set(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the policy."""
    for draft in drafts:
        yield (unpack_retention(draft.attr),)
