"""The command line, ``rlm-containers``: one module for each command or group of commands.

Nothing else of this project imports it, and it uses only what is public.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of this process, and end the process."""
    from rlm_containers.cli.program import program

    program(prog_name="rlm-containers")
