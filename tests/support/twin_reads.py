"""All that can be read of a store, by every way, in either mode, and what is compared of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

import mldb
from mldb.lake.order.permutation import permutation
from mldb.lake.order.sampling import alias_table
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.options import Verify
from tests.support.twins import told

_NAMES: Final = 12
"""So many names of an epoch are read, spread over all of them."""
_AGAIN: Final = 200
_FIELDS: Final = ("id", "mu", "norm", "kappa", "alpha")
Question: TypeAlias = Callable[[], Any]


def everything(fs: FileSystem, verify: Verify, **options: Any) -> list[Any]:
    """All that a store shows at every epoch and of every version, with the errors; some twice."""
    settings = {"map_bytes": 4096, **options}
    try:
        db = mldb.MLDatabase.on(fs, mode="r", verify=verify, **settings)
    except mldb.MldbError as error:
        return [f"{type(error).__name__}: {error}"]
    with db:
        asked = list(_questions(db))
        return [told(question) for question in (*asked, *asked[:_AGAIN], *_last(db))]


def _questions(db: mldb.MLDatabase) -> Iterator[Question]:
    """Tensors by epoch and by version, whole and by rows; listings; states; lakes."""
    epochs = [*range(_head(db) + 2), None]
    names: set[str] = set()
    for epoch in epochs:
        every = _names(db, epoch)
        found = every[:: 1 + len(every) // _NAMES]
        names.update(found)
        yield partial(db.names, as_of=epoch)
        for name in found:
            yield partial(db.query_tensor, name, as_of=epoch)
            yield partial(db.metadata, name, as_of=epoch)
        yield partial(_at_once, db, epoch, found)
        yield partial(db.relationships, as_of=epoch)
        yield partial(db.checkpoints, as_of=epoch)
        yield partial(db.load, None, as_of=epoch)
        yield partial(_lakes_at, db, epoch)
    for name in sorted(names)[:: 1 + len(names) // _NAMES]:
        yield partial(db.history, name)
        for place in (slice(1, 3), (..., 0)):
            yield partial(_part, db, name, place)
        for lsn in _versions(db, name):
            yield partial(db.query_tensor, name, as_of=lsn)
    yield from _of_lake(db)
    yield from (_permuted, _drawn)


def _head(db: mldb.MLDatabase) -> int:
    """Its epoch; 0 where that cannot be told."""
    try:
        return db.epoch
    except mldb.MldbError:
        return 0


def _names(db: mldb.MLDatabase, epoch: int | None) -> list[str]:
    try:
        return db.names(as_of=epoch)
    except mldb.MldbError:
        return []


def _versions(db: mldb.MLDatabase, name: str) -> list[mldb.Lsn]:
    try:
        return [version.lsn for version in db.history(name)]
    except mldb.MldbError:
        return []


def _at_once(db: mldb.MLDatabase, epoch: int | None, names: list[str]) -> Any:
    """The same from a snapshot, each twice."""
    with db.at(epoch) as snapshot:
        return [snapshot[name] for name in (*names, *names)]


def _part(db: mldb.MLDatabase, name: str, place: Any) -> Any:
    return db.tensor(name)[place]


def _lakes_at(db: mldb.MLDatabase, epoch: int | None) -> Any:
    return [db.lakes(as_of=epoch), len(db.lake("l").at(epoch))]


def _of_lake(db: mldb.MLDatabase) -> Iterator[Question]:
    """Rows of a lake in every order: in that of the log, by ids, back to front, and by a loader."""

    def rows(fields: tuple[str, ...], stride: int = 0) -> Any:
        lake = db.lake("l", dim=16)
        return lake.get(lake.ids()[::stride] if stride else None, fields=fields)

    def drawn() -> Any:
        lake = db.lake("l", dim=16)
        return lake.get(np.random.default_rng(1).choice(lake.ids(), 300), fields=_FIELDS)

    def batches(**options: Any) -> Any:
        lake = db.lake("l", dim=16)
        return list(lake.export_to_dataloader(32, device="cpu", seed=5, **options))

    yield from (partial(rows, fields) for fields in (_FIELDS, ("label",)))
    yield from (partial(rows, _FIELDS, stride) for stride in (-1, 3, -5))
    yield drawn
    yield partial(batches, shuffle=False)
    yield partial(batches, order="permutation")
    yield partial(batches, importance_sampling=True)


def _permuted() -> Any:
    """The order of a pass over more rows than a small lake has, both ways."""
    order = permutation(10**7, seed=5, pass_number=2)
    numbers = order.at(np.arange(0, 10**7, 99_991))
    return [numbers, order.place(numbers)]


def _drawn() -> Any:
    """Draws by weights that differ."""
    table = alias_table(np.random.default_rng(3).random(1000))
    return table.draw(np.arange(500), seed=5, pass_number=2)


def _curve(db: mldb.MLDatabase, name: str) -> dict[str, Any]:
    return asdict(db.metrics(name))


def _last(db: mldb.MLDatabase) -> Iterator[Question]:
    yield lambda: [db.tags(), db.pins(), db.metrics(), list(db.events())]
    for name in ("loss", "rate", "acc"):
        yield partial(_curve, db, name)
    yield db.verify


def damaged(files: dict[str, bytes], seed: int) -> dict[str, bytes]:
    """The same files with one bit turned in each of some segments."""
    rng = random.Random(seed)
    segments = sorted(name for name in files if name.startswith("segments/"))
    turned = dict(files)
    for name in rng.sample(segments, 1 + len(segments) // 3):
        data = bytearray(files[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        turned[name] = bytes(data)
    return turned


def laid_out(files: dict[str, bytes], root: Path) -> OsFileSystem:
    """A folder with these files."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for folder in ("segments", "readers", "pending", "hints", "lost+found"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return OsFileSystem(root)


class Spy:
    """Stands for the compiled module and counts, by function, the calls and those it answered."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.calls: dict[str, int] = {}
        self.answers: dict[str, int] = {}
        self._wrapped: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if not callable(found) or isinstance(found, type):
            return found
        return self._wrapped.setdefault(name, self._counted(name, found))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            answer = function(*given, **named)
            self.answers[name] = self.answers.get(name, 0) + (answer is not None)
            return answer

        return call


def first_difference(one: list[Any], two: list[Any]) -> str:
    """Where two lists part, in few words; nothing where they do not."""
    for place, (left, right) in enumerate(itertools.zip_longest(one, two)):
        if left != right:
            return f"{place} of {len(one)}, {len(two)}:\n  {str(left)[:400]}\n  {str(right)[:400]}"
    return ""
