"""Augment rows of a lake on a device: isotropic noise, walks on the graph, Langevin chains.

What a row becomes is a function of its id, or of the position of its draw where a pass may draw it
many times, of its augmentation number, the seed, the pass and the settings: never of the batch it
stands in, nor of the device but for the last bits of floats.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s, Numbers
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.gpu.capability import Needs
from mldb.gpu.device import Device, Table
from mldb.lake.augment.devices import User, borrow, give_back, rested
from mldb.lake.augment.graph_store import GRAPH_NEIGHBOURS, lake_firsts
from mldb.lake.augment.landscape import CHAIN_K, Landscape, Moved
from mldb.lake.on_host import to_host
from mldb.lake.rows.live import Rows
from mldb.lake.stream.settings import Augmentation
from mldb.log.checksum import digest128
from mldb.noise.draws import check_seed
from mldb.noise.keys import Keys
from mldb.sphere.neighbours import nearest
from mldb.sphere.norms import divide_by_norms

_KEY_BYTES: Final = 200  # of an entry of the cache, beside its array

Augmented: TypeAlias = tuple[Any, npt.NDArray[np.bool_]]
Finish: TypeAlias = Callable[[], Augmented]


class Augmenter:
    """Augments the rows of one stream. One thread at a time; its device is opened when first used.

    Results are in memory of their own, or in the *out* that was passed.
    """

    def __init__(
        self,
        rows: Rows | None,
        geometry: str,
        chosen: Augmentation,
        *,
        seed: int,
        device: str,
        user: User,
        dim: int | None = None,
    ) -> None:
        """*dim*: of the rows to come, where *rows* are not given. *user*: the store they are of."""
        if geometry != "sphere":
            raise InvalidValueError(
                f"the lake's geometry is {geometry!r}; augmentation is defined on the sphere"
            )
        self._rows = rows
        self._chosen = chosen
        self._seed = seed
        self._spec = device
        self._dim = dim if rows is None else rows.dim
        self._user = user
        self._device: Device | None = None
        self._device_name: str | None = None
        self._tables: list[Table] = []  # what was loaded to it: the rows of the landscape, or none
        self._at_work: list[bool] = []  # not empty: in the middle of a call, or a call failed there
        self._let_go: Callable[[], object] | None = None
        self._landscape: Landscape | None = None
        self._made = 0
        self._kept = 0

    @property
    def device(self) -> Device:
        """The device, borrowed until ``rest``, or until this goes. Raises GpuUnavailableError."""
        if self._device is None:
            count = None if self._rows is None else len(self._rows)
            needs = None if self._dim is None else needs_of(self._chosen, self._dim, count)
            device = self._device = borrow(self._spec, needs, user=self._user)
            self._device_name = device.name
            held = (self._spec, device, os.getpid(), self._tables, self._at_work)
            self._let_go = weakref.finalize(self, partial(give_back, needs=needs), *held)
        return self._device

    def rest(self) -> None:
        """Give the device back until a batch is started; between two batches only.

        One with a copy of the lake's rows stays, and gives back what batches need: to bring the
        rows there again would take longer than a batch.
        """
        if self._device is None or self._let_go is None:
            return
        has_copies = any(not table.imported for table in self._tables)
        if not (has_copies and rested(self._device)):
            self._let_go()
            self._device = self._let_go = None
            self._tables = []  # the finalizer that ran has the other list

    def close(self) -> None:
        """Give the device back now; nothing can be augmented any more. Again does nothing.

        It is closed for good where a call failed: another one may find it in any state.
        """
        if self._let_go is not None:
            self._let_go()

    @property
    def device_name(self) -> str | None:
        """What runs, for people; None before the first batch."""
        return self._device_name

    def stats(self) -> dict[str, Any]:
        """Rows made, and how many of them the gate took back."""
        return {"rows": self._made, "taken_back": self._kept, "device": self.device_name}

    @property
    def ahead(self) -> int:
        """How many batches may be started before the first of them is asked for."""
        return self.device.slots - 1 if self._chosen.mode == "isotropic" else 0

    def start(
        self, x: Any, rows: Numbers, counted: Numbers, pass_number: int, *, out: Any
    ) -> Finish:
        """Start to augment unit rows *x* [S, d]; walks and chains start at *rows* of the lake.

        Their noise is that of *counted*, int64 [S]: ids, or positions of draws. What is returned
        waits, and returns [S * group, d] and which of them are no longer the row itself: *out* with
        the rows in it, or a tensor where the device has memory of its own. *x* must not change
        until then.
        """
        self._at_work.append(True)
        chosen = self._chosen
        copies = chosen.copies
        numbers = np.tile(np.arange(1, copies + 1, dtype=np.uint16), len(rows))
        keys = Keys(self._seed, pass_number, np.repeat(counted.astype(np.uint64), copies), numbers)
        if chosen.mode != "isotropic" or self.device.kind not in ("torch", "cuda"):
            x = to_host(x)
        started = self._move(_repeated(x, copies), np.repeat(rows, copies), keys)

        def finish() -> Augmented:
            self._at_work.append(True)
            moved, changed, taken_back = started()
            if _on_device(moved) and self.device.kind == "vulkan":
                moved = moved.clone()  # it lies in a slot that is used again
            self._made += len(keys)
            self._kept += int(taken_back.sum())
            if chosen.keep:
                both = np.ones((len(rows), chosen.group), np.bool_)
                both[:, 0] = False
                both[:, 1:] = changed.reshape(len(rows), copies)
                done = _interleave(x, moved, copies, out), both.reshape(-1)
            else:
                done = _collected(moved, out), changed
            self._at_work.clear()
            return done

        self._at_work.clear()
        return finish

    def _move(self, x: Any, rows: Numbers, keys: Keys) -> Callable[[], Moved]:
        chosen = self._chosen
        if chosen.mode == "isotropic":
            pending = self.device.isotropic(x, keys, chosen.strength)
            return lambda: Moved.freely(pending.result().x)
        if self._landscape is None:
            assert self._rows is not None
            self._landscape = Landscape(self._rows, chosen)
        if chosen.mode == "walk":
            done = self._landscape.walk(x, rows, keys)
        else:
            if not self._tables:
                self._tables.append(self.device.load(self._landscape.mu))
            done = self._landscape.chains(self.device, self._tables[0], x, rows, keys)
        return lambda: done


def needs_of(chosen: Augmentation, dim: int, rows: int | None) -> Needs | None:
    """What a device is going to be asked, for a lake of so many *rows*; walks ask nothing of it."""
    if chosen.mode == "walk":
        return None
    if chosen.mode == "isotropic" or rows is None:
        return Needs(dim=dim)
    neighbours = max(1, min(chosen.k or CHAIN_K, GRAPH_NEIGHBOURS + 1, rows))
    form, method = chosen.form, chosen.method
    return Needs(dim=dim, chains=True, form=form, method=method, neighbours=neighbours)


def _repeated(x: Any, copies: int) -> Any:
    if copies == 1:
        return x
    return x.repeat_interleave(copies, 0) if _is_tensor(x) else np.repeat(x, copies, axis=0)


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "detach")


def _on_device(x: Any) -> bool:
    return _is_tensor(x) and x.device.type != "cpu"


def _collected(moved: Any, out: Any) -> Any:
    """Rows that nobody else writes: on the host a copy in *out*."""
    if _on_device(moved):
        return moved
    np.copyto(out, to_host(moved))
    return out


def _interleave(x: Any, moved: Any, copies: int, out: Any) -> Any:
    """Every row, then its augmentations."""
    if _on_device(moved):
        import torch

        first = torch.as_tensor(x).to(moved.device)[:, None]
        return torch.cat([first, moved.view(len(x), copies, -1)], 1).reshape(-1, x.shape[1])
    view = out.reshape(len(x), copies + 1, -1)
    view[:, 0] = to_host(x)
    view[:, 1:] = to_host(moved).reshape(len(x), copies, -1)
    return out


def starts_of(rows: Rows, unit: Float32s) -> Numbers:
    """The row of the lake nearest to each of *unit*: the same rows again are not searched for."""

    def make() -> Numbers:
        table = rows.table()
        firsts = lake_firsts(rows, "all", table)
        return nearest(unit, table, 1, firsts=firsts).rows[:, 0].astype(np.int64)

    what = "starts", unit.shape, digest128(unit.data)
    return rows.derived(what, make, lambda found: found.nbytes + _KEY_BYTES)


def augment_rows(
    rows_of: Callable[[], Rows],
    geometry: str,
    dim: int,
    x: Any,
    chosen: Augmentation,
    *,
    seed: int,
    device: str,
    user: User,
) -> Any:
    """Augment rows of any origin; see ``Lake.augment``."""
    check_seed(seed, 0)
    seed = int(seed)
    given = to_host(x, "x")
    if given.dtype.kind not in "fiu":
        raise InvalidTypeError(f"x has dtype {given.dtype}; rows are real numbers")
    if given.ndim != 2 or given.shape[1] != dim:
        raise InvalidValueError(f"x has shape {given.shape}; this lake augments rows [n, {dim}]")
    unit = np.empty(given.shape, np.float32)
    divide_by_norms(given, unit, what="x", safe="Nothing was augmented")
    numbers = np.arange(len(unit), dtype=np.int64)
    rows = None if chosen.mode == "isotropic" else rows_of()
    augmenter = Augmenter(rows, geometry, chosen, seed=seed, device=device, user=user, dim=dim)
    start = numbers if rows is None else starts_of(rows, unit)
    out = np.empty((len(unit) * chosen.group, dim), np.float32)
    moved: Any = out
    if len(unit):
        moved, _ = augmenter.start(unit, start, numbers, 0, out=out)()
    if not _is_tensor(x):
        return to_host(moved)
    import torch

    return torch.as_tensor(moved)
