"""What the processes of the demo tell each other; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

IMAGES, LABELS = "data/images", "data/labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is determined by. ``save_steps`` is how many steps lie between two saves."""

    epochs: int = 12
    batch: int = 48
    hidden: int = 256
    save_steps: int = 15
    learning_rate: float = 0.002
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one training process does: train the run in store *path* to the end of epoch *until*.

    It resumes from the newest checkpoint when there is one. With *kill_step* it dies in the middle
    of the save at that step, after *kill_byte* bytes of it. With *rewind* the store goes back to
    the end of that epoch first, and the learning rate is multiplied by *rate_factor*.
    """

    path: str
    until: int
    settings: Settings = field(default_factory=Settings)
    kill_step: int | None = None
    kill_byte: int = 1
    rewind: int | None = None
    rate_factor: float = 1.0
