"""The compiled twin of the short paths, where there is one: ``native.twin``, else None.

The Python modules are the specification and run where ``twin`` is None: without a compiler, with
``MLDB_PURE=1``, on a big-endian machine, on a build without the lock of the interpreter, and where
the module beside them is of another version or hashes otherwise. A caller asks ``native.twin`` at
each call and runs its own code where that is None or answers "not mine" (None). Any thread; set
once at import, and by :func:`switched_off` in tests.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from mldb.log import format as fmt
from mldb.log.checksum import check64, digest128

INTERFACE: Final = 5
"""What functions the module has and what they take: another number, here and in ``format.pxi``."""
PURE: Final = "MLDB_PURE"
REFUSED: Final = "off: it "
"""How the status begins where there is a module and it does not fit."""
_SAMPLE: Final = bytes(range(256)) * 5


class NativeWarning(UserWarning):
    """The compiled module does not fit the Python beside it, which runs alone."""


class _NotHere(Exception):
    """Why Python runs alone, where nothing is wrong."""


def _import() -> ModuleType:
    from mldb.log.native import _native

    return _native


def load(
    environment: Mapping[str, str],
    *,
    byteorder: str = sys.byteorder,
    abiflags: str = getattr(sys, "abiflags", ""),
    version: str | None = None,
    importer: Callable[[], ModuleType] = _import,
) -> tuple[Any, str]:
    """Return the module, or None, and what runs or why: what ``stats()["native"]`` says.

    Warns with :class:`NativeWarning` where there is a module that does not fit.
    """
    try:
        _check_place(environment, byteorder, abiflags)
        module = importer()
    except _NotHere as why:
        return None, f"off: {why}"
    except ImportError:
        return None, "off: not built"
    fault = fault_of(module, version)
    if fault is None:
        return module, "on" if module.HAS_XXHASH else "on, with the hashes of the xxhash package"
    warnings.warn(
        f"the compiled part of mldb {fault}: Python runs alone, slower and with the same bytes. "
        "Install mldb anew.",
        NativeWarning,
        stacklevel=2,
    )
    return None, f"{REFUSED}{fault}"


def _check_place(environment: Mapping[str, str], byteorder: str, abiflags: str) -> None:
    if environment.get(PURE, "0") not in ("", "0"):
        raise _NotHere(f"{PURE} is set")
    if byteorder != "little":
        raise _NotHere("this machine is big-endian")
    if "t" in abiflags:
        raise _NotHere("this Python has no global lock")


def fault_of(module: ModuleType, version: str | None = None) -> str | None:
    """What is wrong with a module for the Python beside it; None for nothing."""
    known = _version() if version is None else version
    if known != module.VERSION or module.INTERFACE != INTERFACE:
        return f"is of version {module.VERSION} ({module.INTERFACE}), not {known} ({INTERFACE})"
    for name, value in module.CONSTANTS.items():
        if getattr(fmt, name, None) != value:
            return f"has {name} = {value!r}, the format {getattr(fmt, name, None)!r}"
    for size in (0, 1, 9, 48, 200, len(_SAMPLE)):
        part = _SAMPLE[:size]
        same = module.check64(part, size) == check64(part, size)
        if not same or module.digest128(part) != digest128(part):
            return f"hashes {size} bytes otherwise than the xxhash package"
    return None


def _version() -> str:
    return fmt.WRITER.decode().removeprefix("mldb ")


twin: Any
twin, status = load(os.environ)
loaded: Final[Any] = twin
"""The module, also while it is switched off: for what it is told once."""


@contextmanager
def switched_off() -> Iterator[None]:
    """Run Python alone meanwhile, in all threads. For tests that compare the two."""
    global twin, status
    before = twin, status
    twin, status = None, "off: switched off"
    try:
        yield
    finally:
        twin, status = before
