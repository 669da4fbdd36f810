"""Ranks of torch.distributed over gloo: processes that run one function, and say what it returned.

A leader imports torch once and forks them, before it has a thread. They find each other through a
file, so no port is taken, and write their results as JSON. One that was killed has none.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit status, what its function returned (None: nothing), its stderr."""

    status: int
    result: Any
    stderr: str


def run_ranks(
    function: str, world: int, folder: Path, *arguments: Any, check: bool = True
) -> list[Ended]:
    """Run ``module:function(rank, world, *arguments)`` on *world* ranks.

    *arguments* are plain values. With *check*, each must end well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    meeting.mkdir()
    command = [sys.executable, "-m", "tests.support.ranks", function, str(world), str(meeting)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    leader = subprocess.run(
        [*command, json.dumps(arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert leader.returncode == 0, leader.stderr
    ended = []
    for rank, status in enumerate(json.loads(leader.stdout.splitlines()[-1])):
        path = meeting / f"{rank}.json"
        result = json.loads(path.read_text()) if path.exists() else None
        ended.append(Ended(status, result, (meeting / f"{rank}.err").read_text()))
    if check:
        for end in ended:
            assert end.status == 0, end.stderr
    return ended


def _lead(function: str, world: int, meeting: Path, arguments: list[Any]) -> None:
    """Fork the ranks, wait for all of them, and print how they ended."""
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    ranks = []
    for rank in range(world):
        child = os.fork()
        if not child:
            _follow(call, rank, world, meeting, arguments)
        ranks.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    print(json.dumps(ended), flush=True)


def _follow(
    call: Callable[..., Any], rank: int, world: int, meeting: Path, arguments: list[Any]
) -> NoReturn:
    """Be a rank; after one was killed the group cannot be taken down in order, so none is."""
    os.dup2(os.open(meeting / f"{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}/store",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=PATIENCE_SECONDS / 4),
        )
        result = call(rank, world, *arguments)
        path = meeting / f"{rank}.json"
        path.with_suffix(".part").write_text(json.dumps(result))
        path.with_suffix(".part").rename(path)
        dist.barrier()  # nobody leaves while another one still needs it
    except BaseException:  # noqa: BLE001 - the test is told, and nobody else
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(0 if (meeting / f"{rank}.json").exists() else 1)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _lead(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
