"""Entry of ``python -m tests.bench_adapters``."""

from __future__ import annotations

import sys

from tests.bench.pure import settle

if __name__ == "__main__":
    settle(sys.argv[1:])

    from tests.bench_adapters.runner import main

    sys.exit(main())
