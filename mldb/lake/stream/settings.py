"""How a stream reads a lake: frozen settings, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields
from typing import Any, Final, Literal, TypeVar

import numpy as np

from mldb.deferred import dataclass, field_names
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.gpu.device import AUGMENTATIONS_MAX, ChainMethod, Form
from mldb.gpu.select import check_spec
from mldb.integers import settle_numbers
from mldb.lake.checks import check_choice, check_count, check_number
from mldb.lake.order.pass_order import STRATUM_ROWS, WINDOW_STRATA, PlainOrder
from mldb.lake.order.weights import Importance
from mldb.log.checksum import digest128
from mldb.noise.keys import STEPS_MAX
from mldb.noise.streams import Counted, stream_seed
from mldb.sphere.graph import BANDWIDTH_NEIGHBOURS

_T = TypeVar("_T")
AugmentationMode = Literal["isotropic", "walk", "langevin"]
OrderChoice = Literal["auto", PlainOrder]

SEED_MAX: Final = (1 << 64) - 1
WINDOW_ROWS: Final = WINDOW_STRATA * STRATUM_ROWS
"""Of the windowed order, where nothing else is said."""

_HEARD_BY: Final[Mapping[str, tuple[AugmentationMode, ...]]] = {
    "strength": ("isotropic", "langevin"),
    "gate": ("walk", "langevin"),
    "hops": ("walk",),
    "k": ("walk", "langevin"),
    **dict.fromkeys(("steps", "h", "method", "form"), ("langevin",)),
}
"""The modes that a setting of some modes says something to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How rows are augmented (docs/lake.md, "Augmentation").

    mode:        "isotropic": one exact draw around the row. "walk": a real row, *hops* uniform
                 steps away on the k-NN graph. "langevin": a chain under the energy of the lake.
    strength:    the mean cosine rho between a row and its augmentation: of every row (isotropic),
                 or over the rows of the lake, before the gate (langevin).
    copies:      augmentations of every streamed row, one behind the other in the batch.
    keep:        the row itself stands in front of its augmentations.
    gate:        a result whose nearest labelled row has another label is dropped for the row
                 itself (walk and langevin, where rows have labels).
    hops:        length of a walk (walk).
    k:           neighbours of a row, 1 .. 30 (walk and langevin; 10 and 16 when None).
    steps, h:    length of a chain and its dimensionless step (langevin); *method* "mala" makes its
                 law exact, *form* "subspace" runs it in fewer numbers.

    What another mode would ignore is refused, unless it has its default value.
    """

    mode: AugmentationMode = "isotropic"
    strength: float = 0.9
    copies: int = 1
    keep: bool = False
    gate: bool = True
    hops: int = 2
    k: int | None = None
    steps: int = 20
    h: float = 0.3
    method: ChainMethod = "ula"
    form: Form = "direct"

    def __post_init__(self) -> None:
        """Raises InvalidValueError, InvalidTypeError."""
        settle_numbers(self)
        check_choice("mode", self.mode, AugmentationMode)
        check_choice("method", self.method, ChainMethod)
        check_choice("form", self.form, Form)
        check_number("strength", self.strength)
        check_number("h", self.h)
        for name in ("keep", "gate"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidTypeError(f"{name}={getattr(self, name)!r} is not True or False")
        if not 0.0 < self.strength < 1.0:
            raise InvalidValueError(f"strength={self.strength}; it is a mean cosine in (0, 1)")
        if not 0.0 < self.h < 2.0:
            raise InvalidValueError(f"h={self.h}; chains are stable for 0 < h < 2")
        check_count("copies", self.copies, 1, AUGMENTATIONS_MAX - 1)  # number 0 is the row itself
        check_count("hops", self.hops, 1, 1000)
        check_count("steps", self.steps, 1, STEPS_MAX)
        if self.k is not None:
            check_count("k", self.k, 1, BANDWIDTH_NEIGHBOURS)
        for field in fields(self):
            modes = _HEARD_BY.get(field.name, (self.mode,))
            if self.mode not in modes and getattr(self, field.name) != field.default:
                raise InvalidValueError(
                    f"{field.name}={getattr(self, field.name)!r} does nothing for mode="
                    f"{self.mode!r}; it is for {' and '.join(modes)}. Leave it out"
                )

    @property
    def group(self) -> int:
        """How many rows of a batch one streamed row makes."""
        return self.copies + self.keep


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What a stream yields, and in which order. Sizes in bytes.

    batch_size:   rows of a batch, augmentations included.
    seed:         everything random is a function of (seed, pass).
    order:        "auto": a permutation when the rows fit in memory, windows of strata when not.
    importance:   how rows are drawn; None takes every row once.
    even_ranks:   all ranks get equally many batches: fewer than world at the end are left out.
    draws:        rows of one pass under *importance*; None is as many as the lake has, with
                  replacement. Without replacement it must be given, and below them.
    salience:     a column, or a function of the ids (int64 [N]) that returns values >= 0 [N]; it is
                  asked once a pass and must return the same when a pass is resumed.
    fields:       None yields plain tensors [B, dim]; names yield named tuples. An importance with a
                  target needs "weight" among them.
    prefetch:     batches made ahead by a thread of the process that makes them; 0 makes none ahead.
                  None is 8, where rows are only copied from the time on that steps are long enough
                  for it to be of use; and 0 in workers of a DataLoader, which torch's
                  prefetch_factor keeps ahead; a number is that of each worker, beside
                  prefetch_factor.
    warm_bytes:   budget of the RAM tier; None, as 0: rows are read from the log.
    hot_bytes:    budget of the device tier, on devices with memory of their own ("cuda", or "auto"
                  where there is one; on "torch" and "cpu" it is RAM). Workers refuse it: their
                  batches end on the host.
    window_rows:  rows of a window of the windowed order, from 1,024: whole strata of so many.

    What would do nothing is refused by :func:`make_options`.
    """

    batch_size: int = 256
    seed: int = 0
    order: OrderChoice = "auto"
    drop_last: bool = False
    even_ranks: bool = False
    importance: Importance | None = None
    draws: int | None = None
    salience: str | Callable[[Any], Any] | None = None
    augmentation: Augmentation | None = None
    fields: tuple[str, ...] | None = None
    device: str = "auto"
    prefetch: int | None = None
    warm_bytes: int | None = None
    hot_bytes: int = 0
    window_rows: int = WINDOW_ROWS

    def __post_init__(self) -> None:
        """Raises InvalidValueError, InvalidTypeError."""
        settle_numbers(self)
        check_spec(self.device)
        self._check_importance()
        if self.fields is not None:
            object.__setattr__(self, "fields", names_of("fields", self.fields))
        check_count("hot_bytes", self.hot_bytes, 0, 1 << 50)
        if self.warm_bytes is not None:
            check_count("warm_bytes", self.warm_bytes, 0, 1 << 50)
        if self.importance is not None and self.order != "auto":
            raise InvalidValueError(
                f"order={self.order!r} (or shuffle=False) and importance_sampling do not fit: rows "
                "that are drawn have no other order"
            )
        check_count("batch_size", self.batch_size, 1, 1 << 24)
        check_count("seed", self.seed, 0, SEED_MAX)
        if self.prefetch is not None:
            check_count("prefetch", self.prefetch, 0, 1024)
        if self.draws is not None:
            check_count("draws", self.draws, 1, 1 << 47)
        check_count("window_rows", self.window_rows, STRATUM_ROWS, 1 << 40)
        check_choice("order", self.order, OrderChoice)
        if self.batch_size % self.group:
            raise InvalidValueError(
                f"batch_size={self.batch_size} is no multiple of the {self.group} rows that one "
                "streamed row makes (copies, and itself when keep=True)"
            )
        if self.fields is not None and (
            not self.fields or len(set(self.fields)) != len(self.fields)
        ):
            raise InvalidValueError(f"fields={self.fields!r}; name each field once")

    def _check_importance(self) -> None:
        """Refuse what would be ignored in silence."""
        chosen = self.importance
        for name in ("draws", "salience"):
            if chosen is None and getattr(self, name) is not None:
                raise InvalidValueError(
                    f"{name} is given and rows are not drawn by importance; pass "
                    "importance_sampling as well"
                )
        if chosen is not None and chosen.replacement != "with" and self.draws is None:
            raise InvalidValueError(
                f"replacement={chosen.replacement!r} takes a row once, so without draws a pass is "
                "every row, whatever its chances. Give draws=, fewer than the lake has rows, or "
                "leave importance_sampling out"
            )
        if chosen is not None and chosen.target is not None and "weight" not in (self.fields or ()):
            raise InvalidValueError(
                f'target={chosen.target!r} makes weights and nobody gets them: give fields=("mu", '
                '"weight") and multiply the loss by them, or leave target out'
            )
        if chosen is not None and bool(chosen.gamma) != (self.salience is not None):
            raise InvalidValueError(
                f"gamma={chosen.gamma} and salience={self.salience!r:.80} do not fit: chances have "
                "salience^gamma, so give both or neither"
            )

    def settings_digest(self) -> str:
        """A name for all that decides what is in a batch, beside seed, order and batch size.

        A function of the user counts as "a function": what it returns cannot be compared.
        """
        salience = self.salience if isinstance(self.salience, str | None) else "a function"
        decides = (
            *(_plain(self.importance), self.draws, salience, _plain(self.augmentation)),
            *(self.drop_last, self.even_ranks, self.window_rows),
        )
        return digest128(repr(decides).encode()).hex()

    def in_order(self, order: OrderChoice) -> StreamOptions:
        """The same options with an order that is known to be one: nothing is checked again."""
        if order == self.order:
            return self
        found = copy(self)
        object.__setattr__(found, "order", order)
        return found

    @property
    def counted(self) -> Counted:
        """What the noise of a row is counted by: a row that may be drawn twice, by its draw."""
        drawn = self.importance is not None and self.importance.replacement == "with"
        return Counted.DRAW if drawn else Counted.ROW

    def noise_seed(self, lake_id: bytes) -> int:
        """The seed of the noise of augmentations over the lake of *lake_id*."""
        return stream_seed(self.seed, lake_id, self.counted)

    @property
    def group(self) -> int:
        """How many rows of a batch one row of the lake makes."""
        return 1 if self.augmentation is None else self.augmentation.group

    @property
    def source_rows(self) -> int:
        """Rows of the lake that one batch takes."""
        return self.batch_size // self.group


def names_of(what: str, names: Any) -> tuple[str, ...]:
    """Return *names* as a tuple. Raises InvalidTypeError for anything but several str."""
    if isinstance(names, str):
        raise InvalidTypeError(f"{what}={names!r} is a str; give names: ({names!r},)")
    try:
        found = tuple(names)
    except TypeError:
        found = (None,)
    if not all(isinstance(name, str) for name in found):
        raise InvalidTypeError(f"{what}={names!r:.80} are no names; give a list of str")
    return found


def make_options(**given_fields: Any) -> StreamOptions:
    """Return StreamOptions. Raises InvalidTypeError for an unknown field, InvalidValueError."""
    _known_fields(
        StreamOptions,
        given_fields,
        " Those of augmentation go into generate_samples=mldb.Augmentation(...), those of sampling "
        "into importance_sampling=mldb.Importance(...).",
    )
    options = StreamOptions(**given_fields)
    _check_heard(options)
    return options


def _check_heard(options: StreamOptions) -> None:
    """Refuse what would be ignored. Not for options that are in use, whose order was decided."""
    drawn = options.importance is not None
    if options.window_rows != WINDOW_ROWS and (drawn or options.order not in ("auto", "windowed")):
        order = "importance_sampling" if drawn else f"order={options.order!r}"
        raise InvalidValueError(
            f"window_rows={options.window_rows} does nothing under {order}; give order='windowed', "
            "or leave it out"
        )
    if options.hot_bytes and check_spec(options.device)[0] in ("numpy", "vulkan"):
        raise InvalidValueError(
            f"hot_bytes={options.hot_bytes} does nothing on device={options.device!r}: batches end "
            "on the host. Name a 'cuda' device, or give warm_bytes"
        )


def check_heard_by_workers(options: StreamOptions) -> None:
    """Refuse what workers of a DataLoader would ignore. Raises InvalidValueError."""
    if options.hot_bytes:
        raise InvalidValueError(
            f"hot_bytes={options.hot_bytes} does nothing in workers of a DataLoader: they send "
            "batches through shared memory of the host. Give num_workers=0, with which a thread "
            "makes batches ahead, or warm_bytes, a budget of each worker"
        )


def make_augmentation(**given_fields: Any) -> Augmentation:
    """Return Augmentation. Raises InvalidTypeError for an unknown field, InvalidValueError."""
    _known_fields(Augmentation, given_fields)
    return Augmentation(**given_fields)


def _known_fields(kind: type, given_fields: Mapping[str, Any], hint: str = "") -> None:
    known = field_names(kind)
    for name in given_fields:
        if name not in known:
            raise InvalidTypeError(
                f"{name!r} is no option of {kind.__name__}; they are {', '.join(known)}.{hint}"
            )


def _plain(settings: Any) -> Any:
    """The fields of settings, numbers as floats: equal settings are the same text."""
    if settings is None:
        return None
    values = ((name, getattr(settings, name)) for name in field_names(type(settings)))
    return [(k, float(v) if isinstance(v, int | float | np.number) else v) for k, v in values]


def given(name: str, kind: type[_T], value: bool | _T) -> _T | None:
    """Return None for False, the defaults for True, or the settings themselves."""
    if isinstance(value, bool):
        return kind() if value else None
    if not isinstance(value, kind):
        raise InvalidTypeError(
            f"{name} is a {type(value).__name__}, not a bool or mldb.{kind.__name__}(...)"
        )
    return value
