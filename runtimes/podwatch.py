"""What the cluster says of a pod: that it runs, why it does not, and how it has ended."""

from __future__ import annotations

import json
import os
import select
import time
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping
from typing import Any

from runtimes.command import EngineCommand, reading
from runtimes.errors import EngineCommandError
from runtimes.holder import REACHES_NETWORK, read
from runtimes.pods import CONTAINER
from runtimes.process import ClientProcess

#: Seconds that a question to the cluster may take while others wait for the pod.
ASK_TIMEOUT = 10.0

#: Seconds between two tries to be told of the pod.
_PAUSE = 0.5

#: Seconds until a job that has no pod is asked why.
_NO_POD = 3.0

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


class PodEnded(Exception):  # noqa: N818
    """The pod has ended, or will not start. The text is for people.

    Attributes:
        status: the exit status of its program; ``None`` if that is not known.
        reason: the cluster's word for why; empty if it has none.
    """

    def __init__(self, text: str, status: int | None = None, *, reason: str = "") -> None:
        super().__init__(f"{reason}: {text}" if reason else text)
        self.status = status
        self.reason = reason


class Hangup:
    """Tells when nobody wants the pod any more.

    Args:
        descriptor: the end to read from of a pipe whose other end is closed then.

    Attributes:
        descriptor: as it was given.
        is_killed: set to say so in any case.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_killed = False

    def wait(self, timeout: float) -> bool:
        """Wait for it. Return whether it has come."""
        poll = select.poll()
        poll.register(self.descriptor, 0)
        return bool(poll.poll(1000 * max(0.0, timeout))) or self.is_killed


class PodWatch:
    """Asks the cluster for the pod of one job.

    Args:
        name: the job's name.
        command: kubectl, with the arguments that lead to the cluster and the namespace.
        uid: the job's id.
        hangup: tells when to ask no more.
    """

    def __init__(self, name: str, command: EngineCommand, uid: str, hangup: Hangup) -> None:
        self._name = name
        self._command = command
        self._uid = uid
        self._hangup = hangup
        self._asked_at = 0.0  # when it was asked why there is no pod

    def await_running(self, deadline: float) -> str:
        """Wait until the pod's program runs. Return the pod's name.

        Args:
            deadline: the ``time.monotonic()`` at which it must run.

        Raises:
            PodEnded: it will not.
        """
        last: Mapping[str, Any] = {}
        for pod in self._watched(deadline):
            if not pod:  # nothing has come for a while
                if not last:
                    self._explain_missing_pod()
                continue
            last = pod
            self._raise_if_ended(pod)
            if _container_state(pod, "running"):
                return str(pod["metadata"]["name"])
        if self._hangup.wait(0):
            raise PodEnded("it was closed before it ran")
        raise PodEnded(f"the pod did not run in time: {_waiting(last) or self._events()}")

    def _watched(self, deadline: float) -> Iterator[Mapping[str, Any]]:
        """Yield the pod whenever it has changed, and nothing now and then, until it is late."""
        while True:
            arguments = ("get", "pods", f"--selector=controller-uid={self._uid}", "--watch")
            client = self._command.hold(self._name, *arguments, "--output=json")
            try:
                for pod in self._objects(client, deadline):
                    yield pod
                    if self._hangup.wait(0) or time.monotonic() > deadline:
                        return
            finally:
                client.kill()
                client.wait(ASK_TIMEOUT)
                said = _rest(client.stderr)
                client.close()
            if "Forbidden" in said or "forbidden" in said:
                raise PodEnded(said)
            if self._hangup.wait(_PAUSE) or time.monotonic() > deadline:
                return

    def _objects(self, client: ClientProcess, deadline: float) -> Iterator[Mapping[str, Any]]:
        """Yield the objects that a client prints, and nothing once a second without any."""
        poll = select.poll()
        poll.register(client.stdout, select.POLLIN)
        poll.register(self._hangup.descriptor, 0)
        text, decoder = "", getincrementaldecoder("utf-8")("replace")
        while True:
            happened = dict(poll.poll(1000 * min(1.0, max(0.0, deadline - time.monotonic()))))
            if client.stdout not in happened:
                yield {}
                continue
            data = os.read(client.stdout, _CHUNK)
            if not data:
                return
            found, text = read_objects(text + decoder.decode(data))
            if len(text) > _LONGEST_OBJECT:
                raise PodEnded(
                    f"`kubectl get pods` printed an object of more than {len(text)} bytes"
                )
            yield from found

    def _raise_if_ended(self, pod: Mapping[str, Any]) -> None:
        status = pod.get("status") or {}
        if waiting := _container_state(pod, "waiting"):
            reason = str(waiting.get("reason"))
            if reason in _STUCK:
                raise PodEnded(f"{reason}: {waiting.get('message')}")
        ended = _container_state(pod, "terminated")
        if ended or status.get("phase") in ("Failed", "Succeeded"):
            code = (ended or {}).get("exitCode")
            said = str((ended or {}).get("message") or status.get("message") or "").strip()
            reason = str(status.get("reason") or (ended or {}).get("reason") or "Ended")
            raise PodEnded(
                said or "the pod has ended",
                code if isinstance(code, int) else None,
                reason="NetworkReached" if code == REACHES_NETWORK else reason,
            )

    def _explain_missing_pod(self) -> None:
        """If the job was refused its pod, say so.

        Raises:
            PodEnded: it was.
        """
        now = time.monotonic()
        self._asked_at = self._asked_at or now
        if now >= self._asked_at + _NO_POD:
            self._asked_at = now
            if said := self._events(of_job=True):
                raise PodEnded(f"FailedCreate: {said}")

    def _events(self, *, of_job: bool = False) -> str:
        """Return the cluster's last complaints about the job or its pod; empty if none is known.

        Args:
            of_job: only those about this job. There may have been another of its name before.
        """
        which = f",involvedObject.uid={self._uid}" if of_job else ""
        asked = ("get", "events", f"--field-selector=type=Warning{which}", "--output=json")
        try:
            found = self._command.run(*asked, timeout=ASK_TIMEOUT, check=False)
        except EngineCommandError:
            return ""  # the cluster is busy
        if found.exit_code != 0:
            return ""  # whoever runs this may not see events
        with reading("get events"):
            return "; ".join(
                str(event.get("message"))
                for listed in found.objects()
                for event in listed["items"]
                if of_job or str(event["involvedObject"].get("name")).startswith(self._name)
            )

    def raise_if_lost(self, pod: str) -> None:
        """Ask the cluster whether the pod lives on.

        Raises:
            PodEnded: it does not.
        """
        try:
            found = self._command.run(
                "get", "pod", pod, "--output=json", timeout=ASK_TIMEOUT, check=False
            )
        except EngineCommandError:
            return  # the cluster cannot be reached now
        if "NotFound" in found.stderr:
            raise PodEnded("somebody has removed the pod", reason="Deleted")
        if found.exit_code != 0:
            return
        for one in found.objects():
            self._raise_if_ended(one)
            if (one.get("metadata") or {}).get("deletionTimestamp"):
                raise PodEnded("the pod is being removed", reason="Deleted")
            if (
                _container_state(one, "running")
                and _condition(one, "Ready").get("status") == "False"
            ):
                node = (one.get("spec") or {}).get("nodeName")
                raise PodEnded(f"the cluster has lost the node {node}", reason="NodeLost")


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


def _rest(descriptor: int) -> str:
    """Return what a program that has ended has left in a pipe."""
    os.set_blocking(descriptor, False)
    return (read(descriptor) or b"").decode("utf-8", "replace")
