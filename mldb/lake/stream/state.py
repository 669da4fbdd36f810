"""The state of a stream: a few plain values that name its next batch, and what they must fit."""

from __future__ import annotations

from typing import Any, Final

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.stream.running import Position
from mldb.noise.draws import PASS_BITS
from mldb.noise.philox import LAYOUT_VERSION

STATE_VERSION: Final = 1

_NUMBERS: Final = ("lsn", "pass", "cursor", "done", "world", "workers")
_MUST_AGREE: Final = (
    ("version", "version of the state"),
    ("layout", "counter layout"),
    ("lake", "lake"),
    ("seed", "seed"),
    ("batch_size", "batch size"),
    (
        "settings",
        "settings (importance, salience, draws, augmentation, drop_last, even_ranks, window_rows) "
        "of digest",
    ),
)


def make_state(position: Position, **stream: Any) -> dict[str, Any]:
    """Return the state of a stream at a position; *stream* is what it must be again to go on.

    ``drawn_by`` is there where a function of the user decided which rows the pass has.
    """
    state = {
        "version": STATE_VERSION,
        "layout": LAYOUT_VERSION,
        **stream,
        "pass": position.number,
        "cursor": position.start,
        "done": position.done,
    }
    return state if position.drawn_by is None else state | {"drawn_by": position.drawn_by}


def check_state(
    state: dict[str, Any], here: dict[str, Any], orders: tuple[str, ...], *, any_order: bool
) -> Position:
    """Return the position in *state*, for a stream whose own state is *here*.

    *orders* are those that a state may name, *any_order* says that this stream takes each of them.
    Raises InvalidTypeError for what is no state, InvalidValueError for that of another stream, and
    for a worker's under another number of workers.
    """
    known = set(here) | {"drawn_by"}
    if not isinstance(state, dict):
        raise _no_state(state, "not a dict")
    if set(state) | {"drawn_by"} != known:
        differing = sorted(map(str, known ^ (set(state) | {"drawn_by"})))
        raise _no_state(state, f"{', '.join(differing):.200} missing or unknown")
    for key, what in _MUST_AGREE:
        if state[key] != here[key]:
            raise InvalidValueError(
                f"the state has {what} {state[key]!r}, this stream {here[key]!r}: it cannot go "
                "on exactly. Nothing was changed; make the stream as it was made."
            )
    wrong = [key for key in _NUMBERS if not _is_count(state[key])]
    if not wrong and state["pass"] >> PASS_BITS:
        wrong = ["pass"]
    if state["order"] not in orders:
        wrong.append("order")
    if not isinstance(state.get("drawn_by"), str | None):
        wrong.append("drawn_by")
    if wrong:
        raise _no_state(state, f"{wrong[0]} is {state[wrong[0]]!r:.80}")
    if not any_order and state["order"] != here["order"]:
        raise InvalidValueError(
            f"the state has order {state['order']!r}, this stream {here['order']!r}. "
            "Nothing was changed."
        )
    return _position(state, here)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _no_state(state: object, why: str) -> InvalidTypeError:
    return InvalidTypeError(
        f"this is no state of a lake's stream: {why}. Nothing was changed. [{state!r:.200}]"
    )


def _position(state: dict[str, Any], here: dict[str, Any]) -> Position:
    number, drawn_by = state["pass"], state.get("drawn_by")
    if state["workers"] == 1:  # of a rank: workers share what is left
        return Position(number, state["cursor"] + state["done"] * state["world"], 0, drawn_by)
    if state["workers"] != here["workers"] or state["world"] != here["world"]:
        raise InvalidValueError(
            f"the state is that of one of {state['workers']} workers; under another number "
            "of them load the state of the loader (LakeLoader.state_dict())"
        )
    return Position(number, state["cursor"], state["done"], drawn_by)
