"""Holds a pod's program by its standard streams, through every ``kubectl exec`` that it takes."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtimes.command import EngineCommand, last_lines
from runtimes.errors import ContainersError
from runtimes.execs import Exec, KubectlExec
from runtimes.holder import BEAT, RELAY, read, write
from runtimes.link import Link, LinkError
from runtimes.pods import CONTAINER, LEASE
from runtimes.podwatch import ASK_TIMEOUT, Hangup, PodEnded, PodWatch
from runtimes.process import ContainerProcess
from runtimes.text import get_logger

if TYPE_CHECKING:
    from runtimes.websocket import Proxy

logger = get_logger("runtimes")

#: Seconds without a word from the pod until the connection counts as broken.
SILENCE = 3 * BEAT

#: Seconds until a connection must have come about.
_CONNECT_TIMEOUT = 6.0

#: Seconds without a connection until the pod is given up. Its lease is longer: so it has ended, or
#: is about to, when another takes its place.
_GIVE_UP_AFTER = LEASE - 10

#: Seconds between two tries to connect.
_PAUSE = 0.5

#: Bytes that wait here in each direction.
_MOST = 1 << 20

_CHUNK = 1 << 16


class PodProcess(ContainerProcess):
    """The program in a pod.

    A thread has the pod made, waits for it, and passes bytes on between its program and the
    descriptors of this object. When kubectl ends in between, it starts another. In the end it
    removes the job. What goes wrong it writes to ``stderr``.

    Args:
        name: the job's name.
        command: kubectl, with the arguments that lead to the cluster and the namespace.
        python: the Python in the pod.
        uid: the job's id.
        deadline: the ``time.monotonic()`` at which the pod must run.
        proxy: returns what to connect through; ``None`` for a kubectl of its own.
    """

    def __init__(
        self,
        name: str,
        command: EngineCommand,
        python: str,
        uid: str,
        deadline: float,
        proxy: Callable[[], Proxy | None],
    ) -> None:
        self._command = command
        self._python = python
        self._deadline = deadline
        self._proxy = proxy
        self._has_proxy_failed = False
        self._link = Link()
        self._execution: Exec | None = None
        self._status: int | None = None
        self._process = os.getpid()
        self.reason = ""
        self._in, stdin = os.pipe()
        stdout, self._out = os.pipe()
        stderr, self._err = os.pipe()
        super().__init__(name, stdin, stdout, stderr)
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        self._hangup = Hangup(self._in)
        self._watch = PodWatch(name, command, uid, self._hangup)
        self._thread = threading.Thread(target=self._run, name=f"pod-{name}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """None: clients come and go."""
        return 0

    @property
    def is_alive(self) -> bool:
        """Whether anybody looks after the pod."""
        return self._thread.is_alive()

    def wait(self, timeout: float) -> int | None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.kill()
            return None
        return self._status

    def kill(self) -> None:
        if self._process != os.getpid():
            return
        self._hangup.is_killed = True
        self.close_stdin()  # wakes the thread
        if self._execution is not None:
            self._execution.kill()

    def drop(self) -> None:
        super().drop()
        self._close("_in", "_out", "_err")

    # The thread

    def _run(self) -> None:
        try:
            self._serve(self._watch.await_running(self._deadline))
        except PodEnded as ended:
            self._status, self.reason = ended.status, ended.reason
            self._say(str(ended))
        except BaseException as error:
            # Whatever ends this thread, somebody waits for it.
            self._say(f"{type(error).__name__}: {error}")
        finally:
            # As docker's --rm does, and before anybody is told of the end.
            self._remove()
            with self._lock:
                self._close("_in", "_out", "_err")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._err, f"{text}\n".encode()[-_CHUNK:])

    def _remove(self) -> None:
        try:
            self._command.run(*removal(self.name), timeout=ASK_TIMEOUT)
        except ContainersError as error:
            self._status = None  # so that it is tried again
            logger.info("%s: %s", self.name, error)

    # While it runs

    def _serve(self, pod: str) -> None:
        """Pass bytes on until the program has ended.

        Raises:
            PodEnded: its end is not known from itself.
        """
        heard = time.monotonic()
        while True:
            since = self._link.received
            connected, said = self._connection(pod)
            if self._link.ended is not None:
                self._status = _number(self._link.ended)
                return
            if self._hangup.wait(0):
                raise PodEnded("it was closed")
            if connected or self._link.received != since:
                heard = time.monotonic()
            if "orbidden" in said:
                raise PodEnded(said)
            logger.info("%s: the connection broke: %s", self.name, last_lines(said) or "no word")
            self._watch.raise_if_lost(pod)
            if time.monotonic() > heard + _GIVE_UP_AFTER:
                raise PodEnded(
                    f"Unreachable: there was no connection for {_GIVE_UP_AFTER} s: {said}"
                )
            self._hangup.wait(_PAUSE)

    def _connection(self, pod: str) -> tuple[bool, str]:
        """Serve one connection to its end. Return whether there was one, and its words."""
        execution = self._execution = self._execute(pod)
        link = self._link
        link.connect()
        try:
            resumed = self._pass(execution)
            # The next is by the other way, if this one did not come about.
            self._has_proxy_failed = not (resumed or isinstance(execution, KubectlExec))
            return resumed, execution.said.decode("utf-8", "replace")
        except LinkError as error:
            raise PodEnded(f"what came from the pod makes no sense: {error}") from None
        finally:
            link.disconnect()
            execution.close()

    def _execute(self, pod: str) -> Exec:
        program = (self._python, "-I", "-S", "-c", RELAY, self.name)
        if not self._has_proxy_failed and (proxy := self._proxy()) is not None:
            try:
                return proxy.execute(pod, CONTAINER, program)
            except ContainersError as error:
                logger.info("%s: %s", self.name, error)
        where = ("exec", "--stdin", f"--container={CONTAINER}", pod, "--")
        return KubectlExec(self._command.hold(self.name, *where, *program))

    def _pass(self, execution: Exec) -> bool:
        """Pass bytes on until the connection breaks or the program has ended."""
        link, heard, beaten = self._link, time.monotonic(), 0.0
        resumed = False
        while not self._hangup.is_killed:
            resumed = resumed or link.resumed
            now = time.monotonic()
            if len(link.inbox) >= _MOST:
                heard = now  # nobody listens here
            if now > heard + (SILENCE if resumed else _CONNECT_TIMEOUT):
                return resumed
            if now > beaten + BEAT:
                beaten = now
                link.beat()
            if link.ended is not None and not link.inbox:
                self._pass_notes()
                return resumed
            happened = self._poll(execution)
            data = execution.pass_on(happened, link.outbox)
            if data == b"":
                return resumed
            if data:
                heard = time.monotonic()
                link.feed(data)
            if self._out in happened and (
                happened[self._out] & select.POLLERR or not write(self._out, link.inbox)
            ):
                link.inbox.clear()  # nobody reads any more
                link.end()
            if self._in in happened:
                data = read(self._in)
                if data:
                    link.send(data)
                elif data is not None:
                    link.end()
            self._pass_notes()
        return resumed

    def _poll(self, execution: Exec) -> dict[int, int]:
        poll, link = select.poll(), self._link
        reads, writes = len(link.inbox) < _MOST, bool(link.outbox)
        for descriptor, events in execution.interests(reads=reads, writes=writes):
            poll.register(descriptor, events)
        if link.inbox:
            poll.register(self._out, select.POLLOUT)
        if link.room():
            poll.register(self._in, select.POLLIN)
        return dict(poll.poll(1000))

    def _pass_notes(self) -> None:
        if self._link.notes:
            with contextlib.suppress(OSError):
                os.write(self._err, self._link.notes)
            self._link.notes.clear()


def removal(name: str) -> tuple[str, ...]:
    """Return the arguments of kubectl that remove a job and its pod, if it is there."""
    return (
        "delete",
        "job",
        name,
        "--ignore-not-found",
        "--wait=false",
        "--cascade=background",
    )


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) < 5 else None
