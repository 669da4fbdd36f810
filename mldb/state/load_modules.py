"""Saved states loaded into modules: torch decides what fits, before anything is changed.

Whatever ``load_state_dict`` of a module takes is taken, by running it: load hooks, overrides of
``_load_from_state_dict``, parametrizations, observers, extra state and lazy modules do what they
do. It is run twice. The first run is a trial on stand-ins for the tensors (``mldb.state.trial``),
after which the module is what it was; only when every part of the target has passed, the second
run loads. So a refused load leaves the training state as it was, for modules whose hooks decide by
names, shapes and what is saved, and change nothing outside their module. Where a trial without
values fails for a reason that values might change, it is run again on copies of all tensors.
"""

from __future__ import annotations

import re
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError, MissingError, MldbError
from mldb.state.prefixes import advice_on_prefixes, without_prefix
from mldb.state.report import Findings, joined, listed, target_at
from mldb.state.trial import (
    has_extra_state,
    has_meta_twin,
    stand_in_for_state,
    stood_in,
    with_own_metadata,
)

_MESSAGE_LENGTH: Final = 1200
# torch's words for what needs no values to be found out.
_NEEDS_NO_VALUES: Final = re.compile(
    r"(Error\(s\) in loading|\s*(size mismatch for|Missing key|Unexpected key|$))"
)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load. See ``restore_into``."""

    strict: bool = True
    assign: bool = False
    strip_prefix: str | None = None

    def for_torch(self) -> dict[str, Any]:
        """The options of ``load_state_dict`` that are not its defaults.

        Modules that override it often take none.
        """
        options = {} if self.strict else {"strict": False}
        return {**options, "assign": True} if self.assign else options


class _Keys(NamedTuple):
    """What ``load_state_dict`` returned."""

    missing: list[str]
    unexpected: list[str]


def check_module(module: Any, tree: Any, path: str, options: LoadOptions) -> None:
    """Find out whether *module* takes *tree*; nothing has changed afterwards.

    Raises MissingError and InvalidValueError with torch's missing and unexpected keys, and
    InvalidValueError for what torch refuses otherwise or for tensors on the meta device.
    """
    if not isinstance(tree, dict):
        raise InvalidTypeError(
            f"{target_at(path)} needs the state dict of {type(module).__name__} and the saved "
            f"state has a {type(tree).__name__} there. Nothing was changed."
        )
    state = without_prefix(module, tree, options.strip_prefix)
    keys = _tried(module, state, path, options)
    if not options.assign:
        _refuse_meta(module, keys, path)


def load_module(module: Any, tree: Any, path: str, options: LoadOptions, found: Findings) -> None:
    """Load *tree* into *module* for good, and add to *found* what torch said.

    A warning is among it when no key fits.
    """
    state = without_prefix(module, tree, options.strip_prefix)
    with modes_of(module):
        result = module.load_state_dict(with_own_metadata(state, state), **options.for_torch())
    keys = _keys_of(result)
    added = _findings(module, state, keys)
    for names, more in zip(found[:4], added[:4], strict=True):
        names.extend(joined(path, key) for key in more)
    if state and set(state) <= {*keys.unexpected, *added.ignored} and keys.missing:
        what = f"{target_at(path)} ({type(module).__name__})"
        advice = advice_on_prefixes(module, state) or advice_on_parts(keys.missing, state)
        found.note_nothing_fits(what, [*state], keys.missing, advice)


def modes_of(module: Any) -> AbstractContextManager[object]:
    """Return the context to load a module in: out of inference mode unless it was made there.

    What is made under inference mode (a lazy parameter that gets its shape) cannot be trained.
    """
    torch = sys.modules["torch"]
    lazy = torch.nn.parameter.is_lazy
    tensors = (*module.parameters(), *module.buffers())
    if any(tensor.is_inference() for tensor in tensors if not lazy(tensor)):
        return nullcontext()
    return outside_inference()


def outside_inference() -> AbstractContextManager[object]:
    """Return a context without torch's inference mode, and with gradients off if it was on."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_inference_mode_enabled():
        return nullcontext()
    return _TrainableInNoGrad(torch)


class _TrainableInNoGrad:
    """Leaving inference mode turns gradients on; hooks that write to parameters need them off."""

    def __init__(self, torch: Any) -> None:
        self._contexts = (torch.inference_mode(False), torch.no_grad())

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


def _tried(module: Any, state: Any, path: str, options: LoadOptions) -> _Keys:
    """Run the loading on stand-ins, and once more with values where these may matter."""
    without_values = all(has_meta_twin(value) for value in state.values() if _is_tensor(value))
    tries = (False, True) if without_values else (True,)
    for copies in tries:
        try:
            return _trial(module, state, options.for_torch(), copies=copies)
        except MldbError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a module refuses with
            first = error
        if options.strict:
            _refuse_keys(module, state, path, options, copies=copies)
        if all(map(_NEEDS_NO_VALUES.match, str(first).split("\n"))):
            break
    raise _refused(path, first) from first


def _trial(module: Any, state: Any, keywords: dict[str, Any], *, copies: bool) -> _Keys:
    extra = has_extra_state(state)
    with (
        warnings.catch_warnings(),
        modes_of(module),
        stood_in(module, copies=copies, with_extra_state=extra),
    ):
        warnings.simplefilter("ignore")  # the loading itself gives them, once
        stand_ins = stand_in_for_state(state, copies=copies)
        return _keys_of(module.load_state_dict(stand_ins, **keywords))


def _refuse_keys(module: Any, state: Any, path: str, options: LoadOptions, *, copies: bool) -> None:
    """Raise with torch's missing and unexpected keys when nothing but these is in the way."""
    keywords = {**options.for_torch(), "strict": False}
    try:
        keys = _trial(module, state, keywords, copies=copies)
    except Exception:  # noqa: BLE001 - the first error says more
        return
    if keys.missing or keys.unexpected:
        advice = advice_on_prefixes(module, state) or advice_on_parts(keys.missing, state)
        raise keys_error(path, keys.missing, keys.unexpected, advice)


def keys_error(
    path: str, missing: list[Any], unexpected: list[Any], advice: str = ""
) -> MissingError | InvalidValueError:
    """Return the error for keys that do not agree."""
    text = f"{target_at(path)} does not match what was saved:"
    if missing:
        text += f" {len(missing)} missing in the saved state ({listed(missing)});"
    if unexpected:
        text += f" {len(unexpected)} saved but not in the target ({listed(unexpected)});"
    text += f" nothing was changed.{advice} Pass strict=False to load what both have."
    return MissingError(text) if missing else InvalidValueError(text)


def advice_on_parts(missing: list[Any], state: dict[Any, Any]) -> str:
    """Return what to say where parts of *state* have keys that the target misses in it, or ""."""
    wanted = set(missing)
    places = [key for key, part in state.items() if isinstance(part, dict) and wanted & part.keys()]
    if not places:
        return ""
    return (
        f" The saved state has such keys under {listed(places)}: load that alone by "
        f"{{{places[0]!r}: target}} with part=True."
    )


def _refused(path: str, error: BaseException) -> InvalidValueError:
    text = re.sub(r"torch\.Size\(\[([\d, ]*)\]\)", r"(\1)", str(error)) or type(error).__name__
    text = " ".join(text.split())
    return InvalidValueError(
        f"{target_at(path)} refused its saved state: {text[:_MESSAGE_LENGTH]} Nothing was changed; "
        "build the module as it was saved."
    )


def _refuse_meta(module: Any, keys: _Keys, path: str) -> None:
    missing = set(keys.missing)
    found = [key for key in _keys_on_meta(module) if key not in missing]
    if found:
        raise on_meta(path, f" ({listed(found, 4)})")


def on_meta(path: str, what: str = "") -> InvalidValueError:
    """Return the error for a target that has no memory to load into."""
    return InvalidValueError(
        f"{target_at(path)} has tensors on the meta device{what}, which hold no values, so loading "
        "into them would do nothing. Nothing was changed. Pass assign=True, which puts the saved "
        "tensors in their places, or give them memory first: module.to_empty(device='cpu')."
    )


def _keys_on_meta(module: Any) -> list[str]:
    keys: list[str] = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        passing = part._non_persistent_buffers_set
        stored = [*part._parameters.items()]
        stored += [item for item in part._buffers.items() if item[0] not in passing]
        start = f"{prefix}." if prefix else ""
        keys += [start + name for name, value in stored if _is_tensor(value) and value.is_meta]
    return keys


def _keys_of(result: Any) -> _Keys:
    """Return the keys that a ``load_state_dict`` names; overrides often return nothing."""
    missing = getattr(result, "missing_keys", None) or ()
    unexpected = getattr(result, "unexpected_keys", None) or ()
    return _Keys(list(missing), list(unexpected))


def _findings(module: Any, state: Any, keys: _Keys) -> Findings:
    missing, unexpected = set(keys.missing), set(keys.unexpected)
    taken = [key for key in module.state_dict() if key not in missing]
    names = set(taken)
    # Saved keys that the module has no name for and does not complain of are old names, which hooks
    # translate, or passed over; and its names that were not saved come of such, or of nothing.
    old = {key: _parent(key) for key in state if key not in names and key not in unexpected}
    new = [key for key in taken if key not in state]
    ignored = [key for key, parent in old.items() if not _some_below(new, parent)]
    parents = tuple({parent for key, parent in old.items() if key not in ignored})
    loaded = [key for key in taken if key in state or key.startswith(parents)]
    return Findings(loaded, keys.missing, keys.unexpected, ignored, [])


def _some_below(keys: list[str], start: str) -> bool:
    return any(key.startswith(start) for key in keys)


def _parent(key: object) -> str:
    """Return the beginning of the keys of the module that *key* belongs to."""
    head, dot, _ = str(key).rpartition(".")
    return head + dot


def _is_tensor(value: Any) -> bool:
    return isinstance(value, sys.modules["torch"].Tensor)
