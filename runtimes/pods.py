"""What Kubernetes is asked for: a job with one pod that holds one program."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from runtimes.errors import UnsupportedByEngineError
from runtimes.spec import ContainerSpec, Placement

#: The label on everything that is made here.
MANAGED = "app.kubernetes.io/managed-by"
MANAGER = "rlm-containers"

#: The label on pods that must reach nothing, for a NetworkPolicy to select.
NETWORK = "rlm-containers/network"

#: The name of the container in the pod.
CONTAINER = "sandbox"

#: Seconds without a sign of the host until a pod ends by itself. An interruption that is shorter
#: costs its own time only.
LEASE = 60

#: Seconds until the cluster removes the job of a pod that has ended.
_REMOVE_AFTER = 120

#: The user of a container for which none is named: nobody and nogroup.
_NOBODY = "65534:65534"

#: What a container asks for at least, in processors.
_LEAST_CPU = 0.1

# Every Python must be able to parse this: one that is too old says so in the program itself.
_START = """\
import json, os, sys
if sys.version_info < (3, 9):
    os.execvp(sys.argv[4], sys.argv[4:])
scope = {"__name__": "holder"}
for text in sys.argv[1:3]:
    exec(text, scope)
scope["main"](sys.argv[4:], **json.loads(sys.argv[3]))
"""

_IMPORT = "from runtimes.link import Link, LinkError\n"


@cache
def _texts() -> tuple[str, str]:
    here = Path(__file__).parent
    link, holder = ((here / name).read_text("utf-8") for name in ("link.py", "holder.py"))
    return link, holder.replace(_IMPORT, "")


def job(spec: ContainerSpec, placement: Placement) -> dict[str, Any]:
    """Return the job for a container, for ``kubectl create``.

    Args:
        spec: the container. The first word of its command must be a Python.
        placement: where to run it.

    Raises:
        UnsupportedByEngineError: a pod has no such thing.
    """
    _refuse_what_pods_lack(spec)
    labels = {MANAGED: MANAGER}
    if spec.network == "none":
        labels[NETWORK] = "none"
    metadata = {"labels": labels, "annotations": dict(spec.labels)}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [_container(spec)],
        "volumes": [
            {"name": f"directory-{number}", "emptyDir": kind}
            for number, (_, kind) in enumerate(_directories(spec))
        ],
        "securityContext": _pod_security(spec),
        "nodeSelector": dict(placement.node_selector) or None,
        "tolerations": [dict(one) for one in placement.tolerations] or None,
        "runtimeClassName": placement.runtime_class or None,
        "serviceAccountName": placement.service_account or None,
        "priorityClassName": placement.priority_class or None,
        "imagePullSecrets": [{"name": name} for name in placement.pull_secrets] or None,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": spec.name, **metadata},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": placement.deadline,
            "ttlSecondsAfterFinished": _REMOVE_AFTER,
            "template": {
                "metadata": metadata,
                "spec": {key: value for key, value in pod.items() if value is not None},
            },
        },
    }


def _refuse_what_pods_lack(spec: ContainerSpec) -> None:
    if spec.extra_args:
        raise UnsupportedByEngineError(
            "run_args=… are arguments of docker and podman, and a pod has none.",
            remedy="See placement=… for what a pod can be given.",
            container=spec.name,
        )
    if spec.mounts:
        raise UnsupportedByEngineError(
            "A pod does not see this machine's files, so mounts=… cannot be used.",
            remedy="Send files with Sandbox.put_file() and contexts.",
            container=spec.name,
        )
    if spec.gpus is not None and spec.gpus.count is None:
        raise UnsupportedByEngineError(
            "Kubernetes gives GPUs to pods by their number, and not by name or all of them.",
            remedy="Use gpus=1, and placement=… to choose the nodes.",
            container=spec.name,
        )


def _directories(spec: ContainerSpec) -> list[tuple[str, dict[str, str]]]:
    """Return the directories of the pod's own, and the ``emptyDir`` behind each."""
    found = [(target, _memory(size)) for target, size in spec.tmpfs.items()]
    if (own := spec.own_directory) is not None:
        found.append((own.target, {} if own.kind == "volume" else _memory(own.size)))
    if spec.shm_size is not None:
        found.append(("/dev/shm", _memory(spec.shm_size)))  # noqa: S108
    return found


def _memory(size: int | None) -> dict[str, str]:
    return {"medium": "Memory", **({} if size is None else {"sizeLimit": str(size)})}


def _user(spec: ContainerSpec) -> tuple[int, int]:
    uid, _, gid = (spec.user or _NOBODY).partition(":")
    return int(uid), int(gid or uid)


def _pod_security(spec: ContainerSpec) -> dict[str, Any]:
    uid, gid = _user(spec)
    return {
        "runAsUser": uid,
        "runAsGroup": gid,
        "fsGroup": gid,
        "runAsNonRoot": uid != 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(spec: ContainerSpec) -> dict[str, Any]:
    settings = json.dumps(
        {"name": spec.name, "lease": LEASE, "offline": spec.network == "none"}, sort_keys=True
    )
    python, *rest = spec.command
    link, holder = _texts()
    limits: dict[str, str] = {}
    requests: dict[str, str] = {}
    if spec.memory is not None:
        limits["memory"] = requests["memory"] = str(spec.memory)
    if spec.cpus is not None:
        limits["cpu"] = f"{spec.cpus:.3f}"
        requests["cpu"] = f"{min(spec.cpus, _LEAST_CPU):.3f}"
    if spec.gpus is not None:
        limits["nvidia.com/gpu"] = str(spec.gpus.count)
    environment: list[dict[str, Any]] = [
        {"name": name, "value": _literal(value)} for name, value in spec.env.items()
    ]
    if spec.network == "none":
        node = {"fieldRef": {"fieldPath": "status.hostIP"}}
        environment.append({"name": "KUBERNETES_NODE_ADDRESS", "valueFrom": node})
    return {
        "name": CONTAINER,
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [python, "-I", "-S", "-c"],
        "args": [_literal(word) for word in (_START, link, holder, settings, python, *rest)],
        "workingDir": spec.workdir,
        "env": environment,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"limits": limits, "requests": requests},
        "volumeMounts": [
            {"name": f"directory-{number}", "mountPath": target}
            for number, (target, _) in enumerate(_directories(spec))
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": spec.read_only,
        },
    }


def _literal(word: str) -> str:
    """Return a word in which Kubernetes expands no ``$(NAME)``."""
    return word.replace("$(", "$$(")
