"""The commit of one run: the splats it made, and the rows that end with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import ConflictError, LimitError
from mldb.history.kinds.lakes import splats_consolidated
from mldb.history.merged import MergeInfo
from mldb.history.splats import ID_MAX, BlockInfo, LakeInfo, lay_out
from mldb.lake import projection
from mldb.lake.consolidation.plan import PlannedMerges, StressTold
from mldb.lake.host import Host, head_scope
from mldb.lake.rows.live import Rows, rows_in
from mldb.log.frame import Record, hash_record
from mldb.log.index.address import Lsn
from mldb.log.index.lineage import is_visible
from mldb.log.view import View
from mldb.names import check_name

_IN_MEMORY: Final = 16 << 20  # larger payloads are written before the commit lock is taken
_NOTHING: Final = "Nothing was stored; try again."
_NO_STRESS: Final = StressTold(*(np.empty(0, np.int64),) * 3, is_whole=False)

_Column = npt.NDArray[Any]


def store_merges(host: Host, planned: PlannedMerges, epoch: int | None) -> Lsn:
    """Store what a run merges as one commit, beside whatever was committed since it was planned.

    Rows that were added since stay as they are. Raises ConflictError when a source ended since, or
    the lineage was rewound behind the state; then nothing was stored.
    """
    return _Storing(host, planned).store(epoch)


class _Storing:
    """One try to store a run; one thread, used once.

    First ids and the key are decided under the commit lock, where the sources are looked at again.
    """

    def __init__(self, host: Host, planned: PlannedMerges) -> None:
        self._host, self._planned = host, planned
        self._rows = planned.rows
        self._name = check_name(self._rows.name)
        self._block, columns = _block(planned)
        told = planned.stress or _NO_STRESS
        made = np.zeros(len(planned.merges), np.int64) if planned.stress is None else told.made
        self._info = MergeInfo(
            self._block, len(planned.merges.sources), len(told.ids), told.is_whole, planned.run
        )
        tail: dict[str, _Column] = {
            "starts": planned.merges.starts.astype("<u8"),
            "sources": planned.splats.ids[planned.merges.sources].astype("<u8"),
            "made_stress": made.astype("<u4"),
            "stressed": told.ids.astype("<u8"),
            "stress": told.grains.astype("<u4"),
        }
        places = [] if self._block is None else [*self._block.columns]
        places += self._info.parts
        self._payload = _laid_out([*columns, *tail.values()], [place.offset for place in places])
        self._sources = self._rows.stored_numbers(planned.merges.sources)

    def store(self, epoch: int | None) -> Lsn:
        """Commit; return the commit."""
        host = self._host
        record = self._record(0, self._info, self._rows.state.info)
        record.payload = self._payload
        if record.payload_length <= _IN_MEMORY:
            hash_record(record)
            row = host.commit([record], epoch, self._decider(record), None)
        else:
            pending = host.open_pending()
            try:
                pending.add([record])
                row = host.commit([], epoch, self._decider(record), pending)
            finally:
                pending.discard()
        host.known.note_change(lambda: host.scope(None), self._rows.name)
        return Lsn(row.lsn)

    def _record(self, head: int, info: MergeInfo, lake: LakeInfo) -> Record:
        return splats_consolidated(self._name, head, info, lake)

    def _decider(self, record: Record) -> Any:
        digest = record.named_drafts()[0].digest

        def decide(view: View) -> None:
            """Give what was made its key and ids behind the newest head, or refuse it."""
            lake = require_unchanged(self._host, self._rows, view, self._sources)
            if lake.next_id + self._info.rows > ID_MAX + 1:
                raise LimitError(
                    f"lake {self._rows.name!r} has given out ids up to {lake.next_id - 1}; "
                    f"{self._info.rows} more exceed 2**48. Nothing was stored."
                )
            info = self._info
            if self._block is not None:
                info = replace(info, block=replace(self._block, base=lake.next_id))
            after = replace(lake, next_id=lake.next_id + info.rows)
            head = view.commit.lsn
            record.drafts = splats_consolidated(self._name, head, info, after, digest).drafts

        return decide


def require_unchanged(host: Host, rows: Rows, view: View, sources: Numbers) -> LakeInfo:
    """Return what the lake is at the newest head. Raises ConflictError where rows are not as seen.

    *sources* are stored numbers of rows that are live in the state of *rows*.
    """
    scope = head_scope(rows.scope, view)
    found = projection.find_lake(scope, rows.name)
    seen = rows.state
    if found is None or found[0].lake_id != seen.info.lake_id:
        raise ConflictError(f"lake {rows.name!r} is no longer there, or another one. {_NOTHING}")
    if found[1].commit_lsn == seen.version:
        return found[0]
    if not is_visible(seen.version, view.intervals):
        raise ConflictError(
            f"the store was rewound to before commit {seen.version}, which lake {rows.name!r} was "
            f"read at. {_NOTHING}"
        )
    now = rows_in(scope, rows.name, host.known)
    is_live = now.chain.are_live(sources, now.state.size)
    if not is_live.all():
        raise ConflictError(
            f"{int((~is_live).sum())} of the {len(sources)} rows of lake {rows.name!r} that this "
            f"is about were removed, or merged, by another commit. {_NOTHING}"
        )
    return found[0]


def _block(planned: PlannedMerges) -> tuple[BlockInfo | None, list[_Column]]:
    """The block of the splats made, and its columns in their order."""
    made, rows = planned.merges.made, planned.rows
    count = len(planned.merges)
    if not count:
        return None, []
    splats = made.splats
    limits = np.finfo(np.float32)
    kappa = np.clip(splats.kappa, limits.tiny, limits.max).astype(np.float32)
    columns: dict[str, _Column] = {
        "mu": splats.mu,
        "norm": splats.norm.astype(np.float32),
        "kappa": kappa,
        "alpha": splats.alpha,
        "min_cos": splats.min_cos.astype(np.float32),
        "id": np.arange(count, dtype="<u8"),
    }
    user = {name: shape for name, shape in rows.columns.items() if name not in columns}
    if user.pop("label", None) is not None:
        columns["label"] = splats.labels
    for name in user:  # what no rule merges is that of the heaviest source
        columns[name] = rows.gather(name, made.heaviest)
    layout = lay_out(
        count,
        rows.dim,
        labels="label" in columns,
        user=[(name, dtype, shape) for name, (dtype, shape) in user.items()],
    )
    block = BlockInfo(
        count,
        0,
        layout,
        float(splats.alpha.sum()),
        float(splats.alpha.max()),
        float(kappa.min()),
        float(kappa.max()),
    )
    return block, [columns[place.name] for place in layout]


def _laid_out(columns: list[_Column], offsets: list[int]) -> list[memoryview]:
    """The bytes of a payload: each column at its offset, zeros between."""
    parts: list[memoryview] = []
    end = 0
    for column, offset in zip(columns, offsets, strict=True):
        if offset > end:
            parts.append(memoryview(bytes(offset - end)))
        flat = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
        if len(flat):
            parts.append(flat.data)
        end = offset + len(flat)
    return parts
