"""Ctrl-C in a notebook, and the cell once more.

I stop a running epoch whenever I like, and start the next one. Elsewhere the thread that made
batches ahead went on, shared its stream with the next epoch, and some of its batches were wrong,
with no word. I expect that the next pass is exactly what it should be, and that no thread stays.
"""

import itertools
import signal
import tempfile
import threading
import time
from typing import Any

import numpy as np
import torch

import mldb

EXPECTED = """\
25 interrupts, 25 passes after them
wrong batches: 0
threads left: 0
"""


def main(path: str) -> None:
    """Interrupt a pass at many moments; look at each pass that follows."""
    rows = np.random.default_rng(0).standard_normal((600, 32), dtype=np.float32)
    settings: dict[str, Any] = {"generate_samples": True, "device": "numpy", "seed": 4}
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupts = passes = wrong = 0
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=32)
        lake.add_splats(rows)
        threads = threading.active_count()
        loader = lake.export_to_dataloader(50, **settings)
        other = lake.export_to_dataloader(50, **settings).dataset  # nobody interrupts this one
        for moment in range(25):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001 + moment * 0.0007)
                for _ in itertools.count():
                    for _ in loader:
                        pass
            except KeyboardInterrupt:
                interrupts += 1
            for number, batch in enumerate(loader):
                right = other.batch(number, pass_number=loader.dataset.pass_number)
                wrong += not torch.equal(batch, right)
            passes += number == 11
        end = time.monotonic() + 10
        while threading.active_count() > threads and time.monotonic() < end:
            time.sleep(0.01)  # one that was told to end may be at its last batch
        print(f"{interrupts} interrupts, {passes} passes after them")
        print("wrong batches:", wrong)
        print("threads left:", threading.active_count() - threads)
        assert (interrupts, passes, wrong) == (25, 25, 0)
        assert threading.active_count() == threads
    signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
