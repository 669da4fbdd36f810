"""The files of a damaged store: which are its own, what each holds, which copy counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Final

from mldb.errors import CorruptError, MldbError
from mldb.log import format as fmt
from mldb.log.active import hint_name
from mldb.log.birth import FOLDERS
from mldb.log.file_header import decode_file_header
from mldb.log.frame import DamagedFrame
from mldb.log.fs.protocol import FileSystem
from mldb.log.lock import GATE, LOCK
from mldb.log.manifest import Manifest, SegmentInfo, load_manifest, manifest_name, manifest_numbers
from mldb.log.salvage import FileDamage, FoundCommit, FoundFile, Identity, salvage_file
from mldb.log.segment import SEGMENTS, segment_name

_SEGMENT: Final = re.compile(r"([0-9a-f]{32}|[0-9]{10})\.seg\Z")
_BLOBS: Final = "blobs"


@dataclass(slots=True)
class DamagedStore:
    """Everything that was found in a damaged folder. One thread."""

    manifest: Manifest | None = None
    store_id: bytes = fmt.NO_ID
    files: list[FoundFile] = field(default_factory=list)
    missing: list[SegmentInfo] = field(default_factory=list)
    lacks_active: bool = False
    lacks_manifest: bool = False
    """There is, or was, a newer manifest than the one that can be read."""
    damage: list[FileDamage] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_through(fs: FileSystem, progress: Callable[[int, int], None]) -> DamagedStore:
    """Read every file of the store in *fs* that holds commits. Changes nothing.

    Raises CorruptError when there is nothing of a store of mldb, StorageIOError.
    """
    found = DamagedStore()
    _read_manifests(fs, found)
    origins = _origins(fs, found)
    if not origins:
        raise CorruptError(
            f"{fs.root} holds no manifest and no segment of a store of mldb; there is nothing to "
            "salvage"
        )
    found.store_id = found.manifest.store_id if found.manifest is not None else origins[0]
    infos = {} if found.manifest is None else {i.id: i for i in found.manifest.segments}
    names = fs.list(SEGMENTS)
    for number, name in enumerate(names):
        progress(number, 2 * len(names))
        match = _SEGMENT.match(name)
        if match is None:
            if not name.endswith(".idx"):
                found.unused.append(f"{SEGMENTS}/{name}")
            continue
        _read_segment(fs, found, match[1], origins, infos)
    _drop_strangers(found)
    _note_missing(found)
    known = {*FOLDERS, LOCK, GATE, _BLOBS}
    for name in fs.list(""):
        if name not in known and not name.startswith("MANIFEST-"):
            found.unused.append(name)
    return found


def _read_manifests(fs: FileSystem, found: DamagedStore) -> None:
    """Take the highest manifest that can be read; note those that cannot."""
    for number in reversed(manifest_numbers(fs.list(""))):
        try:
            manifest = load_manifest(fs, number)
        except MldbError as error:
            offset = getattr(error, "offset", None) or 0
            found.damage.append(FileDamage(manifest_name(number), offset, 0, str(error)))
            continue
        if found.manifest is None:
            found.manifest = manifest
    if found.manifest is None:
        found.notes.append("no manifest can be read: the order of segments is that of their LSNs")
        return
    number = found.manifest.number
    announced = fs.look(LOCK) if fs.exists(LOCK) else None
    if found.damage or (announced is not None and announced[2] > number):
        found.lacks_manifest = True
        found.notes.append(f"{manifest_name(number)} is the newest that can be read")


def _origins(fs: FileSystem, found: DamagedStore) -> list[bytes]:
    """The ids of stores whose segments may stand here, the most likely first."""
    if found.manifest is not None:
        return list(dict.fromkeys((found.manifest.store_id, *found.manifest.origins)))
    votes: Counter[bytes] = Counter()  # bytes: one large segment says more than two small ones
    names = [f"{SEGMENTS}/{name}" for name in fs.list(SEGMENTS)]
    names += [manifest_name(number) for number in manifest_numbers(fs.list(""))]
    for name in names:
        file = fs.open(name, "r")
        try:
            size = file.size()
            header = decode_file_header(file.pread(fmt.FILE_HEADER_SIZE, 0), name)
        except (DamagedFrame, MldbError):
            continue
        finally:
            file.close()
        votes[header.store_id] += size
    return [store_id for store_id, _ in votes.most_common()]


def _read_segment(
    fs: FileSystem,
    found: DamagedStore,
    text: str,
    origins: list[bytes],
    infos: dict[bytes, SegmentInfo],
) -> None:
    segment_id = bytes.fromhex(text) if len(text) == 32 else fmt.number_id(int(text))
    name = segment_name(segment_id)
    info = infos.get(segment_id)
    kind = fmt.FILE_SEGMENT if info is None else info.kind
    own = [] if info is None else [info.origin]
    candidates = [Identity(origin, segment_id, kind) for origin in (*own, *origins)]
    indexes = (f"{SEGMENTS}/{text}.idx", hint_name(segment_id))
    try:
        file = salvage_file(fs, name, candidates, indexes)
    except MldbError as error:
        found.damage.append(FileDamage(name, 0, 0, str(error)))
        return
    if file is None:
        found.unused.append(name)
        found.damage.append(
            FileDamage(name, 0, 0, "no frame of this store is in it: it is foreign, or overwritten")
        )
        return
    if file.identity.segment_id != segment_id:
        found.notes.append(
            f"{name} is segment {fmt.id_text(file.identity.segment_id)}: files were swapped"
        )
    manifest = found.manifest
    if manifest is not None and file.identity.segment_id not in {*infos, manifest.active}:
        # A copy of a store has segments that were published in another one.
        is_own = file.identity.store_id == manifest.store_id
        found.lacks_manifest |= is_own and file.published > manifest.number
    found.files.append(file)
    _keep_to(file, infos.get(file.identity.segment_id))


def _keep_to(file: FoundFile, info: SegmentInfo | None) -> None:
    """Leave out what the store itself dropped: all behind the end of a closed segment."""
    if info is None or not info.last_lsn:
        return
    file.damage = [
        item for item in file.damage if item.file != file.name or item.offset < info.length
    ]
    for lsn in [lsn for lsn in file.commits if not info.first_lsn <= lsn <= info.last_lsn]:
        del file.commits[lsn]


def _drop_strangers(found: DamagedStore) -> None:
    """Without a manifest, leave out segments that are of another store.

    A copy of a store has segments of several origins. Those of one store follow each other: their
    commits lie apart, and one names the other's as its parent.
    """
    if found.manifest is not None:
        return
    mine = [file for file in found.files if file.identity.store_id == found.store_id]
    others = [file for file in found.files if file.identity.store_id != found.store_id]
    while following := [file for file in others if _follows(file, mine)]:
        mine.append(following[0])
        others.remove(following[0])
    found.files = mine
    for file in others:
        if file.commits:
            found.unused.append(file.name)
            found.notes.append(f"{file.name} is of another store")


def _follows(file: FoundFile, mine: list[FoundFile]) -> bool:
    if not file.commits:
        return True
    low, high = min(file.commits), max(file.commits)
    own = {lsn for each in mine for lsn in each.commits}
    if any(low <= lsn <= high for lsn in own):
        return False
    every = [commit for each in mine for commit in each.commits.values()]
    return _have_parent_in(file.commits.values(), own) or _have_parent_in(every, file.commits)


def _have_parent_in(commits: Iterable[FoundCommit], lsns: Container[int]) -> bool:
    return any(commit.row is not None and commit.row.parent in lsns for commit in commits)


def _note_missing(found: DamagedStore) -> None:
    """Note segments that a manifest names and no file is."""
    manifest = found.manifest
    if manifest is None:
        return
    there = {file.identity.segment_id for file in found.files}
    for info in manifest.segments:
        if info.id not in there and info.last_lsn:
            found.missing.append(info)
            found.damage.append(
                FileDamage(segment_name(info.id), 0, 0, "the segment is missing or overwritten")
            )
    if manifest.active not in there:
        name = segment_name(manifest.active)
        found.damage.append(FileDamage(name, 0, 0, "the active segment is missing"))
        found.lacks_active = True


# --- commits --------------------------------------------------------------------------------------


def best_commits(found: DamagedStore) -> dict[int, tuple[FoundFile, FoundCommit]]:
    """Return of each commit the best copy, by LSN, ascending.

    Compaction, interrupted, leaves two: the one that the manifest names counts unless the other one
    is better.
    """
    listed = set[bytes]()
    if found.manifest is not None:
        listed = {info.id for info in found.manifest.segments} | {found.manifest.active}
    best: dict[int, tuple[FoundFile, FoundCommit]] = {}
    rank: dict[int, tuple[bool, bool, int, bool]] = {}
    for file in found.files:
        is_listed = file.identity.segment_id in listed
        for lsn, commit in file.commits.items():
            own = (commit.row is not None, is_whole(commit), _whole_frames(commit), is_listed)
            if lsn not in best or own > rank[lsn]:
                row = best[lsn][1].row if lsn in best else None
                best[lsn], rank[lsn] = (file, commit), own
                commit.row = commit.row or row
            elif best[lsn][1].row is None:
                best[lsn][1].row = commit.row
    return dict(sorted(best.items()))


def is_whole(commit: FoundCommit) -> bool:
    """Whether every frame of a commit is there and whole, as far as can be told."""
    if commit.count is not None and len(commit.frames) != commit.count:
        return False
    if commit.count is None and commit.stored is None:
        return False
    return all(frame.is_whole for frame in commit.frames)


def _whole_frames(commit: FoundCommit) -> int:
    return sum(frame.is_whole for frame in commit.frames)


def damage_of(findings: DamagedStore) -> Iterable[FileDamage]:
    """Everything that is not what was written, by file and offset."""
    every = [*findings.damage, *(item for file in findings.files for item in file.damage)]
    return sorted(every, key=lambda item: (item.file, item.offset))
