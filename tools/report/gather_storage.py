"""Where the bytes of a store are: by name, by epoch, by encoding, on every lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mldb import keys
from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.names import check_name
from mldb.tensors.codec import unpack_descriptor
from mldb.tools.report.facts import NumberColumn, StorageFacts

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.query.surface import Snapshot

ENCODING_LABELS: Final = {
    fmt.ENCODING_RAW: "as they are",
    fmt.ENCODING_RAW + 1: "compressed",
    fmt.ENCODING_REFERENCE: "references to equal bytes",
    fmt.ENCODING_DELTA: "deltas to the version before",
    fmt.ENCODING_PATCH: "patches of rows",
}


def gather_storage(
    db: MLDatabase, at: Snapshot, lsns: NumberColumn, epochs: NumberColumn
) -> StorageFacts:
    """Count the bytes of every version of the names that exist at *at*; O(versions).

    *lsns* and *epochs* are those of all commits. Nothing of a payload is read.
    """
    view = at._scope().view
    epoch_of = dict(zip(lsns.tolist(), epochs.tolist(), strict=True))
    nbytes_of: dict[bytes, int] = {}
    by_epoch: dict[int, list[int]] = {}
    by_encoding: dict[str, list[int]] = {}
    by_name: list[tuple[str, int, int, int]] = []
    problems: list[str] = []
    for name in at.names():
        sums = [0, 0, 0]
        try:
            for entry in view.versions(keys.TENSORS + check_name(name)):
                if entry.flags & fmt.ENTRY_TOMBSTONE or entry.commit_lsn > at.lsn:
                    continue
                decoded = nbytes_of.get(entry.attr)
                if decoded is None:
                    decoded = nbytes_of[entry.attr] = unpack_descriptor(entry.attr).nbytes
                kind = ENCODING_LABELS.get(entry.encoding, f"encoding {entry.encoding}")
                epoch = epoch_of.get(entry.commit_lsn, 0)
                for target in (
                    sums,
                    by_encoding.setdefault(kind, [0, 0, 0]),
                    by_epoch.setdefault(epoch, [0, 0, 0]),
                ):
                    target[0] += 1
                    target[1] += decoded
                    target[2] += entry.length
        except MldbError as error:
            problems.append(f"{name}: {error}")
        by_name.append((name, sums[0], sums[1], sums[2]))
    return StorageFacts(
        file_bytes=int(db.stats()["bytes"]),
        versions=sum(row[1] for row in by_name),
        by_name=sorted(by_name, key=lambda row: -row[3]),
        by_epoch=[(epoch, sums[1], sums[2]) for epoch, sums in sorted(by_epoch.items())],
        by_encoding={name: (sums[0], sums[1], sums[2]) for name, sums in by_encoding.items()},
        problems=tuple(problems),
    )
