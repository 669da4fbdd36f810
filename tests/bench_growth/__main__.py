"""Entry of ``python -m tests.bench_growth``."""

from __future__ import annotations

import sys

from tests.bench_growth.runner import main

if __name__ == "__main__":
    sys.exit(main())
