"""``mldb log``: commits with their events, newest first, and those that come."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.printable import printable
from mldb.tools.cli.values import moment, shown_time

if TYPE_CHECKING:
    from mldb.history.commits import CommitEntry
    from mldb.history.events import Event

_LIMIT: Final = 50
_NAMES_SHOWN: Final = 6
_NAME_WIDTH: Final = 60
_RANGE: Final = re.compile(r"(\d*)(\.\.)?(\d*)\Z", re.ASCII)
_NAMES: Final = ("name", "lake", "source", "target")
"""Fields of events that name something."""


class _Epochs(click.ParamType[Any]):
    """``3``, ``3..7``, ``3..`` or ``..7``."""

    name = "A..B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the first and the last epoch, None for any."""
        if not isinstance(value, str):
            return value
        found = _RANGE.match(value)
        if found is None or not value.strip("."):
            self.fail(f"{printable(value)!r} is no range; write 3, 3..7, 3.. or ..7", param, ctx)
        low, dots, high = found.groups()
        first = int(low) if low else None
        return (first, int(high) if high else None) if dots else (first, first)


class _Since(click.ParamType[Any]):
    """A time with its zone."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a datetime."""
        if not isinstance(value, str):
            return value
        try:
            found = moment(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not isinstance(found, datetime):
            self.fail(f"{printable(value)!r} is no time; write 2026-11-30T09:00:00Z", param, ctx)
        return found


@store_command("log")
@click.option("-n", "--limit", type=click.IntRange(0), default=_LIMIT, show_default=True,
              help="So many commits at most; 0 is all.")  # fmt: skip
@click.option("--oneline", is_flag=True, help="One line for each commit.")
@click.option("--name", "names", multiple=True, help="Only events of this prefix or glob of names.")
@click.option("--event", "kinds", multiple=True, help="Only events of this kind: TensorStored.")
@click.option("--epoch", "epochs", type=_Epochs(), default=(None, None), help="Only these epochs.")
@click.option("--since", type=_Since(), default=None, help="Only commits since then.")
@click.option("--follow", is_flag=True, help="Wait for more, and print each event as it comes.")
@click.option("--timeout", type=click.FloatRange(0), default=None, metavar="SECONDS",
              help="With --follow: end when nothing came for so long.")  # fmt: skip
def command(
    call: Call,
    limit: int,
    oneline: bool,
    names: tuple[str, ...],
    kinds: tuple[str, ...],
    epochs: tuple[int | None, int | None],
    since: datetime | None,
    follow: bool,
    timeout: float | None,
) -> None:
    """Commits and their events, newest first, of every lineage.

    With --follow only what is committed from now on, one event a line; with --json one document a
    line.

    \b
    Example: mldb log run --epoch 3..5 --name encoder --event TensorStored
    """
    takes = _filter(names, kinds)
    if follow:
        _follow(call, takes, epochs, since, timeout)
        return
    found = _left(call.store.commits(epochs=epochs, since=since), takes, bool(names or kinds))
    some = islice(found, limit or None)
    head = call.store.lsn
    if call.out.as_json:
        call.out.document({"commits": [_as_plain(entry, events, head) for entry, events in some]})
        return
    count = 0
    for entry, events in some:
        if oneline:
            call.out.text(_one_line(entry, events, head))
        else:
            if count:
                call.out.text()
            for line in _lines(entry, events, head):
                call.out.text(line)
        count += 1
    if not count:
        click.echo("no such commit", err=True)


Takes = Callable[["Event"], bool]


def _filter(names: tuple[str, ...], kinds: tuple[str, ...]) -> Takes:
    """What says of an event whether it is wanted. Raises click.UsageError for an unknown kind."""
    if not names and not kinds:
        return lambda event: True
    from mldb.history.events import EVENT_KINDS
    from mldb.tools.replay.selection import chooser

    known = {kind.event.__name__.lower(): kind.event.__name__ for kind in EVENT_KINDS.values()}
    unknown = [kind for kind in kinds if kind.lower() not in known]
    if unknown:
        shown = ", ".join(sorted(known.values()))
        raise click.UsageError(f"there is no event {printable(unknown[0])!r}; there are {shown}")
    wanted = {known[kind.lower()] for kind in kinds}
    chosen = chooser(names) if names else None

    def takes(event: Event) -> bool:
        if wanted and type(event).__name__ not in wanted:
            return False
        return chosen is None or any(map(chosen, _names_of(event)))

    return takes


def _names_of(event: Event) -> list[str]:
    found = [getattr(event, field, None) for field in _NAMES]
    return [name for name in found if isinstance(name, str)]


ShownCommit = tuple["CommitEntry", "list[Event]"]


def _left(found: Iterator[CommitEntry], takes: Takes, is_filtered: bool) -> Iterator[ShownCommit]:
    """Each commit with the events that are wanted; those with none are left out by a filter."""
    for entry in found:
        events = [event for event in entry.events if takes(event)]
        if events or not is_filtered:
            yield entry, events


# --- what is printed ------------------------------------------------------------------------------


def _marks(entry: CommitEntry, head: int) -> list[str]:
    marks = {
        "head": entry.lsn == head,
        "abandoned": entry.is_abandoned,
        "pruned": entry.is_pruned,
    }
    return [mark for mark, is_so in marks.items() if is_so]


def _summed(events: list[Event]) -> list[tuple[str, int, list[str]]]:
    """The kinds of events with how many there are and what they name, in their order."""
    counts = Counter(type(event).__name__ for event in events)
    named: dict[str, dict[str, None]] = {kind: {} for kind in counts}
    for event in events:
        named[type(event).__name__].update(dict.fromkeys(_names_of(event)))
    return [(kind, count, list(named[kind])) for kind, count in counts.items()]


def _one_line(entry: CommitEntry, events: list[Event], head: int) -> str:
    said = ", ".join(f"{count} {kind}" for kind, count, _ in _summed(events)) or "nothing"
    marks = "".join(f" ({mark})" for mark in _marks(entry, head))
    return f"{int(entry.lsn)}  epoch {entry.epoch}  {shown_time(entry.time)}  {said}{marks}"


def _lines(entry: CommitEntry, events: list[Event], head: int) -> Iterator[str]:
    marks = "".join(f" ({mark})" for mark in _marks(entry, head))
    yield f"commit {int(entry.lsn)}{marks}"
    yield f"epoch  {entry.epoch}"
    yield f"time   {shown_time(entry.time)}"
    for kind, count, names in _summed(events):
        shown = [printable(name, limit=_NAME_WIDTH) for name in names[:_NAMES_SHOWN]]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        yield f"    {count} {kind}{'  ' if shown else ''}{', '.join(shown)}{more}"


def _as_plain(entry: CommitEntry, events: list[Event], head: int) -> dict[str, Any]:
    return {
        "lsn": entry.lsn,
        "parent": entry.parent,
        "epoch": entry.epoch,
        "time": entry.time,
        "head": entry.lsn == head,
        "abandoned": entry.is_abandoned,
        "pruned": entry.is_pruned,
        "events": [_event(event, within=True) for event in events],
    }


def _event(event: Event, *, within: bool = False) -> dict[str, Any]:
    """An event as plain values; *within* its commit, which says when."""
    common = {"lsn", "epoch", "time"} if within else set()
    values = {name: value for name, value in asdict(event).items() if name not in common}
    return {"event": type(event).__name__, **values}


def _follow(
    call: Call,
    takes: Takes,
    epochs: tuple[int | None, int | None],
    since: datetime | None,
    timeout: float | None,
) -> None:
    low, high = epochs
    for event in call.store.follow(timeout=timeout):
        is_early = since is not None and event.time < since
        is_below = low is not None and event.epoch < low
        is_above = high is not None and event.epoch > high
        if is_early or is_below or is_above or not takes(event):
            continue
        if call.out.as_json:
            call.out.line_of(_event(event))
        else:
            names = ", ".join(printable(name, limit=_NAME_WIDTH) for name in _names_of(event))
            call.out.text(
                f"{int(event.lsn)}  epoch {event.epoch}  {shown_time(event.time)}  "
                f"{type(event).__name__}  {names}".rstrip()
            )
            sys.stdout.flush()  # who follows does not wait for a full buffer
