"""The version of Lightning, refused here where it does not fit, before anything imports it.

Its checkpoints, loops and hooks change from one minor version to the next. ``pytorch_lightning`` is
another package.
"""

from __future__ import annotations

from typing import Final

from mldb.adapters.package_version import require_package

LIGHTNING_VERSION: Final = require_package(
    "lightning", (2, 6), (2, 7), "mldb.adapters.lightning", "lightning"
)
