"""Gathered writes: sequences of buffers taken apart without a copy."""

from __future__ import annotations

from collections.abc import Sequence

from mldb.log.fs.protocol import Buffer

IOV_MAX = 1024  # parts of one gathered write; what Linux and macOS allow


def byte_count(buffers: Sequence[Buffer]) -> int:
    """Return their size in bytes; len() of a memoryview counts items, which need not be bytes."""
    total = 0
    for buffer in buffers:
        total += len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes
    return total


def groups(buffers: Sequence[Buffer], step: int) -> list[list[Buffer]]:
    """Split *buffers* into gathered writes of at most *step* bytes and IOV_MAX parts."""
    done: list[list[Buffer]] = []
    group: list[Buffer] = []
    room = step
    for buffer in buffers:
        view = memoryview(buffer)
        if view.nbytes and (view.ndim != 1 or view.itemsize != 1):
            view = view.cast("B")
        position = 0
        while position < view.nbytes:
            part = view[position : position + room]
            group.append(part)
            position += len(part)
            room -= len(part)
            if room == 0 or len(group) == IOV_MAX:
                done.append(group)
                group, room = [], step
    if group:
        done.append(group)
    return done


def skip(group: Sequence[Buffer], count: int) -> list[Buffer]:
    """Return what is left of *group* after its first *count* bytes."""
    rest: list[Buffer] = []
    for part in group:
        if count >= len(part):
            count -= len(part)
            continue
        rest.append(memoryview(part)[count:])
        count = 0
    return rest
