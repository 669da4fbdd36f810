"""Entry of ``python -m tests.bench_lake``."""

from __future__ import annotations

import sys

from tests.bench_lake.runner import main

if __name__ == "__main__":
    sys.exit(main())
