"""Registration of processes: which commits they still need, and which they called durable.

Each process that needs it has one file in ``readers/``, held by a kernel lock for as long as the
handle lives. A file whose lock can be taken belongs to a dead process. FORMAT.md section 9.

A registration promises *versions, not files*: who prunes announces first, then reads all
registrations; who registers does so first, then looks for an announced manifest. And it claims: the
highest commit that the process said was durable. Who closes a segment early reads the claims of
all, dead processes' too, and keeps everything up to the highest.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from functools import partial
from typing import Final

from mldb.deferred import dataclass
from mldb.errors import CorruptError, MldbError, StorageFullError, StorageIOError
from mldb.log import format as fmt
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.frame import DamagedFrame, pack, unpack
from mldb.log.fs.process import CURRENT
from mldb.log.fs.protocol import File, FileSystem, KernelLock
from mldb.log.lone import PENDING, decode_lone, discard, encode_lone_head, header_seed, read_file
from mldb.log.ownership import OwnedLock

READERS: Final = "readers"
NEEDS_NOTHING: Final = fmt.LSN_MAX
_BYTES_MAX: Final = 4096
_KIND: Final = fmt.KIND_READER | fmt.MUST_UNDERSTAND
_TRIES: Final = 100
_LOOKS: Final = 3
_LOOK_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True)
class Reader:
    """One registration. ``lowest`` is the lowest commit it needs, or NEEDS_NOTHING.

    ``acknowledged`` is the highest commit that it called durable, 0 for none.
    """

    name: str
    pid: int
    host: str
    started_ns: int
    lowest: int
    acknowledged: int

    @property
    def is_damaged(self) -> bool:
        """Whether the file could not be decoded; then it counts as needing every commit."""
        return self.pid == 0


class Registration:
    """This handle's registration, made when first needed. Any thread.

    ``_lock`` guards the file; a nested call of its thread goes on without it, since the outer one
    stands still. ``_needs`` changes in single steps. On a read-only file system nothing can be
    registered and nothing needs to be: nobody compacts there.
    """

    def __init__(self, fs: FileSystem, store_id: bytes) -> None:
        self._fs = fs
        self._lock = OwnedLock("the registration of this handle")
        self._needs: dict[object, int] = {}  # a token of each hold -> the commit it needs
        self._tokens: dict[int, list[object]] = {}  # commit -> the tokens of its holds
        self._given_up: deque[int] = deque()  # taken back by finalizers; not under _lock
        self._acknowledged = 0
        self._written: tuple[int, int] | None = None  # what the file says; None: not known
        self._file: File | None = None
        self._kernel_lock: KernelLock | None = None
        self._encoder = _Encoder(store_id, fs.time_ns())
        self.name = ""

    def ensure(self) -> str:
        """Register if not yet done, and return the name, which prefixes pending files.

        Raises StorageIOError, StorageFullError, ReadOnlyError.
        """
        if not self.name:
            guard = self._lock.hold_unless_inside()
            with guard or contextlib.nullcontext():
                self._register()
        return self.name

    def _register(self) -> None:
        """Make the file, whole and locked, before it gets its name in ``readers/``.

        So nobody ever finds a registration of a living process unlocked.
        """
        fs = self._fs
        for _ in range(_TRIES):
            if self.name:
                return
            name = os.urandom(16).hex()
            temporary = f"{PENDING}/{name}"
            lock = fs.lock(temporary)
            try:
                if not lock.try_acquire():
                    continue
                file = fs.open(temporary, "rw")
                self._write(file, self._wanted())
                fs.link(temporary, f"{READERS}/{name}")
            except StorageIOError as error:
                lock.close()
                if error.errno != errno.ENOENT:  # a sweeper removed it before it had its name
                    raise
                continue
            except BaseException:
                lock.close()
                raise
            finally:
                discard(fs, temporary)
            self._kernel_lock, self._file, self.name = lock, file, name
            return
        raise StorageIOError(f"no registration could be made in {fs.root}/{READERS}")

    # --- holds ------------------------------------------------------------------------------------

    def hold(self, lsn: int) -> None:
        """Say that commit *lsn* must stay readable until :meth:`release`.

        Raises StorageIOError when an older registration cannot be changed; nothing is held then. A
        full disk is no reason not to read: on it nobody compacts.
        """
        self._drop_given_up()
        token = object()
        self._needs[token] = lsn
        self._tokens.setdefault(lsn, []).append(token)
        try:
            if self._file is None:
                with contextlib.suppress(MldbError):
                    # Read-only folder: no compactor can run there either. Full disk: nothing is
                    # made, and only a compactor could miss it.
                    self.ensure()
            with contextlib.suppress(StorageFullError):
                self._update()
        except BaseException:
            self._drop(lsn)
            raise

    def release(self, lsn: int) -> None:
        """Take one :meth:`hold` back; never raises, because at worst more is kept than needed."""
        self._drop(lsn)
        self._drop_given_up()
        with contextlib.suppress(MldbError):
            self._update()

    def give_up(self, lsn: int) -> None:
        """Take one :meth:`hold` back: for finalizers, which may run anywhere.

        Nothing is waited for: where another thread has the file, the next call here writes.
        """
        self._given_up.append(lsn)
        guard = self._lock.try_hold()
        if guard is None:
            return
        with guard, contextlib.suppress(MldbError):
            self._drop_given_up()
            self._write_lowest()

    def _drop(self, lsn: int) -> None:
        tokens = self._tokens.get(lsn)
        if tokens:
            self._needs.pop(tokens.pop(), None)
            if not tokens:
                self._tokens.pop(lsn, None)

    def _drop_given_up(self) -> None:
        while True:
            try:
                lsn = self._given_up.popleft()
            except IndexError:
                return
            self._drop(lsn)

    def acknowledge(self, lsn: int) -> None:
        """Claim that commit *lsn* and all before it were called durable; not synced.

        Raises StorageIOError, StorageFullError; then it must not be called so.
        """
        if lsn <= self._acknowledged and self._written is not None:
            return
        self._acknowledged = max(self._acknowledged, lsn)
        self.ensure()
        self._update()

    @property
    def acknowledged(self) -> int:
        """The highest commit that this handle called durable."""
        return self._acknowledged

    # --- the file ---------------------------------------------------------------------------------

    def _update(self) -> None:
        guard = self._lock.hold_unless_inside()
        with guard or contextlib.nullcontext():
            self._write_lowest()

    def _write_lowest(self) -> None:
        """Write what holds now, and again while that changes under the hand."""
        file = self._file
        while file is not None and self._written != (wanted := self._wanted()):
            self._write(file, wanted)

    def _wanted(self) -> tuple[int, int]:
        return min(list(self._needs.values()), default=NEEDS_NOTHING), self._acknowledged

    def _write(self, file: File, wanted: tuple[int, int]) -> None:
        self._written = None  # until the write is done, what the file says is not known
        file.pwritev([self._encoder.encode(*wanted)], 0)
        self._written = wanted

    def close(self, durable: int) -> None:
        """Remove the registration, unless it claims more than *durable*, what the log says itself.

        Then the file stays, as that of a dead process, until the log says it.
        """
        guard = self._lock.hold_unless_inside()
        with guard or contextlib.nullcontext():
            lock, file, name = self._kernel_lock, self._file, self.name
            self._kernel_lock, self._file, self.name = None, None, ""
            if lock is None or file is None:
                return
            with contextlib.suppress(MldbError):
                if self._acknowledged <= durable:
                    self._fs.unlink(f"{READERS}/{name}")
            file.close()
            lock.close()


class Hold:
    """A commit that must stay readable until :meth:`release`, or until this is collected.

    Any thread; it is given back once, whoever comes first, and never by a forked child, whose
    parent holds it.
    """

    __slots__ = ("_given", "_process", "_registration", "lsn")

    def __init__(self, registration: Registration, lsn: int) -> None:
        """Register it. Raises StorageIOError when an older registration cannot be changed."""
        self.lsn = lsn
        self._registration = registration
        self._process = CURRENT[0]
        self._given: list[int] = []  # the commit while it is held; pop is one step
        registration.hold(lsn)
        self._given.append(lsn)

    @property
    def is_held(self) -> bool:
        """Whether it has not been given back."""
        return bool(self._given)

    def release(self) -> None:
        """Give it back; again, nothing happens. Never raises."""
        if self._take():
            self._registration.release(self.lsn)

    def __del__(self) -> None:
        if self._take():
            self._registration.give_up(self.lsn)

    def _take(self) -> bool:
        try:
            self._given.pop()
        except (IndexError, AttributeError):
            return False
        return self._process is CURRENT[0]


class _Encoder:
    """Makes what a registration's file says. Any thread; never a forked child, which has its own.

    What stays the same is made once: it is written for each durable commit, behind a sync that left
    nothing in the caches.
    """

    def __init__(self, store_id: bytes, started: int) -> None:
        self._header = encode_file_header(fmt.FILE_READER, store_id, started)
        self._seed = header_seed(decode_file_header(self._header, READERS))
        self._who = CURRENT[0].pid, os.uname().nodename, started

    def encode(self, lowest: int, acknowledged: int) -> bytes:
        """Return the whole file."""
        body = pack((*self._who, lowest, acknowledged))
        return self._header + encode_lone_head(_KIND, body, self._seed)


def _decode(name: str, data: bytes) -> Reader:
    """Decode a registration; one that is torn (being rewritten) counts as needing everything."""
    try:
        file = decode_lone(memoryview(data), name, fmt.FILE_READER, fmt.KIND_READER)
        pid, host, started, lowest, *more = unpack(file.body)
        acknowledged = more[0] if more else 0  # version 1 has none
        numbers = (pid, started, lowest, acknowledged)
        if all(type(value) is int for value in numbers) and type(host) is str:
            return Reader(name, pid, host, started, lowest, acknowledged)
    except (DamagedFrame, ValueError, TypeError, MldbError):
        pass
    return Reader(name, 0, "unknown", 0, 0, 0)


def registrations(fs: FileSystem) -> list[Reader]:
    """Return all registrations, those of dead processes too; changes nothing."""
    found: list[Reader] = []
    for name in fs.list(READERS):
        with contextlib.suppress(StorageIOError):  # gone meanwhile
            found.append(_decode(name, _content(fs, name)))
    return found


def highest_claim(fs: FileSystem) -> int:
    """The highest commit that any process, alive or dead, called durable.

    A registration that cannot be read is looked at again, as it may be being rewritten. When it
    stays so, a living process counts as having claimed every commit, a dead one none.
    """
    highest = 0
    for reader in map(partial(_looked_at, fs), registrations(fs)):
        if reader.is_damaged and not _is_dead(fs, reader.name):
            return fmt.LSN_MAX
        highest = max(highest, reader.acknowledged)
    return highest


def lowest_needed(fs: FileSystem) -> int:
    """The lowest commit that a living process needs, NEEDS_NOTHING when none needs any.

    A registration that cannot be read is looked at as :func:`highest_claim` does. Who prunes
    announces its manifest first, and holds the commit lock.
    """
    lowest = NEEDS_NOTHING
    for reader in map(partial(_looked_at, fs), registrations(fs)):
        if reader.lowest < lowest and not _is_dead(fs, reader.name):
            lowest = reader.lowest
    return lowest


def _looked_at(fs: FileSystem, reader: Reader) -> Reader:
    """A registration, read again some times while it is damaged."""
    for _ in range(_LOOKS):
        if not reader.is_damaged:
            break
        fs.pause(_LOOK_SECONDS)
        with contextlib.suppress(StorageIOError):
            reader = _decode(reader.name, _content(fs, reader.name))
    return reader


def _is_dead(fs: FileSystem, name: str) -> bool:
    lock = fs.lock(f"{READERS}/{name}")
    try:
        return lock.try_acquire()
    finally:
        lock.close()


def _content(fs: FileSystem, name: str) -> bytes:
    """Return the file, or nothing of one that is too large to be a registration."""
    try:
        return read_file(fs, f"{READERS}/{name}", _BYTES_MAX)
    except CorruptError:
        return b""


def sweep_dead(fs: FileSystem, own: str, durable: int) -> None:
    """Remove what dead processes left in ``pending/`` and ``readers/``.

    The caller holds the commit lock. While a registration is removed its kernel lock is held, so
    that it is certainly nobody's. One that claims more than *durable*, the commit that the log says
    was durable, stays.
    """
    # Listed first: whoever made one of these is registered by now, unless it is dead.
    pending = fs.list(PENDING)
    living = {own}
    for name in fs.list(READERS):
        if name == own:
            continue
        path = f"{READERS}/{name}"
        lock = fs.lock(path)
        try:
            if not lock.try_acquire():
                living.add(name)
                continue
            reader = _decode(name, _content(fs, name))
            if reader.acknowledged <= durable:
                discard(fs, path)
        finally:
            lock.close()
    for name in pending:
        if name.split("-")[0] not in living:
            discard(fs, f"{PENDING}/{name}")
