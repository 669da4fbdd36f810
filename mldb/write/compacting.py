"""Retention and compaction: how much of the past a store keeps, and giving back the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from mldb import keys
from mldb.deferred import replace
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.log.door import Door
from mldb.log.index.address import Lsn
from mldb.log.view import View
from mldb.tensors.cache import ByteCache
from mldb.tensors.codec import unpack_descriptor
from mldb.write.handle import Handle

if TYPE_CHECKING:  # a process that only trains needs none of it
    from mldb.compaction.keepers import Keeper
    from mldb.compaction.report import CompactionReport
    from mldb.compaction.retention import Retention
    from mldb.compaction.rules import ColdAge, EventRules
    from mldb.compaction.usage import Usage
    from mldb.history.as_of import AsOf

Cold: TypeAlias = "timedelta | Literal['all', 'none'] | None"
"""What is encoded anew: older than this, everything, nothing; None: older than COLD_AGE."""

COLD_AGE: Final = timedelta(days=7)
_CACHE_BYTES: Final = 64 << 20
_MICROSECOND: Final = timedelta(microseconds=1)


class RetentionSetting:
    """``db.retention``: which commits the store keeps. Any thread.

    It is an event: set in a commit, for the whole store, and not rewound. It takes effect with the
    next :meth:`~CompactionVerbs.compact`; until then nothing is dropped.
    """

    def __init__(self, handle: CompactionVerbs) -> None:
        self._handle = handle

    def get(self, *, as_of: AsOf = None) -> Retention:
        """Return the policy in force now, or at the commit that *as_of* means."""
        from mldb.history.retention import retention_of

        scope = self._handle._scope(as_of)
        return retention_of(scope.view, None if as_of is None else scope.commit.lsn)

    def set(self, policy: Retention | None = None, **rules: Any) -> Retention:
        """Set what is kept: a policy, or its *rules* by name; without either everything is kept.

        Returns the policy. ``set(last=3, every=10)`` keeps the last three epochs and every tenth.
        Nothing is dropped by this call. Raises InvalidValueError and InvalidTypeError for rules
        that cannot be meant; then nothing is set.
        """
        from mldb.compaction.retention import Retention
        from mldb.history.kinds.changes import records_of
        from mldb.history.kinds.retention import retention_set

        if policy is not None and rules:
            raise InvalidValueError("set() takes a Retention or rules by name, not both")
        if policy is not None and not isinstance(policy, Retention):
            raise InvalidTypeError(f"the policy is a {type(policy).__name__}; give a Retention")
        try:
            chosen = Retention(**rules) if policy is None else policy
        except TypeError as error:
            if isinstance(error, InvalidTypeError):
                raise
            raise InvalidTypeError(f"{error}; the rules are the fields of Retention") from None
        handle = self._handle
        handle._settle_background()
        handle._commit(records_of([retention_set(chosen)]), None)
        handle._compaction.look_anew()
        return chosen

    def history(self) -> list[tuple[Lsn, Retention]]:
        """Return the policies that were set, with the commits that did, oldest first."""
        from mldb.history.retention import retention_history

        return retention_history(self._handle._scope().view)

    def __repr__(self) -> str:
        """The policy in force."""
        return f"<retention {self.get()}>"


class CompactionVerbs(Handle):
    """What gives space back. Any thread."""

    @property
    def retention(self) -> RetentionSetting:
        """Which commits the store keeps: ``db.retention.set(last=3, every=10)``, ``.get()``."""
        self._guard()
        return RetentionSetting(self)

    def compact(
        self,
        *,
        plan_only: bool = False,
        cold: Cold = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> CompactionReport:
        """Rewrite segments so that they hold what retention keeps, and give the rest back.

        Without a retention nothing is lost: small segments are merged, and *cold* versions encoded
        anew: those that for a span (by default 7 days) were neither stored, nor the newest, nor
        read, and are not tagged, pinned, or of the last three checkpoints; "all" takes all of them,
        "none" none. Patches are folded, so that no read goes through more than 64, and those that
        no kept commit sees go into the next one. What reads return stays what it was, in every
        process; snapshots that are open keep what they see. Reads are known as far as a hint tells
        of them, to a minute; of the last 65,536 versions read; where it was lost, only age decides.

        *plan_only* tells what would be done and changes nothing. *progress* is called with the
        bytes written and those to be written. Segments are rewritten some at a time, each of them
        in one step: whatever ends this call, what was done stays and nothing is half done. Raises
        LockedError when another compaction is at work (a worker in the background gives way),
        ConflictError, InvalidValueError for a retention that cannot be met, StorageFullError,
        StorageIOError, CorruptError, ReadOnlyError; nothing is dropped then that was not dropped
        before.

        Cost: O(versions) in NumPy to plan, O(bytes of the segments that are rewritten).
        """
        from mldb.compaction import compactor

        self._guard()
        age, rules = _cold_age(cold), self._event_rules()
        if plan_only:
            return compactor.plan_only(self._log, rules, age)
        self._log.sequencer  # noqa: B018 - raises ReadOnlyError
        self._settle_background()
        began = time.monotonic()
        request = self._compaction.giving_way()
        try:
            report = compactor.compact(self._log, rules, age, progress=progress or _silent)
        finally:
            if request is not None:
                request.withdraw()
        return replace(report, seconds=time.monotonic() - began)

    def pause_compaction(self) -> None:
        """Let no worker go on with the store in the background, of any process, until resumed.

        One at work stops between two writes, and keeps what it has done. :meth:`compact` is not
        affected. It ends with :meth:`resume_compaction`, with this handle, or with the process.
        Harmless twice. Raises StorageIOError, ReadOnlyError.
        """
        self._guard()
        self._log.sequencer  # noqa: B018 - raises ReadOnlyError
        self._compaction.pause()

    def resume_compaction(self) -> None:
        """Take the pause of this handle back; harmless when there is none."""
        self._guard()
        self._compaction.resume()

    def usage(self) -> Usage:
        """Return where the bytes of the store are: by tensor, lake and kind, most first.

        Of all epochs and lineages; :class:`~mldb.compaction.usage.Usage` has the columns. Raises
        CorruptError, StorageIOError.

        Cost: O(versions) in NumPy.
        """
        from mldb.compaction.planning import steady_sources
        from mldb.compaction.table import make_table
        from mldb.compaction.usage import usage_of
        from mldb.log.index.pause import collection_paused

        self._guard()
        with collection_paused():
            table = make_table(steady_sources(self._log).sources)
            return usage_of(table, _owner_of, _size_of)

    def keepers(self, readers: Mapping[str, int] | None = None) -> tuple[Keeper, ...]:
        """Return who keeps which commits: tags, pins, checkpoints, rules of the retention.

        Each with about the bytes that would come back without it. *readers* are living
        registrations with the lowest commit that each needs, which count as well. Raises
        CorruptError, StorageIOError.

        Cost: O(versions) in NumPy, for each that keeps anything alone.
        """
        from mldb.compaction.keepers import keepers
        from mldb.history import tags

        self._guard()
        view = self._scope().view
        return keepers(
            self._log,
            self._event_rules(),
            tags=tags.tags(view),
            pins=tags.pins(view),
            readers=readers or {},
        )

    def _reclaimable(self) -> dict[str, Any]:
        """What :meth:`compact` would give back of sealed segments; see Reclaimable."""
        from mldb.write.reclaimable import Reclaimable

        age = COLD_AGE // _MICROSECOND * 1000
        found = self._found_reclaimable.setdefault("", Reclaimable())
        return found.parts(self._log, self._scope().view, self._event_rules(), age)

    def _event_rules(self) -> EventRules:
        from mldb.compaction.rules import EventRules
        from mldb.history.retention import (
            is_curve,
            is_store_wide,
            kind_of_rest,
            retention_of,
            roots_of,
        )

        return EventRules(
            policy=retention_of,
            roots=roots_of,
            is_store_wide=is_store_wide,
            is_curve=is_curve,
            anchors=frozenset({keys.LATEST_CHECKPOINT}),
            size_of=_size_of,
            encode=_encode,
            kind_of=kind_of_rest,
            shown=keys.shown,
            door_of=_door_of,
            metadata_of=self._metadata_of,
            reads=self._source.reads.known,
        )


def _silent(done: int, total: int) -> None:
    """No progress is told."""


def _cold_age(cold: Any) -> ColdAge:
    if cold is None:
        cold = COLD_AGE
    if isinstance(cold, timedelta):
        if cold < timedelta(0):
            raise InvalidValueError(f"cold={cold} lies in the future. Nothing was changed.")
        return cold // _MICROSECOND * 1000
    if cold == "all":
        return "all"
    if cold == "none":
        return "none"
    if isinstance(cold, str):
        raise InvalidValueError(f"cold={cold!r} is not 'all' or 'none', nor a timedelta")
    raise InvalidTypeError(f"cold is a {type(cold).__name__}; give a timedelta, 'all' or 'none'")


def _size_of(key: bytes, attr: bytes) -> int | None:
    """The decoded size of a tensor; all else is stored raw."""
    return unpack_descriptor(attr).nbytes if key[:1] == keys.TENSORS and attr else None


_KINDS: Final = {
    keys.RELATIONS: "relationships",
    keys.REVERSE: "relationships",
    keys.CHECKPOINTS: "checkpoints",
    keys.TAGS: "tags and pins",
    keys.PINS: "tags and pins",
    keys.RETENTION: "retention",
    keys.METRICS: "metrics",
}


def _owner_of(key: bytes) -> tuple[str, str, bool]:
    """What a key belongs to, and whether its versions are those of that."""
    space = key[:1]
    if space in (keys.TENSORS, keys.METADATA):
        return "tensor", keys.shown(key), space == keys.TENSORS
    if space in (keys.LAKES, keys.SPLATS, keys.POLICIES):
        return "lake", keys.shown(key), space == keys.SPLATS
    return _KINDS.get(space, "other"), "", True


def _encode(attr: bytes, data: memoryview, base: memoryview | None) -> tuple[int, bytes] | None:
    """Encode a cold tensor, None where that saves too little."""
    from mldb.tensors.cold import encode_cold

    return encode_cold(unpack_descriptor(attr), data, base)


def _door_of(head: Callable[[], View]) -> Door:
    """A door over other views, with a cache of its own."""
    from mldb.tensors.encoding import decode_stored

    cache = ByteCache(_CACHE_BYTES, "the cache of compaction")
    return Door(head, "first", decode_stored, cache, lambda name: keys.TENSORS + name.encode())
