"""RLMs of the real rlms package, on the engine under test."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import rlm.core.rlm as rlm_module
from rlm import RLM, environments
from rlm.clients.base_lm import BaseLM

import rlm_containers
from rlm_containers.state import workspaces_directory
from tests.support import Engine, assert_gone

# rlms's LM Handler never closes its listening socket, and Python warns when it is collected. Ignored
# only here, because a socket that this project's proxy leaves open is an error.
_LEFT_OPEN = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket [^>]* laddr=[^)]*[)]>"
    ":pytest.PytestUnraisableExceptionWarning"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # pytest passes those of other directories too
        if Path(__file__).parent in item.path.parents:
            item.add_marker(_LEFT_OPEN)


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Collect the sockets of rlms here, so that no test of another directory warns of them."""
    yield
    gc.collect()


class MakeRLM(Protocol):
    """Makes an RLM with a root model and a model for sub-calls."""

    def __call__(self, root: BaseLM, sub: BaseLM | None = None, **arguments: Any) -> RLM: ...


@pytest.fixture
def registered() -> Iterator[None]:
    """Register this project's environment with rlms, for one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "get_environment", environments.get_environment)
        patch.setattr(rlm_module, "get_environment", rlm_module.get_environment)
        rlm_containers.register()
        yield


@pytest.fixture
def make_rlm(
    engine: Engine, registered: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeRLM]:
    """Make RLMs in containers of the engine. Fails if anything is left of them."""
    clients: dict[str, BaseLM] = {}
    # rlms makes its clients itself, by the name of a backend: this is the only way to pass one.
    monkeypatch.setattr(
        rlm_module, "get_client", lambda backend, arguments: clients[arguments["model_name"]]
    )
    made: list[RLM] = []

    def make(root: BaseLM, sub: BaseLM | None = None, **arguments: Any) -> RLM:
        clients[root.model_name] = root
        if sub is not None:
            clients[sub.model_name] = sub
            arguments |= {
                "other_backends": ["openai"],
                "other_backend_kwargs": [{"model_name": sub.model_name}],
            }
        settings = {"image": engine.image(), "runtime": engine.runtime}
        settings |= arguments.pop("environment_kwargs", {})
        model = RLM(
            backend="openai",
            backend_kwargs={"model_name": root.model_name},
            environment="docker",
            environment_kwargs=settings,
            **arguments,
        )
        made.append(model)
        return model

    yield make
    for model in made:
        model.close()
    assert_gone(engine, str(workspaces_directory()))
