"""A target that is not finished: how it tells, who may go on with it, and where.

The folder has no manifest, so it is no store, and opening it says what it is. ``REPLAY`` says what
is being replayed, ``REPLAY-N`` describes the Nth finished segment. Each is published in one step
behind the segment, so that a killed replay goes on behind the last one. They go once the manifest
is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any, Final

from mldb.errors import CorruptError, InvalidValueError, LockedError
from mldb.log import format as fmt
from mldb.log.birth import FOLDERS, UNFINISHED_MARK
from mldb.log.file_header import encode_file_header
from mldb.log.frame import DamagedFrame, pack, unpack
from mldb.log.fs.protocol import FileSystem, KernelLock
from mldb.log.index.lineage import checked_jumps
from mldb.log.lock import GATE, LOCK
from mldb.log.lone import PENDING, decode_lone, discard, encode_lone, publish_new, read_file
from mldb.log.manifest import SegmentInfo, manifest_numbers
from mldb.log.rebuild import BuiltSegment
from mldb.log.segment import SEGMENTS

_PART: Final = re.compile(rf"{UNFINISHED_MARK}-([0-9]{{10}})\Z")
_KIND: Final = fmt.KIND_HINT
_BYTES_MAX: Final = 1 << 26
_VERSION: Final = 1


class UnfinishedStore:
    """The folder of a store that is being built. One thread; close it, or it stays locked.

    While it is held no other process builds here; the kernel gives the lock free with the process.
    """

    def __init__(self, fs: FileSystem, plan: Mapping[str, Any]) -> None:
        """Take the folder for *plan*: plain values that say what is to be built.

        Raises InvalidValueError when it has anything but an unfinished target of the same plan,
        LockedError while another process builds it, CorruptError, StorageIOError.
        """
        self._fs = fs
        self._count = 0
        self._lock: KernelLock | None = None
        self.is_published = False
        names = fs.list("")
        if UNFINISHED_MARK not in names:
            self._refuse_content(names)
        for folder in FOLDERS:
            fs.mkdir(folder)
        self._lock = fs.lock(LOCK)
        try:
            if not self._lock.try_acquire():
                raise LockedError(
                    f"another process writes to {fs.root} ({self._lock.holder()}). Nothing was "
                    "changed; wait for it."
                )
            self.plan = self._settle(plan)
            self.built = self._read_built()
        except BaseException:
            self.close()
            raise

    def _refuse_content(self, names: list[str]) -> None:
        own = {*FOLDERS, LOCK, GATE}
        shown = [name for name in names if name not in own]
        shown += [f"{item}/{name}" for item in FOLDERS for name in self._fs.list(item)]
        if shown:
            raise InvalidValueError(
                f"{self._fs.root} is not empty: it has {shown[0][:80]!r}. Give a new folder; "
                "nothing was changed."
            )

    def _settle(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Write down *plan*, or return the one that was begun here with the same request."""
        fs = self._fs
        if fs.exists(UNFINISHED_MARK):
            found = self._read(UNFINISHED_MARK)
            asked = {key: value for key, value in plan.items() if not key.startswith("found_")}
            if any(found.get(key) != value for key, value in asked.items()):
                raise InvalidValueError(
                    f"{fs.root} holds an unfinished store that was begun with other arguments. "
                    "Call it with those again, or delete the folder; nothing was changed."
                )
            # Killed behind the very last step: all that is left to do is to take the notes away.
            self.is_published = bool(manifest_numbers(fs.list("")))
            return found
        # What a build left that died before it said what it was.
        for folder in FOLDERS:
            for name in fs.list(folder):
                discard(fs, f"{folder}/{name}")
        publish_new(fs, _owner(), self._file(plan), UNFINISHED_MARK)
        return dict(plan)

    def _read_built(self) -> list[BuiltSegment]:
        found = [item for name in self._fs.list("") if (item := _PART.match(name))]
        built: list[BuiltSegment] = []
        for number, match in enumerate(sorted(found, key=lambda item: item[1]), 1):
            if int(match[1]) != number:
                break
            fields = self._read(match[0])
            try:
                info = SegmentInfo(*fields["info"])
                built.append(BuiltSegment(info, checked_jumps(fields["jumps"])))
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(match[0], str(error)) from None
        self._count = len(built)
        return built

    def begin_anew(self) -> None:
        """Forget what an earlier call built: for what is not continued."""
        for name in self._fs.list(""):
            if _PART.match(name):
                discard(self._fs, name)
        for name in self._fs.list(SEGMENTS):
            discard(self._fs, f"{SEGMENTS}/{name}")
        self.built, self._count = [], 0

    def note(self, built: BuiltSegment) -> None:
        """Write down that a segment is complete and durable."""
        self._count += 1
        content = {"info": list(astuple(built.info)), "jumps": [list(item) for item in built.jumps]}
        name = f"{UNFINISHED_MARK}-{self._count:010d}"
        discard(self._fs, name)  # behind a gap: of a build that was interrupted twice
        publish_new(self._fs, _owner(), self._file(content), name)

    def finished(self) -> None:
        """Take the notes away: the manifest is there. Those that stay mean nothing."""
        for name in self._fs.list(""):
            if _PART.match(name):
                discard(self._fs, name)
        for name in self._fs.list(PENDING):
            discard(self._fs, f"{PENDING}/{name}")
        discard(self._fs, UNFINISHED_MARK)

    def close(self) -> None:
        """Let the folder go. Closing twice is harmless."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # --- files ------------------------------------------------------------------------------------

    def _file(self, content: Mapping[str, Any]) -> list[Any]:
        header = encode_file_header(fmt.FILE_HINT, fmt.NO_ID, self._fs.time_ns())
        return encode_lone(header, _KIND, pack({"version": _VERSION, **content}))

    def _read(self, name: str) -> dict[str, Any]:
        data = memoryview(read_file(self._fs, name, _BYTES_MAX))
        try:
            fields = unpack(decode_lone(data, name, fmt.FILE_HINT, _KIND).body)
        except (DamagedFrame, ValueError) as error:
            raise self._damaged(name, str(error)) from None
        if not isinstance(fields, dict) or fields.pop("version", None) != _VERSION:
            raise self._damaged(name, "it has another form")
        return fields

    def _damaged(self, name: str, what: str) -> CorruptError:
        return CorruptError(
            f"what says how far this unfinished store is cannot be read: {what}. Delete the folder "
            "and begin anew.",
            file=f"{self._fs.root}/{name}",
        )


def _owner() -> str:
    return os.urandom(16).hex()
