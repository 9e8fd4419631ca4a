"""How an engine's ``build`` is called, so that no secret gets into the image.

BuildKit and podman mount files and secrets into a step. Docker's classic builder, which is all
there is without the buildx plugin, cannot: what it copies becomes a layer, and arguments go into
the image's history. It can, however, run a step in the network of another container. So
:func:`serve_files` starts a container of the same image for the time of the build, sends the files
to its standard input, and lets it serve them on its loopback, which only the build can reach. The
step unpacks them to /dev/shm, which is memory and is never committed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtimes.base import Runtime
from runtimes.errors import ImageBuildError
from runtimes.process import ContainerProcess
from runtimes.spec import BuildSpec, ContainerSpec

#: Proxy variables of this process that every build gets, and that engines keep out of the image.
PROXY_VARIABLES = tuple(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY")
    for name in (upper, upper.lower())
)

#: Where a step finds its files if the builder can mount them.
MOUNTED_FILES = "/run/rlm-build"
# Where builders mount secrets by default.
_MOUNTED_SECRETS = "/run/secrets"


@dataclass(frozen=True, kw_only=True)
class Builder:
    """How to call one engine's ``build``.

    Attributes:
        args: further arguments.
        environment: variables for the client.
        mounts: whether it knows ``RUN --mount``.
        bind: the option of ``RUN`` that mounts the build's context; ends with a space.
        prologue: the first line of every script; sets ``$FILES`` and ``$SECRETS``.
        context: the directory to send instead of ``BuildSpec.context``.
        base: another name for the image to build on.
    """

    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: bool = True
    bind: str = f"--mount=type=bind,target={MOUNTED_FILES} "
    prologue: str = f"FILES={MOUNTED_FILES} SECRETS={_MOUNTED_SECRETS}\n"
    context: Path | None = None
    base: str | None = None


def build_arguments(spec: BuildSpec, builder: Builder, base: str) -> list[str]:
    """Write the files that a build needs, and return the arguments of the command line.

    Args:
        spec: what to build.
        builder: how to call the engine.
        base: the engine's name for the image to build on.
    """
    text, mounts = spec.dockerfile, ""
    args = list(builder.args)
    if builder.mounts:
        mounts = builder.bind + "".join(f"--mount=type=secret,id={name} " for name in spec.secrets)
        args += _secret_args(spec)
    if spec.script:
        step = json.dumps(["/bin/sh", "-ec", builder.prologue + spec.script])
        step = f"RUN {mounts}{step}\n"
        text += f"\nUSER 0\n{step}USER {spec.user}\n" if spec.user else f"\n{step}"
    file = spec.directory / "Dockerfile"
    file.write_text(text)
    if spec.base:
        args.append(f"--build-arg=BASE_IMAGE={builder.base or base}")
    args += [f"--label={key}={value}" for key, value in spec.labels.items()]
    context = builder.context or spec.context
    return ["build", f"--tag={spec.tag}", f"--file={file}", *args, str(context)]


def _secret_args(spec: BuildSpec) -> list[str]:
    """Write each secret to a private file; only the files' names become arguments."""
    args = []
    for number, (name, content) in enumerate(spec.secrets.items()):
        path = spec.directory / f"secret-{number}"
        path.touch(mode=0o600)
        path.write_bytes(content)
        # A relative path, since a comma in the directory's name would end the value.
        args.append(f"--secret=id={name},src={path.name}")
    return args


# Files for docker's classic builder

_PORT = 8731
_SERVED = "/dev/shm/rlm-build"  # noqa: S108  # in the build's container

#: Seconds that the serving container has to start and to read the files.
_SERVE_TIMEOUT = 60.0

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

# Python 3.12 warns when no extraction filter is set; some older versions have no filters.
_CLIENT = (
    "import socket, tarfile; "
    f"stream = socket.create_connection(('127.0.0.1', {_PORT})).makefile('rb'); "
    "archive = tarfile.open(fileobj=stream, mode='r|'); "
    "archive.extraction_filter = lambda member, path: member; "
    f"archive.extractall('{_SERVED}')"
)

_FIND_PYTHON = (
    "python=$(command -v python3 || command -v python)"
    " || { echo 'this image has no Python' >&2; exit 1; }\n"
)


@contextlib.contextmanager
def serve_files(runtime: Runtime, spec: BuildSpec, builder: Builder) -> Iterator[Builder]:
    """Serve the files and secrets of a build for as long as the context lasts.

    Args:
        runtime: the engine of the build.
        spec: what to build.
        builder: how the engine is called otherwise.

    Yields:
        The builder whose build reaches the files.

    Raises:
        ImageBuildError: the container that serves them did not start.
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
        _send_files(process, packed, spec)
        yield replace(
            builder,
            args=(
                *builder.args,
                f"--network=container:{container.name}",
                # The step itself may use /dev/shm as well, so leave it the usual 64 MiB.
                f"--shm-size={len(packed) + 2**26}",
            ),
            prologue=f'{_FIND_PYTHON}"$python" -c "{_CLIENT}"\n'
            f"FILES={_SERVED}/files SECRETS={_SERVED}/secrets\n",
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


def _send_files(process: ContainerProcess, packed: bytes, spec: BuildSpec) -> None:
    # Killing the client breaks the pipes, so that no read or write blocks for ever.
    overdue = threading.Timer(_SERVE_TIMEOUT, process.kill)
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
        status = process.wait(_SERVE_TIMEOUT)
        with open(process.stderr, "rb", closefd=False) as stderr:
            said = stderr.read(10_000).decode("utf-8", "replace").strip()
        raise ImageBuildError(
            f"The image {spec.tag} could not be built: the container that serves the build's files "
            f"did not start: {said or 'it said nothing'}",
            remedy="The image needs a shell and a Python; or install docker's buildx plugin.",
            exit_code=status,
            stderr=said,
        )
