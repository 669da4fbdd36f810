"""A DataModule over the splat lakes of a store, and the loader that Lightning can count on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from lightning.pytorch import LightningDataModule

from mldb.adapters.lightning_store import StoreHolder
from mldb.database import MLDatabase
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.stream.dataset import M2MDataLake
from mldb.lake.stream.loader import LakeLoader
from mldb.lake.stream.settings import StreamOptions, make_options
from mldb.log.index.address import Lsn

_STAGES: Final = ("train", "val", "test")
_ARGUMENTS: Final = {"importance": "importance_sampling", "augmentation": "generate_samples"}


class TrainLoader(LakeLoader):
    """A loader over a lake that keeps what Lightning expects of one, in the middle of a pass too.

    ``len`` is that of a whole pass, also where a state was loaded that leaves a part of it: to
    Lightning the batches before it are done. An ``iter`` of which no batch was taken is begun again
    by the next one, as Lightning makes one too many where it resumes at the end of an epoch. In all
    else it is a :class:`mldb.LakeLoader`.
    """

    def __init__(self, dataset: M2MDataLake, **options: Any) -> None:
        """*options* are those of :class:`mldb.LakeLoader`."""
        super().__init__(dataset, **options)
        self._whole = dataset.batches()
        self._begun: dict[str, Any] | None = None

    def __iter__(self) -> Any:
        """Begin the next pass, the rest of the one a state was loaded for, or the same again."""
        if self._begun is not None and self.state_dict() == self._begun:
            super().load_state_dict(self._begun)
        batches = super().__iter__()
        self._begun = self.state_dict()
        return batches

    def __len__(self) -> int:
        """Batches of this rank in a whole pass."""
        return self._whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where *state* was taken. Raises InvalidValueError, InvalidTypeError."""
        super().load_state_dict(state)
        super().load_state_dict(state | {"cursor": 0, "done": 0})
        self._whole = self.dataset.batches()
        super().load_state_dict(state)
        self._begun = None


class EvaluationLoader(LakeLoader):
    """A loader over a lake whose every ``iter`` is the same pass, so that scores compare."""

    def __init__(self, dataset: M2MDataLake, **options: Any) -> None:
        """*options* are those of :class:`mldb.LakeLoader`."""
        super().__init__(dataset, **options)
        self._first = self.state_dict()

    def __iter__(self) -> Any:
        """Begin the first pass."""
        self.load_state_dict(self._first)
        return super().__iter__()


class LakeDataModule(LightningDataModule):
    """Lakes of a store as the data of a Trainer: ``fit(model, datamodule=LakeDataModule(...))``.

    Each lake is read as of the commit that was the newest when the stage was set up, or *as_of*;
    checkpoints keep it, so a resumed run reads the same rows, however the lake grew. Training goes
    on with the next batch of the pass that the checkpoint was taken in. Every evaluation is the
    same pass, in the order of the rows unless its options say otherwise.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | MLDatabase,
        *,
        train: str = "default",
        val: str | None = None,
        test: str | None = None,
        options: StreamOptions | Mapping[str, Any] | None = None,
        evaluation: StreamOptions | Mapping[str, Any] | None = None,
        loader: Mapping[str, Any] | None = None,
        as_of: Any = None,
    ) -> None:
        """*train*, *val* and *test* are names of lakes; None for no such loader.

        *options* and *evaluation* say how they are read (:class:`mldb.StreamOptions`, or a dict of
        its fields); *evaluation* has the batch size, fields and device of *options* where it is
        left out. *loader*: further arguments of DataLoader for training. Raises InvalidTypeError,
        InvalidValueError.
        """
        super().__init__()
        given_open = isinstance(store, MLDatabase)
        self._store = StoreHolder(store, None if given_open else {"mode": "r"})
        self._lakes = dict(zip(_STAGES, (train, val, test), strict=True))
        for stage, lake in self._lakes.items():
            if not isinstance(lake, str | None):
                raise InvalidTypeError(
                    f"{stage} is a {type(lake).__name__}; give the name of a lake"
                )
        self._options = _as_options("options", options) or StreamOptions()
        self._evaluation = _as_options("evaluation", evaluation) or _plain_reading(self._options)
        self._loader = dict(loader or {})
        self._as_of = as_of
        self._commit: int | None = None
        self._training: TrainLoader | None = None
        self._position: dict[str, Any] | None = None  # of training, in the checkpoint

    def setup(self, stage: str) -> None:
        """Fix the commit that the lakes are read at, unless a checkpoint did."""
        self._position = None  # a checkpoint is loaded behind this
        self._fix_commit()

    def _fix_commit(self) -> None:
        if self._commit is None:
            with self._store.reading() as db, db.at(self._as_of) as moment:
                self._commit = int(moment.lsn)

    def train_dataloader(self) -> TrainLoader:
        """The loader of training. Raises MissingError where there is no such lake."""
        loader = TrainLoader(self._dataset("train", self._options), **self._loader)
        if self._position is not None:
            # Lightning gives loaders their states only in the middle of an epoch.
            loader.load_state_dict(self._position)
        self._training = loader
        return loader

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """The loader of validation; none without a lake for it."""
        return self._evaluating("val")

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """The loader of tests; none without a lake for it."""
        return self._evaluating("test")

    def state_dict(self) -> dict[str, Any]:
        """The names of the lakes, the commit that they are read at, and where training is."""
        training = None if self._training is None else self._training.state_dict()
        return {"lakes": dict(self._lakes), "commit": self._commit, "training": training}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read the same rows as the run that was checkpointed did.

        Raises InvalidValueError for the state of another lake.
        """
        lakes, commit = state_dict.get("lakes"), state_dict.get("commit")
        if not isinstance(lakes, dict) or lakes.get("train") != self._lakes["train"]:
            raise InvalidValueError(
                f"the checkpoint is of a run over the lakes {lakes!r:.200}, and this LakeDataModule"
                f" has {self._lakes!r:.200}. Make it as it was made."
            )
        if commit is not None and (type(commit) is not int or commit < 0):
            raise InvalidValueError(f"the state of a LakeDataModule has the commit {commit!r:.80}")
        self._commit, self._position = commit, state_dict.get("training")

    def teardown(self, stage: str) -> None:
        """Close the store if it was opened here, and with it what the loaders read from."""
        self._training = None
        self._store.close()

    def _evaluating(self, stage: str) -> EvaluationLoader | list[Any]:
        if self._lakes[stage] is None:
            return []
        return EvaluationLoader(self._dataset(stage, self._evaluation))

    def _dataset(self, stage: str, options: StreamOptions) -> M2MDataLake:
        lake = self._store.get().lake(str(self._lakes[stage]))
        self._fix_commit()
        assert self._commit is not None
        given = {_ARGUMENTS.get(field.name, field.name): getattr(options, field.name)
                 for field in fields(options)}  # fmt: skip
        for name in _ARGUMENTS.values():
            given[name] = given[name] or False
        return lake.dataset(as_of=Lsn(self._commit), **given)


def _as_options(
    what: str, options: StreamOptions | Mapping[str, Any] | None
) -> StreamOptions | None:
    if options is None or isinstance(options, StreamOptions):
        return options
    if isinstance(options, Mapping):
        return make_options(**options)
    raise InvalidTypeError(
        f"{what} is a {type(options).__name__}; give mldb.StreamOptions or a dict of its fields"
    )


def _plain_reading(options: StreamOptions) -> StreamOptions:
    """Every row once, in order, as it is."""
    kept = [name for name in options.fields or () if name != "weight"]
    return StreamOptions(
        batch_size=options.batch_size,
        device=options.device,
        order="sequential",
        fields=tuple(kept) or None,
    )
