"""Whole runs: their logs, their limits, and that failures leave nothing behind."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from rlm.core.types import REPLResult, RLMChatCompletion
from rlm.environments import get_environment
from rlm.logger import RLMLogger
from rlm.utils.exceptions import (
    CancellationError,
    ErrorThresholdExceededError,
    TokenLimitExceededError,
)

from rlm_containers.errors import (
    ContextError,
    ImageNotFoundError,
    OptionError,
    SetupCodeError,
    UnknownRuntimeError,
)
from rlm_containers.integrations.rlms import ContainerEnvironment
from rlm_containers.state import LABEL
from tests.compat.conftest import MakeRLM
from tests.compat.scripted import EchoLM, Prompt, ScriptedLM, _CountingLM, repl
from tests.support import Engine, eventually

DONE = "answer['content'] = text\nanswer['ready'] = True"


def ours(engine: Engine) -> list[str]:
    """Return the containers of this process."""
    label = f"--filter=label={LABEL}={os.getpid()}"
    return engine.run("ps", "--all", "--quiet", label).stdout.split()


class Raising(_CountingLM):
    """A model that follows a script and then raises an exception."""

    def __init__(self, error: BaseException, *script: str) -> None:
        super().__init__("raising")
        self._error = error
        self._script = list(script)

    def _answer(self, prompt: Prompt) -> str:
        if self._script:
            return self._script.pop(0)
        raise self._error


def test_usage_counts_every_call(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(
        repl("llm_query('a'); llm_query_batched(['b', 'c'])"),
        repl("text = 'done'\n" + DONE),
    )
    sub = EchoLM(str.upper)
    done = make_rlm(root, sub).completion("text")
    assert isinstance(done, RLMChatCompletion)
    used = done.usage_summary.model_usage_summaries
    assert used["scripted"].total_calls == 2
    assert used["echo"].total_calls == 3
    assert done.usage_summary.total_input_tokens == 5
    assert done.root_model == "scripted"
    assert done.prompt == "text"
    assert done.execution_time > 0


def test_the_log_on_disk_is_json(make_rlm: MakeRLM, tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=str(tmp_path))
    root = ScriptedLM(
        repl(
            "import json, re\nclass C: pass\nthings = [C(), re, json.dumps, b'x', {1: {2}}]\n1 / 0"
        ),
        repl("x = llm_query('q')\ntext = x\n" + DONE),
    )
    done = make_rlm(root, EchoLM(str.upper), logger=logger).completion("the context")
    assert done.response == "Q"
    (path,) = tmp_path.iterdir()
    head, *turns = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["type"] == "metadata"
    assert head["environment_type"] == "docker"
    first, second = (turn["code_blocks"][0]["result"] for turn in turns)
    assert "ZeroDivisionError" in first["stderr"]
    assert isinstance(first["locals"]["things"], str)
    assert second["final_answer"] == "Q"
    assert second["rlm_calls"][0]["usage_summary"]["model_usage_summaries"]["echo"]


def test_a_verbose_run_prints_itself(make_rlm: MakeRLM, capsys: pytest.CaptureFixture[str]) -> None:
    root = ScriptedLM(repl("print('printed by the cell')"), repl("text = 'the end'\n" + DONE))
    make_rlm(root, verbose=True).completion("text")
    said = capsys.readouterr().out
    assert "printed by the cell" in said
    assert "the end" in said


def test_a_result_is_a_result_of_rlms(engine: Engine) -> None:
    with ContainerEnvironment(engine.image(), runtime=engine.runtime) as env:
        result = env.execute_code("x = [1]\nprint(x)\n1 / 0")
        assert isinstance(result, REPLResult)
        assert result.stdout == "[1]\n"
        assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
        assert result.locals["x"] == "[1]"
        assert result.execution_time > 0
        assert json.loads(json.dumps(result.to_dict()))["stdout"] == "[1]\n"
        assert "rlm_calls=0" in str(result)


def test_too_many_errors_in_a_row(make_rlm: MakeRLM, engine: Engine) -> None:
    root = ScriptedLM(repl("1 / 0"), repl("print('fine')"), repl("1 / 0"), repl("x"))
    with pytest.raises(ErrorThresholdExceededError) as caught:
        make_rlm(root, max_errors=2).completion("text")
    assert "NameError" in (caught.value.last_error or "")
    assert eventually(lambda: not ours(engine))


def test_too_many_tokens(make_rlm: MakeRLM, engine: Engine) -> None:
    root = ScriptedLM(repl("x = 1"), repl("x = 2"), repl("x = 3"))
    with pytest.raises(TokenLimitExceededError):
        make_rlm(root, max_tokens=3).completion("text")
    assert eventually(lambda: not ours(engine))


def test_ctrl_c_ends_a_run_and_leaves_nothing(make_rlm: MakeRLM, engine: Engine) -> None:
    root = Raising(KeyboardInterrupt(), repl("x = 1"))
    with pytest.raises(CancellationError):
        make_rlm(root).completion("text")
    assert eventually(lambda: not ours(engine))


def test_a_root_model_that_fails_leaves_nothing(make_rlm: MakeRLM, engine: Engine) -> None:
    root = Raising(LookupError("no quota"), repl("x = 1"))
    with pytest.raises(LookupError, match="no quota"):
        make_rlm(root).completion("text")
    assert eventually(lambda: not ours(engine))


def test_a_sub_model_that_fails_is_an_error_in_the_cell(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(repl("text = f\"{llm_query('a')} {llm_query_batched(['b', 'c'])}\"\n" + DONE))
    done = make_rlm(root, Raising(LookupError("no quota"))).completion("text")
    failed = "Error: llm() call failed - no quota"
    assert done.response == f"Error: no quota ['{failed}', '{failed}']"


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"run_time": "podman"}, OptionError, "'runtime'"),
        ({"memory_limit": 1}, OptionError, "'memory'"),
        ({"network": "host"}, OptionError, "bridge"),
        ({"runtime": "nonsense"}, UnknownRuntimeError, "nonsense"),
        ({"image": "localhost/no-such-image:0"}, ImageNotFoundError, "no-such-image"),
        ({"setup_code": "import sys\nprint('x')\nundefined"}, SetupCodeError, "NameError"),
    ],
)
def test_the_completion_raises_what_is_wrong(
    make_rlm: MakeRLM,
    engine: Engine,
    arguments: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    model = make_rlm(ScriptedLM("never asked"), environment_kwargs=arguments)
    with pytest.raises(error, match=said):
        model.completion("text")
    assert eventually(lambda: not ours(engine))


def test_a_context_that_cannot_be_sent(make_rlm: MakeRLM, engine: Engine) -> None:
    with pytest.raises(ContextError):
        make_rlm(ScriptedLM("never asked")).completion({"a": object()})
    assert eventually(lambda: not ours(engine))


def test_runs_at_the_same_time_do_not_mix(make_rlm: MakeRLM) -> None:
    answers: dict[str, str] = {}

    def complete(name: str) -> None:
        root = ScriptedLM(
            repl("mine = context"),
            repl("text = f'{mine} {context} {llm_query(mine)}'\n" + DONE),
            model_name=f"root-{name}",
        )
        sub = EchoLM(str.upper, model_name=f"sub-{name}")
        answers[name] = make_rlm(root, sub).completion(name).response

    threads = [threading.Thread(target=complete, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: f"{name} {name} {name.upper()}" for name in ("one", "two", "three")}


def test_a_container_that_is_removed_in_the_middle(make_rlm: MakeRLM, engine: Engine) -> None:
    def remove(prompt: str) -> str:
        engine.run("rm", "--force", *ours(engine))
        return "gone"

    root = ScriptedLM(repl("llm_query('now')"), repl("x = 1"))
    with pytest.raises(Exception, match="container"):
        make_rlm(root, EchoLM(remove)).completion("text")
    assert eventually(lambda: not ours(engine))


def test_the_local_environment_is_unchanged(make_rlm: MakeRLM, engine: Engine) -> None:
    root = ScriptedLM(repl("import os\ntext = str(os.getpid())\n" + DONE))
    model = make_rlm(root)
    model.environment_type = "local"
    model.environment_kwargs = {}
    assert model.completion("text").response == str(os.getpid())


def test_without_register_rlms_is_unchanged() -> None:
    # Importing this project does not change rlms.
    assert get_environment.__module__ == "rlm.environments"
