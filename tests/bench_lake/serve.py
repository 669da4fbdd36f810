"""The process of one contender: ``python -m tests.bench_lake.serve``, which speaks JSON lines.

The first line of standard input is the task, which is prepared and answered; each further line asks
for one turn. What is printed to standard output goes to standard error instead.
"""

from __future__ import annotations

import json
import os
import sys

from tests.bench.children import Result
from tests.bench_lake.worker import AbsentError, make_worker


def main() -> int:
    """Serve one task until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(result: Result) -> None:
        print(json.dumps(result), file=answers, flush=True)

    try:
        worker = make_worker(json.loads(sys.stdin.readline()))
    except AbsentError as reason:
        answer({"absent": str(reason)})
        return 0
    answer(worker.ready)
    for line in sys.stdin:
        answer(worker.turn(json.loads(line)))
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
