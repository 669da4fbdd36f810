"""Texts that commands print, kept in files of ``tests/tools/cli/golden``.

``MLDB_GOLDEN=write python -m pytest tests/tools/cli`` makes them anew: read the difference before
it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN_TEXTS = Path(__file__).resolve().parents[1] / "tools" / "cli" / "golden"


def check_golden(name: str, text: str) -> None:
    """Compare *text* with the file of that name; with MLDB_GOLDEN=write, write it."""
    path = GOLDEN_TEXTS / f"{name}.txt"
    if os.environ.get("MLDB_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing; MLDB_GOLDEN=write makes it"
    assert text == path.read_text(encoding="utf-8")
