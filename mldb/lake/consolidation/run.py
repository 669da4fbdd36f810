"""A consolidation from end to end: plan, commit, plan again where another commit was faster."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from mldb import keys
from mldb.compaction.soc.report import ConsolidationReport, PastCapWarning
from mldb.errors import ConflictError, MissingError, UsageError
from mldb.history.kinds.changes import records_of
from mldb.history.kinds.lakes import lake_policy_set
from mldb.history.merged import unpack_policy
from mldb.lake import projection
from mldb.lake.consolidation.plan import PlannedMerges, plan_run
from mldb.lake.consolidation.settings import ConsolidationPolicy, policy_of
from mldb.lake.consolidation.store import store_merges
from mldb.lake.consolidation.told import arrivals_since, told_merges, told_stress
from mldb.lake.host import Host
from mldb.lake.rows.chain import damaged
from mldb.lake.rows.live import Rows, rows_in
from mldb.log.index.address import Lsn
from mldb.log.readers import Hold
from mldb.names import check_name
from mldb.tensors.scope import Scope


def run_consolidation(
    host: Host,
    name: str,
    settings: ConsolidationPolicy,
    *,
    target_keep: float | None = None,
    epoch: int | None = None,
    plan_only: bool = False,
    retries: int = 0,
    pause: Callable[[], None] = lambda: None,
) -> ConsolidationReport:
    """Consolidate a lake at its head; see ``Lake.consolidate`` for what is raised.

    *pause* is called now and then: it may wait, or raise to give up.
    """
    if not plan_only:
        host.settle()
        host.scope(None).source.log.sequencer  # noqa: B018 - raises ReadOnlyError before any work
    while True:
        rows = rows_in(host.scope(None), name, host.known)
        if rows.state.info.geometry != "sphere":
            raise UsageError(
                f"lake {name!r} lies in {rows.state.info.geometry!r} space; rows are merged by "
                "their cosines, in lakes of geometry 'sphere'. Nothing was changed."
            )
        held = Hold(rows.log.registration, rows.lsn)  # a compactor leaves what is being read
        try:
            planned = plan_run(rows, settings, target_keep, pause)
            if target_keep is not None:
                _warn_past_cap(planned, settings)
            stores = planned.changes and not plan_only
            lsn = store_merges(host, planned, epoch) if stores else None
            return consolidation_report(planned, lsn)
        except ConflictError:
            if retries < 1:
                raise
            retries -= 1
        finally:
            held.release()


def _warn_past_cap(planned: PlannedMerges, settings: ConsolidationPolicy) -> None:
    certified = planned.merges.made.splats.min_cos
    if len(certified) and certified.min() < np.float32(settings.min_cos):
        warnings.warn(
            f"to keep the share that was asked for, rows as far as cosine {certified.min():.2f} "
            f"from their splat were merged, past min_cos={settings.min_cos}. Below the number of "
            "distinct rows every form of compression costs accuracy; leave target_keep out to "
            "merge near-copies alone. lake.undo(report) takes it back.",
            PastCapWarning,
            stacklevel=4,
        )


def consolidation_report(planned: PlannedMerges, lsn: Lsn | None) -> ConsolidationReport:
    """What is told of a run that was stored as *lsn*, or not."""
    merges, made = planned.merges, planned.merges.made
    cosine = float(made.cosines.min()) if len(merges) else 1.0
    mass = float(planned.splats.alpha.sum())
    return ConsolidationReport(
        lsn=lsn,
        lake=planned.rows.name,
        method=planned.run["method"],
        rows_before=len(planned.rows),
        rows_after=merges.kept,
        sources=len(merges.sources),
        merged=len(merges),
        mass=mass,
        min_cos=planned.run["min_cos"],
        level=merges.level,
        min_cos_certified=float(made.splats.min_cos.min()) if len(merges) else 1.0,
        min_cos_true=cosine,
        displacement=float(np.sqrt(max(2 - 2 * cosine, 0.0))),
        density_bound=float(made.moved.sum()) / mass if len(merges) else 0.0,
        topplings=merges.tries,
        passes=merges.passes,
        arrivals=planned.arrivals,
        avalanches=planned.avalanches,
        is_relaxed=planned.is_relaxed,
        seconds=merges.seconds,
        search_seconds=merges.search_seconds,
    )


# --- policies -------------------------------------------------------------------------------------


def stored_policy(scope: Scope, name: str) -> ConsolidationPolicy | None:
    """Return the policy of a lake, None for none. Raises CorruptError, FormatVersionError."""
    entry = scope.find(keys.POLICIES + check_name(name))
    if entry is None:
        return None
    try:
        return policy_of(unpack_policy(entry.attr))
    except (ValueError, TypeError) as error:
        raise damaged(scope, entry, name, error) from None


def store_policy(host: Host, name: str, policy: ConsolidationPolicy | None) -> None:
    """Set the policy of a lake, or end it. Raises MissingError where there is no lake."""
    scope = host.scope(None)
    projection.require_lake(scope, name)
    if policy is None and stored_policy(scope, name) is None:
        return
    change = lake_policy_set(check_name(name), None if policy is None else policy.plain())
    host.commit(records_of([change]), None, None, None)
    host.note_rows(name, None)


def is_due(rows: Rows, policy: ConsolidationPolicy) -> bool:
    """Whether a run is due: enough rows arrived since the last one, or that was cut off."""
    if policy.method == "sandpile":
        stress = told_stress(rows)
        if (rows.find(stress.ids[stress.grains >= policy.k]) >= 0).any():
            return True
        seen = stress.seen
    else:
        seen = max((commit for commit, _ in told_merges(rows)), default=0)
    return len(arrivals_since(rows, seen)) >= policy.after_rows


def policy_due(host: Host, name: str) -> ConsolidationPolicy | None:
    """Return the stored policy where a run is due by it. Raises CorruptError."""
    scope = host.scope(None)
    policy = stored_policy(scope, name)
    if policy is None:
        return None
    try:
        rows = rows_in(scope, name, host.known)
    except MissingError:
        return None  # rewound to before the lake
    return policy if is_due(rows, policy) else None


def run_policy(
    host: Host, name: str, pause: Callable[[], None] = lambda: None
) -> ConsolidationReport | None:
    """Consolidate as the stored policy says, if it is due; None where there is nothing to do."""
    policy = policy_due(host, name)
    return None if policy is None else run_consolidation(host, name, policy, pause=pause)
