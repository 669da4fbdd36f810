"""Registration of live processes: which commits they still need, which spilled files are theirs.

Each process that needs it has one file in ``readers/``, held by a kernel lock for as long as the
handle lives. A file whose lock can be taken belongs to a dead process and is removed. The content
says, for people and for compaction, who it is and the lowest commit it needs.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.frame import (
    DamagedFrame,
    check_body,
    decode_file_header,
    decode_header,
    encode_file_header,
    encode_head,
    pack,
    unpack,
)
from mldb.log.fs.protocol import File, FileSystem, KernelLock

READERS = "readers"
NEEDS_NOTHING = fmt.LSN_MAX
_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Reader:
    """A live registration; ``lowest`` is the lowest commit LSN it needs, or NEEDS_NOTHING."""

    name: str
    pid: int
    host: str
    started_ns: int
    lowest: int


class Registration:
    """This handle's registration, made when first needed. Any thread; ``_lock`` guards everything.

    On a read-only file system nothing can be registered and nothing needs to be: nobody compacts
    there.
    """

    def __init__(self, fs: FileSystem, store_id: bytes) -> None:
        self._fs = fs
        self._store_id = store_id
        self._lock = threading.Lock()
        self._needs: dict[int, int] = {}  # commit LSN -> how many snapshots hold it
        self._given_up: deque[int] = deque()  # taken back by finalizers; not under _lock
        self._written = NEEDS_NOTHING
        self._file: File | None = None
        self._kernel_lock: KernelLock | None = None
        self._started = fs.time_ns()
        self.name = ""

    def ensure(self) -> str:
        """Register if not yet done, and return the name, which prefixes spilled files.

        Raises StorageIOError, StorageFullError, ReadOnlyError.
        """
        with self._lock:
            self._register()
            return self.name

    def _register(self) -> None:
        while not self.name:
            name = os.urandom(16).hex()
            lock = self._fs.lock(f"{READERS}/{name}")
            # A sweeper may have taken the lock, or removed the file, between its creation and ours.
            if lock.try_acquire() and self._fs.exists(f"{READERS}/{name}"):
                self._kernel_lock = lock
                self._file = self._fs.open(f"{READERS}/{name}", "rw")
                self.name = name
                self._written = 0  # the file is empty, and an empty one counts as needing all
                self._write(NEEDS_NOTHING)
            else:
                lock.close()

    def hold(self, lsn: int) -> None:
        """Say that commit *lsn* must stay readable until :meth:`release`.

        Raises StorageIOError when an older registration cannot be changed; nothing is held then.
        """
        with self._lock:
            given_up = self._drop_given_up()
            if lsn < self._written:
                with contextlib.suppress(MldbError):
                    # Read-only folder: no compactor can run there either. Full disk: what was made
                    # is an empty file, which keeps everything.
                    self._register()
                if self._file is not None and lsn < self._written:
                    self._write(lsn)
            self._needs[lsn] = self._needs.get(lsn, 0) + 1
            if given_up:
                self._raise_lowest()

    def release(self, lsn: int) -> None:
        """Take one :meth:`hold` back; never raises, because at worst more is kept than needed."""
        self._given_up.append(lsn)
        with self._lock:
            self._drop_given_up()
            self._raise_lowest()

    def give_up(self, lsn: int) -> None:
        """Take one :meth:`hold` back at the next call here: for finalizers, which may run anywhere.

        One may run in the middle of :meth:`hold`, so it takes no lock and touches no file.
        """
        self._given_up.append(lsn)

    def _drop_given_up(self) -> bool:
        """Forget the holds that were given up; return whether there were any."""
        found = bool(self._given_up)
        while self._given_up:
            lsn = self._given_up.popleft()
            left = self._needs.pop(lsn, 0) - 1
            if left > 0:
                self._needs[lsn] = left
        return found

    def _raise_lowest(self) -> None:
        """Write the lowest commit that is still needed, if that is another one now."""
        if self._file is not None:
            lowest = min(self._needs, default=NEEDS_NOTHING)
            if lowest != self._written:
                with contextlib.suppress(MldbError):
                    self._write(lowest)

    def _write(self, lowest: int) -> None:
        assert self._file is not None
        data = _encode(self._store_id, self._started, lowest)
        try:
            self._file.pwritev([data], 0)
        except MldbError:
            # What the file says now is unknown, unless no whole registration was ever in it: a torn
            # one counts as needing everything.
            if self._written > 0 or self._file.size() >= len(data):
                self._written = NEEDS_NOTHING
            raise
        self._written = lowest

    def close(self) -> None:
        """Remove the registration."""
        with self._lock:
            if self._kernel_lock is not None and self._file is not None:
                self._fs.unlink(f"{READERS}/{self.name}")
                self._file.close()
                self._kernel_lock.close()
            self._file = self._kernel_lock = None
            self.name = ""


def _encode(store_id: bytes, started: int, lowest: int) -> bytes:
    body = pack((os.getpid(), os.uname().nodename, started, lowest))
    header = encode_file_header(fmt.FILE_READER, store_id, 0, 0, started)
    seed = fmt.file_seed(store_id, 0)
    kind = fmt.KIND_READER | fmt.MUST_UNDERSTAND
    return header + encode_head(kind, 1, 0, body, b"", 0, 0, 0, 0, 0, seed, fmt.FILE_HEADER_SIZE)


def _decode(name: str, data: bytes) -> Reader:
    """Decode a registration; one that is torn (being rewritten) counts as needing everything."""
    try:
        header = decode_file_header(data, name)
        frame = decode_header(
            data, fmt.FILE_HEADER_SIZE, fmt.file_seed(header.store_id, 0), len(data)
        )
        match unpack(check_body(data, frame)):
            case [int(pid), str(host), int(started), int(lowest)] if header.kind == fmt.FILE_READER:
                return Reader(name, pid, host, started, lowest)
    except (DamagedFrame, ValueError, MldbError):
        pass
    return Reader(name, 0, "unknown", 0, 0)


def live_readers(fs: FileSystem, own: str = "") -> list[Reader]:
    """Return the live registrations and remove those of dead processes."""
    found: list[Reader] = []
    for name in fs.list(READERS):
        path = f"{READERS}/{name}"
        if name != own:
            lock = fs.lock(path)
            try:
                if lock.try_acquire():
                    fs.unlink(path)
                    continue
            finally:
                lock.close()
        if fs.exists(path):
            file = fs.open(path, "r")
            try:
                found.append(_decode(name, file.pread(_BYTES_MAX, 0)))
            finally:
                file.close()
    return found
