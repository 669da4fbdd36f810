"""What the ranks do in the tests of torch.distributed.checkpoint: train, save, load, die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from xxhash import xxh3_64_hexdigest

from mldb.adapters.dcp import StorageReader, StorageWriter
from mldb.errors import StorageFullError
from mldb.log.fs.posix_file import OsFile

STEPS_A_EPOCH = 2
_KINDS = (AsyncCheckpointerType.THREAD, AsyncCheckpointerType.PROCESS)
WIDTH = 24


def sharded_model(world: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """An MLP under FSDP2, and its AdamW; the same on every run."""
    torch.manual_seed(5)
    layers = (nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    model = nn.Sequential(*layers)
    mesh = init_device_mesh("cpu", (world,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """A step on data that depends on nothing but its number, the same on every rank."""
    torch.manual_seed(1000 + number)
    loss = nn.functional.cross_entropy(model(torch.randn(16, 8)), torch.randint(0, 3, (16,)))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def whole_digests(state: Any) -> dict[str, str]:
    """A digest of every tensor of a state, put together from all ranks, and every other value."""
    found: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                visit(part, f"{path}.{key}")
        elif isinstance(value, list):
            for index, part in enumerate(value):
                visit(part, f"{path}.{index}")
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            data = whole.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            found[path] = f"{whole.dtype} {tuple(whole.shape)} {xxh3_64_hexdigest(data.tobytes())}"
        else:
            found[path] = repr(value)

    visit(state, "")
    return found


def train(
    rank: int, world: int, store: str, epochs: int, dies: str = "", dies_at: int = 0
) -> dict[str, Any]:
    """Train from the newest checkpoint on, saving after each step; perhaps die in one save.

    *dies*: "rank" in the middle of its writes, or the "coordinator" then, or at its "finish".
    """
    model, optimizer = sharded_model(world)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state, "step": 0}
    started = 0
    if os.path.exists(store):
        dcp.load(state, storage_reader=StorageReader(store))
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        started = state["step"]
    raised = ""
    for number in range(started, epochs * STEPS_A_EPOCH):
        one_step(model, optimizer, number)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "step": number + 1}
        writer = StorageWriter(store, epoch=number // STEPS_A_EPOCH, step=number + 1)
        if number == dies_at and dies:
            _die_in(rank, writer, dies)
        try:
            dcp.save(state, checkpoint_id=f"step-{number + 1}", storage_writer=writer)
        except RuntimeError as error:  # of gloo: the other one is gone
            raised = f"{type(error).__name__}: {error}"
            break
    return {"started": started, "raised": raised, "state": {} if raised else whole_digests(state)}


def _die_in(rank: int, writer: StorageWriter, dies: str) -> None:
    if dies == "finish":
        writer.finish = lambda *arguments, **named: _die()  # type: ignore[method-assign]
    elif rank == (0 if dies == "coordinator" else 1):
        _at_write(2, _die)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_write(number: int, act: Callable[[], None]) -> None:
    """Call *act* in place of the write of this number into a shared file."""
    from mldb.write.shared_checkpoint import SharedFile

    real, count = SharedFile.write, [0]

    def write(self: SharedFile, offset: int, buffers: Any) -> None:
        count[0] += 1
        if count[0] == number:
            act()
        real(self, offset, buffers)

    SharedFile.write = write  # type: ignore[method-assign]


def mesh_state(world: int, fill: int) -> dict[str, Any]:
    """Tensors split along each axis, replicated, narrow, 0-d, empty, and plain values."""
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(fill)
    large = torch.randn(16, 32768)
    return {
        "rows": distribute_tensor(torch.randn(10, 6), mesh, [Shard(0)]),
        "columns": distribute_tensor(torch.randn(6, 10).bfloat16(), mesh, [Shard(1)]),
        "long_columns": distribute_tensor(large, mesh, [Shard(1)]),
        "uneven": distribute_tensor(torch.randn(5, 3), mesh, [Shard(0)]),
        "nested": {
            "replicated": torch.randn(7),
            "fp8": torch.randn(9).to(torch.float8_e5m2),
            "zero": torch.tensor(fill),
            "empty": torch.empty(0, 4),
            "list": [torch.ones(2) * fill, {"name": f"fill-{fill}", "none": None}],
        },
        "plain": (fill, 2.5, ["a", fill]),
    }


def save_mesh(rank: int, world: int, store: str, fill: int, name: str) -> dict[str, str]:
    """Save that state; return its digests."""
    state = mesh_state(world, fill)
    dcp.save(state, checkpoint_id=name, storage_writer=StorageWriter(store, epoch=fill))
    return whole_digests(state)


def load_mesh(rank: int, world: int, store: str, name: str | None) -> dict[str, str]:
    """Load it into a state of other values, under this number of ranks."""
    state = mesh_state(world, 99)
    dcp.load(state, checkpoint_id=name, storage_reader=StorageReader(store))
    return whole_digests(state)


def save_async(rank: int, world: int, store: str) -> dict[str, Any]:
    """Save behind the training, which goes on changing the weights, by a thread and a process."""
    model, optimizer = sharded_model(world)
    one_step(model, optimizer, 0)
    writer = StorageWriter(store, epoch=1)
    beside = dist.new_group(backend="gloo")  # the training goes on in the other one meanwhile
    wanted = {}
    for name in ("thread", "again", "process"):
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        wanted[name] = whole_digests(state)
        saving: Any = dcp.async_save(
            state,
            checkpoint_id=name,
            storage_writer=writer,
            process_group=beside,
            async_checkpointer_type=_KINDS[name == "process"],
        )
        one_step(model, optimizer, 7)
        getattr(saving, "upload_completion", saving).result()
    loaded = {}
    for name in wanted:
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.load(state, checkpoint_id=name, storage_reader=StorageReader(store))
        loaded[name] = whole_digests(state)
    return {"wanted": wanted, "loaded": loaded}


def fail(rank: int, world: int, store: str, ways: list[str]) -> dict[str, str]:
    """Saves and a load that must fail on every rank, and what it sees; then a save that works."""
    seen = {}
    for how in ways:
        try:
            _fail_once(rank, world, store, how)
            seen[how] = "nothing"
        except CheckpointException as error:
            kinds = {type(each[0]).__name__ for each in error.failures.values()}
            seen[how] = " ".join(sorted(kinds))
    writer = StorageWriter(store, epoch=3)
    dcp.save(mesh_state(world, 3), checkpoint_id="after", storage_writer=writer)
    return seen


def _fail_once(rank: int, world: int, store: str, how: str) -> None:
    state: dict[str, Any] = mesh_state(world, 3)
    writer = StorageWriter(store, epoch=0 if how == "epoch" else 3)
    planner = dcp.DefaultSavePlanner(enable_plan_caching=how == "cached")
    real = OsFile.pwritev
    if how == "absent":
        dcp.load(state, checkpoint_id="half", storage_reader=StorageReader(store))
    if how == "full" and rank == world - 1:
        OsFile.pwritev = _full  # type: ignore[method-assign]
    if how == "object":
        state["own"] = object()
    try:
        dcp.save(state, checkpoint_id="x", storage_writer=writer, planner=planner)
    finally:
        OsFile.pwritev = real  # type: ignore[method-assign]


def _full(self: OsFile, buffers: Any, offset: int) -> int:
    raise StorageFullError("the disk is full", errno=28)
