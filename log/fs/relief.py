"""Calls that need a descriptor or a mapping, made once more when room for one was found."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from mldb.log.fs.protocol import FileSystem

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""No descriptor left in the process or in the system; no mapping left, or no memory for it."""

P = ParamSpec("P")
T = TypeVar("T")


def with_relief(fs: FileSystem, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call of the system; make it again where it was EXHAUSTED and ``fs.relieve`` helped.

    Raises the OSError of the last try.
    """
    try:
        return call(*args, **kwargs)
    except OSError as error:
        if error.errno not in EXHAUSTED or fs.relieve is None or not fs.relieve():
            raise
    return call(*args, **kwargs)
