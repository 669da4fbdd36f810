"""Write, slice and multiply tensors with a bounded amount of memory, whatever their size.

python examples/larger_than_memory.py [new store] [rows]
"""

from __future__ import annotations

import sys

import numpy as np

import mldb


def main(path: str = "larger_than_memory_store", rows: int | str = 20_000) -> None:
    """Store a (rows, 512) matrix in pieces and multiply its transpose with it."""
    rows = int(rows)
    columns, step = 512, 1000
    rng = np.random.default_rng(0)
    with mldb.open(path) as db:
        # Each piece goes to the disk; the commit at the end of the block makes all of it visible.
        with (
            db.create_tensor("x", (rows, columns), "float32") as x,
            db.create_tensor("x_mean", (columns,), "float64") as mean,
        ):
            total = np.zeros(columns)
            for start in range(0, rows, step):
                piece = rng.standard_normal((min(step, rows - start), columns), np.float32)
                x[start : start + len(piece)] = piece
                total += piece.sum(0)
            mean[:] = total / rows

        # A handle reads nothing until it is asked, and then only the bytes of the slice.
        handle = db.tensor("x")
        print(f"{handle.shape} {handle.dtype}, {handle.nbytes / 1e6:.0f} MB; one row of it:")
        print(handle[rows // 2, :4])

        # Blocks of at most 4 MB are in work; the result is written block by block as well.
        db["projection"] = rng.standard_normal((columns, 64)).astype(np.float32)
        product = db.ops.matrix_multiply("x", "projection", out="projected", memory_bytes=4 << 20)
        assert product.shape == (rows, 64)
        np.testing.assert_allclose(product[:10], handle[:10] @ db["projection"], rtol=1e-3)
        print(f"projected: {product.shape}, commit {int(product.lsn)}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
