"""The ends of relationships that are no tensors, in the order in which they feed each other."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from mldb import keys
from mldb.query.catalogue import StoreMoment

FEEDS: Final = "feeds_into"


def layers_at(moment: StoreMoment) -> dict[str, int | None]:
    """Return each end that is no tensor, and its position, None where nothing feeds into it or out.

    Positions count from 0 along ``feeds_into``; they are those of the ends that are no tensors.
    """
    if not len(moment.newest(keys.RELATIONS)[1]):
        return {}
    key = ("layers", moment.newest_key(keys.RELATIONS), moment.newest_key(keys.TENSORS))
    return moment.catalogue.derived(key, 0, lambda: _layers(moment))


def _layers(moment: StoreMoment) -> dict[str, int | None]:
    rows, newest = moment.newest(keys.RELATIONS)
    lsns = rows.take("commit", newest).tolist()
    first: dict[str, tuple[int, str]] = {}
    edges: list[tuple[str, str]] = []
    for code, lsn in zip(rows.key_codes(newest).tolist(), lsns, strict=True):
        source, kind, target = keys.split_relation(keys.RELATIONS + rows.keys[code])
        for name in (source, target):
            first[name] = min(first.get(name, (lsn, name)), (lsn, name))
        if kind == FEEDS:
            edges.append((source, target))
    tensors, exist = moment.newest(keys.TENSORS)
    known = {tensors.keys[code].decode() for code in tensors.key_codes(exist).tolist()}
    ends = sorted(first.keys() - known)
    order = [name for name in feeding_order(edges, first) if name not in known]
    positions: dict[str, int | None] = {name: place for place, name in enumerate(order)}
    return {name: positions.get(name) for name in ends}


def feeding_order(edges: list[tuple[str, str]], first: dict[str, tuple[int, str]]) -> list[str]:
    """Return the ends of *edges* so that sources come before targets, as far as there are no rings.

    Among those that may come next, and where only rings are left, the least of *first* comes: the
    order is the same however the edges are told. O(edges * log edges).
    """
    targets: dict[str, set[str]] = {}
    waits: dict[str, int] = {}
    for source, target in edges:
        for name in (source, target):
            waits.setdefault(name, 0)
            targets.setdefault(name, set())
        if target != source and target not in targets[source]:
            targets[source].add(target)
            waits[target] += 1
    ready = [first[name] for name, count in waits.items() if not count]
    heapify(ready)
    rest = sorted(first[name] for name in waits)[::-1]  # those next stand last
    order: list[str] = []
    done: set[str] = set()
    while len(order) < len(waits):
        while not ready:
            candidate = rest.pop()
            if candidate[1] not in done:
                ready.append(candidate)
        _, name = heappop(ready)
        if name in done:
            continue
        done.add(name)
        order.append(name)
        for target in targets[name]:
            waits[target] -= 1
            if waits[target] == 0 and target not in done:
                heappush(ready, first[target])
    return order
