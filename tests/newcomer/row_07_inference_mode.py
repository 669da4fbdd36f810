"""Weights that were read in an evaluation are trained on later.

My evaluation runs under ``torch.inference_mode``, and the model is restored inside of it. Elsewhere
its tensors were inference tensors from then on, and the training loop died with "Inference tensors
cannot be saved for backward". I expect plain tensors, whatever mode is on.
"""

import tempfile

import torch

import mldb

EXPECTED = """\
inference tensors: [False, False]
gradient: [2.0, 2.0, 2.0]
"""


def main(path: str) -> None:
    """Read under inference_mode, train outside."""
    with mldb.open(path) as db:
        db.checkpoint({"scale": torch.ones(3), "shift": torch.zeros(3)}, epoch=1)
        with torch.inference_mode():
            saved = db.load(None)
            by_name = db.tensor("shift").torch()
    print("inference tensors:", [saved["scale"].is_inference(), by_name.is_inference()])
    scale = saved["scale"].requires_grad_()
    (scale * scale + by_name).sum().backward()
    print("gradient:", scale.grad.tolist())
    assert scale.grad.tolist() == [2, 2, 2]
    by_name += 1
    assert by_name.tolist() == [1, 1, 1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
