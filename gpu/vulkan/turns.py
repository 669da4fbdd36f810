"""Whose turn a slot is: the shader's, which writes its rows, or CUDA's, which reads them.

CUDA does what it is told to later, in the order of a stream. So that the rows of a batch were read
is known only once the stream comes there, and a slot may not be written again before that. With
timelines that both sides know, the two devices tell each other and no one waits on the host::

    shader, batch n:  waits for freed >= (what the reader before will set), then sets ready = n
    CUDA, batch n:    waits for ready >= n, reads, sets freed = (the next number)

A wait of one side is put down only after the other side was given what ends it: CUDA waits for
batches that were submitted, and a batch waits for what is in the stream already. Where timelines
cannot be shared the host waits for the stream.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from mldb.gpu.cuda.runtime import CudaRuntime
from mldb.gpu.vulkan.slots import Slot
from mldb.gpu.vulkan.timeline import TimelineSemaphore


class Turns(Protocol):
    """The order of one output. A single thread at a time."""

    def begin(self, batch: int, stream: int) -> None:
        """Let CUDA read batch *batch*, which was submitted, in *stream*."""

    def end(self, slot: Slot, stream: int) -> None:
        """Let the shader write *slot* again once what is in *stream* by now has read it."""


class SharedTurns:
    """Turns by two timelines as CUDA has imported them; ``freed`` is Vulkan's own of the second.

    A timeline must only grow. Signals of one stream come in order; one of another stream waits for
    the signal before it.
    """

    def __init__(
        self, runtime: CudaRuntime, ready: Any, freed: Any, timeline: TimelineSemaphore
    ) -> None:
        self._runtime, self._ready, self._freed = runtime, ready, freed
        self._timeline = timeline
        self._stream: int | None = None

    def begin(self, batch: int, stream: int) -> None:
        """Put the wait into the stream."""
        self._runtime.wait(self._ready, batch, stream)

    def end(self, slot: Slot, stream: int) -> None:
        """Put the signal into the stream; the slot's next batch waits for it on the device."""
        promised = self._timeline.promised
        if promised and stream != self._stream:
            self._runtime.wait(self._freed, promised, stream)
        self._runtime.signal(self._freed, promised + 1, stream)
        self._timeline.promised = slot.freed = promised + 1
        self._stream = stream


class HostTurns:
    """Turns by waiting on the host, where the device cannot export timelines."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime

    def begin(self, batch: int, stream: int) -> None:
        """Nothing: the host has waited for the batch."""

    def end(self, slot: Slot, stream: int) -> None:
        """Wait for the stream."""
        self._runtime.synchronize_stream(stream)


def end_when_needed(turns: Turns, slot: Slot, stream: int) -> None:
    """End a turn no sooner than the slot is needed again: its rows may be read until then."""
    slot.readers[stream] = partial(turns.end, slot, stream)
