"""Everything at once: what the folder says, who uses it, and what the open store says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from mldb.compaction.keepers import Keeper
from mldb.compaction.status import WORKER_LOCK, WorkerStatus, load_status
from mldb.database import MLDatabase
from mldb.errors import MldbError
from mldb.log import native
from mldb.log.fs.posix import OsFileSystem
from mldb.log.lock import GATE, LOCK
from mldb.log.newest import load_newest
from mldb.log.segment import segment_name
from mldb.tools.doctor.findings import Finding
from mldb.tools.doctor.folder import FolderSeen, folder_findings, look_at_folder, segment_findings
from mldb.tools.doctor.locks import LOCKS, LockSeen, see_locks
from mldb.tools.doctor.processes import ProcessSeen, processes

_OLD_SECONDS: Final = 86_400
_LOOKS: Final = 8


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found. ``keepers`` is empty, and ``returnable`` None, where the store does not open.

    ``returnable`` are the bytes that retention would give back now.
    """

    findings: tuple[Finding, ...]
    folder: FolderSeen
    locks: tuple[LockSeen, ...]
    processes: tuple[ProcessSeen, ...]
    keepers: tuple[Keeper, ...] = ()
    returnable: int | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def has_problem(self) -> bool:
        """Whether anything found is a problem."""
        return any(finding.level == "problem" for finding in self.findings)


def examine(root: str) -> Examination:
    """Look at a store, as much of it as can be looked at; writes nothing.

    Raises StorageIOError where not even the folder can be listed.
    """
    fs = OsFileSystem(root)
    folder, of_segments = _still(fs)
    locks, users = see_locks(fs.root), processes(fs)
    findings = [*folder_findings(folder), *_of_locks(locks), *_of_processes(users), *of_segments]
    findings.append(_of_native(native.status))
    is_working = any(seen.name == WORKER_LOCK and seen.state == "held" for seen in locks)
    findings += _of_worker(load_status(fs), is_working=is_working)
    found: tuple[Keeper, ...] = ()
    returnable: int | None = None
    stats: dict[str, Any] = {}
    try:
        with MLDatabase(root, mode="r") as db:
            stats = db.stats()
            findings.insert(0, _opens(stats, db))
            findings += _of_log(fs, folder, stats, locks)
            returnable = stats["reclaimable"]
            found = db.keepers(_needs(users))
            findings += _of_retention(db, returnable, found, is_writable=folder.is_writable)
    except MldbError as error:
        findings.insert(
            0,
            Finding(
                "problem",
                "store",
                f"it cannot be read as it is: {error}",
                "mldb verify STORE names what is damaged; mldb repair STORE TARGET saves the rest",
            ),
        )
    return Examination(
        tuple(findings), folder, tuple(locks), tuple(users), found, returnable, stats
    )


def _still(fs: OsFileSystem) -> tuple[FolderSeen, list[Finding]]:
    """Look at the folder and its segments, again where somebody replaced them meanwhile."""
    for _ in range(_LOOKS):
        folder, found = look_at_folder(fs), []
        if folder.manifest is None:
            break
        with suppress(MldbError):
            found = list(segment_findings(fs, folder.manifest))
        if all(item.level != "problem" for item in (*folder_findings(folder), *found)):
            break
        with suppress(MldbError):
            if load_newest(fs, []).number == folder.manifest.number:
                break
    return folder, found


def _opens(stats: dict[str, Any], db: MLDatabase) -> Finding:
    return Finding(
        "ok",
        "store",
        f"it opens: {stats['segments']:,} segments, {stats['bytes']:,} bytes, "
        f"{stats['versions']:,} versions, head lsn:{stats['lsn']} of epoch {db.epoch}",
    )


def _of_native(status: str) -> Finding:
    """Whether the compiled module runs. That it does not is no damage: the bytes are the same."""
    if status.startswith(native.REFUSED):
        return Finding("note", "native", status, "install mldb anew: Python alone is slower")
    return Finding("ok", "native", status)


def _needs(users: Sequence[ProcessSeen]) -> dict[str, int]:
    """What living processes keep; one that cannot be read keeps everything."""
    return {
        item.name: item.lowest or 0
        for item in users
        if item.is_alive is not False and item.lowest is not None
    }


def _of_locks(locks: Sequence[LockSeen]) -> Iterator[Finding]:
    held = [seen for seen in locks if seen.state == "held"]
    for seen in held:
        who = f"process {seen.pid}" if seen.pid else "a process that the system does not name"
        then = "" if seen.name == WORKER_LOCK else "it ends with that process, or with its commit"
        yield Finding("note", "locks", f"{seen.name} ({LOCKS[seen.name]}) is held by {who}", then)
    unknown = [seen.name for seen in locks if seen.state == "unknown"]
    if unknown:
        yield Finding("note", "locks", f"it cannot be told who holds {', '.join(unknown)}")
    if not held and not unknown:
        yield Finding("ok", "locks", f"nobody holds {LOCK}, {GATE} or the lock of the worker")


def _of_processes(users: Sequence[ProcessSeen]) -> Iterator[Finding]:
    living = [item for item in users if item.is_alive is not False]
    dead = [item for item in users if item.is_alive is False]
    for item in living:
        if not item.pid:
            yield Finding(
                "problem",
                "processes",
                f"the registration {item.name} of a living process cannot be read, so that it "
                "counts as needing every commit",
                "look again; if it stays so, end that process",
            )
    holding = [item for item in living if item.lowest is not None and item.pid]
    for item in holding:
        old = f", and has run for {item.age / 3600:.0f} hours" if item.age > _OLD_SECONDS else ""
        yield Finding(
            "note",
            "processes",
            f"process {item.pid} on {item.host} needs all from lsn:{item.lowest} on{old}",
            "its snapshots and iterators give it free when they close",
        )
    yield Finding("ok", "processes", f"{len(living)} registered, {len(holding)} need commits")
    if dead:
        yield Finding(
            "note",
            "processes",
            f"{len(dead)} registrations of dead processes: "
            + ", ".join(f"{item.pid} on {item.host}" for item in dead[:5]),
            "none: they keep nothing, and the next writer removes them",
        )


def _of_worker(status: WorkerStatus | None, *, is_working: bool) -> Iterator[Finding]:
    if status is None:
        return
    if is_working:
        done = f", {status.done:,} of {status.total:,} bytes" if status.total else ""
        yield Finding(
            "ok", "worker", f"process {status.pid} is {status.state} ({status.job}{done})"
        )
    elif status.error:
        yield Finding(
            "problem",
            "worker",
            f"background compaction failed in process {status.pid}: {status.error}",
            "mldb compact STORE does the same in the foreground and says why it cannot",
        )
    elif status.is_unfinished:
        yield Finding(
            "note",
            "worker",
            f"process {status.pid} ended in the middle of its work; nothing was half done",
            "none: the next worker begins anew",
        )
    else:
        yield Finding("ok", "worker", f"the last one gave back {status.returned:,} bytes in all")


def _of_log(
    fs: OsFileSystem, folder: FolderSeen, stats: dict[str, Any], locks: Sequence[LockSeen]
) -> Iterator[Finding]:
    """The torn tail that a killed process left, and hints that were not believed."""
    manifest = folder.manifest
    busy = any(seen.name == LOCK and seen.state != "free" for seen in locks)
    if manifest is not None and manifest.number == stats["manifest"]:
        found = fs.look(segment_name(manifest.active))
        torn = 0 if found is None else found[2] - stats["active_bytes"]
        if torn > 0 and not busy:
            yield Finding(
                "note",
                "recovery",
                f"{torn:,} bytes behind the last commit of {segment_name(manifest.active)} belong "
                "to a commit that did not end",
                "none: the next writer moves them to lost+found",
            )
    for text in stats["distrusted"]:
        if text not in folder.distrusted:
            yield Finding(
                "note", "hints", f"not believed: {text}", "none: hints are made anew when needed"
            )


def _of_retention(
    db: MLDatabase, returnable: int | None, found: Sequence[Keeper], *, is_writable: bool
) -> Iterator[Finding]:
    policy = db.retention.get()
    if policy.keeps_all:
        yield Finding(
            "ok",
            "retention",
            "everything is kept; mldb retention STORE --last 10 would keep ten epochs",
        )
    elif returnable is None:
        # Whether a registration is a dead one's is not told to who may not write.
        yield Finding(
            "problem" if is_writable else "note",
            "retention",
            "what it would give back cannot be told: it cannot be met, or something is damaged",
            "mldb compact STORE --plan says why",
        )
    elif returnable:
        yield Finding(
            "note",
            "retention",
            f"{returnable:,} bytes of sealed segments would come back",
            "mldb compact STORE",
        )
    else:
        yield Finding("ok", "retention", "nothing would come back now")
    for keeper in found:
        if keeper.kind == "process" and keeper.bytes:
            yield Finding(
                "note",
                "retention",
                f"registration {keeper.name} alone keeps about {keeper.bytes:,} bytes",
                "they come back once its snapshots close",
            )
