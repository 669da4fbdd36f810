"""``device="auto"`` takes a device that can do what I ask.

My rows have 8,192 numbers. Elsewhere "auto" took the first device that it found, a Vulkan driver
for the CPU, and refused them then, though torch can do it. I expect a device that can, and where
none can, an error that says of each one why.
"""

import tempfile

import numpy as np

import mldb

EXPECTED = """\
8192 dimensions: batches of (8, 8192), all of length 1
mean cosine 0.9: True
what no device can do: refused, with a reason for torch and numpy
"""


def main(path: str) -> None:
    """Ask for something large, and for something impossible."""
    rows = np.random.default_rng(0).standard_normal((32, 8192), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with mldb.open(path) as db:
        lake = db.lake("wide", dim=8192)
        lake.add_splats(rows)
        loader = lake.export_to_dataloader(8, generate_samples=True, fields=("mu", "id"))
        cosines = []
        for batch in loader:
            lengths = np.linalg.norm(batch.mu, axis=1)
            assert np.allclose(lengths, 1, atol=1e-4)
            cosines.append((batch.mu.numpy() * rows[batch.id]).sum(1))
        print(f"8192 dimensions: batches of {tuple(batch.mu.shape)}, all of length 1")
        mean = np.concatenate(cosines).mean()
        print("mean cosine 0.9:", abs(mean - 0.9) < 0.01)
        assert abs(mean - 0.9) < 0.01, mean
        narrow = db.lake("narrow", dim=4)
        narrow.add_splats(rows[:, :4])
        chains = mldb.Augmentation(mode="langevin", form="subspace")
        try:
            list(narrow.export_to_dataloader(8, generate_samples=chains))
        except mldb.MldbError as error:
            assert "torch" in str(error)
            assert "numpy" in str(error)
            assert "dimensions" in str(error)
            print("what no device can do: refused, with a reason for torch and numpy")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
