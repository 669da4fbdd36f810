"""Text made safe for a terminal, under the name that commands know it by."""

from __future__ import annotations

from mldb.printable import printable

__all__ = ["printable"]
