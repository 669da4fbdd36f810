"""What samples are measured by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s
from mldb.lake.order.sampling import AliasTable


def chances_of(table: AliasTable) -> Float64s:
    """The chance of each row as an alias table draws it, float64 [N]."""
    lent = np.bincount(table.alias, weights=1 - table.keep, minlength=len(table.keep))
    return (table.keep + lent) / len(table.keep)


def kish_ess(weights: npt.ArrayLike) -> float:
    """(sum w)^2 / sum w^2 of the weights of a sample: how many equal ones it is worth."""
    values = np.asarray(weights, np.float64)
    return float(values.sum()) ** 2 / float(np.vdot(values, values))
