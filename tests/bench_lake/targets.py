"""The figures the lake is held to: what it must reach, and what it aims for."""

from __future__ import annotations

from tests.bench.peer_mldb import MLDB
from tests.bench.targets import Bound, Target, at_least, at_most

_FRESH_MS = 5.0


def _stream(workload: str, figure: str, limit: str, must: float, aim: float) -> Target:
    key = workload.lower()
    return Target(
        workload,
        figure,
        (
            at_least(f"{key}.stream / limit", 0.5, f"x {limit}"),
            at_least(f"{key}.stream / torch", must, "x torch DataLoader"),
        ),
        (
            at_least(f"{key}.stream / torch", aim, "x torch DataLoader"),
            at_least(f"{key}.stream / own", 1.0, "x its own sampler"),
        ),
    )


def _first(kind: str, figure: str, torch: float) -> Target:
    key = f"s10.{kind}"
    return Target(
        "S10",
        f"first pass of a process, {figure}",
        (at_least(f"{key} / torch, quiet", torch, "x torch DataLoader"),),
        (
            at_least(f"{key} / torch, wall", torch, "x by medians"),
            at_least(f"{key} / limit, quiet", 0.8, "x bare mapped"),
            at_least(f"{key} / limit, wall", 0.8, "x by medians"),
        ),
    )


def _from_disk(kind: str, figure: str, disk: float) -> Target:
    key = f"s11.{kind}"
    return Target(
        "S11",
        f"first pass from disk, {figure}",
        (at_least(f"{key} / limit, quiet", disk, "x sequential read"),),
        (at_least(f"{key} / limit, wall", disk, "x by medians"),),
    )


def _milliseconds(measure: str) -> tuple[Bound, ...]:
    return (at_most(measure, _FRESH_MS, "ms"),)


TARGETS = (
    Target(
        "S1",
        "durable ingest",
        (at_least("s1.ingest / limit", 0.7, "x raw write"),),
    ),
    Target(
        "S1",
        "durable ingest against Lance",
        (at_least("s1.ingest / lance", 1.5, "x Lance"),),
    ),
    _stream("S2", "sequential stream", "memcpy", 2.0, 2.2),
    _stream("S3", "full shuffle", "gather", 1.7, 2.0),
    _stream("S4", "weighted sampling, weights returned", "gather", 1.9, 2.2),
    *(
        Target(
            "S5",
            f"isotropic augmentation, device {device}",
            (at_least(f"s5.{name} / torch", 0.5, "x torch.randn"),),
            (at_least(f"s5.{name} / torch", 1.0, "x torch.randn"),),
        )
        for device, name in (
            ("auto", MLDB),
            ("torch", f"{MLDB}, torch"),
            ("vulkan", f"{MLDB}, vulkan"),
        )
    ),
    Target(
        "S6",
        "Langevin on the CPU, direct form",
        (at_least("s6.direct / torch", 1.5, "x torch operations"),),
    ),
    Target(
        "S6",
        "Langevin on the CPU, subspace form",
        (at_least("s6.subspace / torch", 1.5, "x torch operations"),),
        (at_least("s6.subspace / torch", 2.0, "x torch operations"),),
    ),
    Target(
        "VULKAN",
        "Langevin under a row's own splat",
        (at_least("vulkan.self / torch", 1.5, "x torch operations"),),
    ),
    Target(
        "VULKAN",
        "Langevin under neighbours",
        (at_least("vulkan.mixture / torch", 1.0, "x torch operations"),),
    ),
    Target(
        "S7",
        "share of resumed streams that give the same bytes",
        (at_least("s7.exact", 1.0, "of all"),),
    ),
    *(
        Target("S7", f"resume to the next batch, {name}", _milliseconds(f"s7.{name}"))
        for name in ("sequential", "shuffled", "weighted", "augmented", "augmented, torch")
    ),
    *(
        Target("S8", f"first batch, {kind}, {when}", _milliseconds(f"s8.{kind}, {when}"))
        for kind in ("sequential", "shuffled")
        for when in ("cold", "warm")
    ),
    Target(
        "S8",
        "first batch, shuffled, first loader of a process",
        (at_most("s8.shuffled, cold / own", 1.0, "x torch's own sampler"),),
    ),
    Target(
        "S9",
        "sequential stream, two workers",
        (at_least("s9.stream / torch", 2.0, "x torch DataLoader"),),
        (at_least("s9.stream / own", 1.0, "x its own sampler"),),
    ),
    _first("sequential", "in order", 1.2),
    _first("shuffled", "full shuffle", 1.0),
    _from_disk("sequential", "in order", 0.9),
    _from_disk("windowed", "shuffled windows", 0.7),
)
