"""What a task of Inspect says of its sandboxes."""

from __future__ import annotations

from typing import Any, Unpack

from inspect_ai.util._sandbox.compose import is_dockerfile
from pydantic import BaseModel, ConfigDict

from rlm_containers.errors import OptionError
from rlm_containers.guest import wire
from rlm_containers.integrations.recorded_options import recorded_options
from rlm_containers.options import OptionArguments
from runtimes.text import brief

_REFUSED = {
    "session": "Every sample of a task has a sandbox of its own, which ends with it.",
    "env": "Inspect would write the values into its log. Set env in a profile of the configuration "
    "file and name that: profile=….",
}


class ContainerConfig(BaseModel, frozen=True):
    """The options of the sandboxes of a task or sample.

    >>> SandboxEnvironmentSpec("rlm-containers", ContainerConfig(network="none"))  # doctest: +SKIP

    Inspect writes them into its log, and reads them from there to run a task again.

    Args:
        image: the image; any with Python 3.9 or later and ``/bin/sh``. ``None`` for that of the
            configuration.
        working_dir: the directory in the container that commands start in, and that paths are
            relative to; ``/workspace`` unless it is set. It must exist.
        options: see :class:`~rlm_containers.SandboxOptions`; all but ``session`` and ``env``.

    Raises:
        OptionError: an option is unknown, wrong, cannot be said here, or is no JSON.
    """

    model_config = ConfigDict(extra="allow")

    working_dir: str = wire.WORKSPACE

    def __init__(
        self,
        *,
        image: str | None = None,
        working_dir: str = wire.WORKSPACE,
        **options: Unpack[OptionArguments],
    ) -> None:
        given = {"image": image, **options} if image is not None else options
        super().__init__(working_dir=working_dir, **recorded_options(given, _REFUSED))

    @classmethod
    def of(cls, config: BaseModel | str | None) -> ContainerConfig:
        """Return what Inspect passes on as a configuration.

        Args:
            config: one of these, the path of a Dockerfile, or nothing.

        Raises:
            OptionError: it is something else.
        """
        if isinstance(config, cls):
            return config
        if config is None:
            return cls()
        if is_dockerfile(config):
            return cls(dockerfile=config)
        raise OptionError(
            f"{_shown(config)} cannot be the configuration of these sandboxes: each is one "
            "container.",
            remedy="Give a ContainerConfig, which says the same of one container, or the path of a "
            "Dockerfile.",
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for a sandbox."""
        return dict(self.model_extra or {})


def _shown(config: BaseModel | str) -> str:
    return brief(config) if isinstance(config, str) else f"A {type(config).__name__}"
