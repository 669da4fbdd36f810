"""The training run of the demo: a small network on 8 x 8 digits, resumable bit for bit.

Every source of chance takes part in it, so that a resume that forgot one of them would be seen:
torch (dropout), NumPy (noise on the images), Python (shifts of the images) and the loader (order).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mldb.database import MLDatabase
from mldb.state.tree import flatten
from mldb.tensors.codec import prepare
from mldb.tools.demo.orders import IMAGES, LABELS, Settings

if TYPE_CHECKING:
    import torch

_TEST_PART = 5  # one image of this many is kept for testing


def fingerprint(state: Any) -> str:
    """Return a hash of every bit of a training state: tensors, plain values, types and names."""
    flat = flatten(state)
    digest = hashlib.sha256(flat.skeleton)
    for name, tensor in flat.tensors.items():
        digest.update(name.encode())
        for buffer in prepare(tensor).buffers:
            digest.update(buffer)
    return digest.hexdigest()


class Loader:
    """Shuffled batches; its state is the place within the pass and the order of the pass."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        import torch

        self._count = count
        self._batch = batch
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(count, generator=self._generator)
        self._place = 0

    def next(self) -> torch.Tensor:
        """Return the indices of the next batch; int64, shape (batch,) or less at the end."""
        import torch

        picked = self._order[self._place : self._place + self._batch]
        self._place += self._batch
        if self._place >= self._count:
            self._place = 0
            self._order = torch.randperm(self._count, generator=self._generator)
        return picked

    @property
    def at_start(self) -> bool:
        """Whether a new pass begins."""
        return self._place == 0

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor."""
        return {
            "place": self._place,
            "order": self._order,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved cursor."""
        self._place = state["place"]
        self._order = state["order"]
        self._generator.set_state(state["generator"])


class Training:
    """One run over the data in a store. For one thread; torch's global generator is part of it."""

    def __init__(self, db: MLDatabase, settings: Settings) -> None:
        import torch

        images = torch.from_numpy(np.array(db[IMAGES]))
        labels = torch.from_numpy(np.array(db[LABELS]))
        test = torch.arange(len(images)) % _TEST_PART == 0
        self._train = images[~test], labels[~test]
        self._test = images[test], labels[test]
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(images.shape[1], settings.hidden),
            torch.nn.BatchNorm1d(settings.hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(settings.hidden, 10),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=4, gamma=0.5)
        self.loader = Loader(len(self._train[0]), settings.batch, settings.seed)
        self._noise = np.random.default_rng(settings.seed)
        self._shift = random.Random(settings.seed)
        self.epoch = 1
        self.step = 0
        self.curve: list[float] = []
        self.accuracy = 0.0

    def state(self) -> dict[str, Any]:
        """Return everything that decides how training goes on; aliases the live tensors."""
        import torch

        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "loader": self.loader,
            "rng": {
                "torch": torch.get_rng_state(),
                "numpy": self._noise.bit_generator.state,
                "python": self._shift.getstate(),
            },
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "curve": list(self.curve),
                "accuracy": self.accuracy,
            },
        }

    def resume(self, db: MLDatabase) -> None:
        """Continue where the newest checkpoint of *db* was taken. Raises MissingError."""
        import torch

        tree = db.load(self.state())
        torch.set_rng_state(tree["rng"]["torch"])
        self._noise.bit_generator.state = tree["rng"]["numpy"]
        self._shift.setstate(tree["rng"]["python"])
        progress = tree["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.curve, self.accuracy = progress["curve"], progress["accuracy"]

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate from here on."""
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def run(self, until: int, save: Callable[[Training, int, bool], None]) -> None:
        """Train to the end of epoch *until*, calling ``save(self, epoch, epoch_is_over)``."""
        while self.epoch <= until:
            loss = self._one_step()
            self.step += 1
            self.curve.append(loss)
            if self.loader.at_start:
                self.scheduler.step()
                self.accuracy = self._measure()
                self.epoch += 1
                save(self, self.epoch - 1, True)
            elif self.step % self.settings.save_steps == 0:
                save(self, self.epoch, False)

    def _one_step(self) -> float:
        import torch

        picked = self.loader.next()
        images, labels = self._train[0][picked], self._train[1][picked]
        noise = self._noise.normal(0, 0.05, images.shape).astype(np.float32)
        shift = self._shift.choice((-1, 0, 0, 1))
        images = torch.roll(images.view(-1, 8, 8), shift, 2).flatten(1) + torch.from_numpy(noise)
        self.model.train()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.item())

    def _measure(self) -> float:
        import torch

        self.model.eval()
        with torch.no_grad():
            found = self.model(self._test[0]).argmax(1)
        return float((found == self._test[1]).float().mean())
