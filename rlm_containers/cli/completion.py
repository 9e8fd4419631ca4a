"""``rlm-containers completion``: what a shell needs to complete the program's words."""

from __future__ import annotations

import click

from rlm_containers.cli.command import Command


@click.command(
    cls=Command,
    examples=(
        ("bash, in ~/.bashrc", 'completion bash    # eval "$(rlm-containers completion bash)"'),
        ("zsh, in ~/.zshrc", 'completion zsh     # eval "$(rlm-containers completion zsh)"'),
        ("fish", "completion fish > ~/.config/fish/completions/rlm-containers.fish"),
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options and their values."""
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    program = ctx.find_root()
    name = "rlm-containers"
    click.echo(completion(program.command, {}, name, "_RLM_CONTAINERS_COMPLETE").source())
