"""RLM objects of the real rlms package, on the engine under test."""

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

# rlms's LM Handler never closes the socket that it listened on, which is collected whenever. Only
# here: this project's own proxy listens as well, and what it leaves open is an error.
_LEFT_OPEN = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket [^>]* laddr=[^)]*[)]>"
    ":pytest.PytestUnraisableExceptionWarning"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of other directories too
        if Path(__file__).parent in item.path.parents:
            item.add_marker(_LEFT_OPEN)


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Nothing is left for the tests of other directories to warn of."""
    yield
    gc.collect()


class MakeRLM(Protocol):
    """Makes an RLM whose root model, and whose sub-calls' model, are the given ones."""

    def __call__(self, root: BaseLM, sub: BaseLM | None = None, **arguments: Any) -> RLM: ...


@pytest.fixture
def registered() -> Iterator[None]:
    """rlms with this project's environment, and afterwards without it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "get_environment", environments.get_environment)
        patch.setattr(rlm_module, "get_environment", rlm_module.get_environment)
        rlm_containers.register()
        yield


@pytest.fixture
def make_rlm(
    engine: Engine, registered: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeRLM]:
    """RLMs in containers of the engine. Nothing may be left of them."""
    clients: dict[str, BaseLM] = {}
    # rlms makes its clients itself, by the name of a backend; there is no other way in.
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
