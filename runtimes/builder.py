"""How an engine's ``build`` is called, so that no secret gets into what it makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtimes.spec import BuildSpec

#: Variables that reach every build, and that engines keep out of images and their history.
PROXIES = tuple(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY")
    for name in (upper, upper.lower())
)

# Where builders that can do so mount the files and secrets of a script. The second is their own
# choice: the default target of a secret.
FILES = "/run/rlm-build"
_SECRETS = "/run/secrets"


@dataclass(frozen=True, kw_only=True)
class Builder:
    """How an engine's ``build`` is to be called.

    Attributes:
        args: further arguments.
        environment: variables for the client.
        mounts: whether it knows ``RUN --mount``.
        bind: the words of ``RUN`` that mount the context where a script looks for it.
        prologue: what scripts begin with; sets ``$FILES`` and ``$SECRETS``.
        context: the directory to send instead of the specification's.
        base: another name for the image to build on.
    """

    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: bool = True
    bind: str = f"--mount=type=bind,target={FILES} "
    prologue: str = f"FILES={FILES} SECRETS={_SECRETS}\n"
    context: Path | None = None
    base: str | None = None


def build_arguments(spec: BuildSpec, builder: Builder, base: str) -> list[str]:
    """Write the files that a build needs, and return the arguments of the command line.

    Args:
        spec: what to build.
        builder: how.
        base: what the engine calls the image to build on.
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
    """The secrets as files; their names, and not what is in them, become arguments."""
    args = []
    for number, (name, content) in enumerate(spec.secrets.items()):
        path = spec.directory / f"secret-{number}"
        path.touch(mode=0o600)
        path.write_bytes(content)
        # Relative to where the client runs: a comma in the directory's name would end the value.
        args.append(f"--secret=id={name},src={path.name}")
    return args
