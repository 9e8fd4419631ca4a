"""The lock on a session's directory: one sandbox at a time has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from pathlib import Path

from rlm_containers.errors import (
    SessionError,
    SessionInUseError,
    SessionNotFoundError,
    remedy_for,
)
from rlm_containers.state.hostfiles import is_there, make_private
from rlm_containers.state.owner import Owner
from runtimes.forks import drop_in_children

FILE = "lock"

#: Seconds to wait if the owner has died: its reaper is still removing the container.
_LOCK_TIMEOUT = 15.0

#: Seconds to wait otherwise: :func:`owner_of` holds the lock for a moment.
_PEEK_TIMEOUT = 0.3

#: Bytes of the lock file that are read.
_MAX_TEXT = 4096


class SessionLock:
    """The lock, held while any process has its descriptor open.

    The kernel releases it with the last of them, however they end. The sandbox's reaper has the
    descriptor as well, so nobody gets the session of a killed process before its container is gone.

    Args:
        directory: the session's directory.
        name: the session's name.
        create: whether to make the directory if there is none.

    Attributes:
        descriptor: of the lock file; -1 once it is closed.

    Raises:
        SessionInUseError: another sandbox has it; the message says which process.
        SessionNotFoundError: there is no such directory.
        SessionError: the lock cannot be opened, so nobody knows whether another has it.
    """

    def __init__(self, directory: Path, name: str, *, create: bool = False) -> None:
        self.directory = directory
        self._name = name
        self.descriptor = -1
        self._made = self._has_lock = False
        try:
            self._take(create)
        except BaseException:
            self._unmake()
            self.close()
            raise
        drop_in_children(self)

    def _take(self, create: bool) -> None:
        """Take the lock, and write into the file who has it."""
        begun = time.monotonic()
        while not self._acquire(create):
            owner, machine = _read(self.descriptor)
            self.close()
            dead = owner is not None and owner.is_gone()
            if time.monotonic() - begun > (_LOCK_TIMEOUT if dead else _PEEK_TIMEOUT):
                raise self._in_use(owner, machine, dead=dead)
            time.sleep(0.02)
        self._has_lock = True
        text = Owner.current().json(machine=socket.gethostname())
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, text.encode(), 0)
        except OSError as error:
            raise self._unusable(error) from error

    def _unmake(self) -> None:
        """Remove a directory that this object has made in vain, unless another has it by now."""
        if self._made:
            with contextlib.suppress(OSError):
                if self._has_lock:
                    os.unlink(self.directory / FILE)
                self.directory.rmdir()

    def _acquire(self, create: bool) -> bool:
        """Open the file, and lock it if nobody else has."""
        self.descriptor = self._open(create)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        return self._is_current()

    def _open(self, create: bool) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            try:
                if create:
                    make_private(self.directory.parent)
                    self._made |= not is_there(self.directory)
                    make_private(self.directory)
                return os.open(self.directory / FILE, flags, 0o600)
            except FileNotFoundError:
                if not create:
                    raise SessionNotFoundError(f"There is no session {self._name!r}.") from None
                # Another process has just removed the directory.
            except OSError as error:
                raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> SessionError:
        return SessionError(
            f"The session {self._name!r} cannot be locked by {self.directory / FILE}: "
            f"{error.strerror}.",
            remedy=remedy_for(error),
        )

    def _is_current(self) -> bool:
        """Tell whether the open file still has its name: it has not if the session was removed."""
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
            who += ", which has died, but processes that it started are still running"
        return SessionInUseError(
            f"The session {self._name!r} is in use by {who}.",
            remedy="Close that sandbox, or work on a copy: Sandbox.fork() there, or the session "
            "under another name.",
            pid=pid,
        )

    def drop(self) -> None:
        """In a forked child, close the descriptor. The session stays its parent's."""
        self.close()

    def close(self) -> None:
        """Close the descriptor of this process. May be called again."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def owner_of(directory: Path) -> int | None:
    """Return the process that has a session: 0 if it is unknown which, ``None`` if none has.

    Raises:
        SessionError: the lock cannot be opened, so nobody knows.
    """
    path = directory / FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SessionError(
            f"It is not known who uses the session in {directory}: {path} cannot be opened: "
            f"{error.strerror}.",
            remedy="Make the file readable for this user.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        owner, _ = _read(descriptor)
        return owner.pid if owner is not None else 0
    except OSError:  # a file system without locks: nobody can tell
        return 0
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> tuple[Owner | None, str]:
    """Read who has the lock.

    Early versions wrote a process id and, as ``host``, the machine's name. The owner made of that
    is never judged to be gone.

    Returns:
        The owner, ``None`` if the file names none; and the name of its machine, if it is there.
    """
    text = os.pread(descriptor, _MAX_TEXT, 0).decode(errors="replace")
    owner = Owner.from_json(text)
    return owner, str(json.loads(text).get("machine", "")) if owner is not None else ""
