"""``rlm-containers config``, and how other commands use the configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.terminal import Program


@pytest.fixture
def file(program: Program) -> Path:
    """Return the path of the configuration file, which does not exist yet."""
    path = program.home / "config" / "rlm-containers" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_the_path(program: Program, file: Path) -> None:
    assert program("config", "path").stdout == f"{file}\n"


def test_show_names_the_source_of_each_value(program: Program, file: Path) -> None:
    file.write_text('image = "a:1"\n[env]\nSECRET = "xyz"\n[profiles.big]\nmemory = "2g"\n')
    arguments = ("config", "show", "--profile", "big", "--pids", "64", "--json")
    done = program(*arguments, RLM_CONTAINERS_CPUS="0.5")
    found = json.loads(done.stdout)
    assert found["image"] == {"value": "'a:1'", "from": f"{file}:1"}
    assert found["memory"] == {"value": str(2 * 1024**3), "from": f"{file}:5"}
    assert found["pids"] == {"value": "64", "from": "argument"}
    assert found["cpus"] == {"value": "0.5", "from": "RLM_CONTAINERS_CPUS"}
    assert found["max_output"]["from"] == "default"
    assert found["env"] == {"value": "{'SECRET': …}", "from": f"{file}:2"}
    table = program("config", "show").stdout
    assert table.splitlines()[0].split() == ["OPTION", "VALUE", "FROM"]
    assert "xyz" not in table + done.stdout


def test_a_wrong_file(program: Program, file: Path) -> None:
    file.write_text("memroy = 1\n")
    for arguments in (["config", "check"], ["config", "show"], ["run", "-c", "1"]):
        done = program(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{file}:1: there is no option 'memroy'" in done.stderr
        assert "Did you mean 'memory'?" in done.stderr
    found = json.loads(program("doctor", "--json", "--runtime", "local").stdout)
    (check,) = (check for check in found["host"] if check["name"] == "config")
    assert check["status"] == "failed"


def test_a_correct_file(program: Program, file: Path) -> None:
    assert "none is needed" in program("config", "check").stdout
    file.write_text('[profiles.big]\nmemory = "2g"\n')
    done = program("config", "check", RLM_CONTAINERS_MEMROY="1g")
    assert (done.returncode, done.stdout) == (0, f"{file} is correct, with the profiles big.\n")
    assert "RLM_CONTAINERS_MEMROY is no option" in done.stderr


def test_commands_use_the_configuration(program: Program, file: Path) -> None:
    file.write_text('[env]\nPLACE = "file"\n[profiles.other]\nenv = { PLACE = "profile" }\n')
    code = "import os; print(os.environ['PLACE'])"
    assert program("run", "-c", code).stdout == "file\n"
    assert program("run", "--profile", "other", "-c", code).stdout == "profile\n"
    assert program("run", "--env", "PLACE=here", "-c", code).stdout == "here\n"
