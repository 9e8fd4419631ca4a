"""``rlm-containers run``, with a guest and without an engine."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.unit.terminal import Program


def test_a_cell_from_an_argument(program: Program) -> None:
    done = program.process("run", "-c", "print(6 * 7); import sys; sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "42\n", "")


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os; os._exit(7)", 7, "ended itself with status 7"),
        ("import os; os.kill(os.getpid(), 9)", 137, "was killed by SIGKILL"),
    ],
)
def test_the_exit_code_of_the_cell(program: Program, code: str, exit_code: int, said: str) -> None:
    done = program("run", "-c", f"print('out')\n{code}")
    assert (done.returncode, done.stdout) == (exit_code, "out\n")
    assert said in done.stderr


def test_a_file_with_arguments(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_bytes("# coding: latin-1\nimport sys; print('é', sys.argv); 1 / 0".encode("latin-1"))
    done = program("run", str(file), "--json", "-x", "it's")
    assert done.stdout == f"é {[str(file), '--json', '-x', chr(39).join(['it', 's'])]}\n"
    assert 'File "<program.py>", line 2' in done.stderr


def test_a_program_from_standard_input(program: Program) -> None:
    assert program("run", "-", input_="print('in')").stdout == "in\n"
    assert program("run", input_="import sys; sys.exit(4)").returncode == 4


def test_contexts(program: Program, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("\ufefftwo", "utf-8")
    code = "print(type(context).__name__, context)"
    one = program("run", "--context", str(tmp_path / "a"), "-c", code)
    assert one.stdout == "str one\n"
    two = program(
        "run", "--context", "-", "--context", str(tmp_path / "b"), "-c", code, input_="in"
    )
    assert two.stdout == f"dict { ({'-': 'in', str(tmp_path / 'b'): 'two'}) }\n"


def test_json(program: Program) -> None:
    done = program("run", "--json", "-c", "x = 'é\\x1b'\nprint(x)\nimport sys; sys.exit(5)")
    assert done.returncode == 5
    found = json.loads(done.stdout)
    assert found["locals"]["x"] == repr("é\x1b")
    assert found.pop("execution_time") >= 0
    assert (found["status"], found["exit_code"], found["stdout"]) == ("exit", 5, "é\x1b\n")
    assert "\x1b" not in done.stdout


def test_json_of_an_error(program: Program) -> None:
    done = program("run", "--json", "--runtime", "nonesuch", "-c", "1")
    assert done.returncode == 125
    assert json.loads(done.stdout)["error"]["type"] == "UnknownRuntimeError"
    assert done.stderr == ""


def test_an_error_says_what_to_do(program: Program) -> None:
    done = program("run", "--runtime", "nonesuch", "-c", "1")
    assert (done.returncode, done.stdout) == (125, "")
    first, second = done.stderr.splitlines()
    assert first == "error: The runtime 'nonesuch' is not known."
    assert second.startswith("try: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "lots", "-c", "1"], "Invalid value for '--memory'"),
        (["--network", "wlan", "-c", "1"], "'--network'"),
        (["--env", "NOT_SET_ANYWHERE", "-c", "1"], "there is no variable NOT_SET_ANYWHERE"),
        (["--max-output", "1", "-c", "1"], "at least 100"),
        (["--contxt", "a"], "--context"),
        (["/nonesuch.py"], "cannot be read: No such file"),
        (["--context", "/nonesuch", "-c", "1"], "does not exist"),
        (["--context", "-", "-"], "Standard input cannot be"),
    ],
)
def test_wrong_usage(program: Program, arguments: list[str], said: str) -> None:
    done = program("run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_files_that_are_not_text(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "bytes"
    file.write_bytes(b"\xff\xfe\x00")
    for arguments in (["--context", str(file), "-c", "1"], [str(file)]):
        done = program("run", *arguments)
        assert done.returncode == 2
        assert "bytes is no" in done.stderr


def test_options_of_the_sandbox(program: Program) -> None:
    code = "import os; print(os.environ['A'], os.environ['SECRET'], 'x' * 500)"
    done = program(
        "run", "--env", "A=b=c", "--env", "SECRET", "--max-output", "200", "--json", "-c", code,
        SECRET="from here",
    )  # fmt: skip
    found = json.loads(done.stdout)["stdout"]
    assert found.startswith("b=c from here xx")
    assert "characters cut" in found


PLOT = """\
import matplotlib.pyplot as plt
plt.plot([1, 2, 3])
plt.savefig("plot.png")
plt.show()
"""


def test_figures(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "figures"
    (tmp_path / "mpl").mkdir()
    options = ("--figures", str(place), "--env", f"MPLCONFIGDIR={tmp_path / 'mpl'}")
    done = program("run", *options, "-c", PLOT)
    assert (done.returncode, done.stdout) == (0, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"figure: {place}/plot.png (image/png, ")
    assert second.startswith(f"figure: {place}/figure-1.png (image/png, ")
    for path in place.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    # Existing files are kept.
    found = json.loads(program("run", "--json", *options, "-c", PLOT).stdout)
    assert [figure["path"] for figure in found["artifacts"]] == [
        f"{place}/plot-2.png",
        f"{place}/figure-1-2.png",
    ]
    assert len(list(place.iterdir())) == 4


def test_cell_timeout(program: Program) -> None:
    done = program("run", "--cell-timeout", "0.2", "-c", "import time; time.sleep(60)")
    assert done.returncode == 124
    assert "KeyboardInterrupt" in done.stderr
    assert "reached its limit of 0.2 s" in done.stderr


def test_ctrl_c_interrupts_the_cell(program: Program) -> None:
    code = "import time\ntry:\n  print('go', flush=True); time.sleep(60)\nfinally:\n  print('end')"
    with program.terminal("run", "-c", code) as terminal:
        terminal.see_line("go")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "KeyboardInterrupt" in terminal.text
        assert "^Cend" in terminal.lines


def test_ctrl_c_three_times_gives_up_the_sandbox(program: Program) -> None:
    code = (
        "import time\nprint('go', flush=True)\nwhile True:\n  try: time.sleep(60)\n"
        "  except KeyboardInterrupt: print('no', flush=True)"
    )
    with program.terminal("run", "-c", code) as terminal:
        terminal.see_line("go")
        terminal.type("\x03")
        terminal.see("no")
        terminal.type("\x03")
        terminal.see("Press Ctrl-C again")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "^Cinterrupted" in terminal.lines


def test_a_cells_output_cannot_act_on_the_terminal(program: Program) -> None:
    with program.terminal("run", "-c", r"print('\x1b]0;title\x07\x1b[31mred')") as terminal:
        assert terminal.end() == 0
        assert "]0;titlered" in terminal.lines
        assert "\x1b]0" not in terminal.raw
        assert "\x1b[31mred" in terminal.raw


def test_a_closed_pipe_causes_no_traceback(program: Program) -> None:
    import subprocess
    import sys

    code = "while True: print('x' * 1000)"
    process = subprocess.Popen(
        (sys.executable, "-m", "rlm_containers", "run", "-c", code),
        env=program.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10) == b"x" * 10
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) != -signal.SIGKILL
    assert "Traceback" not in said
