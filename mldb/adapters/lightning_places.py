"""Where the tensors of a loaded checkpoint are put: what ``map_location`` says."""

from __future__ import annotations

from typing import Any

import torch

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.state.structs import parts_of, with_parts


def placed(value: Any, map_location: Any) -> Any:
    """Return the nested *value*, which is on the CPU, with its tensors where *map_location* says.

    As in ``torch.load``: None, a device or its name, a dict from names to such, or a function of a
    storage and its place. Tensors that are one object stay so. Raises InvalidTypeError,
    InvalidValueError.
    """
    if map_location is None:
        return value
    return _Mover(map_location).moved(value)


class _Mover:
    def __init__(self, map_location: Any) -> None:
        self._function = None
        self._device: torch.device | None = None
        if isinstance(map_location, dict):
            map_location = map_location.get("cpu", "cpu")
        if isinstance(map_location, str | torch.device):
            self._device = _device_of(map_location)
        elif callable(map_location):
            self._function = map_location
        else:
            raise InvalidTypeError(
                f"map_location is a {type(map_location).__name__}; give None, a device, a dict or "
                "a function"
            )
        self._done: dict[int, tuple[Any, Any]] = {}  # with the tensor, so that its id stays its own

    def moved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found = self._done.get(id(value))
            if found is None:
                found = self._done[id(value)] = (value, value.to(self._target(value)))
            return found[1]
        parts = parts_of(value)
        if parts is None:
            return value
        changed = {key: self.moved(part) for key, part in parts.items()}
        if all(part is parts[key] for key, part in changed.items()):
            return value
        return with_parts(value, changed)

    def _target(self, tensor: torch.Tensor) -> torch.device:
        if self._function is None:
            assert self._device is not None
            return self._device
        if tensor.layout is not torch.strided:
            return tensor.device
        storage = self._function(tensor.untyped_storage(), "cpu")
        return tensor.device if storage is None else _device_of(storage.device)


def _device_of(place: Any) -> torch.device:
    try:
        return torch.device(place)
    except (RuntimeError, TypeError) as error:
        raise InvalidValueError(f"map_location {place!r:.80} is no device: {error}") from None
