"""``mldb demo``: a training run recorded, killed, resumed, rewound and read back."""

from __future__ import annotations

import click


@click.command("demo")
@click.option("--path", help="An empty or new folder for the stores, which are kept.")
@click.option("--epochs", type=click.IntRange(2), default=12, show_default=True)
@click.option("--kills", type=click.IntRange(0), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(path: str | None, epochs: int, kills: int, seed: int, as_json: bool) -> int:
    """Train a small network, kill it in the middle of saving, resume it, rewind it, read it back.

    Takes about 15 seconds, needs torch, and leaves nothing behind without --path. The status is 1
    when a promise did not hold.
    """
    from mldb.tools.demo.main import main

    arguments = [f"--epochs={epochs}", f"--kills={kills}", f"--seed={seed}"]
    arguments += [f"--path={path}"] if path is not None else []
    return main([*arguments, *(["--json"] if as_json else [])])
