"""The version of accelerate, refused here where it does not fit, before anything imports it."""

from __future__ import annotations

from typing import Final

from mldb.adapters.package_version import require_package

ACCELERATE_VERSION: Final = require_package(
    "accelerate", (1, 15), (2, 0), "mldb.adapters.accelerate", "huggingface"
)
