"""``rlm-containers ask`` with real rlms and an OpenAI-compatible server, without an engine."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers.cli import ask
from tests.unit.guests import run_python
from tests.unit.openai_server import serve_openai
from tests.unit.terminal import Program

pytest.importorskip("rlm", reason="rlms is not installed")

# rlms leaves the connections of its clients to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = "sk-very-secret"

LOOK = "Let me look.\n```repl\nprint('cell', len(context))\n```"
QUERY = "I ask.\n```repl\ny = llm_query('say ' + context[:3])\nprint(y)\n```"
ANSWER = "```repl\nanswer['content'] = y + '!'\nanswer['ready'] = True\n```"


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect garbage here, so that its warnings do not appear in other modules' tests."""
    yield
    gc.collect()


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("fox " * 1000)
    return str(path)


def test_a_question_about_a_text(program: Program, text: str, tmp_path: Path) -> None:
    report = tmp_path / "out.html"
    with serve_openai(LOOK, QUERY, ANSWER) as server:
        done = program(
            "ask", "What is it?", "--context", text, "--model", "root", "--sub-model", "other",
            "--base-url", server.url, "--report", str(report),
            OPENAI_API_KEY=KEY,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "SAY FOX!\n")
    first, second, third, reported, summary = done.stderr.splitlines()
    assert first.startswith("turn 1: ")
    assert first.endswith(" s, cells: 1, calls: 0")
    assert second.endswith(" s, cells: 1, calls: 1")
    assert third.startswith("turn 3: ")
    assert reported == f"report: {report}"
    assert summary.endswith("turns: 3, cells: 3, calls: 1, 40 tokens")
    # The requests to the server, and their key.
    assert {request["key"] for request in server.requests} == {KEY}
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert [request["model"] for request in server.requests] == ["root", "root", "other", "root"]
    assert "What is it?" in json.dumps(server.requests[0]["messages"])
    assert "cell 4000" in json.dumps(server.requests[1]["messages"])
    page = report.read_text()
    for shown in ("What is it?", "SAY FOX!", "Let me look.", "cell 4000", "root (openai at http"):
        assert shown in page
    assert KEY not in page + done.stdout + done.stderr


def test_json(program: Program, text: str) -> None:
    # Without --sub-model the root model answers llm_query().
    with serve_openai(QUERY, "said", ANSWER) as server:
        done = program(
            "ask", "What?", "--context", text, "--context", text, "--model", "root", "--json",
            "--base-url", server.url, "--max-tokens", "1000",
        )  # fmt: skip
    found = json.loads(done.stdout)
    # The same file given twice is one file.
    assert (done.returncode, found["turns"], found["cells"], found["calls"]) == (0, 2, 2, 1)
    assert found["answer"] == "said!"
    (usage,) = found["usage"]
    assert usage == {
        "model": "root", "calls": 3, "input_tokens": 21, "output_tokens": 9, "cost": None,
    }  # fmt: skip
    # With --base-url no key is needed.
    assert {request["key"] for request in server.requests} == {"EMPTY"}


def test_the_trace_shows_cells_and_their_output(program: Program) -> None:
    with serve_openai(
        "```repl\nx = 1\nprint('out')\n1/0\n```", "```repl\ny = 'z'\n```\n" + ANSWER
    ) as s:
        done = program("ask", "Why?", "--model", "root", "--base-url", s.url, "--trace")
    assert done.stdout == "z!\n"
    assert ">>> x = 1\n>>> print('out')\n>>> 1/0\nout\nTraceback" in done.stderr


def test_figures_are_in_the_report(program: Program, tmp_path: Path) -> None:
    report = tmp_path / "out.html"
    (tmp_path / "mpl").mkdir()
    plot = "```repl\nimport matplotlib.pyplot as plt\nplt.plot([1])\nplt.savefig('my.png')\ny = ''\n```"
    with serve_openai(plot, ANSWER) as server:
        done = program(
            "ask", "Show it", "--model", "root", "--base-url", server.url, "--report", str(report),
            "--env", f"MPLCONFIGDIR={tmp_path / 'mpl'}",
        )  # fmt: skip
    assert done.returncode == 0
    page = report.read_text()
    assert "<figcaption>my.png</figcaption>" in page
    assert 'src="data:image/png;base64,iVBORw0KGgo' in page


def test_a_model_that_fails(program: Program, tmp_path: Path) -> None:
    report = tmp_path / "out.html"
    with serve_openai(LOOK, 401) as server:
        done = program(
            "ask", "Why?", "--model", "root", "--base-url", server.url, "--report", str(report),
            OPENAI_API_KEY=KEY,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: There is no answer. AuthenticationError" in done.stderr
    page = report.read_text()
    assert "No answer" in page
    assert "Let me look." in page  # what was done until then
    assert KEY not in page + done.stderr  # although the server's error contains it


def test_a_limit(program: Program) -> None:
    with serve_openai("```repl\n1 / 0\n```", "And now?\n```repl\n1 / 0\n```") as server:
        done = program(
            "ask", "Why?", "--model", "root", "--base-url", server.url, "--max-errors", "2"
        )
    assert done.returncode == 1
    assert "ErrorThresholdExceededError" in done.stderr
    assert "Its last message was:" in done.stderr
    assert "1 / 0" in done.stdout


def test_no_sandbox(program: Program) -> None:
    with serve_openai() as server:
        done = program(
            "ask", "Why?", "--model", "root", "--base-url", server.url, "--runtime", "nonesuch"
        )
    assert done.returncode == 125
    assert "The runtime 'nonesuch' is not known." in done.stderr


def test_ctrl_c(program: Program, tmp_path: Path) -> None:
    report = tmp_path / "out.html"
    cell = "I wait.\n```repl\nimport time\nprint('x')\ntime.sleep(60)\n```"
    with serve_openai(LOOK, cell) as server:
        arguments = ("ask", "Why?", "--model", "root", "--base-url", server.url)
        with program.terminal(*arguments, "--report", str(report)) as terminal:
            terminal.see("turn 1:")
            terminal.see("turn 2")  # behind the spinner
            terminal.type("\x03")
            assert terminal.end() == 130
    assert "It was interrupted." in report.read_text()
    assert "Let me look." in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "m"], "OPENAI_API_KEY is not set"),
        (["--model", "m", "--backend", "anthropic"], "ANTHROPIC_API_KEY is not set"),
        (["--model", "m", "--backend", "gemini"], "GEMINI_API_KEY is not set"),
        (["--model", "m", "--backend", "vercel"], "AI_GATEWAY_API_KEY is not set"),
        (["--model", "m", "--backend", "nonesuch"], "'--backend'"),
        ([], "Missing option '--model'"),
        (["--model", "m", "--sub-base-url", "http://x"], "need a --sub-model"),
        (["--model", "m", "--report", "/nonesuch/out.html"], "there is no directory /nonesuch"),
        (["--model", "m", "--context", "/nonesuch"], "does not exist"),
    ],
)
def test_wrong_usage(program: Program, arguments: list[str], said: str) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "AI_GATEWAY_API_KEY"):
        program.environment.pop(variable, None)
    done = program("ask", "Why?", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_backends_are_those_of_rlms() -> None:
    from rlm_containers.integrations.rlms.completion import BACKENDS, Model

    assert set(ask.BACKENDS) == set(BACKENDS)
    for backend in BACKENDS:
        assert Model(name="m", backend=backend).key_variable.endswith("_API_KEY")


def test_a_password_in_an_address_is_not_shown() -> None:
    from rlm_containers.integrations.rlms import Model

    model = Model(name="m", backend="vllm", base_url="http://me:secret@host:8000/v1?key=secret")
    assert model.describe() == "vllm at http://host:8000/v1"


def test_without_rlms(program: Program) -> None:
    code = (
        "import sys; sys.modules['rlm'] = None; sys.argv[1:] = ['ask', 'q', '--model', 'm']\n"
        "from rlm_containers.cli import main; main()"
    )
    done = run_python(
        code, path=program.environment["PYTHONPATH"].split(":"), python=sys.executable
    )
    assert done.returncode == 2
    assert "pip install 'rlm-containers[rlms]'" in done.stderr
