"""A report made of an open store, and written as one file."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mldb.errors import StorageIOError
from mldb.tools.report.gather_graph import gather_graph
from mldb.tools.report.gather_lakes import gather_lakes
from mldb.tools.report.gather_parameters import (
    EPOCHS_SHOWN,
    TENSORS_DRAWN,
    gather_parameters,
)
from mldb.tools.report.gather_run import gather_run
from mldb.tools.report.gather_storage import gather_storage
from mldb.tools.report.page import whole_page
from mldb.tools.report.parts import Page
from mldb.tools.report.section_graph import section_graph
from mldb.tools.report.section_lakes import section_lakes
from mldb.tools.report.section_parameters import section_parameters
from mldb.tools.report.section_run import section_run
from mldb.tools.report.section_storage import section_storage
from mldb.tools.report.states import MeasureCache

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.history.as_of import AsOf


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """What a report shows: how it is headed, and how much of a large store is drawn.

    ``title``: the name of the folder when empty. ``moment``: how the caller named *as_of*.
    ``reload_seconds``: how often a page that is watched offers to load itself anew.
    """

    title: str = ""
    moment: str = ""
    tensors: int = TENSORS_DRAWN
    epochs: int = EPOCHS_SHOWN
    reload_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMade:
    """A page, and what is in it. ``problems`` names what could not be read."""

    html: bytes
    lsn: int
    epoch: int
    epochs_shown: int
    epochs_in_all: int
    layers: int
    tensors: int
    metrics: int
    lakes: int
    relationships: int
    read_bytes: int
    problems: Sequence[str]


def make_report(
    db: MLDatabase,
    *,
    as_of: AsOf = None,
    settings: ReportSettings | None = None,
    cache: MeasureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReportMade:
    """Make the page of a store as of *as_of*; nothing of the store is changed.

    A tensor, metric or lake that is damaged is named in the page, which has the rest. *progress* is
    called with bytes read of how many. One thread; the commit is held until it is done. Raises
    VersionGoneError, and CorruptError where the index itself cannot be read.
    """
    chosen = settings or ReportSettings()
    with db.at(as_of) as at:
        run = gather_run(db, at, db.path, chosen.moment)
        storage = gather_storage(db, at, run.lsns, run.epochs)
        parameters = gather_parameters(
            db,
            at,
            np.unique(run.epochs[run.is_kept]),
            tensors_drawn=chosen.tensors,
            epochs_shown=chosen.epochs,
            cache=cache,
            progress=progress,
        )
        graph = gather_graph(at)
        lakes = gather_lakes(db, at, run.lsns, run.epochs)
    page = Page()
    sections = [
        section_run(page, run),
        section_parameters(page, parameters),
        section_graph(page, graph),
        section_storage(page, storage),
        section_lakes(page, lakes),
    ]
    title = chosen.title or Path(db.path).name
    html = whole_page(
        page, sections, run, storage, title=title, reload_seconds=chosen.reload_seconds
    )
    return ReportMade(
        html=html.encode("utf-8"),
        lsn=run.lsn,
        epoch=run.epoch,
        epochs_shown=len(parameters.epochs),
        epochs_in_all=parameters.epochs_in_all,
        layers=len(parameters.layers),
        tensors=parameters.tensors,
        metrics=run.curves_in_all,
        lakes=lakes.lakes_in_all,
        relationships=graph.edges_in_all,
        read_bytes=parameters.read_bytes,
        problems=(
            *run.problems,
            *parameters.problems,
            *graph.problems,
            *storage.problems,
            *lakes.problems,
        ),
    )


def write_page(path: Path, html: bytes) -> None:
    """Put a page at *path* in one step: whoever opens it finds the old one or the new one.

    Raises StorageIOError when that cannot be; then what was there is as it was.
    """
    try:
        draft = path.with_name(f".{secrets.token_hex(8)}.report")
        try:
            with draft.open("xb") as file:
                file.write(html)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StorageIOError(
            f"the report cannot be written to {path}: {error.strerror or error}. The store was "
            "only read; choose another place with -o."
        ) from error
