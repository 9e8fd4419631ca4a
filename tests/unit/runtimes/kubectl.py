#!/usr/bin/env python3
"""A ``kubectl`` whose cluster is a directory, and whose pods are processes of this machine.

It knows the commands that :mod:`runtimes.kubernetes` uses. The directory is in ``$CLUSTER``:

* a job ``NAME`` is ``NAME.json``; its pod's process id is in ``NAME.pid``;
* a pod's container state is in ``NAME.state``, if it is another than that of the process;
* ``flood`` makes ``get pods`` print without an end;
* ``refuse`` is what every command fails with;
* ``clients`` lists the process ids of ``exec``, one a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

CLUSTER = Path(os.environ["CLUSTER"])


def main(words: list[str]) -> None:
    refusal = CLUSTER / "refuse"
    if refusal.exists():
        sys.exit(refusal.read_text())
    verb, *rest = words
    plain = [word for word in rest if not word.startswith("--")]
    if verb == "version":
        answer({"serverVersion": {"gitVersion": "v1.30.2+local"}})
    elif verb == "config":
        answer({"contexts": [{"context": {"namespace": "lab"}}]})
    elif verb == "create":
        create(json.load(sys.stdin))
    elif verb == "get" and plain[0] == "pods":
        while (CLUSTER / "flood").exists():
            os.write(1, b"[" * 65536)
        (uid,) = (word.rpartition("=")[2] for word in rest if word.startswith("--selector"))
        answer(pod(uid))
        time.sleep(60)
    elif verb == "get" and plain[0] == "pod":
        name = plain[1].removesuffix("-pod")
        if not (CLUSTER / f"{name}.json").exists():
            sys.exit("Error from server (NotFound): there is no such pod")
        answer(pod(name))
    elif verb == "get" and plain[0] == "jobs":
        jobs = [json.loads(path.read_text()) for path in CLUSTER.glob("*.json")]
        answer({"items": jobs})
    elif verb == "get":
        answer({"items": []})
    elif verb == "exec":
        with open(CLUSTER / "clients", "a") as clients:
            clients.write(f"{os.getpid()}\n")
        execute(rest[rest.index("--") + 1 :])
    elif verb == "proxy":
        serve(rest)
    elif verb == "delete":
        delete(plain[1])


def answer(found: object) -> None:
    sys.stdout.write(f"{json.dumps(found, indent=4)}\n")
    sys.stdout.flush()


def create(job: dict[str, object]) -> None:
    if job["kind"] == "List":
        items = job["items"]
        assert isinstance(items, list)
        allowed = not (CLUSTER / "deny").exists()
        for review in items:
            answer({**review, "status": {"allowed": allowed}})
        return
    metadata = job["metadata"]
    assert isinstance(metadata, dict)
    name = metadata["name"]
    metadata["uid"] = name
    (CLUSTER / f"{name}.json").write_text(json.dumps(job))
    answer(job)
    if not (CLUSTER / "state").exists():
        start(name, job)


def start(name: str, job: dict[str, object]) -> None:
    spec: dict[str, object] = job["spec"]["template"]["spec"]["containers"][0]  # type: ignore[index]
    command, args = spec["command"], spec["args"]
    assert isinstance(command, list)
    assert isinstance(args, list)
    workspace = CLUSTER / f"{name}.workspace"
    workspace.mkdir()
    # The guest goes to its workspace by the path that this has in a container.
    place = f"import rlm_guest.commands, rlm_guest.worker\nrlm_guest.worker.WORKSPACE = {str(workspace)!r}\n"
    place += "rlm_guest.commands.WORKSPACE = rlm_guest.worker.WORKSPACE\n"
    args[-1] = args[-1].replace("from rlm_guest.boot import", place + "from rlm_guest.boot import")
    sys.stdout.flush()
    if os.fork() == 0:
        os.setsid()
        log = os.open(CLUSTER / f"{name}.log", os.O_WRONLY | os.O_CREAT, 0o600)
        for descriptor, replacement in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(replacement, descriptor)
        os.chdir(workspace)
        (CLUSTER / f"{name}.pid").write_text(str(os.getpid()))
        env = {**os.environ, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_PORT": "tcp://x"}
        os.execvpe(command[0], [*command, *args], env)


def execute(command: list[str]) -> None:
    """Run a command behind two pipes, which break when this process is killed."""
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    threading.Thread(target=copy, args=(0, running.stdin.fileno()), daemon=True).start()
    copy(running.stdout.fileno(), 1)
    os._exit(0)  # as kubectl does, whatever has ended


def serve(words: list[str]) -> None:
    """Execute by WebSocket, and note each connection."""
    import site

    site.main()  # this runs without what is installed
    from urllib.parse import parse_qs, urlsplit

    from websockets.sync.server import ServerConnection, unix_serve

    def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        url = urlsplit(connection.request.path)
        assert url.path.startswith("/api/v1/namespaces/lab/pods/")
        with open(CLUSTER / "sockets", "a") as sockets:
            sockets.write("connected\n")
        command = parse_qs(url.query)["command"]
        running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert running.stdin is not None

        def send(channel: bytes, source: int) -> None:
            while data := os.read(source, 65536):
                connection.send(channel + data)
            if channel == b"\1":
                connection.close()

        for channel, stream in ((b"\1", running.stdout), (b"\2", running.stderr)):
            assert stream is not None
            args = (channel, stream.fileno())
            threading.Thread(target=send, args=args, daemon=True).start()
        for message in connection:
            assert isinstance(message, bytes)
            assert message[:1] == b"\0"
            os.write(running.stdin.fileno(), message[1:])
        running.kill()

    (path,) = (word.partition("=")[2] for word in words if word.startswith("--unix-socket="))
    with unix_serve(handle, path, subprotocols=["v4.channel.k8s.io"]) as server:
        server.serve_forever()


def copy(source: int, sink: int) -> None:
    try:
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(sink, data) :]
        os.close(sink)
    except OSError:
        os._exit(1)


def pod(name: str) -> dict[str, object]:
    state: dict[str, object] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    if (CLUSTER / "state").exists():
        state = json.loads((CLUSTER / "state").read_text())
    return {
        "metadata": {"name": f"{name}-pod"},
        "status": {"phase": "Running", "containerStatuses": [{"name": "sandbox", "state": state}]},
    }


def delete(name: str) -> None:
    for suffix in ("pid", "json"):
        path = CLUSTER / f"{name}.{suffix}"
        try:
            if suffix == "pid":
                os.kill(int(path.read_text()), signal.SIGKILL)
            path.unlink()
        except (FileNotFoundError, ProcessLookupError):
            pass


main(sys.argv[1:])
