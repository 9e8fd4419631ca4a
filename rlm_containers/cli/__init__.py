"""The command line, ``rlm-containers``: one module for each command or group of commands.

Nothing else of this project imports it, and it uses only the public names of other packages.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command line with this process's arguments, and end the process."""
    from rlm_containers.cli.streams import open_missing_streams, reporting_stream_errors

    open_missing_streams()
    from rlm_containers.cli.program import program

    with reporting_stream_errors():
        program(prog_name="rlm-containers")
