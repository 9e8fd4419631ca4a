"""Commands as another user of the container, where the sandbox may switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from inspect_ai.util import SandboxUserUnsupportedError

from rlm_containers.errors import SandboxStartError
from rlm_containers.sandbox import Sandbox

#: CAP_SETGID and CAP_SETUID, see capabilities(7).
_SWITCHING = 1 << 6 | 1 << 7

#: Runs in the container: who it is, whether that may become others, and the Python for it, which
#: the image's PATH named before anything could change it.
_LOOK = """
import os, sys
with open("/proc/self/status") as status:
    capabilities = next(line.split()[1] for line in status if line.startswith("CapEff:"))
print(os.getuid(), capabilities, sys.executable)
"""

#: Runs in the container: becomes a user, and then the program.
_SWITCH = """
import os, pwd, sys
name, *command = sys.argv[1:]
try:
    user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    os.initgroups(user.pw_name, user.pw_gid)
    uid, gid, home = user.pw_uid, user.pw_gid, user.pw_dir
    os.environ.update(USER=user.pw_name, LOGNAME=user.pw_name)
except KeyError:
    if not name.isdecimal():
        sys.exit("there is no user " + name)
    os.setgroups(())
    uid, gid, home = int(name), int(name), "/"
os.setgid(gid)
os.setuid(uid)
if os.environ.get("HOME") == "/workspace":
    os.environ["HOME"] = home
try:
    os.execvp(command[0], command)
except OSError as error:
    sys.stderr.write("%r cannot be executed: %s\\n" % (command[0], error.strerror))
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


@dataclass(frozen=True)
class Users:
    """The users that one sandbox can run commands as.

    Attributes:
        uid: its own.
        may_switch: whether it can become another.
        python: the path of the container's Python.
    """

    uid: int
    may_switch: bool
    python: str

    @classmethod
    async def of(cls, box: Sandbox) -> Self:
        """Find out, before anybody else uses the sandbox.

        Raises:
            SandboxStartError: the container does not say.
        """
        result = await box.aexecute(_LOOK)
        try:
            uid, capabilities, python = result.stdout.split(maxsplit=2)
            may = int(uid) == 0 and int(capabilities, 16) & _SWITCHING == _SWITCHING
            return cls(int(uid), may, python.rstrip("\n"))
        except ValueError:
            raise SandboxStartError(
                f"The container does not say which user it has: {result.stderr.strip()}.",
                remedy="It needs /proc. Use another image.",
                container=box.name,
            ) from None

    def command(self, user: str, command: list[str]) -> list[str]:
        """Return a command that runs another as a user.

        Args:
            user: a name or a number.
            command: the program and its arguments.

        Raises:
            SandboxUserUnsupportedError: the sandbox cannot.
        """
        if user == str(self.uid) or (user == "root" and self.uid == 0):
            return command
        if not self.may_switch:
            raise SandboxUserUnsupportedError(
                f"The sandbox runs everything as its user {self.uid}, not as {user}. To name "
                'others, let it run as root: ContainerConfig(user="0", '
                'run_args=["--cap-add=SETUID", "--cap-add=SETGID"]).'
            )
        return [self.python, "-I", "-S", "-c", _SWITCH, user, *command]
