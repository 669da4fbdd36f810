"""What of a Hugging Face training goes into one checkpoint of a store, and comes out of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from transformers import TrainerState

from mldb.adapters.generators import rng_state
from mldb.adapters.huggingface_version import TRANSFORMERS_VERSION
from mldb.database import MLDatabase
from mldb.errors import CorruptError, MissingError, UsageError
from mldb.history.checkpoints import Checkpoint

PREFIX: Final = "checkpoint-"
"""In front of the step in the name of a checkpoint, as transformers calls its folders."""
_KEY: Final = "trainer"


def checkpoint_parts(
    state: TrainerState,
    model: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
) -> dict[str, Any]:
    """Return the tree that ``db.checkpoint`` takes. Without an optimizer it is the model alone.

    ``trainer`` is the state of the Trainer as JSON, the text that it writes into its own folders.
    """
    parts: dict[str, Any] = {"model": model, _KEY: json.dumps(asdict(state))}
    if optimizer is not None:
        parts["optimizer"] = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        parts["rng"] = rng_state()
        if scheduler is not None:
            parts["scheduler"] = getattr(scheduler, "scheduler", scheduler)
        if scaler is not None:
            parts["scaler"] = scaler
    return parts


def save_parts(
    db: MLDatabase, state: TrainerState, parts: dict[str, Any], *, background: bool
) -> None:
    """Store one checkpoint: one commit, named and numbered after the step."""
    db.checkpoint(
        parts,
        epoch=int(state.epoch or 0),
        step=state.global_step,
        name=f"{PREFIX}{state.global_step}",
        metrics={} if state.best_metric is None else {"best_metric": float(state.best_metric)},
        wait=not background,  # type: ignore[call-overload]
    )


def find_checkpoint(db: MLDatabase, wanted: str | bool) -> Checkpoint | None:
    """Return the checkpoint of a name, or the newest for True; None where there is none."""
    found = [item for item in db.checkpoints() if item.name.startswith(PREFIX)]
    if wanted is True:
        return max(found, key=lambda item: item.lsn, default=None)
    return next((item for item in found if item.name == wanted), None)


class Resumed(NamedTuple):
    """A checkpoint that a training goes on from: what it has beside tensors."""

    checkpoint: Checkpoint
    parts: frozenset[str]
    state: TrainerState
    rng: dict[str, Any] | None


def resume_from(db: MLDatabase, checkpoint: Checkpoint) -> Resumed:
    """Read what a Trainer's checkpoint has; its large tensors are mapped and not read.

    Raises MissingError for a checkpoint of something else, CorruptError, and UsageError for one of
    a transformers whose TrainerState has other fields.
    """
    stored = db.load(None, as_of=checkpoint.lsn)
    text = stored.get(_KEY) if isinstance(stored, dict) else None
    if not isinstance(text, str):
        raise MissingError(f"checkpoint {checkpoint.name!r} has no state of a Trainer")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"the Trainer's state in {checkpoint.name!r} is no JSON") from error
    try:
        state = TrainerState(**fields)
    except TypeError as error:
        raise UsageError(
            f"checkpoint {checkpoint.name!r} was taken under another version of transformers, "
            f"whose TrainerState is not that of {TRANSFORMERS_VERSION}: {error}. Its tensors are "
            "read all the same: db.load(None, as_of=...)"
        ) from None
    return Resumed(checkpoint, frozenset(stored), state, stored.get("rng"))


def load_parts(db: MLDatabase, resumed: Resumed, live: dict[str, Any]) -> bool:
    """Load what *live* names, into the objects in it; whether the checkpoint had all of it.

    Nothing is loaded where a part is missing, as after ``save_only_model``.
    """
    live = {name: part for name, part in live.items() if part is not None}
    if not live or not live.keys() <= resumed.parts:
        return False
    db.load(live, as_of=resumed.checkpoint.lsn, part=True)
    return True
