"""What the SDK keeps of a sandbox session, and what a manifest may ask for."""

from __future__ import annotations

import posixpath
from typing import Any, Literal, Unpack

from agents.sandbox.errors import ConfigurationError, ErrorCode
from agents.sandbox.manifest import Manifest
from agents.sandbox.session import SandboxSessionState
from agents.sandbox.session.sandbox_client import BaseSandboxClientOptions
from pydantic import ConfigDict, Field

from rlm_containers.guest import wire
from rlm_containers.integrations.recorded_options import recorded_options
from rlm_containers.options import OptionArguments

#: The name of this backend in the SDK's files.
BACKEND = "rlm-containers"

_REFUSED = {
    "session": "The SDK keeps a session by its state: client.resume(state).",
    "env": "The SDK would write the values into a session's state. Set env in a profile of the "
    "configuration file and name that, profile=…, or use the environment of the manifest.",
    "exposed_ports": "This host reaches no port of a container. Let a command in it use the port.",
}


class ContainerSandboxClientOptions(BaseSandboxClientOptions):
    """The options of the sandboxes of a client.

    Args:
        image: the image; any with Python 3.9 or later, ``sh`` and ``tar``. ``None`` for that of the
            configuration.
        options: see :class:`~rlm_containers.SandboxOptions`; all but ``session`` and ``env``.

    Raises:
        OptionError: an option is unknown, wrong, cannot be said here, or is no JSON.
    """

    model_config = ConfigDict(extra="allow")

    type: Literal["rlm-containers"] = "rlm-containers"

    def __init__(
        self,
        image: str | None = None,
        *,
        type: Literal["rlm-containers"] = "rlm-containers",  # noqa: A002 - the SDK's name
        **options: Unpack[OptionArguments],
    ) -> None:
        given = {"image": image, **options} if image is not None else options
        super().__init__(type=type, **recorded_options(given, _REFUSED))

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for a sandbox."""
        return dict(self.model_extra or {})


class ContainerSandboxSessionState(SandboxSessionState):
    """What the SDK keeps of a session, to resume it.

    Attributes:
        options: the sandbox's, as :attr:`ContainerSandboxClientOptions.arguments` has them.
    """

    type: Literal["rlm-containers"] = "rlm-containers"
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the session on this host that has the files."""
        return f"openai-agents-{self.session_id.hex}"


def check_manifest(manifest: Manifest) -> None:
    """Check that a sandbox can have what a manifest asks for.

    Raises:
        ConfigurationError: it cannot.
    """
    root = posixpath.normpath(manifest.root)
    if root != wire.WORKSPACE and not root.startswith(f"{wire.WORKSPACE}/"):
        raise unsupported(f"The root of a manifest must be {wire.WORKSPACE} or below, not {root}.")
    if manifest.users or manifest.groups:
        raise unsupported("The containers have one user: a manifest cannot add users or groups.")
    if any(manifest.mount_targets()):
        raise unsupported(
            "The containers may not mount anything, as the mounts of a manifest do. Directories of "
            "this host can be given: ContainerSandboxClientOptions(mounts=…)."
        )
    if any(grant.host_path is not None for grant in manifest.extra_path_grants):
        raise unsupported(
            "A path grant has no host_path here. Mount the directory, with "
            "ContainerSandboxClientOptions(mounts=…), and grant its path in the container."
        )


def unsupported(message: str, op: Literal["start", "exec"] = "start") -> ConfigurationError:
    """Return the SDK's error for something that it asks for and that these sandboxes have not."""
    return ConfigurationError(
        message=message,
        error_code=ErrorCode.SANDBOX_CONFIG_INVALID,
        op=op,
        context={"backend": BACKEND},
    )
