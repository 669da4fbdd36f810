"""Entry of ``python -m tests.bench_tools``."""

from __future__ import annotations

import sys

from tests.bench_tools.runner import main

if __name__ == "__main__":
    sys.exit(main())
