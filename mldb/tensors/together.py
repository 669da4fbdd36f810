"""Many torch tensors prepared at once: those of a state, of which most are small and plain."""

from __future__ import annotations

import sys
from typing import Any, Final

from mldb.log import native
from mldb.tensors.codec import Prepared, known_arrays

COPIED_MAX: Final = 4 << 10
"""Tensors of so many bytes at most are copied: that takes less time than an array over them."""


def prepare_small(named: dict[str, Any]) -> tuple[list[int | None], dict[str, Prepared]]:
    """Return the address of the storage of each tensor, and what ``prepare`` makes of some.

    The address is None where one call cannot tell: of what is no plain tensor of torch on the host.
    Prepared are small ones of a dtype and shape that were prepared before. They are copies, and so
    ``owned``. Never raises: ``prepare`` says what is wrong with a tensor.

    Any thread; without the compiled twin all is left to Python.
    """
    twin, torch = native.twin, sys.modules.get("torch")
    if twin is None or torch is None:
        return [None] * len(named), {}
    of = torch.Tensor
    asked = of.is_neg, of.is_conj, of.untyped_storage, of.is_contiguous, torch.strided, Prepared
    found: tuple[list[int | None], dict[str, Prepared]] = twin.look_at_tensors(
        named, asked, known_arrays, COPIED_MAX
    )
    return found
