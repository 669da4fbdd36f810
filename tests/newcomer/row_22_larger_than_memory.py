"""A lake that is larger than the memory I may use is read in its order, and shuffled.

My job has a memory limit. Elsewhere ``shuffle=False`` failed with ENOMEM before the first batch,
since a whole block of rows was mapped as memory of my own. Here the limit is what is in use plus 48
MiB, and the rows are one block of 64 MiB.
"""

import os
import resource
import tempfile

import numpy as np
import torch

import mldb

EXPECTED = """\
64 MiB of rows, a limit of 48 MiB
in their order: 25600 rows
shuffled: 25600 rows
"""


def main(path: str) -> None:
    """Read every row under the limit."""
    count, mib = 25_600, 1 << 20
    with mldb.open(path) as db:
        rows = np.zeros((count, 640), np.float32)
        rows[:, 0] = 1
        db.lake("rows").add_splats(rows)
        print(f"{rows.nbytes * 1024 // 1000 // mib} MiB of rows, a limit of 48 MiB")
        del rows
    with open(f"/proc/{os.getpid()}/statm", encoding="ascii") as file:
        in_use = int(file.read().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + 48 * mib, before[1]))
    try:
        with mldb.open(path, mode="r") as db:
            for title, shuffle in (("in their order", False), ("shuffled", True)):
                loader = db.lake("rows").export_to_dataloader(256, shuffle=shuffle)
                total = int(torch.stack([batch[:, 0].sum() for batch in loader]).sum())
                print(f"{title}: {total} rows")
                assert total == count
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
