"""Many torch tensors prepared at once: those of a state, of which most are small and plain."""

from __future__ import annotations

import sys
from typing import Any, Final

from mldb.log import native
from mldb.tensors.codec import Prepared, known_arrays

COPIED_MAX: Final = 4 << 10
"""Tensors of so many bytes at most are copied: that takes less time than an array over them."""


def prepare_small(values: list[Any]) -> tuple[list[int | None], list[Prepared | None]]:
    """Return the address of the storage of each tensor, and what ``prepare`` makes of it.

    None where one call cannot tell: of what is no plain tensor of torch on the host, and the second
    also of a large one, or one of a dtype and shape that was not prepared before. What is prepared
    is a copy, and so ``owned``. Never raises: ``prepare`` says what is wrong with a tensor.

    Any thread; without the compiled twin all is left to Python.
    """
    twin, torch = native.twin, sys.modules.get("torch")
    if twin is None or torch is None:
        nothing: list[None] = [None] * len(values)
        return list(nothing), list(nothing)
    of = torch.Tensor
    asked = of.is_neg, of.is_conj, of.untyped_storage, of.is_contiguous, torch.strided, Prepared
    found: tuple[list[int | None], list[Prepared | None]] = twin.look_at_tensors(
        values, asked, known_arrays, COPIED_MAX
    )
    return found
