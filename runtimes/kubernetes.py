"""Kubernetes by ``kubectl``: a job with one pod for each container.

Nothing is installed in the cluster, and ten permissions in one namespace are enough, see
:data:`PERMISSIONS`. :mod:`runtimes.pods` describes the pods, :mod:`runtimes.pod` holds them.
"""

from __future__ import annotations

import json
import re
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from runtimes.base import ContainerRecord, EngineInfo, Runtime
from runtimes.command import CommandResult, EngineCommand, last_lines, reading
from runtimes.errors import (
    ContainersError,
    ContainerStartError,
    EngineCommandError,
    EngineUnavailableError,
    ImageNotFoundError,
    UnsupportedByEngineError,
)
from runtimes.pod import PodProcess, removal
from runtimes.pods import CONTAINER, MANAGED, MANAGER, NETWORK, job
from runtimes.podwatch import read_objects
from runtimes.spec import ContainerSpec, Placement
from runtimes.timelimit import TimeLimit, within_limit

if TYPE_CHECKING:
    from runtimes.websocket import Proxy

#: What the caller must be allowed to do: verbs for each API group, resource and subresource.
PERMISSIONS: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    ("batch", "jobs", ""): ("create", "get", "list", "delete"),
    ("", "pods", ""): ("get", "list", "watch"),
    ("", "pods", "exec"): ("create", "get"),
    ("", "events", ""): ("list",),
}

_ROLE = "docs/howto/kubernetes.md has the role that is enough."

#: Pods of one process with a kubectl each. The others share one, if ``websockets`` is installed.
_MOST_CLIENTS = 8

#: Bytes of memory of a pod for which nobody has chosen any.
_MEMORY = 2 * 1024**3

#: Seconds that a removal may take.
_REMOVE_TIMEOUT = 20.0

#: Seconds of a start that are kept for telling why it has failed.
_TO_TELL = 3.0

#: Seconds for a start without any limit.
_START_TIMEOUT = 60.0

_UNREACHABLE = re.compile(
    r"connection to the server .* refused|unable to connect to the server|no such host|"
    r"i/o timeout|TLS handshake timeout|no route to host|did you specify the right host",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(r"\bforbidden\b", re.IGNORECASE)
_NOBODY = re.compile(r"unauthorized|must be logged in|credentials", re.IGNORECASE)
_NO_IMAGE = re.compile(r"\A(ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull)\b")
_NO_ROOM = re.compile(r"\bUnschedulable\b")
_ENDED = re.compile(r"\A(OOMKilled|Evicted|DeadlineExceeded|NodeLost|Deleted|NetworkReached)\b")

_WHAT_ENDED_IT = {
    "OOMKilled": "Raise memory=….",
    "Evicted": "Its node had no memory or disk left, or a directory in memory grew past its size: "
    "raise memory=… or workspace_size=….",
    "DeadlineExceeded": "Raise deadline in placement=….",
    "NodeLost": "Make a new Sandbox: it gets another node.",
    "Deleted": "See who removes pods in this namespace.",
    "NetworkReached": f"Have a NetworkPolicy deny all to pods with the label {NETWORK}: none, in a "
    'cluster whose network enforces policies, or use network="bridge".',
}


class KubernetesRuntime(Runtime):
    """Pods of the cluster, and in the namespace, that kubectl is at.

    Args:
        command: how to call kubectl.
    """

    name = "kubernetes"
    shares_files = False
    pulls_at_start = True

    def __init__(self, command: EngineCommand) -> None:
        self.command = command
        self._info: EngineInfo | None = None
        self._lock = threading.RLock()
        self._proxy: Proxy | None = None
        self._proxy_lock = threading.Lock()
        self._held: weakref.WeakValueDictionary[str, PodProcess] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.command}>"

    def info(self) -> EngineInfo:
        with within_limit(self._lock):
            if self._info is None:
                self._info = self._ask_info()
            return self._info

    def _ask_info(self) -> EngineInfo:
        asked = self.command.run("version", "--output=json", "--request-timeout=15s", check=False)
        if asked.exit_code != 0:
            raise self._failure("ask the cluster for its version", asked)
        with reading("version"):
            (answer,) = asked.objects()
            version = str(answer["serverVersion"]["gitVersion"])
        numbers = re.match(r"v?(\d+(?:\.\d+)*)", version)
        return EngineInfo(
            engine=self.name,
            version=tuple(map(int, numbers[1].split("."))) if numbers else (0,),
            rootless=False,
            cgroup_version=2,
            selinux=False,
            remote=True,
            has_init=False,
            unenforced={"pids": "a pod has no such limit; see podPidsLimit of the kubelet"},
            no_disk_limit="a pod that writes more than it may is evicted",
            default_memory=_MEMORY,
        )

    def open(self, spec: ContainerSpec) -> PodProcess:
        limit = TimeLimit.current()
        left = _START_TIMEOUT if limit is None else limit.left()
        deadline = time.monotonic() + max(0.0, left - _TO_TELL)
        described = json.dumps(job(spec, spec.placement or Placement())).encode()
        made = self.command.run(
            "create", "--filename=-", "--output=json", given=described, check=False
        )
        if made.exit_code != 0:
            raise self._failure("make the job of a pod", made, container=spec.name)
        with reading("create"):
            (answer,) = made.objects()
            uid = str(answer["metadata"]["uid"])
        process = PodProcess(
            spec.name, self.command, spec.command[0], uid, deadline, self._find_proxy
        )
        self._held[spec.name] = process
        return process

    def start_error(self, spec: ContainerSpec, exit_code: int | None, stderr: str) -> Exception:
        said = stderr.strip()
        if _NO_IMAGE.search(said):
            return ImageNotFoundError(
                f"No node could pull the image {spec.image!r}: {last_lines(said)}",
                remedy="Is its name complete, and can the nodes reach its registry? For a private "
                "one name a Secret: placement={'pull_secrets': […]}.",
                container=spec.name,
                exit_code=exit_code,
                stderr=stderr,
            )
        if found := _ENDED.search(said):
            if found[1] == "NetworkReached":
                return UnsupportedByEngineError(
                    f'network="none" does not hold in this namespace: {last_lines(said)}',
                    remedy=_WHAT_ENDED_IT["NetworkReached"],
                    container=spec.name,
                )
            remedy = _WHAT_ENDED_IT[found[1]]
        elif _FORBIDDEN.search(said):
            remedy = _ROLE
        elif _NO_ROOM.search(said):
            remedy = "Lower memory=… or cpus=…, or see placement=… and the nodes' taints."
        else:
            remedy = f"See `{self.command} describe job,pod -l {MANAGED}={MANAGER}`."
        return ContainerStartError(
            f"Kubernetes could not start a pod with the image {spec.image!r}: "
            f"{last_lines(said) or 'it said nothing'}",
            remedy=remedy,
            container=spec.name,
            exit_code=exit_code,
            stderr=stderr,
        )

    def remove(self, name: str) -> None:
        removed = self.command.run(*removal(name), timeout=_REMOVE_TIMEOUT, check=False)
        if removed.exit_code != 0:
            raise self._failure("remove the job of a pod", removed, container=name)

    def remove_command(self, name: str) -> tuple[str, ...]:
        return (*self.command.argv, *removal(name))

    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        listed = self.command.run(
            "get", "jobs", f"--selector={MANAGED}={MANAGER}", "--output=json", check=False
        )
        if listed.exit_code != 0:
            raise self._failure("list jobs", listed)
        with reading("get jobs"):
            (answer,) = listed.objects()
            records = [_record(found) for found in answer["items"]]
        return [
            record
            for record in records
            if all(
                name in record.labels and value in ("", record.labels[name])
                for name, value in labels.items()
            )
        ]

    def exec_command(
        self, name: str, command: Sequence[str], *, tty: bool = False
    ) -> tuple[str, ...]:
        terminal = ("--tty",) if tty else ()
        where = (f"--container={CONTAINER}", f"job/{name}", "--")
        return (*self.command.argv, "exec", "--stdin", *terminal, *where, *command)

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        held = self._held.get(name)
        return None if held is None or not held.reason else held.reason == "OOMKilled"

    def missing_permissions(self) -> list[str]:
        wanted = [
            (verb, group, resource, below)
            for (group, resource, below), verbs in PERMISSIONS.items()
            for verb in verbs
        ]
        reviews = [
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {
                    "resourceAttributes": {
                        "namespace": self._namespace(),
                        "verb": verb,
                        "group": group,
                        "resource": resource,
                        "subresource": below,
                    }
                },
            }
            for verb, group, resource, below in wanted
        ]
        described = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews}).encode()
        asked = self.command.run(
            "create", "--filename=-", "--output=json", given=described, check=False
        )
        if asked.exit_code != 0:
            raise self._failure("ask what it allows", asked)
        with reading("create"):
            # One object for each, one after another.
            answers, _ = read_objects(asked.stdout)
            allowed = [one["status"].get("allowed") is True for one in answers]
            return [
                f"{verb} {resource}{'/' if below else ''}{below}"
                for (verb, _, resource, below), may in zip(wanted, allowed, strict=True)
                if not may
            ]

    def _find_proxy(self) -> Proxy | None:
        """Return what pods are connected through once there are many."""
        if sum(held.is_alive for held in list(self._held.values())) <= _MOST_CLIENTS:
            return None
        with self._proxy_lock:
            if self._proxy is None:
                try:
                    from runtimes.websocket import Proxy  # noqa: PLC0415 - an extra
                except ImportError:
                    return None
                self._proxy = Proxy(self.command, self._namespace())
            return self._proxy

    def _namespace(self) -> str:
        named = self.command.argv
        for word, following in zip(named, (*named[1:], ""), strict=True):
            if word in ("-n", "--namespace"):
                return following
            if word.startswith("--namespace="):
                return word.partition("=")[2]
        asked = self.command.run("config", "view", "--minify", "--output=json")
        with reading("config view"):
            (config,) = asked.objects()
            context = (config.get("contexts") or [{}])[0].get("context") or {}
            return str(context.get("namespace") or "default")

    def _failure(
        self, what: str, result: CommandResult, container: str | None = None
    ) -> ContainersError:
        said = last_lines(result.stderr) or "it said nothing"
        if _UNREACHABLE.search(result.stderr):
            return EngineUnavailableError(
                f"No cluster answers behind `{self.command}`: {said}",
                remedy=f"See `{self.command} cluster-info`. Name another with KUBECONFIG or "
                'runtime="kubectl --context NAME".',
                container=container,
            )
        remedy = f"See `{self.command} cluster-info`."
        if _FORBIDDEN.search(result.stderr):
            remedy = _ROLE
        elif _NOBODY.search(result.stderr):
            remedy = f"Log in again: `{self.command} auth can-i create jobs` should say yes."
        elif "namespaces" in result.stderr:
            remedy = 'Make it, or name another: runtime="kubectl --namespace NAME".'
        return EngineCommandError(
            f"`{self.command}` could not {what}: {said}",
            remedy=remedy,
            container=container,
            exit_code=result.exit_code,
            stderr=result.stderr,
        )

    def _unsupported(self, what: str) -> NoReturn:
        raise UnsupportedByEngineError(
            f"The runtime {self.name} cannot {what}: the nodes pull images from a registry.",
            remedy="Build it with docker or podman, push it, and name it with image=….",
        )


def _record(found: Mapping[str, Any]) -> ContainerRecord:
    metadata = found["metadata"]
    (container,) = found["spec"]["template"]["spec"]["containers"]
    return ContainerRecord(
        id=str(metadata["uid"]),
        name=str(metadata["name"]),
        image=str(container["image"]),
        running=bool((found.get("status") or {}).get("active")),
        labels={str(k): str(v) for k, v in (metadata.get("annotations") or {}).items()},
    )
