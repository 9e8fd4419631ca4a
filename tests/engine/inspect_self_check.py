"""Inspect's own checks of a sandbox. ``test_inspect.py`` runs them, in a process of their own.

Inspect takes seconds to import. Here every process of pytest-xdist would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from inspect_ai.util._sandbox import self_check
from inspect_ai.util._sandbox.self_check import *  # noqa: F403 - these are the tests

from rlm_containers.integrations.inspect_ai import ContainerConfig, ContainerSandboxEnvironment
from tests.support import Engine, assert_gone

pytestmark = pytest.mark.anyio

#: These are about other users, which a sandbox has only if it is root and may switch.
_WITH_USERS = ("test_exec_as_user", "test_exec_as_nonexistent_user")

#: The images of the tests have no program that makes users. It is called with the name at last.
_ADDUSER = """#!/bin/sh
for name; do :; done
[ "$name" = --help ] || echo "$name:x:1234:1234::/home/$name:/bin/sh" >>/etc/passwd
"""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def _running(engine: Engine, **options: object) -> AsyncIterator[ContainerSandboxEnvironment]:
    config = ContainerConfig(image=engine.image(), runtime=engine.runtime, **options)  # type: ignore[arg-type]
    made = await ContainerSandboxEnvironment.sample_init("checks", config, {})
    environment = made["default"].as_type(ContainerSandboxEnvironment)
    yield environment
    await ContainerSandboxEnvironment.sample_cleanup("checks", config, made, interrupted=False)
    assert_gone(engine, environment.box.name)


@pytest.fixture(scope="module")
async def ordinary(
    engine: Engine, anyio_backend: str
) -> AsyncIterator[ContainerSandboxEnvironment]:
    async for environment in _running(engine):
        yield environment


@pytest.fixture(scope="module")
async def root(engine: Engine, anyio_backend: str) -> AsyncIterator[ContainerSandboxEnvironment]:
    switching = ["--cap-add=SETUID", "--cap-add=SETGID"]
    async for environment in _running(engine, user="0", run_args=switching):
        await environment.write_file("/usr/local/bin/adduser", _ADDUSER)
        await environment.exec(["chmod", "+x", "/usr/local/bin/adduser"])
        yield environment


@pytest.fixture
def sandbox_env(
    request: pytest.FixtureRequest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> ContainerSandboxEnvironment:
    """What the checks take. None is expected to fail."""

    async def sleep(seconds: float) -> None:
        """Do not wait: a command's time limit has killed everything when it returns."""

    monkeypatch.setattr(self_check, "anyio", SimpleNamespace(sleep=sleep))
    name = "root" if request.node.originalname in _WITH_USERS else "ordinary"
    environment: ContainerSandboxEnvironment = request.getfixturevalue(name)
    return environment
