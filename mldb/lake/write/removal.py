"""One ``remove``: the ids that end, in one commit."""

from __future__ import annotations

import numpy as np

from mldb.arrays import Numbers
from mldb.history.kinds.lakes import splats_deleted
from mldb.lake.host import Host, head_scope
from mldb.lake.rows.live import found_rows, rows_in
from mldb.log.frame import hash_record
from mldb.log.index.address import Lsn
from mldb.log.view import View
from mldb.names import check_name


def remove_rows(host: Host, name: str, ids: Numbers, epoch: int | None) -> Lsn:
    """End the rows of *ids*, ascending and at least one; return the commit. Raises MissingError."""
    host.settle()
    base = host.scope(None)
    rows = rows_in(base, name, host.known)
    found_rows(rows, ids)  # what it reads is then known under the lock
    key, payload = check_name(name), ids.astype("<u8").view(np.uint8).data
    record = splats_deleted(key, 0, payload, rows.state.info)
    hash_record(record)
    digest = record.named_drafts()[0].digest

    def decide(view: View) -> None:
        now = rows_in(head_scope(base, view), name, host.known)
        if now.state.version != rows.state.version:
            found_rows(now, ids)
        placed = splats_deleted(key, view.commit.lsn, payload, now.state.info, digest)
        record.drafts = placed.drafts

    lsn = Lsn(host.commit([record], epoch, decide, None).lsn)
    host.known.note_change(lambda: host.scope(None), name)
    return lsn
