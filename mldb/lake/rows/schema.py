"""What a column of a lake is, over all blocks: each addition decides for its own rows.

Blocks may store one column in several dtypes: reading gives the smallest that holds every value of
all of them, by NumPy's rules. Where none does, or the rows have other shapes, no read can give the
column, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

ColumnForm: TypeAlias = tuple[str, tuple[int, ...]]
"""The dtype, and the shape of one value."""

_LABEL: ColumnForm = ("<i8", ())


class Schema(NamedTuple):
    """The columns that every block has and that can be read, and why others cannot."""

    columns: dict[str, ColumnForm]
    refused: dict[str, str]


def schema_of(blocks: Iterable[Sequence[tuple[str, str, tuple[int, ...]]]]) -> Schema:
    """Return the columns of *blocks*, which say (name, dtype, shape) of each of theirs.

    Labels count when any block has them: rows that were added without one have UNLABELLED.
    """
    forms = [{name: (dtype, shape) for name, dtype, shape in block} for block in blocks]
    if any("label" in form for form in forms):
        forms = [{"label": _LABEL, **form} for form in forms]
    found = Schema({}, {})
    for name in forms[0] if forms else ():
        # Each distinct one once, in the order in which they came.
        ways = dict.fromkeys(form.get(name) for form in forms)
        known = [way for way in ways if way is not None]
        if len(known) < len(ways):
            continue
        if len(known) == 1:  # nearly always: a stream begins by asking
            found.columns[name] = known[0]
            continue
        shapes = list(dict.fromkeys(shape for _, shape in known))
        dtypes = list(dict.fromkeys(np.dtype(dtype) for dtype, _ in known))
        common = np.result_type(*dtypes)
        if len(shapes) > 1:
            found.refused[name] = f"rows of shapes {_and(shapes)}"
        elif not all(_holds(common, dtype) for dtype in dtypes):
            found.refused[name] = f"the dtypes {_and(dtypes)}, which no dtype holds exactly"
        else:
            found.columns[name] = known[0] if len(dtypes) == 1 else (common.str, shapes[0])
    return found


def _holds(wide: np.dtype[np.generic], dtype: np.dtype[np.generic]) -> bool:
    """Whether *wide*, a result of promotion, has every value of *dtype*.

    NumPy calls integers of 64 bits as floats of 64 safe, though those hold 53 bits of them.
    """
    return wide.kind != "f" or dtype.kind not in "iu" or dtype.itemsize < wide.itemsize


def _and(items: Sequence[object]) -> str:
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}"
