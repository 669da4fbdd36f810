"""A store with known content, damaged at known places: what a repair must find, and may not."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mldb
from mldb import keys
from mldb.log import format as fmt
from mldb.tensors.codec import unpack_descriptor

Span = tuple[int, int]
EVERYTHING: Span = (0, 1 << 62)


@dataclass
class Stored:
    """One version as it was: what it is, its bytes, where, and whose bytes it needs."""

    attr: bytes
    data: bytes
    is_stone: bool
    base: tuple[bytes, int] | None


@dataclass
class Written:
    """One commit as it was: its row, its versions, the file with it and where its frames lie."""

    row: tuple[Any, ...]
    file: str
    spans: list[Span]
    versions: dict[bytes, Stored]


def content_of(path: Path) -> dict[int, Written]:
    """Read every commit of an intact store."""
    found: dict[int, Written] = {}
    with mldb.open(path, mode="r") as db:
        log, door = db._log, db._source.door
        view = log.head()
        for batch in log.batches(view, 1, fmt.LSN_MAX):
            row = batch.row
            segment = next(s for s in view.segments.values() if s.name == batch.file)
            part = next(iter(view.between(row.lsn, row.lsn)), None)
            spans = [(frame.offset, frame.end) for frame, _ in batch.frames]
            if part is not None and part.info.kind == fmt.FILE_COMPACTED:
                # Its commit stands in the footer, and so does where its frames are.
                spans += [(part.info.index_offset, part.info.length), (row.start, row.end)]
            else:
                spans.append((row.end, segment.frame(row.end)[0].end))
            versions = {}
            for key, entry in _entries(view, row.lsn, batch):
                is_stone = bool(entry.flags & fmt.ENTRY_TOMBSTONE)
                size = entry.length
                if key[:1] == keys.TENSORS and not is_stone:
                    size = unpack_descriptor(entry.attr).nbytes
                data = b"" if is_stone else bytes(door.version(view, key, entry, size, "x"))
                base = None
                if entry.encoding in fmt.BUILT_ENCODINGS:
                    base = entry.owner or key, entry.base
                versions[key] = Stored(entry.attr, data, is_stone, base)
            fields = (row.lsn, row.epoch, row.time, row.clock, row.id)
            found[row.lsn] = Written(fields, batch.file, spans, versions)
    return found


def _entries(view: Any, lsn: int, batch: Any) -> list[tuple[bytes, Any]]:
    from mldb.log.scan import frame_entries

    found = []
    for frame, body in batch.frames:
        for key, _ in frame_entries(frame, body, lsn, b""):
            found.append((key, view.version_at(key, lsn)))
    return found


@dataclass
class Damaging:
    """Damages a copy of a store, and knows where. ``names`` are the names of files now."""

    path: Path
    rng: np.random.Generator
    spans: dict[str, list[Span]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in sorted(os.listdir(self.path / "segments")):
            if name.endswith(".seg"):
                self.names[f"segments/{name}"] = f"segments/{name}"

    def one(self) -> None:
        """Do one kind of damage, whatever comes."""
        kinds = ("flip", "flip", "flip", "overwrite", "cut", "delete", "header", "swap",
                 "manifest", "no_manifests", "newest_manifest", "foreign", "side")  # fmt: skip
        kind = str(self.rng.choice(kinds))
        self.done.append(kind)
        getattr(self, f"_{kind}")()

    def _pick(self) -> tuple[str, Path]:
        whose = str(self.rng.choice(sorted(self.names)))
        return whose, self.path / self.names[whose]

    def _hurt(self, whose: str, low: int, high: int) -> None:
        self.spans.setdefault(whose, []).append((low, high))

    def _change(self, whose: str, file: Path, at: int, new: bytes) -> None:
        if not file.exists():
            return
        data = bytearray(file.read_bytes())
        new = new[: len(data) - at]
        data[at : at + len(new)] = new
        file.write_bytes(bytes(data))
        self._hurt(whose, at, at + len(new))

    def _flip(self) -> None:
        whose, file = self._pick()
        if not file.exists() or not file.stat().st_size:
            return
        at = int(self.rng.integers(file.stat().st_size))
        old = file.read_bytes()[at]
        self._change(whose, file, at, bytes([old ^ 1 << int(self.rng.integers(8))]))

    def _overwrite(self) -> None:
        whose, file = self._pick()
        if not file.exists() or not file.stat().st_size:
            return
        at = int(self.rng.integers(file.stat().st_size))
        count = int(self.rng.integers(1, 3000))
        new = self.rng.bytes(count) if self.rng.random() < 0.5 else bytes(count)
        self._change(whose, file, at, new)

    def _header(self) -> None:
        whose, file = self._pick()
        self._change(whose, file, 0, self.rng.bytes(fmt.FILE_HEADER_SIZE))

    def _cut(self) -> None:
        whose, file = self._pick()
        if not file.exists():
            return
        size = int(self.rng.integers(file.stat().st_size + 1))
        with file.open("r+b") as opened:
            opened.truncate(size)
        self._hurt(whose, size, EVERYTHING[1])

    def _delete(self) -> None:
        whose, file = self._pick()
        file.unlink(missing_ok=True)
        self._hurt(whose, *EVERYTHING)

    def _swap(self) -> None:
        one, two = (str(name) for name in self.rng.choice(sorted(self.names), 2))
        files = [self.path / self.names[name] for name in (one, two)]
        if one == two or not all(file.exists() for file in files):
            return
        aside = self.path / "aside"
        files[0].rename(aside)
        files[1].rename(files[0])
        aside.rename(files[1])
        self.names[one], self.names[two] = self.names[two], self.names[one]
        # A file under a wrong name is known by its header alone.
        for whose in (one, two):
            if any(low < fmt.FILE_HEADER_SIZE for low, _ in self.spans.get(whose, ())):
                self._hurt(whose, *EVERYTHING)

    def _manifests(self) -> list[Path]:
        return sorted(self.path.glob("MANIFEST-*"))

    def _manifest(self) -> None:
        for file in self._manifests()[-1:]:
            data = bytearray(file.read_bytes())
            data[int(self.rng.integers(len(data)))] ^= 16
            file.write_bytes(bytes(data))

    def _no_manifests(self) -> None:
        for file in self._manifests():
            file.unlink()

    def _newest_manifest(self) -> None:
        for file in self._manifests()[-1:]:
            file.unlink()

    def _foreign(self) -> None:
        other = self.path.parent / f"foreign-{len(self.done)}"
        with mldb.open(other, durability="os", background_compaction=False) as db:
            db["foreign"] = np.arange(1000)
        source = next((other / "segments").glob("*.seg"))
        if self.rng.random() < 0.5:
            whose, file = self._pick()
            shutil.copy(source, file)
            self._hurt(whose, *EVERYTHING)
        else:
            shutil.copy(source, self.path / "segments" / source.name)

    def _side(self) -> None:
        (self.path / "LOCK").write_bytes(self.rng.bytes(40))
        for folder in ("readers", "hints", "pending"):
            (self.path / folder).mkdir(exist_ok=True)
            for file in (self.path / folder).iterdir():
                file.write_bytes(self.rng.bytes(100))
            (self.path / folder / "strange").write_bytes(b"x")

    def is_hurt(self, written: Written) -> bool:
        """Whether any byte of a commit's frames is not what it was, or its file is not there."""
        for low, high in self.spans.get(written.file, ()):
            if any(low < end and start < high for start, end in written.spans):
                return True
        file = self.path / self.names.get(written.file, written.file)
        moved = self.names.get(written.file) != written.file
        header = any(low < fmt.FILE_HEADER_SIZE for low, _ in self.spans.get(written.file, ()))
        return not file.exists() or (moved and header)
