"""The version of transformers, refused here where it does not fit, before anything imports it."""

from __future__ import annotations

from typing import Final

from mldb.adapters.package_version import require_package

TRANSFORMERS_VERSION: Final = require_package(
    "transformers", (5, 20), (6, 0), "mldb.adapters.huggingface", "huggingface"
)
