"""Which Lightning the adapter speaks to, told from the installed package before it is imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from mldb.errors import UsageError

PACKAGE: Final = "lightning"
SPOKEN: Final = (2, 6)
"""Major and minor version; each patch of it is taken."""

_INSTALL: Final = "pip install 'mldb[lightning]'"


def require_lightning() -> str:
    """Return the installed version of Lightning.

    Raises UsageError where it is not installed, and for another version than 2.6: its checkpoints,
    loops and hooks change from one minor version to the next.
    """
    wanted = ".".join(map(str, SPOKEN))
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        raise UsageError(
            f"mldb.adapters.lightning needs Lightning {wanted}, and the package {PACKAGE!r} is not "
            f"installed (pytorch_lightning is another one): {_INSTALL}"
        ) from None
    numbers = re.match(r"(\d+)\.(\d+)(?!\d)", found)
    if numbers is None or tuple(map(int, numbers.groups())) != SPOKEN:
        raise UsageError(
            f"mldb.adapters.lightning speaks to Lightning {wanted}, and {PACKAGE} {found} is "
            f"installed. Nothing was read or stored. {_INSTALL} brings one that fits; checkpoints "
            "in a store are read without Lightning: db.load(None, as_of=name)"
        )
    return found
