"""``rlm-containers config``: the options of sandboxes, and where each comes from."""

from __future__ import annotations

import click

from rlm_containers.cli.command import Group, json_option, print_json
from rlm_containers.cli.sandbox_options import given_options, sandbox_options


@click.group(
    "config",
    cls=Group,
    examples=(
        ("Every option, and where its value comes from", "config show"),
        ("The same of a profile", "config show --profile data"),
        ("Look for mistakes", "config check"),
    ),
)
def command() -> None:
    """See how sandboxes are configured.

    Options come from the command line, else from variables such as RLM_CONTAINERS_MEMORY, else
    from the profile, else from the configuration file.
    """


@command.command(
    "show",
    examples=(
        ("Every option", "config show"),
        ("As they would be with more", "config show --profile data --memory 4g"),
    ),
)
@json_option
@sandbox_options()
@click.pass_context
def show_command(ctx: click.Context, as_json: bool) -> None:
    """Show every option, its value, and where that comes from. Secrets are left out."""
    from rlm_containers.cli.terminal import print_table
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
    """Print where the configuration file is, or would be."""
    from rlm_containers.options import config_path

    click.echo(config_path())


@command.command("check", examples=(("Before a deployment, say", "config check"),))
def check_command() -> None:
    """Check the file with all its profiles, and the variables.

    Ends with 2 if something is wrong. A variable that looks like an option and is none is only
    named: it may be another program's.
    """
    from rlm_containers.cli.messages import say
    from rlm_containers.options import check_config, config_path, unknown_variables

    profiles = check_config()
    for variable in unknown_variables():
        say(f"warning: {variable} is no option of a sandbox", "yellow")
    path = config_path()
    if not path.exists():
        click.echo(f"There is no {path}, which is fine.")
    elif profiles:
        click.echo(f"{path} is right, with the profiles {', '.join(profiles)}.")
    else:
        click.echo(f"{path} is right.")
