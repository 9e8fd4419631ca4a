"""A ``docker`` for rlms, which knows no other name, that leads to the engine under test."""

from __future__ import annotations

import shlex
from pathlib import Path

from bench_rlm.engine import Engine, EngineError

__all__ = ["NO_SHIM", "install_shim"]

NO_SHIM = "none: rlms calls docker itself"

_GATEWAY = "host.docker.internal:host-gateway"
#: How slirp4netns shows the host to a container, where it is told to.
_SLIRP_HOST = "10.0.2.2"

# What is not `run` goes through as it is; this costs what starting a shell costs, about 1 ms.
_SCRIPT = """\
#!/bin/sh
[ "$1" = run ] || exec {command} "$@"
for argument do
    shift
    case $argument in {gateway}) argument={route} ;; esac
    set -- "$@" "$argument"
done
shift
exec {command} run {extra} "$@"
"""


def install_shim(engine: Engine, image: str, directory: Path) -> str:
    """Make a program ``docker`` in a directory that calls the engine.

    ``--add-host host.docker.internal:host-gateway``, which rlms says and podman before 4.7 refuses,
    becomes the address that our own side uses on this engine; where it is accepted it stays.

    Returns:
        What the shim does, in words.

    Raises:
        EngineError: there is no address by which a container reaches this host.
    """
    refused = engine.call("run", "--rm", "--add-host", _GATEWAY, image, "true").returncode != 0
    route, extra = _GATEWAY, ""
    if refused:
        found = engine.runtime.host_route()
        if found is None or found.address is None:
            raise EngineError(f"{engine.name} has no route from a container to this host")
        route = f"host.docker.internal:{found.address}"
        if found.address == _SLIRP_HOST:
            extra = "--network=slirp4netns:allow_host_loopback=true"
    directory.mkdir(parents=True, exist_ok=True)
    shim = directory / "docker"
    script = _SCRIPT.format(
        command=shlex.join(engine.argv), gateway=_GATEWAY, route=route, extra=extra
    )
    shim.write_text(script)
    shim.chmod(0o755)
    words = f"a `docker` on PATH that is a shell script and calls `{engine.name}` (about 1 ms)"
    if refused:
        words += (
            f"; it turns `--add-host …:host-gateway`, which this engine refuses, into `{route}`"
        )
    return f"{words}; it adds `{extra}`" if extra else words
