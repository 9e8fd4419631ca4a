"""Whose a sandbox is, so that others can tell whether its owner is still there.

A process id alone says little: after a while, or a reboot, it is another process's. And where
several machines, containers or users share an engine, each sees processes that the others do not:
only owners of one's own kind can be judged.
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

#: The label that everything of this project carries on an engine: the owner's process id. The
#: others begin with the same words.
LABEL = "io.github.rlm-containers.owner"

_PREFIX = LABEL.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that has sandboxes.

    Attributes:
        pid: its process id.
        started: when it was started, as the kernel counts it; empty where it does not say.
        boot: what the kernel calls its run since the machine was started; empty likewise.
        host: stands for the machine, the user, and the processes that it can see.
        session: the name of the session that the sandbox is for, if it has one.
    """

    pid: int
    started: str
    boot: str
    host: str
    session: str = ""

    @classmethod
    def current(cls, session: str = "") -> Self:
        """This process."""
        pid = os.getpid()
        return cls(pid=pid, started=_started(pid), boot=_boot(), host=_host(), session=session)

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self | None:
        """The owner that :meth:`labels` named; ``None`` if it was none of this version's."""
        return cls._from({**_unprefixed(labels), "pid": labels.get(LABEL, "")})

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """The owner that :meth:`json` named; ``None`` if the text names none."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return cls._from(told) if isinstance(told, dict) else None

    @classmethod
    def _from(cls, told: Mapping[str, Any]) -> Self | None:
        parts = {name: str(told.get(name, "")) for name in ("started", "boot", "host", "session")}
        pid = str(told.get("pid"))
        if not (pid.isascii() and pid.isdigit() and len(pid) < 20 and parts["host"]):
            return None
        return cls(pid=int(pid), **parts)

    def labels(self) -> dict[str, str]:
        """The same as labels for an engine."""
        labels = {f"{_PREFIX}.{name}": value for name, value in asdict(self).items()}
        labels[LABEL] = str(labels.pop(f"{_PREFIX}.pid"))
        return labels

    def json(self, **more: str) -> str:
        """The same as a JSON object, with more in it."""
        return json.dumps({**asdict(self), **more})

    def is_gone(self) -> bool:
        """Whether this owner is certainly not there any more."""
        if self.host != _host():
            return False  # not for us to say
        if self.boot != _boot():
            return True
        started = _started(self.pid)
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
    """When a process was started; empty if there is none, or the kernel does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # After the program's name, which may have anything in it: the state, and 18 more fields.
    return stat.rpartition(")")[2].split()[19]


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
    except OSError:
        return ""


@cache
def _host() -> str:
    machine = platform.node()
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            machine += Path(path).read_text().strip()
            break
        except OSError:
            pass
    try:
        visible = os.readlink("/proc/self/ns/pid")
    except OSError:
        visible = ""
    return hashlib.sha256(f"{machine}\0{visible}\0{os.getuid()}".encode()).hexdigest()[:16]
