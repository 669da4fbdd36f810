"""The label gate: an augmented row that looks like another class is taken back.

A row x' made from x is kept where the nearest labelled row of x' has the label of x; else x itself
is returned. The count and the rate of rows taken back belong in every report: a gate that takes
back most rows says that the augmentation is too strong. "Nearest" is by cosine, exact, ties to the
smaller number, and does not depend on the batch (``mldb.sphere.neighbours``).

Walks end at rows of the lake. For them the nearest labelled rows are computed once
(:func:`nearest_labels` of the pool), and the gate is a look-up: :func:`gate_walk`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s, Numbers
from mldb.errors import InvalidValueError
from mldb.sphere.neighbours import Firsts, nearest


class Gated(NamedTuple):
    """What passed: ``rows`` as given or taken back, and which were taken back, bool [B]."""

    rows: npt.NDArray[Any]
    taken_back: npt.NDArray[np.bool_]

    @property
    def rejected(self) -> int:
        """How many rows were taken back."""
        return int(np.count_nonzero(self.taken_back))

    @property
    def rate(self) -> float:
        """The share of rows taken back; 0 for an empty batch."""
        return self.rejected / max(len(self.taken_back), 1)


def gate(
    originals: Float32s,
    augmented: Float32s,
    own_labels: Numbers,
    labelled: Float32s,
    labels: Numbers,
    *,
    firsts: Firsts | None = None,
) -> Gated:
    """Return *augmented* [B, d], with the original row where the gate takes one back.

    *own_labels* [B] are those of *originals* [B, d]; *labelled* [L, d] rows have *labels* [L]. All
    rows are float32 of unit length. *firsts* of *labelled* and 1, where they are kept. Raises
    InvalidValueError.
    """
    if originals.shape != augmented.shape or own_labels.shape != (len(originals),):
        raise InvalidValueError(
            f"originals {originals.shape}, augmented rows {augmented.shape} and labels "
            f"{own_labels.shape} do not fit together"
        )
    wrong = nearest_labels(augmented, labelled, labels, firsts=firsts) != own_labels
    return Gated(np.where(wrong[:, None], originals, augmented), wrong)


def gate_walk(start: Numbers, end: Numbers, own_labels: Numbers, pool_labels: Numbers) -> Gated:
    """Return where walks end, int64 [B], and where they started if the gate takes them back.

    *pool_labels* [N] is :func:`nearest_labels` of the pool that was walked on.
    """
    if not start.shape == end.shape == own_labels.shape:
        raise InvalidValueError(
            f"{start.shape} starts, {end.shape} ends and {own_labels.shape} labels do not fit"
        )
    wrong = pool_labels[end] != own_labels
    return Gated(np.where(wrong, start, end), wrong)


def nearest_labels(
    x: Float32s, labelled: Float32s, labels: Numbers, *, firsts: Firsts | None = None
) -> Numbers:
    """Return the label of the nearest of *labelled* [L, d] for each row of *x*, int64 [B].

    *firsts* of *labelled* and 1, where they are kept. Raises InvalidValueError when there is no
    labelled row, or not one label for each.
    """
    if not len(labelled) or labels.shape != (len(labelled),):
        raise InvalidValueError(
            f"{len(labelled)} labelled rows and labels of shape {labels.shape}; a gate needs at "
            "least one labelled row, and one label for each"
        )
    return labels[nearest(x, labelled, 1, firsts=firsts).rows[:, 0]]
