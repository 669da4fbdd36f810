"""Settings of a store handle: frozen, keyword-only, checked once."""

from __future__ import annotations

from typing import Literal

from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import integer, settle_numbers

Mode = Literal["r", "rw"]
Durability = Literal["commit", "os"]
Verify = Literal["first", "always", "never"]
Compression = Literal["zstd"]
Arrays = Literal["shared", "private"]

_CHOICES = {
    "mode": ("r", "rw"),
    "durability": ("commit", "os"),
    "verify": ("first", "always", "never"),
    "compression": (None, "zstd"),
    "arrays": ("shared", "private"),
    "background_compaction": (False, True, "auto"),
    "compaction_drops": (False, True),
    "note_reads": (False, True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a handle behaves. Sizes are bytes, times seconds.

    mode:                "rw", or "r", which stores nothing and works on a read-only folder. Where
                         it can, it registers in ``readers/`` while a snapshot is open.
    durability:          "commit": a commit that returned survives power loss. "os": it survives a
                         killed process; ``sync()`` makes everything before it durable.
    verify:              checksums of what reads touch: "first" time, "always", or "never".
    compression:         "zstd" stores tensors as compressed byte planes where that saves at least
                         5 %; None (default) stores raw bytes, which are read without a copy.
    deduplicate:         True: a tensor whose bytes the store has already becomes a reference of
                         about 100 bytes. Looked up are those from a measured size on, in a
                         checkpoint also smaller ones; a number is that size in bytes.
    arrays:              "shared": the arrays of ``db[name]`` are views of one read-only mapping.
                         Code that writes to one in spite of its flag (torch does, through
                         ``torch.from_numpy``) ends the process by a signal; it never reaches the
                         file. "private": every array has memory or a copy-on-write mapping of its
                         own, where such a write stays; the flag says read-only all the same. Each
                         mapping holds a descriptor, and pages that are written take memory.
    lock_timeout:        how long a commit waits for another writer before LockedError.
    segment_bytes:       size from which the log goes on in a new segment.
    segment_entries:     the same by number of stored versions, which bounds memory, recovery, and
                         how long the commit waits that goes on in a new one.
    spill_bytes:         a transaction holds that much of large tensors in RAM; beyond it they are
                         written at the call. With durability "os" it holds segment_bytes, and
                         single tensors of this size are written at the call.
    map_bytes:           tensors from this size on are read as views; None measures where that pays.
    cache_bytes:         bound of the cache of decoded tensors.
    lake_cache_bytes:    bound of what is kept of lakes: graphs, tables, samplers.
    max_mapped:          how many sealed segments stay mapped; each mapping holds a descriptor.
    pending_checkpoints: how many ``checkpoint(wait=False)`` may be on their way; the next one
                         waits. Each holds one buffer of the state's size.
    note_reads:          whether reads of versions that are not the newest keep these from being
                         encoded anew for a week. False for what reads a whole history once. A
                         handle that only reads tells nothing: it writes nothing.
    background_compaction: "auto": a process beside this one compacts now and then, at idle
                         priority, where two cores are allowed, the disk is local, and a pass gives
                         back compaction_gain_bytes and compaction_gain_share. True: whatever the
                         machine is. False: only :meth:`~mldb.MLDatabase.compact` does. It also
                         consolidates lakes whose policy asks for it, started by rows alone.
    compaction_drops:    whether it also drops what the retention lets go; otherwise it loses
                         nothing, whatever the retention is.
    compaction_rate:     how many bytes it writes in a second at most.
    compaction_gain_bytes, compaction_gain_share: what a pass gives back at least: bytes, and the
                         share of the store.
    exit_timeout:        how long the end of the process waits for them; None waits until they are
                         stored. One that is lost is told on stderr, and the exit status is 70.
    """

    mode: Mode = "rw"
    durability: Durability = "commit"
    verify: Verify = "first"
    compression: Compression | None = None
    deduplicate: bool | int = True
    arrays: Arrays = "shared"
    lock_timeout: float = 30.0
    segment_bytes: int = 256 << 20
    segment_entries: int = 1 << 16
    spill_bytes: int = 64 << 20
    map_bytes: int | None = None
    cache_bytes: int = 256 << 20
    lake_cache_bytes: int = 256 << 20
    max_mapped: int = 256
    pending_checkpoints: int = 1
    note_reads: bool = True
    background_compaction: bool | Literal["auto"] = "auto"
    compaction_drops: bool = False
    compaction_rate: int = 64 << 20
    compaction_gain_bytes: int = 1 << 30
    compaction_gain_share: float = 0.3
    exit_timeout: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises InvalidValueError, InvalidTypeError."""
        settle_numbers(self)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InvalidValueError(
                    f"{name}={value!r} is not one of {', '.join(map(repr, choices))}"
                )
        for name in (
            "segment_bytes",
            "segment_entries",
            "spill_bytes",
            "max_mapped",
            "pending_checkpoints",
            "compaction_rate",
        ):
            _positive(name, getattr(self, name))
        if not isinstance(self.deduplicate, bool):
            _positive("deduplicate", self.deduplicate)
        if self.map_bytes is not None:
            _positive("map_bytes", self.map_bytes, least=0)
        _positive("cache_bytes", self.cache_bytes, least=0)
        _positive("lake_cache_bytes", self.lake_cache_bytes, least=0)
        _positive("compaction_gain_bytes", self.compaction_gain_bytes, least=0)
        _share("compaction_gain_share", self.compaction_gain_share)
        _seconds("lock_timeout", self.lock_timeout)
        if self.exit_timeout is not None:
            _seconds("exit_timeout", self.exit_timeout)


def _positive(name: str, value: object, least: int = 1) -> None:
    if integer(name, value) < least:
        raise InvalidValueError(f"{name}={value} is below {least}")


def _seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InvalidValueError(f"{name}={value!r} is not a number of seconds")


def _share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}, not a number from 0 to 1")
    if not 0 <= value <= 1:  # NaN is not
        raise InvalidValueError(f"{name}={value!r} is not a number from 0 to 1")
