"""The user that cells and commands run as: its name, and what it may write."""

from __future__ import annotations

import os


def name_user() -> None:
    """Give this user a name if the image knows none, for ``getpass.getuser()`` and such."""
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        for name in ("LOGNAME", "USER"):
            os.environ.setdefault(name, "sandbox")


def limit_files(most: int | None, *, core_files: bool) -> None:
    """Limit the files of this process and of all that it starts.

    Args:
        most: the most bytes of a file; ``None`` for no limit.
        core_files: whether a process that crashes may leave its memory in a file.
    """
    import resource

    if most:
        # The hard limit too, so that no cell can raise it. Python ignores SIGXFSZ.
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if not core_files:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
