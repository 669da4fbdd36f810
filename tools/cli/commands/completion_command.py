"""``mldb completion``: the completion script of a shell."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(shell: str, as_json: bool) -> None:
    """Print the completion script of a shell, for its start-up file.

    \b
    mldb completion bash >> ~/.bashrc
    mldb completion zsh >> ~/.zshrc
    mldb completion fish > ~/.config/fish/completions/mldb.fish
    """
    from click.shell_completion import get_completion_class

    from mldb.tools.cli.main import root_command
    from mldb.tools.cli.output import Output

    found = get_completion_class(shell)
    assert found is not None  # click has all three
    script = found(root_command(), {}, "mldb", "_MLDB_COMPLETE").source()
    if as_json:
        Output(as_json=True).document({"shell": shell, "script": script})
    else:
        click.echo(script)
