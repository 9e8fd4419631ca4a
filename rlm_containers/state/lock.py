"""One sandbox for each session: the lock on its directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from rlm_containers.errors import SessionInUseError, SessionNotFoundError
from rlm_containers.state.owner import Owner

FILE = "lock"

#: Seconds to wait for a session whose owner has died: its container is being removed.
_PATIENCE = 15.0

#: Seconds in which somebody who only looks whether it is in use is done.
_LOOK = 0.3

#: Bytes of the file that are read.
_TEXT = 4096


class SessionLock:
    """Held as long as this object is open, and as any process has its descriptor.

    The kernel gives it up with the last of them, whatever they die of. A sandbox's reaper has it,
    too: so when the owner is killed, nobody gets the session before its container is gone.

    Args:
        directory: the session's directory.
        name: the session's name.
        create: whether to make the directory if there is none.

    Raises:
        SessionInUseError: another sandbox has it; the message says which process.
        SessionNotFoundError: there is no such directory.
        OSError: it cannot be made.
    """

    def __init__(self, directory: Path, name: str, *, create: bool = False) -> None:
        self.directory = directory
        self._name = name
        begun = time.monotonic()
        while not self._take(create):
            owner, machine = _read(self.descriptor)
            os.close(self.descriptor)
            dead = owner is not None and owner.is_gone()
            if time.monotonic() - begun > (_PATIENCE if dead else _LOOK):
                raise self._in_use(owner, machine, dead=dead)
            time.sleep(0.02)
        told = Owner.current().json(machine=socket.gethostname())
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, told.encode(), 0)

    def _take(self, create: bool) -> bool:
        """Open the file, and lock it if nobody else has."""
        self.descriptor = self._open(create)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except BaseException:
            os.close(self.descriptor)
            raise
        return self._is_current()

    def _open(self, create: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if create:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags |= os.O_CREAT
        try:
            return os.open(self.directory / FILE, flags, 0o600)
        except FileNotFoundError:
            if create:  # removed this very moment
                return self._open(create)
            raise SessionNotFoundError(f"There is no session {self._name!r}.") from None

    def _is_current(self) -> bool:
        """Whether the file is still the one of that name, and no session has been removed."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(
                os.fstat(self.descriptor), os.stat(self.directory / FILE, follow_symlinks=False)
            )
        return False

    def _in_use(self, owner: Owner | None, machine: str, *, dead: bool) -> SessionInUseError:
        pid = owner.pid if owner is not None else None
        who = f"process {pid}" if pid else "another process"
        if pid == os.getpid():
            who = f"another sandbox of this process ({pid})"
        if machine not in ("", socket.gethostname()):
            who += f" on {machine[:80]}"
        if dead:
            who += ", which has died, but what it started goes on"
        return SessionInUseError(
            f"The session {self._name!r} is in use by {who}.",
            remedy="Close that sandbox, or work on a copy: Sandbox.fork() there, or the session "
            "under another name.",
            pid=pid,
        )

    def close(self) -> None:
        """Give it up, as far as this process is concerned. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def owner_of(directory: Path) -> int | None:
    """The process that has a session; 0 if it is unknown which, ``None`` if nobody has it."""
    try:
        descriptor = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        owner, _ = _read(descriptor)
        return owner.pid if owner is not None else 0
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> tuple[Owner | None, str]:
    """Who has the lock, as far as the file says, and the name of the machine that is on.

    Before there was an :class:`Owner` in it, the file had a process id, and for the host what is
    the machine's name here. That makes an owner whom nobody can judge, and who is waited for no
    longer than a living one.
    """
    text = os.pread(descriptor, _TEXT, 0).decode(errors="replace")
    owner = Owner.from_json(text)
    return owner, str(json.loads(text).get("machine", "")) if owner is not None else ""
