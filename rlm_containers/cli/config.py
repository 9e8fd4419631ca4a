"""``rlm-containers config``: the options of sandboxes, and the source of each."""

from __future__ import annotations

import click

from rlm_containers.cli.command import Group, json_option, print_json
from rlm_containers.cli.sandbox_options import given_options, sandbox_options
from rlm_containers.cli.terminal import print_table, say


@click.group(
    "config",
    cls=Group,
    examples=(
        ("Show every option, and where its value comes from", "config show"),
        ("The same with a profile", "config show --profile data"),
        ("Check for mistakes", "config check"),
    ),
)
def command() -> None:
    """Show how sandboxes are configured.

    The command line takes precedence, then variables such as RLM_CONTAINERS_MEMORY, then the
    profile, then the rest of the configuration file.
    """


@command.command(
    "show",
    examples=(
        ("Every option", "config show"),
        ("With further options", "config show --profile data --memory 4g"),
    ),
)
@json_option
@sandbox_options()
@click.pass_context
def show_command(ctx: click.Context, as_json: bool) -> None:
    """Show every option, its value, and where the value comes from. Secrets are left out."""
    from rlm_containers.options import explain_options

    settings = explain_options(given_options(ctx))
    if as_json:
        print_json(
            {setting.name: {"value": setting.shown, "from": setting.origin} for setting in settings}
        )
    else:
        print_table(("option", "value", "from"), [(s.name, s.shown, s.origin) for s in settings])


@command.command("path", examples=(("Edit it", 'config path    # $EDITOR "$(…)"'),))
def path_command() -> None:
    """Print the path of the configuration file, which need not exist."""
    from rlm_containers.options import config_path

    click.echo(config_path())


@command.command("check", examples=(("Before a deployment", "config check"),))
def check_command() -> None:
    """Check the configuration file with all its profiles, and the variables.

    The exit code is 2 if something is wrong. A variable that looks like an option but is none only
    gets a warning, since it may be another program's.
    """
    from rlm_containers.options import check_config, config_path, unknown_variables

    profiles = check_config()
    for variable in unknown_variables():
        say(f"warning: {variable} is no option of a sandbox", "yellow")
    path = config_path()
    if not path.exists():
        click.echo(f"There is no {path}, and none is needed.")
    elif profiles:
        click.echo(f"{path} is correct, with the profiles {', '.join(profiles)}.")
    else:
        click.echo(f"{path} is correct.")
