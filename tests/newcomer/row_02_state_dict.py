"""``db.state_dict`` gives what the module's ``state_dict()`` gave.

A model whose layers are called after tables and columns ("user/item"), and that keeps its
vocabulary as extra state. Elsewhere the keys came back escaped (``user%2Fitem.weight``) and the
vocabulary was left out, so that ``load_state_dict`` failed. I expect the same keys in the same
order, with the same types.
"""

import tempfile
from typing import Any

import torch

import mldb

EXPECTED = """\
user/item.weight Tensor (5, 2)
user/item._extra_state dict {'red': 0, 'blue': 1}
norm.weight Tensor (2,)
norm.bias Tensor (2,)
norm.running_mean Tensor (2,)
norm.running_var Tensor (2,)
norm.num_batches_tracked Tensor ()
loaded by torch: <All keys matched successfully>
"""


class Words(torch.nn.Embedding):
    """An embedding that knows its words."""

    words: dict[str, int] = {}  # noqa: RUF012 - as a user would write it

    def get_extra_state(self) -> dict[str, int]:
        return self.words

    def set_extra_state(self, state: Any) -> None:
        self.words = state


def build() -> Any:
    return torch.nn.ModuleDict({"user/item": Words(5, 2), "norm": torch.nn.BatchNorm1d(2)})


def main(path: str) -> None:
    """Compare the two state dicts key by key."""
    model = build()
    model["user/item"].words = {"red": 0, "blue": 1}
    with mldb.open(path) as db:
        db.checkpoint({"model": model}, epoch=1)
        found = db.state_dict(prefix="model/")
    given = model.state_dict()
    assert list(found) == list(given)
    for key, value in found.items():
        is_tensor = isinstance(value, torch.Tensor)
        print(key, type(value).__name__, tuple(value.shape) if is_tensor else value)
        assert type(value) is type(given[key])
        assert torch.equal(value, given[key]) if is_tensor else value == given[key]
    print("loaded by torch:", build().load_state_dict(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
