"""A model that was saved inside ``DataParallel`` is loaded without it.

Its keys begin with ``module.`` then. Elsewhere ``strict=False`` loaded nothing and said nothing,
and I evaluated random weights for a day. I expect to be told: an error that names the prefix, a
warning when nothing matched, a report of what went where, and a way to take the prefix off.
"""

import tempfile
import warnings

import torch

import mldb

EXPECTED = """\
strict: an error that names 'module.' and strip_prefix
not strict: NothingLoadedWarning
loaded () missing ('model/weight', 'model/bias')
stripped: <LoadReport 2 loaded>
"""


def main(path: str) -> None:
    """Save with the prefix, load without."""
    trained, model = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    before = model.weight.clone()
    with mldb.open(path) as db:
        db.checkpoint({"model": torch.nn.DataParallel(trained)}, epoch=1)
        try:
            db.load({"model": model})
        except mldb.MldbError as error:
            assert "module." in str(error)
            assert "strip_prefix='auto'" in str(error)
            print("strict: an error that names 'module.' and strip_prefix")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = db.load({"model": model}, strict=False)
        print("not strict:", *(warning.category.__name__ for warning in caught))
        print("loaded", report.loaded, "missing", report.missing)
        assert torch.equal(model.weight, before)
        print("stripped:", db.load({"model": model}, strip_prefix="auto"))
    assert torch.equal(model.weight, trained.weight)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
