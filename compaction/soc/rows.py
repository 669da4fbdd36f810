"""The rows that a consolidation takes and makes: columns, one value for each splat."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from mldb.arrays import Float32s, Float64s, Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidValueError
from mldb.sphere.vmf import check_unit_rows


@dataclass(frozen=True, slots=True, eq=False)
class SplatRows:
    """N splats on the unit sphere of d dimensions. Arrays are not written to.

    mu:      float32 [N, d], unit mean directions.
    norm:    float64 [N], the length that a row had when it was ingested.
    kappa:   float64 [N], concentration of its von Mises-Fisher law.
    alpha:   float64 [N], mass: how many ingested rows it stands for.
    min_cos: float64 [N], every member lies within this cosine of mu; 1 for a row that was added.
    labels:  int64 [N]; splats of two labels are never merged.
    ids:     int64 [N], what seeded choices are made by, so that they do not depend on row numbers.
    """

    mu: Float32s
    norm: Float64s
    kappa: Float64s
    alpha: Float64s
    min_cos: Float64s
    labels: Numbers
    ids: Numbers

    def __len__(self) -> int:
        """The number of splats N."""
        return len(self.mu)

    def take(self, rows: Numbers) -> SplatRows:
        """Some of the splats, in the order given."""
        return SplatRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def check(self) -> SplatRows:
        """Return itself. Raises InvalidValueError for columns that do not fit or mean nothing."""
        if self.mu.ndim != 2 or self.mu.dtype != np.float32:
            raise InvalidValueError(
                f"mu is {self.mu.dtype} of shape {self.mu.shape}; give float32 rows [N, d]"
            )
        for field in fields(self)[1:]:
            shape = getattr(self, field.name).shape
            if shape != (len(self),):
                raise InvalidValueError(f"{field.name} has shape {shape} for {len(self)} rows")
        check_unit_rows("mu", self.mu)
        for name in ("alpha", "kappa"):
            values = getattr(self, name)
            if not (np.isfinite(values) & (values > 0)).all():
                raise InvalidValueError(f"{name} holds a number that is not finite and above 0")
        if not (np.abs(self.min_cos) <= 1).all():  # NaN is not
            raise InvalidValueError("min_cos holds a number that is no cosine")
        return self


def plain_rows(
    mu: Float32s,
    *,
    kappa: float | Float64s,
    alpha: float | Float64s = 1.0,
    labels: Numbers | None = None,
    ids: Numbers | None = None,
) -> SplatRows:
    """Return rows as they are added: each stands for itself. One value of kappa or alpha is all's.

    Raises InvalidValueError.
    """
    count = len(mu)
    ones = np.ones(count)
    return SplatRows(
        mu,
        ones,
        np.broadcast_to(np.asarray(kappa, np.float64), count),
        np.broadcast_to(np.asarray(alpha, np.float64), count),
        ones,
        np.zeros(count, np.int64) if labels is None else labels,
        np.arange(count) if ids is None else ids,
    ).check()
