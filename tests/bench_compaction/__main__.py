"""Entry of ``python -m tests.bench_compaction``."""

from __future__ import annotations

import sys

from tests.bench_compaction.runner import main

if __name__ == "__main__":
    sys.exit(main())
