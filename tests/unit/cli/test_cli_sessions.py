"""``rlm-containers sessions``, and sessions of ``run`` and ``repl``, without an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers.container.bundle import Bundle
from tests.unit.terminal import Program


@pytest.fixture(scope="module")
def kept(made_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Return the command line with a session ``work``, which no test may change."""
    program = Program(tmp_path_factory.mktemp("home"), RLM_CONTAINERS_RUNTIME="local")
    code = "x = 6 * 7\nbig = 'text ' * 1000"
    assert program("run", "--session", "work", "-c", code).returncode == 0
    return program


def listed(program: Program) -> list[str]:
    return [info["name"] for info in json.loads(program("sessions", "list", "--json").stdout)]


def test_resuming_a_session(kept: Program) -> None:
    done = kept("run", "--session", "work", "-c", "print(x, len(big))")
    assert (done.returncode, done.stdout) == (0, "42 5000\n")


def test_list(kept: Program) -> None:
    header, *rows = kept("sessions", "list").stdout.splitlines()
    (work,) = (row for row in rows if row.startswith("work "))
    assert header.split() == ["NAME", "USED", "VARIABLES", "SIZE", "SNAPSHOTS", "PYTHON", "STATE"]
    assert work.endswith("  free")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (("sessions", "ls"), ("sessions", "list")),
        (("sessions", "rm", "missing", "-y"), ("sessions", "remove", "missing", "-y")),
        (("images", "rm", "--help"), ("images", "remove", "--help")),
        (("ls", "--runtime", "local"), ("ps", "--runtime", "local")),
    ],
)
def test_the_short_names_of_docker(
    kept: Program, short: tuple[str, ...], long: tuple[str, ...]
) -> None:
    mine, theirs = kept(*short), kept(*long)
    assert mine.returncode == theirs.returncode
    assert mine.stdout.replace(" rm ", " remove ") == theirs.stdout


def test_show(kept: Program) -> None:
    code = "x = 42\ngenerator = (i for i in 'ab')"
    assert kept("run", "--session", "odd", "-c", code).returncode == 0
    text = kept("sessions", "show", "odd").stdout
    for shown in ("x ", "int", "cannot pickle 'generator'", "python:3.11-slim", "local"):
        assert shown in text
    found = json.loads(kept("sessions", "show", "odd", "--json").stdout)
    assert "x" in {v["name"] for v in found["manifest"]["variables"]}
    assert [v["name"] for v in found["manifest"]["unsaved"]] == ["generator"]
    assert (found["in_use"], found["snapshots"]) == (False, [])


def test_snapshots_and_forks(kept: Program) -> None:
    (snapshot,) = kept("sessions", "snapshot", "work", "--note", "as it was").stdout.split()
    (found,) = json.loads(kept("sessions", "snapshots", "work", "--json").stdout)
    assert (found["id"], found["note"]) == (snapshot, "as it was")
    assert "as it was" in kept("sessions", "snapshots", "work").stdout
    assert kept("sessions", "fork", "work", "other", "--from", snapshot).returncode == 0
    assert kept("run", "--session", "other", "-c", "x = 'changed'").returncode == 0
    assert kept("run", "--session", "other", "-c", "print(x)").stdout == "changed\n"
    assert kept("run", "--session", "work", "-c", "x = 'broken'").returncode == 0
    assert kept("sessions", "restore", "work", snapshot).returncode == 0
    assert kept("run", "--session", "work", "-c", "print(x)").stdout == "42\n"
    assert kept("sessions", "remove", "other", "--yes").returncode == 0
    assert "other" not in listed(kept)


def test_export_and_import(kept: Program, tmp_path: Path) -> None:
    file = tmp_path / "work.tgz"
    assert kept("sessions", "export", "work", str(file)).stdout == f"{file}\n"
    again = kept("sessions", "export", "work", str(file))
    assert again.returncode == 125
    assert "There is a file" in again.stderr
    assert kept("sessions", "export", "work", str(file), "--force").returncode == 0
    done = kept("sessions", "import", str(file), "--name", "copy")
    assert done.stdout == "copy\n"
    assert kept("run", "--session", "copy", "-c", "print(x)").stdout == "42\n"
    assert kept("sessions", "remove", "copy", "--yes").returncode == 0
    file.write_bytes(b"no session")
    done = kept("sessions", "import", str(file))
    assert done.returncode == 125
    assert "error: " in done.stderr


def test_a_missing_session(kept: Program) -> None:
    for arguments in (["show"], ["snapshots"], ["remove", "--yes"], ["snapshot"]):
        done = kept("sessions", *arguments, "nonesuch")
        assert done.returncode == 125
        assert "There is no session 'nonesuch'." in done.stderr
        assert "work" in done.stderr
    assert kept("sessions", "show", "../work").returncode == 2


@pytest.fixture
def doomed(kept: Program) -> Iterator[Program]:
    kept("sessions", "fork", "work", "doomed")
    yield kept
    kept("sessions", "remove", "doomed", "--yes")


def test_removal_asks_first(doomed: Program) -> None:
    done = doomed("sessions", "remove", "doomed", input_="n\n")
    assert done.returncode == 1
    assert "Remove doomed (" in done.stderr
    assert "doomed" in listed(doomed)
    assert doomed("sessions", "remove", "doomed", input_="y\n").returncode == 0
    assert "doomed" not in listed(doomed)


def test_a_session_in_use(doomed: Program) -> None:
    with doomed.terminal("repl", "--session", "doomed") as terminal:
        terminal.see("[1] >")
        terminal.type("x\r")
        terminal.see_line("42")
        terminal.see("[2] >")
        (info,) = [
            info
            for info in json.loads(doomed("sessions", "list", "--json").stdout)
            if info["name"] == "doomed"
        ]
        assert info["in_use"]
        for arguments in (
            ["sessions", "remove", "-y", "doomed"],
            ["run", "--session", "doomed", "-c", "1"],
        ):
            done = doomed(*arguments)
            assert done.returncode == 125
            assert str(info["pid"]) in done.stderr
        terminal.type("y = 'kept'\r")
        terminal.see("[3] >")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert doomed("run", "--session", "doomed", "-c", "print(x, y)").stdout == "42 kept\n"
