"""Secrets: the token of the proxy, and what the user puts into the container's environment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import Engine, execute, printed, processes, workspace

SECRET = "sk-5ecret-0f-the-user"


@pytest.fixture
def told(engine: Engine, caplog: pytest.LogCaptureFixture) -> Iterator[tuple[Sandbox, str]]:
    """A busy sandbox with everything logged, and its token."""
    caplog.set_level(logging.DEBUG)
    for name in ("sh", "sh.command", "runtimes", "rlm_containers"):
        caplog.set_level(logging.DEBUG, name)
    with Sandbox(
        engine.image(), runtime=engine.runtime, lm=str.upper, env={"API_KEY": SECRET}
    ) as box:
        printed(box, "import os\nprint(llm_query('x'), os.environ['API_KEY'])")
        # Restarted with the same token, and with everything saved.
        assert box.execute("import os; os._exit(1)").status == "died"
        printed(box, "print(llm_query('y'))")
        token = printed(
            box,
            "import sys\nprint(sys.modules['rlm_guest.lm']._route.authorization.split()[1])",
        ).strip()
        assert len(token) >= 32
        assert box.unsaved == ()
        yield box, token


def test_nothing_of_them_is_where_others_look(
    engine: Engine, told: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    box, token = told
    records = caplog.get_records("setup")
    logged = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in records)
    (inspected,) = engine.containers(box.name)
    assert token not in json.dumps(inspected)
    for secret in (token, SECRET):
        assert processes(secret) == []
        assert secret not in logged
    # The logs say something at all, `sh` included: else their silence proves nothing.
    assert box.name in logged
    assert {record.name.partition(".")[0] for record in records} >= {"sh", "runtimes"}


def test_nothing_of_them_is_in_files(told: tuple[Sandbox, str]) -> None:
    box, token = told
    content = b""
    for top, _, names in os.walk(workspace(box)):
        content += b"".join(Path(top, name).read_bytes() for name in names)
    assert b"answer" in content  # the checkpoint, which has this variable
    assert token.encode() not in content
    assert SECRET.encode() not in content


def test_children_of_a_cell_do_not_inherit_the_token(told: tuple[Sandbox, str]) -> None:
    box, token = told
    assert token not in printed(box, "import os\nos.system('env; cat /proc/self/environ')")


def test_errors_do_not_tell_them(engine: Engine) -> None:
    box = Sandbox(
        "localhost:1/no/such-image:1",
        runtime=engine.runtime,
        lm=str.upper,
        env={"API_KEY": SECRET},
        run_args=["--no-such-flag"],
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        box.start()
    shown = [str(caught.value), repr(caught.value), repr(box), str(vars(caught.value))]
    assert not [text for text in shown if SECRET in text]


def test_environment_of_the_user(engine: Engine) -> None:
    # Also what the engine's own client would read, were it given to that.
    env = {
        "PLAIN": "p",
        "EMPTY": "",
        "LINES": "a\nb\n\nc",
        "QUOTES": "'\"$HOME `x` \\ =",
        "UNICODE": "grüße",
        "DOCKER_HOST": "tcp://127.0.0.1:1",
        "CONTAINER_HOST": "tcp://127.0.0.1:1",
        "XDG_RUNTIME_DIR": "/nowhere",
        "TMPDIR": "/tmp",
        "HOME": "/tmp",
        "PYTHONPATH": "/nowhere",
        "LANG": "C",
    }
    with Sandbox(engine.image(), runtime=engine.runtime, env=env) as box:
        found = json.loads(
            printed(box, "import json, os\nprint(json.dumps(dict(os.environ)))").strip()
        )
        assert {name: found.get(name) for name in env} == env
        assert printed(box, "os.system('printf %s \"$LINES\"')") == "a\nb\n\nc"
        # The host's own environment stays where it is.
        assert "RLM_CONTAINERS_TEST_ROOTLESS_USER" not in found
        assert found.get("PATH") != os.environ["PATH"]


def test_the_environment_after_a_death(engine: Engine) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, env={"MODE": "mine"}) as box:
        assert execute(box, "import os; os._exit(1)").status == "died"
        assert printed(box, "import os; print(os.environ['MODE'])") == "mine\n"
