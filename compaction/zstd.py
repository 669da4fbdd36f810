"""The zstd module: in the standard library from Python 3.14, its backport before."""

from __future__ import annotations

import sys
from typing import Any


def zstd_module() -> Any:
    """Return the module, imported when first needed."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
