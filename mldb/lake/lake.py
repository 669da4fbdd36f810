"""One splat lake: rows in, rows out, as of any commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.arrays import Numbers
from mldb.compaction.soc.report import ConsolidationMethod, ConsolidationReport
from mldb.errors import InvalidTypeError, InvalidValueError, LimitError, UsageError
from mldb.history.as_of import AsOf
from mldb.history.splats import LAKE_DIM_MAX
from mldb.integers import integer
from mldb.lake import projection
from mldb.lake.consolidation import run
from mldb.lake.consolidation.settings import (
    DEFAULT_BUDGET,
    DEFAULT_MIN_COS,
    DEFAULT_NEIGHBOURS,
    ConsolidationPolicy,
)
from mldb.lake.consolidation.undo import undo_merges
from mldb.lake.host import Host
from mldb.lake.on_host import as_ids
from mldb.lake.order.weights import Importance
from mldb.lake.rows.source import LakeSource
from mldb.lake.stream.settings import (
    Augmentation,
    AugmentationMode,
    given,
    make_augmentation,
    make_options,
)
from mldb.lake.surface import LakeSnapshot, LakeSurface
from mldb.lake.write.addition import add_rows
from mldb.lake.write.given import check_given
from mldb.lake.write.removal import remove_rows
from mldb.log.index.address import Lsn
from mldb.names import check_name
from mldb.sphere.geometry import Geometry
from mldb.tensors.scope import Scope
from mldb.write.rules import check_epoch

if TYPE_CHECKING:
    from mldb.lake.stream.dataset import M2MDataLake
    from mldb.lake.stream.loader import LakeLoader

DEFAULT_DIM: Final = 640


class Lake(LakeSurface):
    """A splat lake of an open store. Any thread; made by ``db.lake(name)``.

    It lives as long as its store is open. The lake comes to exist with its first rows.
    """

    def __init__(
        self,
        host: Host,
        name: str = "default",
        *,
        dim: int | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        """Raises InvalidValueError when the stored lake has another dimension or geometry."""
        check_name(name)
        super().__init__(host, name)
        found = projection.find_lake(host.scope(None), name)
        info = None if found is None else found[0]
        self.dim = _agree("dim", _check_dim(dim), info and info.dim, DEFAULT_DIM, name)
        chosen = _agree("geometry", geometry, info and info.geometry, "sphere", name)
        if chosen not in ("sphere", "euclid"):
            raise InvalidValueError(f"geometry is {geometry!r}; it is 'sphere' or 'euclid'")
        self.geometry: Geometry = chosen

    def _scope(self) -> Scope:
        return self._host.scope(None)

    def at(self, as_of: AsOf = None) -> LakeSnapshot:
        """Return the lake fixed at a commit; a context manager. Raises MissingError."""
        return LakeSnapshot(self._host, self.name, self._host.at(as_of))

    # --- streaming --------------------------------------------------------------------------------

    def dataset(
        self,
        batch_size: int = 256,
        *,
        as_of: AsOf = None,
        rank: int | None = None,
        world: int | None = None,
        shuffle: bool = True,
        importance_sampling: bool | Importance = False,
        generate_samples: bool | Augmentation = False,
        **options: Any,
    ) -> M2MDataLake:
        """Return the lake at a commit as a stream of batches: an IterableDataset.

        *importance_sampling* and *generate_samples*: True for the defaults of :class:`Importance`
        (draws with replacement, so a pass misses some rows) and :class:`Augmentation`, or one of
        them. *shuffle=False* reads rows in their order. *rank* and *world* are those of
        torch.distributed where it runs. *options* are the fields of :class:`StreamOptions`. Raises
        InvalidValueError, MissingError.

        Cost: as :meth:`rows`. A pass O(rows · dim), and as :meth:`augment`.
        """
        try:
            from mldb.lake.stream.dataset import M2MDataLake, process_rank
        except ModuleNotFoundError as error:
            raise UsageError(
                f"a stream feeds PyTorch, which is not installed ({error}): pip install "
                "mldb[torch]. lake.get() reads rows as NumPy arrays without it."
            ) from error

        if not shuffle:
            options.setdefault("order", "sequential")
        chosen = make_options(
            batch_size=batch_size,
            importance=given("importance_sampling", Importance, importance_sampling),
            augmentation=given("generate_samples", Augmentation, generate_samples),
            **options,
        )
        place = process_rank(rank, world)
        scope = self._host.scope(as_of)
        source = LakeSource(self._host, self.rows_at(scope), scope)
        return M2MDataLake(source, chosen, rank=place[0], world=place[1])

    def export_to_dataloader(
        self,
        batch_size: int = 256,
        *,
        importance_sampling: bool | Importance = False,
        generate_samples: bool | Augmentation = False,
        device: str = "auto",
        seed: int = 0,
        shuffle: bool = True,
        fields: Sequence[str] | None = None,
        num_workers: int = 0,
        as_of: AsOf = None,
        loader: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> LakeLoader:
        """Return a torch DataLoader over :class:`mldb.M2MDataLake`.

        It yields float32 tensors [batch_size, dim], or named tuples of *fields*; see
        :meth:`dataset`. *loader* are further arguments of DataLoader. Without workers a thread
        makes batches ahead; that is faster than workers, which send batches through shared memory.
        """
        dataset = self.dataset(
            batch_size,
            as_of=as_of,
            shuffle=shuffle,
            importance_sampling=importance_sampling,
            generate_samples=generate_samples,
            device=device,
            seed=seed,
            fields=fields,
            **options,
        )
        from mldb.lake.stream.loader import LakeLoader

        if not isinstance(loader, Mapping | None):
            raise InvalidTypeError(f"loader is a {type(loader).__name__}; give a dict of options")
        return LakeLoader(dataset, **{"num_workers": num_workers, **(loader or {})})

    def augment(
        self,
        x: Any,
        *,
        mode: AugmentationMode = "isotropic",
        strength: float = 0.9,
        device: str = "auto",
        seed: int = 0,
        **settings: Any,
    ) -> Any:
        """Augment rows *x* [n, dim] of any origin; they are normalised first.

        Returns float32 [n * copies, dim], [n * (copies + 1), dim] with *keep*; a tensor when *x* is
        one. "walk" and "langevin" start at the row of the lake nearest to x. *settings*: fields of
        :class:`Augmentation`.

        A pure function of its arguments and the lake: row i of *x* has the noise of (*seed*, i) in
        any lake, so a second call with one seed repeats the noise of the first, whatever rows it is
        given. Nothing moves the seed but you: in a loop give each call its own, as ``seed=step``.
        (A stream moves by itself, from pass to pass.)

        Raises InvalidValueError, GpuUnavailableError.

        Cost: O(n · dim) for "isotropic"; the others search, O(n · rows · dim), and make the graph
        of neighbours once: O(rows² · dim), from 100,000 rows on faiss.
        """
        from mldb.lake.augment.augmenter import augment_rows

        chosen = make_augmentation(mode=mode, strength=strength, **settings)
        return augment_rows(
            self.rows,
            self.geometry,
            self.dim,
            x,
            chosen,
            seed=seed,
            device=device,
            user=self._host.known,
        )

    def __repr__(self) -> str:
        """One line."""
        return f"<Lake {self.name!r} dim={self.dim} {self.geometry} rows={len(self)}>"

    # --- changing ---------------------------------------------------------------------------------

    def add_splats(
        self,
        mu: Any,
        *,
        kappa: Any = None,
        alpha: Any = None,
        ids: Any = None,
        labels: Any = None,
        columns: Mapping[str, Any] | None = None,
        epoch: int | None = None,
    ) -> Numbers:
        """Append rows as one commit; return their ids, int64 [N]. The first rows make the lake.

        *mu*: float [N, dim], NumPy or torch, any device. On the sphere rows are divided by their
        norms, which are kept. *kappa* (concentration), *alpha* (mass, 1 by default: how many
        ingested rows a splat stands for): one value or [N], above 0. *ids*: unique, below 2^48;
        assigned in order when absent. *labels*: integers, below 0 for none; rows added without have
        -1. *columns*: further arrays [N, ...] by name; where additions give one different dtypes,
        it is read in one that holds the values of all. Raises InvalidValueError naming the row,
        InvalidTypeError, LimitError, and what a commit raises; then nothing was stored.

        Cost: O(n · dim): one copy to normalise, a hash, a write.
        """
        given = check_given(
            mu,
            self.dim,
            self.geometry,
            kappa=kappa,
            alpha=alpha,
            ids=ids,
            labels=labels,
            columns=columns,
        )
        epoch = check_epoch(epoch)
        if not given.count:
            return np.empty(0, np.int64)
        return add_rows(self._host, self.name, self.dim, self.geometry, given, epoch)

    def remove(self, ids: Any, *, epoch: int | None = None) -> Lsn:
        """End rows from here on; earlier commits still have them. Returns the commit.

        Raises MissingError when an id has no live row; then nothing was removed.

        Cost: O(n log rows); as :meth:`rows` for a first look.
        """
        wanted = np.unique(as_ids(ids))
        epoch = check_epoch(epoch)
        if not len(wanted):
            raise InvalidValueError("no ids to remove. Nothing was changed.")
        return remove_rows(self._host, self.name, wanted, epoch)

    # --- consolidation ----------------------------------------------------------------------------

    def consolidate(
        self,
        *,
        min_cos: float = DEFAULT_MIN_COS,
        method: ConsolidationMethod = "sweep",
        target_keep: float | None = None,
        k: int = DEFAULT_NEIGHBOURS,
        seed: int = 0,
        p: float = 0.02,
        random_links: float = 0.1,
        budget: int | None = DEFAULT_BUDGET,
        epoch: int | None = None,
        plan_only: bool = False,
        retries: int = 2,
    ) -> ConsolidationReport:
        """Merge near-copies as one commit; return what was done, with its commit as ``lsn``.

        A splat is made of rows of one label that lie within cosine *min_cos* of its mean: it has
        their mass, mean direction by mass, and concentration; an id of its own; ``norm``, the mean
        by mass; ``min_cos``, certified for all members; every other column is that of its heaviest
        source. The sources end here. Earlier commits and streams that began there still have them
        bit for bit, :meth:`sources` names them, and :meth:`undo` takes the commit back.

        *min_cos* is a radius: two rows of a splat may be twice as far from each other. .97 takes
        near-copies, .99 little but copies. *target_keep*: merge on until this share of the rows is
        left, whatever the distance, with a PastCapWarning where that is past *min_cos*; sweeps
        alone. *method* "sweep" looks at all rows; "sandpile" at those that arrived since its last
        run, and what their stress sets off: *p*, *random_links* and *budget* are those of
        :class:`mldb.ConsolidationPolicy`. *k*: neighbours that are looked at. Sweeps of one state,
        *seed* and settings are the same, byte for byte. *plan_only*: store nothing.

        Rows may be added meanwhile; they stay as they are. Where a source is removed or merged by
        another commit, the run is planned anew, *retries* times. Memory: three times the rows. Any
        thread, one run at a time. Raises InvalidValueError, InvalidTypeError, MissingError,
        UsageError for a lake that is no sphere, ConflictError after the last retry, and what a
        commit raises; then nothing was stored.

        Cost: "sweep" O(rows² · dim), and less for each further pass; "sandpile" the graph, once,
        and what its avalanches touch.
        """
        settings = ConsolidationPolicy(
            method=method,
            min_cos=min_cos,
            k=k,
            seed=seed,
            p=p,
            random_links=random_links,
            budget=budget,
        )
        if target_keep is not None and method != "sweep":
            raise InvalidValueError("target_keep is for method='sweep': a sandpile has no end")
        return run.run_consolidation(
            self._host,
            self.name,
            settings,
            target_keep=target_keep,
            epoch=check_epoch(epoch),
            plan_only=plan_only,
            retries=integer("retries", retries),
        )

    def undo(self, merges: ConsolidationReport | Lsn, *, epoch: int | None = None) -> Lsn:
        """Take the merges of a commit back: of *merges*, its report or its Lsn. Returns the commit.

        Every splat that it made and that is still live ends, and its sources are live again, as
        they were. Rows added since stay. A splat that was removed since stays so, and its sources
        with it: who removed it removed them. Stress stays where it went.

        Raises MissingError for a commit that merged nothing here, InvalidValueError for one that
        was undone, of whose splats none is left or some were merged again (undo that one first), or
        one of whose ids was given to another row; ConflictError where another commit was faster.
        Nothing was changed then.

        Cost: O(splats and sources of the commit).
        """
        target = merges.lsn if isinstance(merges, ConsolidationReport) else merges
        if target is None:
            raise InvalidValueError("this report is of a run that stored nothing")
        if not isinstance(target, Lsn):
            raise InvalidTypeError(
                f"{target!r} is no commit; give the report of a run, or mldb.Lsn(...) of its commit"
            )
        return undo_merges(self._host, self.name, int(target), check_epoch(epoch))

    @property
    def policy(self) -> ConsolidationPolicy | None:
        """When and how the lake is consolidated by itself; None, the default, for not at all.

        Setting it is a commit, and belongs to the lineage like the lake's rows. A worker in the
        background runs it: when rows were added and a run is due, one is started where
        ``background_compaction`` lets it, a minute after another at the earliest. So does
        :meth:`run_policy`. Raises MissingError where the lake has no rows yet.
        """
        return run.stored_policy(self._scope(), self.name)

    @policy.setter
    def policy(self, policy: ConsolidationPolicy | None) -> None:
        if not isinstance(policy, ConsolidationPolicy | None):
            raise InvalidTypeError(
                f"policy is a {type(policy).__name__}; give mldb.ConsolidationPolicy(...) or None"
            )
        run.store_policy(self._host, self.name, policy)

    def run_policy(self) -> ConsolidationReport | None:
        """Consolidate as :attr:`policy` says, if that is due; None when there was nothing to do.

        Raises what :meth:`consolidate` does; a ConflictError means that the next call tries again.
        """
        return run.run_policy(self._host, self.name)


def _check_dim(dim: object) -> int | None:
    if dim is None:
        return None
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
        raise InvalidTypeError(f"dim is a {type(dim).__name__}, not an int")
    if not 2 <= dim <= LAKE_DIM_MAX:
        raise LimitError(f"dim={dim} is outside 2 .. {LAKE_DIM_MAX}")
    return int(dim)


def _agree(what: str, wanted: Any, stored: Any, default: Any, name: str) -> Any:
    if stored is None:
        return default if wanted is None else wanted
    if wanted not in (None, stored):
        raise InvalidValueError(
            f"lake {name!r} has {what}={stored!r}, not {wanted!r}; leave it out to open the lake "
            "as it is, or choose another name"
        )
    return stored
