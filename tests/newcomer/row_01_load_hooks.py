"""A checkpoint of the old ``weight_norm`` goes into a layer with the new one.

The model was trained with ``torch.nn.utils.weight_norm``, whose keys are ``weight_g`` and
``weight_v``. Today's code uses ``parametrizations.weight_norm``, whose keys are others. torch's own
hook renames them in ``load_state_dict``. Elsewhere keys were compared before any hook ran, and the
checkpoint was refused. I expect that ``db.load`` takes what ``load_state_dict`` takes.
"""

import tempfile
import warnings

import torch
from torch.nn.utils import parametrizations, weight_norm

import mldb

EXPECTED = """\
saved as ['bias', 'weight_g', 'weight_v']
<LoadReport 3 loaded>
same answers: True
"""


def main(path: str) -> None:
    """Save with the old layer, load into the new one."""
    with warnings.catch_warnings():  # torch says that the old one is deprecated
        warnings.simplefilter("ignore")
        old = weight_norm(torch.nn.Linear(4, 3))
    new = parametrizations.weight_norm(torch.nn.Linear(4, 3))
    x = torch.randn(5, 4)
    with mldb.open(path) as db:
        db.checkpoint({"model": old}, epoch=1)
        print("saved as", sorted(db.state_dict(prefix="model/")))
        report = db.load({"model": new})
        print(report)
    assert not report.missing
    assert not report.unexpected
    assert torch.allclose(new(x), old(x))
    print("same answers:", torch.allclose(new(x), old(x)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
