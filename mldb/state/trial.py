"""A module's own loading tried on stand-ins, with everything put back afterwards.

torch decides what fits a module, and finds out while it loads: hooks translate keys, buffers are
resized, extra state is taken. So the loading is run once on the module itself while *stand-ins*
take the places of its tensors. A stand-in of a tensor with many elements is one on the meta device,
which has shape and dtype and no memory; of the others it is a copy. What is saved is stood in for
in the same way. The tensors of the module are not touched: they are out of the module meanwhile.

Put back at the end are the tensors, the attributes of every module in it, the contents of the
lists, dicts and sets among these, and its extra state. Not put back is what a hook changes
elsewhere. The cost is one more run of the loading without its copying, and the bytes of the small
tensors; with ``copies`` those of all tensors, of the module and of what is saved.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

_SMALL: Final = 1 << 16  # elements; a tensor with fewer is stood in for by a copy
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})
_EXTRA_STATE: Final = "_extra_state"
_NOT_KEPT: Final = object()


@contextmanager
def stood_in(module: Any, *, copies: bool, with_extra_state: bool) -> Iterator[None]:
    """Give *module* stand-ins for its tensors, and put everything back at the end.

    With *copies* every stand-in has values. With *with_extra_state* the extra state of modules that
    have some is asked for before and given back after. Nobody else may use the module meanwhile.
    """
    stand_ins = _StandIns(copies=copies)
    parts = [_Part(part, with_extra_state=with_extra_state) for part in module.modules()]
    done = False
    try:
        try:
            for part in parts:
                part.swap(stand_ins)
            yield
        finally:
            _put_back(parts)
            done = True
    except BaseException:
        if not done:  # Ctrl-C came in the middle of it, and a module of stand-ins is no module
            _put_back(parts)
        raise


def stand_in_for_state(state: Any, *, copies: bool) -> Any:
    """Return *state*, a state dict, with stand-ins for its tensors and copies of the rest."""
    stand_ins = _StandIns(copies=copies)
    tensor = sys.modules["torch"].Tensor
    items = {
        key: stand_ins.of(value) if isinstance(value, tensor) else _copy(value)
        for key, value in state.items()
    }
    return with_own_metadata(state, items)


def with_own_metadata(state: Any, items: dict[Any, Any]) -> dict[Any, Any]:
    """Return *items* as a state dict with a copy of the metadata of *state*.

    Loading writes into it, and what is written would count for the next load of the same state.
    """
    result = OrderedDict(items)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        vars(result)["_metadata"] = copy.deepcopy(metadata)
    return result


def has_extra_state(state: Any) -> bool:
    """Tell whether a state dict holds the extra state of some module."""
    return any(isinstance(key, str) and key.endswith(_EXTRA_STATE) for key in state)


def has_meta_twin(tensor: Any) -> bool:
    """Tell whether a tensor is one that a tensor on the meta device behaves like."""
    torch = sys.modules["torch"]
    strided = tensor.layout is torch.strided and not tensor.is_quantized
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and strided


class _StandIns:
    """Makes one stand-in for every tensor, however often it is met: tied ones stay tied."""

    def __init__(self, *, copies: bool) -> None:
        self._copies = copies
        self._made: dict[int, tuple[Any, Any]] = {}  # with the tensor, so that its id stays its own

    def of(self, tensor: Any) -> Any:
        """Return the stand-in of *tensor*."""
        made = self._made.get(id(tensor))
        if made is None:
            made = self._made[id(tensor)] = (tensor, self._make(tensor))
        return made[1]

    def _make(self, tensor: Any) -> Any:
        torch = sys.modules["torch"]
        if torch.nn.parameter.is_lazy(tensor):
            return _lazy_twin(tensor)
        # Only in that mode is an inference tensor made, and only there may one be written to.
        with torch.inference_mode(tensor.is_inference()):
            if not has_meta_twin(tensor):
                return _twin(tensor)
            if 0 in tensor.stride() and tensor.numel() > 1:
                # Writing to an expanded tensor is an error, which its stand-in must raise as well.
                made = tensor.detach()[_once(tensor)].clone().expand(tensor.shape)
            elif tensor.numel() >= _SMALL and not self._copies:
                made = torch.empty_like(tensor, device="meta", requires_grad=False)
            else:
                made = tensor.detach().clone()
            if isinstance(tensor, torch.nn.Parameter):
                return torch.nn.Parameter(made, tensor.requires_grad)
            return made


def _once(tensor: Any) -> tuple[slice, ...]:
    strides = tensor.stride()
    return tuple(slice(0, 1) if not stride else slice(None) for stride in strides)


def _twin(tensor: Any) -> Any:
    """Return a copy of a tensor of a class of its own."""
    try:
        return copy.deepcopy(tensor)
    except (RuntimeError, TypeError, NotImplementedError):  # it has a graph behind it
        return tensor.detach().clone()


def _lazy_twin(tensor: Any) -> Any:
    """Return another parameter or buffer without a shape; loading gives it one for good."""
    form = tensor.data  # torch allows little else to be asked
    made = type(tensor)(tensor.requires_grad, device=form.device, dtype=form.dtype)
    vars(made).update(vars(tensor))
    return made


def _copy(value: Any) -> Any:
    """Return a copy of extra state, which whoever takes it may take apart."""
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - what cannot be copied is shown as it is
        return value


class _Part:
    """One module of a tree: what it was, and its tensors swapped for others."""

    def __init__(self, module: Any, *, with_extra_state: bool) -> None:
        self._module = module
        self._attributes = dict(module.__dict__)
        self._contents = [
            (value, copy.copy(value))
            for value in self._attributes.values()
            if type(value) in _CONTAINERS
        ]
        self._extra_state = _extra_state_of(module) if with_extra_state else _NOT_KEPT
        self._values: list[tuple[Any, Any]] = []

    def swap(self, stand_ins: _StandIns) -> None:
        """Put stand-ins in the places of the module's tensors."""
        tensor = sys.modules["torch"].Tensor
        for registry in (self._module._parameters, self._module._buffers):
            if isinstance(registry, dict):
                for name, value in registry.items():
                    if isinstance(value, tensor):
                        registry[name] = stand_ins.of(value)
            else:  # of a scripted module, whose tensors are held elsewhere: keep what they hold
                held = [value for value in registry.values() if isinstance(value, tensor)]
                self._values += [(value, value.detach().clone()) for value in held]
        for name, value in self._attributes.items():
            if isinstance(value, tensor):
                self._module.__dict__[name] = stand_ins.of(value)

    def give_back_extra_state(self) -> None:
        """Undo what was done deep inside the module by the module's own means."""
        if self._extra_state is not _NOT_KEPT:
            with suppress(Exception):
                self._module.set_extra_state(_copy(self._extra_state))

    def put_back(self) -> None:
        """Make the module what it was; doing it twice is harmless."""
        for container, content in self._contents:
            _refill(container, content)
        _refill(self._module.__dict__, self._attributes)
        torch = sys.modules["torch"]
        for value, before in self._values:
            with torch.inference_mode(value.is_inference()), torch.no_grad():
                value.copy_(before)


def _put_back(parts: list[_Part]) -> None:
    for part in parts:
        part.give_back_extra_state()  # may reach into others, which hold their stand-ins still
    for part in parts:
        part.put_back()


def _extra_state_of(module: Any) -> Any:
    torch = sys.modules["torch"]
    kind, default = type(module), torch.nn.Module
    for method in ("get_extra_state", "set_extra_state"):
        if getattr(kind, method, None) in (None, getattr(default, method)):
            return _NOT_KEPT
    try:
        return copy.deepcopy(module.get_extra_state())
    except Exception:  # noqa: BLE001 - it has none now, or none that can be kept
        return _NOT_KEPT


def _refill(container: Any, content: Any) -> None:
    """Give a list, dict or set the content it had, items and order; most never changed."""
    if isinstance(container, dict):
        same = len(container) == len(content) and all(
            one is other and container[one] is content[other]
            for one, other in zip(container, content, strict=True)
        )
        if not same:
            added = [key for key in container if key not in content]
            for key in added:
                del container[key]
            container.update(content)
            if list(container) != list(content):
                container.clear()
                container.update(content)
    elif isinstance(container, list):
        container[:] = content
    elif container != content:
        container.clear()
        container.update(content)
