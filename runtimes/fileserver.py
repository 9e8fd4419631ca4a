"""Files and secrets for a step of Docker's classic builder, which cannot mount anything.

That builder is all there is without the buildx plugin. What it copies it makes a layer of, and an
argument it writes into the image's history. But it can run its steps in the network of a container
that is there already. So a container of the same image stands beside the build for as long as it
lasts, gets the files over its standard input, and gives them to whoever connects to its loopback,
which is only that build. The step unpacks them to /dev/shm, which is memory and never committed.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtimes.base import Runtime
from runtimes.errors import ImageBuildError
from runtimes.process import ContainerProcess
from runtimes.spec import BuildSpec, ContainerSpec

_PORT = 8731
_PLACE = "/dev/shm/rlm-build"  # noqa: S108  # in the build's container

# Seconds for the container to start and to take the files.
_PATIENCE = 60.0

_SERVER = f"""
import os, socket, sys, threading
size = int(sys.stdin.buffer.readline())
content = sys.stdin.buffer.read(size)
listener = socket.create_server(("127.0.0.1", {_PORT}))
def serve():
    while True:
        with listener.accept()[0] as connection:
            connection.sendall(content)
threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
sys.stdin.buffer.read()
os._exit(0)
"""

# From Python 3.12 on, extracting without a filter warns; before, some have no filters.
_CLIENT = (
    "import socket, tarfile; "
    f"stream = socket.create_connection(('127.0.0.1', {_PORT})).makefile('rb'); "
    "archive = tarfile.open(fileobj=stream, mode='r|'); "
    "archive.extraction_filter = lambda member, path: member; "
    f"archive.extractall('{_PLACE}')"
)

_FIND_PYTHON = (
    "python=$(command -v python3 || command -v python)"
    " || { echo 'this image has no Python' >&2; exit 1; }\n"
)


@dataclass(frozen=True)
class ServedFiles:
    """What a build needs to find the files.

    Attributes:
        args: arguments of ``build``.
        prologue: what its script must begin with.
        context: an empty directory, to be sent in place of the files.
    """

    args: tuple[str, ...]
    prologue: str
    context: Path


@contextlib.contextmanager
def serve_files(runtime: Runtime, spec: BuildSpec) -> Iterator[ServedFiles]:
    """Hold the files and secrets of a build ready, as long as the context lasts.

    Raises:
        ImageBuildError: the container beside the build did not come up.
    """
    packed = _pack(spec)
    context = spec.directory / "empty"
    context.mkdir()
    container = ContainerSpec(
        image=spec.base,
        command=("/bin/sh", "-c", f'{_FIND_PYTHON}exec "$python" -c "$0"', _SERVER),
        name=f"rlm-build-{secrets.token_hex(6)}",
        labels=spec.container_labels,
    )
    process = runtime.open(container)
    try:
        _hand_over(process, packed, spec)
        yield ServedFiles(
            # Room for them, unpacked, beside what the step itself puts there.
            args=(f"--network=container:{container.name}", f"--shm-size={len(packed) + 2**26}"),
            prologue=f'{_FIND_PYTHON}"$python" -c "{_CLIENT}"\n'
            f"FILES={_PLACE}/files SECRETS={_PLACE}/secrets\n",
            context=context,
        )
    finally:
        process.close_stdin()
        if process.wait(10.0) is None:
            runtime.remove(container.name)
        process.close()


def _pack(spec: BuildSpec) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(spec.context, "files")
        for name, content in spec.secrets.items():
            member = tarfile.TarInfo(f"secrets/{name}")
            member.size = len(content)
            member.mode = 0o400
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _hand_over(process: ContainerProcess, packed: bytes, spec: BuildSpec) -> None:
    # Without its client the pipes break, and nothing waits for ever.
    overdue = threading.Timer(_PATIENCE, process.kill)
    overdue.daemon = True
    overdue.start()
    try:
        with open(process.stdin, "wb", closefd=False) as stdin:
            stdin.write(b"%d\n" % len(packed))
            stdin.write(packed)
        answer = os.read(process.stdout, 100)
    except BrokenPipeError:
        answer = b""
    finally:
        overdue.cancel()
        overdue.join()
    if answer != b"ready\n":
        process.close_stdin()
        status = process.wait(_PATIENCE)
        with open(process.stderr, "rb", closefd=False) as stderr:
            said = stderr.read(10_000).decode("utf-8", "replace").strip()
        raise ImageBuildError(
            f"The image {spec.tag} could not be built: the container that holds its files ready "
            f"did not come up: {said or 'it said nothing'}",
            remedy="The image needs a shell and a Python; or install docker's buildx plugin.",
            exit_code=status,
            stderr=said,
        )
