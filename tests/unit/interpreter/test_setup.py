"""What a worker is given at its start, as it travels."""

from __future__ import annotations

import json

from rlm_containers.interpreter import KeptVariable, ProxyAddress, WorkerSetup


def test_the_message_has_everything_that_workers_read() -> None:
    setup = WorkerSetup(
        has_model=True,
        proxy=ProxyAddress("host", 8080, "secret"),
        env={"A": "1"},
        file_limit=4096,
        scaffold=False,
        tools=[{"name": "fetch", "signature": "()", "doc": ""}],
        kept=[KeptVariable("history", "history-1.json", "json", 2, 5)],
        kept_names=["helper"],
        outlives=True,
        durable=True,
        heirs=False,
    )
    assert json.loads(json.dumps(setup.message())) == {
        "lm": True,
        "proxy": {"host": "host", "port": 8080, "token": "secret"},
        "env": {"A": "1"},
        "file_limit": 4096,
        "core_files": False,
        "scaffold": False,
        "tools": [{"name": "fetch", "signature": "()", "doc": ""}],
        "kept": [
            {
                "name": "history",
                "file": "history-1.json",
                "kind": "json",
                "size": 2,
                "checksum": 5,
                "keep": True,
                "superseded": None,
            }
        ],
        "kept_names": ["helper"],
        "kept_session": True,
        "durable": True,
        "heirs": False,
    }


def test_without_a_proxy() -> None:
    assert WorkerSetup().message()["proxy"] is None


def test_the_token_is_not_shown() -> None:
    setup = WorkerSetup(proxy=ProxyAddress("host", 8080, "secret"))
    assert "secret" not in repr(setup)
