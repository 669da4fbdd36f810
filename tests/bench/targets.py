"""The figures mldb is held to: what it must reach, and what it aims for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """One comparison of a measured value: ``measure`` is its key, ``unit`` is printed behind it."""

    measure: str
    value: float
    unit: str
    at_least: bool

    def met(self, measured: float) -> bool:
        """Tell whether *measured* is on the right side."""
        return measured >= self.value if self.at_least else measured <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the final table; all bounds of ``must`` (or ``aim``) have to hold."""

    workload: str
    figure: str
    must: tuple[Bound, ...]
    aim: tuple[Bound, ...] = ()


def at_least(measure: str, value: float, unit: str) -> Bound:
    """Return a lower bound."""
    return Bound(measure, value, unit, at_least=True)


def at_most(measure: str, value: float, unit: str) -> Bound:
    """Return an upper bound."""
    return Bound(measure, value, unit, at_least=False)


TARGETS = (
    Target(
        "W1",
        "durable write of a state dict",
        (at_least("w1.write / safetensors", 1.0, "x safetensors + fsync"),),
        (at_least("w1.write / limit", 0.95, "x best raw write"),),
    ),
    *(
        Target(
            "W1",
            f"durable {what}, all tensors changed, the fifth in a row",
            (at_least(f"w1.{key} / safetensors", 0.95, "x safetensors + fsync"),),
            (at_least(f"w1.{key} / limit", 0.95, "x best raw write"),),
        )
        for key, what in (("fifth", "checkpoint"), ("transaction", "transaction"))
    ),
    Target(
        "W1",
        "checkpoint(wait=False): stall",
        (at_most("w1.stall / memcpy", 1.5, "x memcpy"),),
        (at_most("w1.stall / memcpy", 1.2, "x memcpy"),),
    ),
    Target(
        "W1",
        "checkpoint(wait=False): p99 of train steps meanwhile",
        (at_most("w1.steps / idle", 2.0, "x idle p99"),),
        (at_most("w1.steps / idle", 1.3, "x idle p99"),),
    ),
    Target(
        "W2",
        "load all, every byte touched, verified",
        (at_least("w2.load / limit", 0.6, "x memmap"),),
        (at_least("w2.load / limit", 0.8, "x memmap"),),
    ),
    Target(
        "W2",
        "load all, every byte touched, verify never",
        (at_least("w2.load, never / limit", 0.95, "x memmap"),),
        (at_least("w2.load, never / limit", 1.0, "x memmap"),),
    ),
    Target(
        "W2",
        "first 4 MB tensor of a closed store, verified",
        (at_most("w2.first / safetensors", 1.0, "x safetensors' time"),),
        (at_most("w2.first / safetensors", 0.5, "x safetensors' time"),),
    ),
    Target(
        "W2",
        "the same tensor from an open handle",
        (at_most("w2.again", 20.0, "us"),),
        (at_most("w2.again", 10.0, "us"),),
    ),
    Target(
        "W3",
        "4 KiB tensors, durable batches of 100",
        (at_least("w3.batch / lmdb", 1.3, "x lmdb"),),
        (at_least("w3.batch / lmdb", 1.6, "x lmdb"),),
    ),
    Target(
        "W3",
        "4 KiB tensors, single puts, no fsync, a commit each",
        (at_least("w3.lazy / lmdb, commit per put", 0.3, "x lmdb with a commit each"),),
        (at_least("w3.lazy / lmdb, commit per put", 0.5, "x lmdb with a commit each"),),
    ),
    Target(
        "W3",
        "the same commits against lmdb in one transaction",
        (at_least("w3.lazy / lmdb", 0.4, "x lmdb in one transaction"),),
        (at_least("w3.lazy / lmdb", 0.6, "x lmdb in one transaction"),),
    ),
    Target(
        "W3",
        "4 KiB tensors, no fsync, one transaction on both sides",
        (at_least("w3.one / lmdb", 0.4, "x lmdb in one transaction"),),
        (at_least("w3.one / lmdb", 0.6, "x lmdb in one transaction"),),
    ),
    Target(
        "W4",
        "durable commits of 4 x 256 KiB",
        (at_least("w4.commit / lmdb", 1.0, "x lmdb"),),
        (at_least("w4.commit / lmdb", 1.1, "x lmdb"),),
    ),
    Target(
        "W4",
        "as-of reads of all bytes, first touch, verify never",
        (at_least("w4.read, never / lmdb", 0.85, "x lmdb floor seek"),),
        (at_least("w4.read, never / lmdb", 1.0, "x lmdb floor seek"),),
    ),
    Target(
        "W4",
        "as-of reads of all bytes, first touch, verified",
        (at_least("w4.read / lmdb", 0.75, "x lmdb floor seek"),),
        (at_least("w4.read / lmdb", 1.0, "x lmdb floor seek"),),
    ),
    Target(
        "W4",
        "as-of reads again, handed out, verify never",
        (at_least("w4.again, never / lmdb, each", 1.3, "x lmdb, a transaction each"),),
        (at_least("w4.again, never / lmdb", 1.7, "x lmdb in one snapshot"),),
    ),
    Target(
        "W6",
        "row slices, verify never",
        (at_least("w6.rows, never / limit", 0.95, "x memmap copy"),),
        (at_least("w6.rows, never / limit", 1.0, "x memmap copy"),),
    ),
    Target(
        "W6",
        "row slices, verified",
        (at_least("w6.rows / limit", 0.4, "x memmap copy"),),
        (at_least("w6.rows / limit", 0.5, "x memmap copy"),),
    ),
    Target(
        "W7",
        "open a cleanly closed store of many records, then first get",
        (
            at_most("w7.open", 50.0, "ms to open"),
            at_most("w7.get", 5.0, "ms to get"),
            at_most("w7.private", 64.0, "MiB private"),
        ),
    ),
    Target(
        "W7",
        "open + get after SIGKILL, unsealed tensors of 4 KiB to 1 MiB",
        (at_most("w7.killed, tensors", 0.5, "s"),),
        (at_most("w7.killed, tensors", 0.3, "s"),),
    ),
    Target(
        "W7",
        "open + get after SIGKILL, unsealed records of 100 bytes",
        (at_most("w7.killed, records", 0.5, "s"),),
        (at_most("w7.killed, records", 0.3, "s"),),
    ),
    Target(
        "ADAM",
        "one checkpoint of 1,000 small tensors, no fsync",
        (at_most("adam.checkpoint", 12.0, "ms"),),
        (at_most("adam.checkpoint", 6.0, "ms"),),
    ),
    Target(
        "DISK",
        "overhead of tensors >= 1 MB",
        (at_most("disk.large", 1.0, "%"),),
    ),
    Target(
        "DISK",
        "overhead of a 4 KiB tensor in a batch of 100",
        (at_most("disk.small", 224.0, "bytes"),),
    ),
    Target(
        "IMPORT",
        "import mldb and open an empty store",
        (
            at_most("import.milliseconds", 150.0, "ms"),
            at_most("import.heavy", 0.0, "heavy modules loaded"),
        ),
        (at_most("import.milliseconds", 110.0, "ms"),),
    ),
    Target(
        "IMPORT",
        "the same above import numpy",
        (at_most("import.own", 45.0, "ms"),),
        (at_most("import.own", 25.0, "ms"),),
    ),
)
