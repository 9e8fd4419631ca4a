"""Holds a pod's program by its standard streams, through every ``kubectl exec`` that it takes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from runtimes.command import EngineCommand, last_lines, reading
from runtimes.errors import ContainersError, EngineCommandError
from runtimes.execs import Exec, KubectlExec
from runtimes.holder import BEAT, REACHES_NETWORK, RELAY, read, write
from runtimes.link import Link, LinkError
from runtimes.pods import CONTAINER, LEASE
from runtimes.process import ClientProcess, ContainerProcess
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

#: Seconds that a question to the cluster may take while others wait for the pod.
_ASK_TIMEOUT = 10.0

#: Seconds between two tries to connect.
_PAUSE = 0.5

#: Seconds until a job that has no pod is asked why.
_NO_POD = 3.0

#: Bytes that wait here in each direction.
_MOST = 1 << 20

_CHUNK = 1 << 16

#: Characters of an object that the cluster describes. It can store 1.5 MiB of each.
_LONGEST_OBJECT = 4 << 20

#: Reasons for which a container waits that do not pass. A pull that fails is tried again by its
#: node, but whoever waits for it would rather know.
_STUCK = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)


class _Ended(Exception):  # noqa: N818
    """The pod has ended, or will not start. The text is for people."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


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
        self._uid = uid
        self._deadline = deadline
        self._proxy = proxy
        self._has_proxy_failed = False
        self._link = Link()
        self._client: ClientProcess | Exec | None = None
        self._status: int | None = None
        self._killed = False
        self._process = os.getpid()
        self.reason = ""
        self._in, stdin = os.pipe()
        stdout, self._out = os.pipe()
        stderr, self._err = os.pipe()
        super().__init__(name, stdin, stdout, stderr)
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
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
        self._killed = True
        self.close_stdin()  # wakes the thread
        if self._client is not None:
            self._client.kill()

    def drop(self) -> None:
        super().drop()
        self._close("_in", "_out", "_err")

    # The thread

    def _run(self) -> None:
        try:
            pod = self._await_pod()
            self._serve(pod)
        except _Ended as ended:
            self._status = ended.status
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
            self._command.run(*removal(self.name), timeout=_ASK_TIMEOUT)
        except ContainersError as error:
            self._status = None  # so that it is tried again
            logger.info("%s: %s", self.name, error)

    def _is_closed(self, timeout: float) -> bool:
        """Wait. Tell whether standard input was closed, or this was killed."""
        poll = select.poll()
        poll.register(self._in, 0)
        return bool(poll.poll(1000 * max(0.0, timeout))) or self._killed

    # Until it runs

    def _await_pod(self) -> str:
        """Wait until the pod's program runs. Return the pod's name.

        Raises:
            _Ended: it will not.
        """
        last: Mapping[str, Any] = {}
        for pod in self._watched():
            if not pod:  # nothing has come for a while
                if not last:
                    self._explain_missing_pod()
                continue
            last = pod
            self._raise_if_ended(pod)
            if _container_state(pod, "running"):
                return str(pod["metadata"]["name"])
        if self._is_closed(0):
            raise _Ended("it was closed before it ran")
        raise _Ended(f"the pod did not run in time: {_waiting(last) or self._events()}")

    def _watched(self) -> Iterator[Mapping[str, Any]]:
        """Yield the pod whenever it has changed, and nothing now and then, until it is late."""
        while True:
            arguments = ("get", "pods", f"--selector=controller-uid={self._uid}", "--watch")
            client = self._client = self._command.hold(self.name, *arguments, "--output=json")
            try:
                for pod in self._objects(client):
                    yield pod
                    if self._is_closed(0) or time.monotonic() > self._deadline:
                        return
            finally:
                client.kill()
                client.wait(_ASK_TIMEOUT)
                said = _rest(client.stderr)
                client.close()
            if "Forbidden" in said or "forbidden" in said:
                raise _Ended(said)
            if self._is_closed(_PAUSE) or time.monotonic() > self._deadline:
                return

    def _objects(self, client: ClientProcess) -> Iterator[Mapping[str, Any]]:
        """Yield the objects that a client prints, and nothing once a second without any."""
        poll = select.poll()
        poll.register(client.stdout, select.POLLIN)
        poll.register(self._in, 0)
        text, decoder = "", getincrementaldecoder("utf-8")("replace")
        while True:
            happened = dict(poll.poll(1000 * min(1.0, max(0.0, self._deadline - time.monotonic()))))
            if client.stdout not in happened:
                yield {}
                continue
            data = os.read(client.stdout, _CHUNK)
            if not data:
                return
            found, text = read_objects(text + decoder.decode(data))
            if len(text) > _LONGEST_OBJECT:
                raise _Ended(f"`kubectl get pods` printed an object of more than {len(text)} bytes")
            yield from found

    def _raise_if_ended(self, pod: Mapping[str, Any]) -> None:
        status = pod.get("status") or {}
        if waiting := _container_state(pod, "waiting"):
            reason = str(waiting.get("reason"))
            if reason in _STUCK:
                raise _Ended(f"{reason}: {waiting.get('message')}")
        ended = _container_state(pod, "terminated")
        if ended or status.get("phase") in ("Failed", "Succeeded"):
            code = (ended or {}).get("exitCode")
            said = str((ended or {}).get("message") or status.get("message") or "").strip()
            self.reason = str(status.get("reason") or (ended or {}).get("reason") or "Ended")
            if code == REACHES_NETWORK:
                self.reason = "NetworkReached"
            raise _Ended(
                f"{self.reason}: {said or 'the pod has ended'}",
                code if isinstance(code, int) else None,
            )

    def _explain_missing_pod(self) -> None:
        """If the job was refused its pod, say so.

        Raises:
            _Ended: it was.
        """
        if self._waited_for_pod() and (said := self._events(of_job=True)):
            raise _Ended(f"FailedCreate: {said}")

    _asked_at = 0.0

    def _waited_for_pod(self) -> bool:
        now = time.monotonic()
        if not self._asked_at:
            self._asked_at = now
        if now < self._asked_at + _NO_POD:
            return False
        self._asked_at = now
        return True

    def _events(self, *, of_job: bool = False) -> str:
        """Return the cluster's last complaints about the job or its pod; empty if none is known.

        Args:
            of_job: only those about this job. There may have been another of its name before.
        """
        which = f",involvedObject.uid={self._uid}" if of_job else ""
        asked = ("get", "events", f"--field-selector=type=Warning{which}", "--output=json")
        try:
            found = self._command.run(*asked, timeout=_ASK_TIMEOUT, check=False)
        except EngineCommandError:
            return ""  # the cluster is busy
        if found.exit_code != 0:
            return ""  # whoever runs this may not see events
        with reading("get events"):
            return "; ".join(
                str(event.get("message"))
                for listed in found.objects()
                for event in listed["items"]
                if of_job or str(event["involvedObject"].get("name")).startswith(self.name)
            )

    # While it runs

    def _serve(self, pod: str) -> None:
        """Pass bytes on until the program has ended.

        Raises:
            _Ended: its end is not known from itself.
        """
        heard = time.monotonic()
        while True:
            since = self._link.received
            connected, said = self._connection(pod)
            if self._link.ended is not None:
                self._status = _number(self._link.ended)
                return
            if self._is_closed(0):
                raise _Ended("it was closed")
            if connected or self._link.received != since:
                heard = time.monotonic()
            if "orbidden" in said:
                raise _Ended(said)
            logger.info("%s: the connection broke: %s", self.name, last_lines(said) or "no word")
            self._raise_if_lost(pod)
            if time.monotonic() > heard + _GIVE_UP_AFTER:
                raise _Ended(f"Unreachable: there was no connection for {_GIVE_UP_AFTER} s: {said}")
            self._is_closed(_PAUSE)

    def _raise_if_lost(self, pod: str) -> None:
        """Ask the cluster whether the pod lives on.

        Raises:
            _Ended: it does not.
        """
        try:
            found = self._command.run(
                "get", "pod", pod, "--output=json", timeout=_ASK_TIMEOUT, check=False
            )
        except EngineCommandError:
            return  # the cluster cannot be reached now
        if "NotFound" in found.stderr:
            self.reason = "Deleted"
            raise _Ended("Deleted: somebody has removed the pod")
        if found.exit_code != 0:
            return
        for one in found.objects():
            self._raise_if_ended(one)
            if (one.get("metadata") or {}).get("deletionTimestamp"):
                self.reason = "Deleted"
                raise _Ended("Deleted: the pod is being removed")
            if (
                _container_state(one, "running")
                and _condition(one, "Ready").get("status") == "False"
            ):
                self.reason = "NodeLost"
                node = (one.get("spec") or {}).get("nodeName")
                raise _Ended(f"NodeLost: the cluster has lost the node {node}")

    def _connection(self, pod: str) -> tuple[bool, str]:
        """Serve one connection to its end. Return whether there was one, and its words."""
        execution = self._client = self._execute(pod)
        link = self._link
        link.connect()
        try:
            resumed = self._pass(execution)
            # The next is by the other way, if this one did not come about.
            self._has_proxy_failed = not (resumed or isinstance(execution, KubectlExec))
            return resumed, execution.said.decode("utf-8", "replace")
        except LinkError as error:
            raise _Ended(f"what came from the pod makes no sense: {error}") from None
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
        while not self._killed:
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


def read_objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """Read the JSON objects that follow each other in a text. Return them, and what is left."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        try:
            one, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            break  # it is not complete, or is none
        text = text[end:]
        if isinstance(one, dict):
            found.append(one)
    return found, text


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


def _container_state(pod: Mapping[str, Any], state: str) -> Mapping[str, Any]:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            found = (container.get("state") or {}).get(state)
            # An empty object of `running` is a state, too.
            return found or ({"": ""} if found is not None else {})
    return {}


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def _waiting(pod: Mapping[str, Any]) -> str:
    """Say what a pod that does not run waits for."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message')}"
    waiting = _container_state(pod, "waiting")
    return (
        f"{waiting.get('reason')}: {waiting.get('message') or 'its node has not started it'}"
        if waiting
        else ""
    )


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) < 5 else None


def _rest(descriptor: int) -> str:
    """Return what a program that has ended has left in a pipe."""
    os.set_blocking(descriptor, False)
    return (read(descriptor) or b"").decode("utf-8", "replace")
