"""Workers are started while another thread compiles kernels.

A preview in a thread of my program augments its first batch, which compiles kernels for seconds;
the training loop starts its workers meanwhile. Elsewhere the forked workers waited for ever for a
lock that nobody in them held. I expect two whole passes.
"""

import tempfile
import threading
import time
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
training: 60 rows
preview: 60 rows
"""


def main(path: str) -> None:
    """Start both at once."""
    rows = np.random.default_rng(0).standard_normal((60, 16), dtype=np.float32)
    preview: list[int] = []
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=16)
        lake.add_splats(rows)
        settings: dict[str, Any] = {"generate_samples": True, "device": "cpu"}
        # A worker that hangs is an error after this many seconds.
        patience = {"timeout": 200}
        first = lake.export_to_dataloader(20, **settings)
        loader = lake.export_to_dataloader(20, **settings, num_workers=2, loader=patience)
        thread = threading.Thread(target=lambda: preview.extend(map(len, first)))
        thread.start()
        time.sleep(0.5)  # now it compiles
        rows_seen = sum(len(batch) for batch in loader)
        thread.join()
    print("training:", rows_seen, "rows")
    print("preview:", sum(preview), "rows")
    assert rows_seen == sum(preview) == 60


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
