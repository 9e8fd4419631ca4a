"""Which process a sandbox belongs to, so that others can tell whether it is still running.

A process id is not enough: after a while, or a reboot, it is another process's. And machines,
containers or users that share an engine do not see each other's processes. So only owners of the
same machine, user and pid namespace are judged.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from rlm_containers.errors import SandboxError

#: The label with the owner's process id, on everything that this project makes on an engine. The
#: names of the other labels begin in the same way.
LABEL = "io.github.rlm-containers.owner"

#: What says that this system has no such file, and not that it cannot be read now.
_ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)

_PREFIX = LABEL.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that has a sandbox.

    Attributes:
        pid: its process id.
        started: when it was started, in clock ticks since boot; empty where there is no ``/proc``.
        boot: the kernel's boot id, which changes with every start of the machine; empty likewise.
        host: a hash of the machine, the user and the pid namespace.
        session: the name of the sandbox's session, or empty.
    """

    pid: int
    started: str
    boot: str
    host: str
    session: str = ""

    @classmethod
    def current(cls, session: str = "") -> Self:
        """Return this process as an owner.

        Raises:
            SandboxError: it cannot be found out. Others would take this process for a dead one.
        """
        pid = os.getpid()
        try:
            return cls(pid=pid, started=_started(pid), boot=_boot(), host=_host(), session=session)
        except OSError as error:
            raise SandboxError(
                f"This process cannot be told from others, since {error.filename} cannot be read: "
                f"{error.strerror}.",
                remedy="If too many files are open, raise the limit (ulimit -n).",
            ) from error

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self | None:
        """Return the owner that labels of :meth:`labels` name; ``None`` if they name none."""
        return cls._from({**_unprefixed(labels), "pid": labels.get(LABEL, "")})

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Return the owner that a text of :meth:`json` names; ``None`` if it names none."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return cls._from(values) if isinstance(values, dict) else None

    @classmethod
    def _from(cls, values: Mapping[str, Any]) -> Self | None:
        texts = {name: str(values.get(name, "")) for name in ("started", "boot", "host", "session")}
        pid = str(values.get("pid"))
        if not (pid.isascii() and pid.isdigit() and len(pid) < 20 and texts["host"]):
            return None
        return cls(pid=int(pid), **texts)

    def labels(self) -> dict[str, str]:
        """Return the labels for an engine."""
        labels = {f"{_PREFIX}.{name}": value for name, value in asdict(self).items()}
        labels[LABEL] = str(labels.pop(f"{_PREFIX}.pid"))
        return labels

    def json(self, **more: str) -> str:
        """Return a JSON object as text, with more entries in it."""
        return json.dumps({**asdict(self), **more})

    def is_mine(self) -> bool:
        """Tell whether it is a process of this user on this machine."""
        try:
            return self.host == _host()
        except OSError:
            return False

    def is_gone(self) -> bool:
        """Tell whether the process has certainly ended."""
        try:
            if self.host != _host():
                return False  # it may run where this process cannot see it
            if self.boot != _boot():
                return True
            started = _started(self.pid)
        except OSError:  # not "there is no such process"
            return False
        if started or self.started:
            return started != self.started
        return not _exists(self.pid)


def _unprefixed(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(f"{_PREFIX}."): value
        for name, value in labels.items()
        if name.startswith(f"{_PREFIX}.")
    }


def _started(pid: int) -> str:
    """Return when a process was started, see proc_pid_stat(5); empty if there is none.

    Raises:
        OSError: it cannot be read, for example because too many files are open.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Field 22. Skip to behind the second, "(name)", whose name may contain spaces and brackets.
    return stat.rpartition(")")[2].split()[22 - 3]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except _ABSENT:
        return ""


@cache
def _host() -> str:
    machine = platform.node()
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            machine += Path(path).read_text().strip()
            break
        except _ABSENT:
            pass
    try:
        visible = os.readlink("/proc/self/ns/pid")
    except _ABSENT:
        visible = ""
    return hashlib.sha256(f"{machine}\0{visible}\0{os.getuid()}".encode()).hexdigest()[:16]
