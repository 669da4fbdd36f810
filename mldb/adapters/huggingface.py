"""Hugging Face: a Trainer whose checkpoints are commits of a store.

For transformers 5.20 and newer of major 5, and accelerate 1.15 and newer of major 1; another one is
refused by name when this module is imported. Tests run with transformers 5.24.

>>> from mldb.adapters.huggingface import MldbTrainer          # doctest: +SKIP
>>> trainer = MldbTrainer(model, args, train_dataset=data, db=db)  # doctest: +SKIP
>>> trainer.train(resume_from_checkpoint=True)                 # doctest: +SKIP

What is relied on of ``transformers.Trainer`` beside its public interface: that it saves through
``_save_checkpoint``, resumes through ``_load_from_checkpoint``,
``_load_optimizer_and_scheduler``, ``_load_scaler`` and ``_load_rng_state``, loads the best model
through ``_load_best_model``, and reads ``trainer_state.json`` of the folder it resumes from. That
file is written anew at each resume, into ``resumed`` of the output folder; it is the one thing that
does not stay in the store.
"""

from __future__ import annotations

import logging
from typing import Any

# First of all: they refuse versions that do not fit.
from mldb.adapters.accelerate_version import ACCELERATE_VERSION
from mldb.adapters.huggingface_version import TRANSFORMERS_VERSION

# isort: split
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from mldb.adapters.generators import set_rng_state
from mldb.adapters.huggingface_state import (
    PREFIX,
    Resumed,
    checkpoint_parts,
    find_checkpoint,
    load_parts,
    resume_from,
    save_parts,
)
from mldb.adapters.plain import numbers_of
from mldb.database import MLDatabase
from mldb.errors import InvalidTypeError, MissingError, UsageError
from mldb.log.fs.posix import OsFileSystem

__all__ = ["ACCELERATE_VERSION", "TRANSFORMERS_VERSION", "MldbCallback", "MldbTrainer"]

_logger = logging.getLogger(__name__)


class MldbCallback(TrainerCallback):
    """Stores the metrics of a Trainer, and with *save* what each of its checkpoints has.

    For any Trainer. Its own folders are still written; a checkpoint in the store is named as they
    are (``checkpoint-500``), is one atomic commit, and :class:`MldbTrainer` resumes from it. It has
    no gradient scaler of fp16, which a callback is not given. Numbers of ``on_log`` become curves,
    ``db.metrics("loss")``, stored within a second. Of several processes the first one stores. The
    store stays open and is its owner's to close. Raises what ``db.checkpoint`` and ``db.log`` do.
    """

    def __init__(self, db: MLDatabase, *, save: bool = True, background: bool = False) -> None:
        """*background*: training goes on while a checkpoint is written behind it."""
        self.db = _checked(db)
        self.save, self.background = save, background

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Store the numbers of a log."""
        values = numbers_of(logs or {})
        if values and state.is_world_process_zero:
            self.db.log(values, epoch=int(state.epoch or 0), step=state.global_step, buffer=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store model, optimizer, scheduler, generators and the Trainer's state as one commit."""
        if not self.save or not state.is_world_process_zero:
            return
        live = () if args.save_only_model else (kwargs["optimizer"], kwargs["lr_scheduler"])
        parts = checkpoint_parts(state, kwargs["model"], *live)
        save_parts(self.db, state, parts, background=self.background)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait until all is stored, and raise what went wrong behind."""
        self.db.sync()


class MldbTrainer(Trainer):
    """A Trainer that saves into a store, resumes from it, and logs its metrics there.

    Each checkpoint is one atomic commit named ``checkpoint-<step>``: model, optimizer, scheduler,
    scaler, generators and the Trainer's state; nothing is pickled, and no folder is written.
    ``train(resume_from_checkpoint=True)`` goes on from the newest one, or from one of a name,
    bit-exactly; a path goes to the Trainer itself, so that an old folder can be continued in a
    store. Resuming rewinds the store to that commit, so that curves have no step twice; what is
    left behind stays readable by LSN. In a store that others write to pass ``rewind=False``.

    ``save_strategy``, ``save_steps``, ``save_only_model`` and ``load_best_model_at_end`` do what
    they say. ``save_total_limit`` does not remove anything: the store's retention does.

    One process: with several, and under FSDP or DeepSpeed, it raises UsageError before training;
    there ``mldb.adapters.dcp`` stores. The thread rules are those of the Trainer. The store stays
    open and is its owner's to close.
    """

    def __init__(
        self,
        *args: Any,
        db: MLDatabase,
        background: bool = False,
        rewind: bool = True,
        **options: Any,
    ) -> None:
        """Everything else is as of Trainer. *background*: training goes on while one is written."""
        self.db = _checked(db)
        self.background, self.rewind = background, rewind
        self._resumed: Resumed | None = None
        super().__init__(*args, **options)
        self.add_callback(MldbCallback(db, save=False))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any
    ) -> Any:
        """Train as Trainer does; True resumes from the newest checkpoint of the store.

        Raises MissingError where a checkpoint is asked for and there is none, UsageError for what
        cannot be stored in this way.
        """
        self._refuse_others()
        self._resumed = None
        if resume_from_checkpoint:
            resume_from_checkpoint = self._resume(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint or None, *args, **options)
        finally:
            self._resumed = None

    def _resume(self, wanted: str | bool) -> str:
        """Choose the checkpoint; return the folder with the one file that train() reads."""
        found = find_checkpoint(self.db, wanted)
        if found is None:
            if wanted is True or str(wanted).startswith(PREFIX):
                raise MissingError(
                    f"there is no checkpoint {PREFIX + '*' if wanted is True else wanted!r} in "
                    f"{self.db.path!r}; train without resume_from_checkpoint first"
                )
            return str(wanted)
        resumed = resume_from(self.db, found)
        state = resumed.state
        # The Trainer looks for a folder of this name and forgets one that is not there.
        state.best_model_checkpoint = None
        folder = OsFileSystem.prepare_root(f"{self.args.output_dir}/resumed", create=True)
        state.save_to_json(f"{folder}/trainer_state.json")
        if self.rewind and self.db.lsn != found.lsn:
            self.db.rewind(found.lsn)
        self._resumed = resumed
        return folder

    def _refuse_others(self) -> None:
        several = self.args.world_size > 1
        for is_so, what in (
            (several, "several processes"),
            (self.is_fsdp_enabled, "FSDP"),
            (self.is_deepspeed_enabled, "DeepSpeed"),
        ):
            if is_so:
                raise UsageError(
                    f"MldbTrainer stores the state of one process, and this is {what}. Nothing was "
                    "trained; store it with mldb.adapters.dcp, or the metrics alone with "
                    "MldbCallback(db, save=False)."
                )

    # --- what the Trainer calls -------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if trial is not None or self.hp_search_backend is not None:
            raise UsageError(
                "the trials of a search are runs of their own; give each a Trainer and a store"
            )
        self.store_flos()
        state: Any = self.state  # whose types say less than it holds
        best = f"{PREFIX}{state.best_global_step}"
        if state.best_global_step and (
            state.best_global_step == state.global_step or find_checkpoint(self.db, best)
        ):
            state.best_model_checkpoint = best
        for item in (*self.callback_handler.callbacks, self.control):
            if isinstance(item, ExportableState):
                _note_state(state.stateful_callbacks, type(item).__name__, item.state())
        live: tuple[Any, ...] = ()
        if not self.args.save_only_model:
            scaler = getattr(self.accelerator, "scaler", None)
            live = self.optimizer, self.lr_scheduler, scaler
        parts = checkpoint_parts(state, self.model, *live)
        save_parts(self.db, state, parts, background=self.background)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._resumed is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_parts(self.db, self._resumed, {"model": self.model if model is None else model})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._resumed is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if self.state.best_global_step:
            best = f"{PREFIX}{self.state.best_global_step}"
            self.state.best_model_checkpoint = best if find_checkpoint(self.db, best) else None
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if not load_parts(self.db, self._resumed, {"optimizer": optimizer, "scheduler": scheduler}):
            _logger.warning(
                "checkpoint %r has no optimizer (save_only_model); it begins anew",
                self._resumed.checkpoint.name,
            )

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._resumed is None:
            super()._load_scaler(checkpoint)
            return
        load_parts(self.db, self._resumed, {"scaler": getattr(self.accelerator, "scaler", None)})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is None:
            super()._load_rng_state(checkpoint)
            return
        if self._resumed.rng is not None:
            set_rng_state(self._resumed.rng)

    def _load_best_model(self) -> None:
        best = find_checkpoint(self.db, str(self.state.best_model_checkpoint))
        if best is None:
            super()._load_best_model()
        else:
            self.db.load({"model": self.model}, as_of=best.lsn, part=True)


def _note_state(states: dict[str, Any], name: str, state: dict[str, Any]) -> None:
    if isinstance(states.get(name), list):
        states[name].append(state)
    else:
        states[name] = state


def _checked(db: Any) -> MLDatabase:
    if not isinstance(db, MLDatabase):
        raise InvalidTypeError(f"db is a {type(db).__name__}; pass what mldb.open() gives")
    return db
