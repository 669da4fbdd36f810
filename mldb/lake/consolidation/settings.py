"""How a lake is consolidated: the settings of one run, and of a policy that runs by itself."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Final

from mldb.compaction.soc.active import largest_angle
from mldb.compaction.soc.report import ConsolidationMethod
from mldb.compaction.soc.sandpile import loss_units
from mldb.compaction.soc.scheduler import DEFAULT_LOSS, DEFAULT_RANDOM_LINKS
from mldb.compaction.soc.seeded import check_mix_seed
from mldb.compaction.soc.sweep import check_width
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import settle_numbers
from mldb.lake.checks import check_choice, check_count, check_share

DEFAULT_MIN_COS: Final = 0.97
DEFAULT_NEIGHBOURS: Final = 16
DEFAULT_BUDGET: Final = 200_000
DEFAULT_AFTER_ROWS: Final = 4096
_COUNT_MAX: Final = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidationPolicy:
    """When and how a lake is consolidated by itself; ``lake.policy = mldb.ConsolidationPolicy()``.

    method:       "sandpile" compacts where rows arrived since the run before; "sweep" looks at all
                  rows.
    min_cos:      every source lies within this cosine of the splat it becomes; see
                  ``Lake.consolidate``.
    k:            neighbours of a splat that are looked at, and grains at which a site topples.
    seed:         what orders and stress are drawn by.
    p:            share of grains that a sandpile loses; a row causes 1/(k p) topplings.
    random_links: share of the links of stress that lead anywhere.
    budget:       the most topplings of one run of a sandpile, None for any number. What is left
                  unstable topples in the next.
    after_rows:   a run is due when so many rows arrived since the one before.

    Raises InvalidValueError and InvalidTypeError for settings that cannot be meant.
    """

    method: ConsolidationMethod = "sandpile"
    min_cos: float = DEFAULT_MIN_COS
    k: int = DEFAULT_NEIGHBOURS
    seed: int = 0
    p: float = DEFAULT_LOSS
    random_links: float = DEFAULT_RANDOM_LINKS
    budget: int | None = DEFAULT_BUDGET
    after_rows: int = DEFAULT_AFTER_ROWS

    def __post_init__(self) -> None:
        settle_numbers(self)
        check_choice("method", self.method, ConsolidationMethod)
        largest_angle(self.min_cos)
        check_width(self.k)
        check_mix_seed(self.seed)
        check_share("p", self.p)
        if not loss_units(self.p):
            raise InvalidValueError(f"p={self.p} loses no grains, so that topplings never end")
        check_share("random_links", self.random_links)
        if self.budget is not None:
            check_count("budget", self.budget, 1, _COUNT_MAX)
        check_count("after_rows", self.after_rows, 1, _COUNT_MAX)

    def plain(self) -> dict[str, Any]:
        """The settings as they are stored."""
        return asdict(self)


def policy_of(stored: dict[str, Any]) -> ConsolidationPolicy:
    """Return the policy that was stored; settings of a newer version are left out."""
    known = {field.name for field in fields(ConsolidationPolicy)}
    return ConsolidationPolicy(**{name: stored[name] for name in stored if name in known})


def kept_rows(target_keep: object, rows: int) -> int | None:
    """Return how many splats a share of *rows* is. Raises InvalidTypeError, InvalidValueError."""
    if target_keep is None:
        return None
    if isinstance(target_keep, bool) or not isinstance(target_keep, int | float):
        raise InvalidTypeError(
            f"target_keep is a {type(target_keep).__name__}; give a share of the rows, as 0.1"
        )
    if not 0 < target_keep <= 1:  # NaN is not
        raise InvalidValueError(
            f"target_keep={target_keep} is not above 0 and at most 1; 0.1 keeps a tenth of the rows"
        )
    return max(round(target_keep * rows), 1)
