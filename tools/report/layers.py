"""Which layer a tensor belongs to, and the order in which layers are shown."""

from __future__ import annotations

import re
from typing import Any, Final

from mldb.errors import MldbError
from mldb.log.index.address import Entry
from mldb.tensors.codec import unpack_metadata

OTHER_LAYERS: Final = "all further layers"

_END: Final = re.compile(r"[/.](?=[^/.]*\Z)")
_DIGITS: Final = re.compile(r"(\d+)")


def layer_of(name: str, metadata: dict[str, object]) -> str:
    """Return what metadata says under ``layer``; else the name without its last component."""
    told = metadata.get("layer")
    if isinstance(told, str) and told:
        return told
    found = _END.search(name)
    return name[: found.start()] if found is not None and found.start() else name


def natural_order(text: str) -> tuple[tuple[str, int], ...]:
    """A key for sorting in which ``block.10`` stands behind ``block.9``."""
    parts = _DIGITS.split(text)
    return tuple(
        (parts[place], int(parts[place + 1][:18]) if place + 1 < len(parts) else -1)
        for place in range(0, len(parts), 2)
    )


def grouped_by_layer(
    metadata: dict[str, Entry], sizes: dict[str, tuple[int, int]], most: int
) -> list[tuple[str, list[str]]]:
    """Return layers with their tensors: by ``position`` where metadata has it, then by name.

    *metadata* are the entries of names that have some, *sizes* has all names. With more than *most*
    layers the smallest ones are put together at the end.
    """
    layers: dict[str, list[str]] = {}
    positions: dict[str, float] = {}
    for name in sizes:
        told = _metadata(metadata.get(name))
        layer = layer_of(name, told)
        layers.setdefault(layer, []).append(name)
        place = told.get("position")
        if isinstance(place, int | float) and not isinstance(place, bool):
            positions[layer] = min(positions.get(layer, place), place)
    bytes_of = {layer: sum(sizes[name][1] for name in found) for layer, found in layers.items()}
    kept = set(sorted(layers, key=lambda layer: -bytes_of[layer])[:most])
    order = sorted(
        kept, key=lambda layer: (positions.get(layer, float("inf")), natural_order(layer))
    )
    rest = [name for layer, found in layers.items() if layer not in kept for name in found]
    found = [(layer, layers[layer]) for layer in order]
    return [*found, (OTHER_LAYERS, rest)] if rest else found


def _metadata(entry: Entry | None) -> dict[str, Any]:
    """What a name was given; nothing where that is damaged."""
    try:
        return {} if entry is None else unpack_metadata(entry.attr)
    except MldbError:
        return {}
