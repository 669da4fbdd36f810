"""Resuming as if nothing had happened: random numbers, and the history behind the checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from mldb.adapters.generators import rng_state, set_rng_state
from mldb.adapters.lightning_io import CheckpointIO
from mldb.errors import UsageError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_logger = logging.getLogger(__name__)


class ExactResume(Callback):
    """What Lightning leaves out of a checkpoint, kept in it: the states of random generators.

    They are those of Python, of NumPy's global generator, and of torch on the CPU and every device
    in use. ``fit(ckpt_path=...)`` sets them before its first batch, and rewinds the store to the
    checkpoint: what was committed after it leaves the head, so that curves go on from there and
    epochs are those of the run. It stays readable by commit. So keep data that grows meanwhile, as
    a lake, in a store of its own. Of several processes, the state is that of the first one.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators now."""
        return rng_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training begins."""
        self._states = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rewind the store to the checkpoint that the fit resumes from.

        Raises UsageError where the Trainer keeps its checkpoints elsewhere.
        """
        if trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        if _store_of(trainer).rewind_to_loaded():
            _logger.info("the store goes on from %s", trainer.ckpt_path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the generators as they were."""
        states, self._states = self._states, None
        if states is not None:
            set_rng_state(states)


def _store_of(trainer: Trainer) -> CheckpointIO:
    """The CheckpointIO of a Trainer, also inside of those that wrap it."""
    found: Any = trainer.strategy.checkpoint_io
    for _ in range(8):
        if isinstance(found, CheckpointIO):
            return found
        found = getattr(found, "checkpoint_io", None)
    raise UsageError(
        "ExactResume goes with mldb's CheckpointIO: "
        "Trainer(plugins=[mldb.adapters.lightning.CheckpointIO(store)], ...)"
    )
