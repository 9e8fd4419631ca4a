"""Where options come from, which source wins, and what the error says about a wrong one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.errors import ConfigError, OptionError
from rlm_containers.options import (
    DEFAULT_IMAGE,
    check_config,
    config_path,
    configured_options,
    explain_options,
    unknown_variables,
)
from rlm_containers.repl import ContainerREPL
from tests.unit.guests import LocalRuntime

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the configuration file at its usual place."""
    directory = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory))
    monkeypatch.delenv("RLM_CONTAINERS_CONFIG")

    def write(text: str) -> Path:
        path = directory / "rlm-containers" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


ALL = """\
image = "file:1"
network = "none"
memory = 100_000_000
start_timeout = 11
packages = ["six", "pandas==2.*"]

[env]
A = "from the file"

[profiles.big]
memory = 200_000_000
start_timeout = 22

[profiles."two words"]
image = "other:1"
"""


def test_without_a_file_there_are_defaults(write: Write) -> None:
    assert configured_options({}) == SandboxOptions()
    assert config_path().name == "config.toml"


def test_the_file(write: Write) -> None:
    write(ALL)
    options = configured_options({})
    assert (options.image, options.network, options.memory) == ("file:1", "none", 100_000_000)
    assert options.packages == ("six", "pandas==2.*")
    assert options.env == {"A": "from the file"}
    assert options.lm_timeout == 600


def test_arguments_over_variables_over_a_profile_over_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ALL)
    monkeypatch.setenv("RLM_CONTAINERS_PROFILE", "big")
    assert configured_options({}).memory == 200_000_000
    monkeypatch.setenv("RLM_CONTAINERS_MEMORY", "300000000")
    assert configured_options({}).memory == 300_000_000
    options = configured_options({"memory": 400_000_000})
    assert options.memory == 400_000_000
    # Each option is decided by itself.
    assert (options.start_timeout, options.network) == (22, "none")


def test_profiles(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ALL)
    assert configured_options({"profile": "two words"}).image == "other:1"
    monkeypatch.setenv("RLM_CONTAINERS_PROFILE", "big")
    assert configured_options({"profile": "two words"}).start_timeout == 11
    write('profile = "big"\n' + ALL)
    monkeypatch.delenv("RLM_CONTAINERS_PROFILE")
    assert configured_options({}).start_timeout == 22
    assert configured_options({"profile": None}).start_timeout == 22


def test_a_profile_that_is_not_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(ALL)
    with pytest.raises(ConfigError, match=f"no profile 'bigg' in {path}") as caught:
        configured_options({"profile": "bigg"})
    assert "There are: big, two words." in caught.value.remedy
    path.unlink()
    monkeypatch.setenv("RLM_CONTAINERS_PROFILE", "big")
    with pytest.raises(ConfigError, match="does not exist") as caught:
        configured_options({})
    assert "RLM_CONTAINERS_PROFILE" in caught.value.remedy
    with pytest.raises(OptionError, match="profile must be"):
        configured_options({"profile": 5})


def test_an_argument_may_undo_an_option_of_the_file(write: Write) -> None:
    write('memory = 100_000_000\nrequirements = "r.txt"\n[env]\nA = "b"\n')
    options = configured_options({"memory": None, "requirements": None, "env": {}})
    assert (options.memory, options.requirements, options.env) == (None, None, {})


def test_an_image_argument_wins_even_if_it_equals_the_default(write: Write) -> None:
    write('image = "file:1"\n')
    assert configured_options({"image": DEFAULT_IMAGE}).image == "file:1"
    assert configured_options({"image": str(DEFAULT_IMAGE.encode(), "ascii")}).image == (
        "python:3.11-slim"
    )
    assert Sandbox().options.image == "file:1"
    assert Sandbox("python:3.11-slim").options.image == "python:3.11-slim"


def test_a_file_can_say_that_there_is_no_limit(write: Write) -> None:
    write('memory = 100_000_000\n[profiles.free]\nmemory = "none"\n')
    assert configured_options({"profile": "free"}).memory is None


def test_paths_are_relative_to_the_file(write: Write) -> None:
    path = write(
        'requirements = "r.txt"\ndockerfile = "/srv/Dockerfile"\npackages = ["./x.whl", "six"]\n'
    )
    options = configured_options({})
    assert options.requirements == str(path.parent / "r.txt")
    assert options.dockerfile == "/srv/Dockerfile"
    assert options.packages == (str(path.parent / "x.whl"), "six")
    write('dockerfile = """\nRUN a\nRUN b\n"""\nrequirements = "~/r.txt"\n')
    options = configured_options({})
    assert options.dockerfile == "RUN a\nRUN b\n"
    assert options.requirements == str(Path.home() / "r.txt")


# Variables

VARIABLES: list[tuple[str, str, Any]] = [
    ("IMAGE", "a:1", "a:1"),
    ("RUNTIME", "podman --remote", "podman --remote"),
    ("NETWORK", "none", "none"),
    ("MEMORY", "none", None),
    ("MEMORY", "100_000_000", 100_000_000),
    ("PIDS", "100", 100),
    ("START_TIMEOUT", "0.5", 0.5),
    ("LM_TIMEOUT", "1e3", 1000.0),
    ("ENV", "A=b 'C=d e'", {"A": "b", "C": "d e"}),
    ("ENV", '{A = "b"}', {"A": "b"}),
    ("PACKAGES", "six", ("six",)),
    ("PACKAGES", "six==1.* 'a ; x>1'", ("six==1.*", "a ; x>1")),
    ("PACKAGES", "a==1", ("a==1",)),
    ("PACKAGES", '["a", "b"]', ("a", "b")),
    ("RUN_ARGS", "--cpus=1 --label a=b", ("--cpus=1", "--label", "a=b")),
    ("SETUP_CODE", "x = 1", "x = 1"),
    ("SETUP_CODE", "[1]", "[1]"),
]


@pytest.mark.parametrize(("name", "text", "value"), VARIABLES)
def test_variables(name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RLM_CONTAINERS_{name}", text)
    assert getattr(configured_options({}), name.lower()) == value


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_CONTAINERS_MEMORY", "")
    monkeypatch.setenv("RLM_CONTAINERS_IMAGE", "")
    assert configured_options({}) == SandboxOptions()


@pytest.mark.parametrize(
    ("name", "text"),
    [("PIDS", "many"), ("START_TIMEOUT", "-1"), ("ENV", "A"), ("PACKAGES", "'"), ("NETWORK", "no")],
)
def test_a_variable_that_is_wrong(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RLM_CONTAINERS_{name}", text)
    with pytest.raises(ConfigError, match=f"^RLM_CONTAINERS_{name}: {name.lower()} must be "):
        configured_options({})


def test_every_option_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in dataclasses.fields(SandboxOptions):
        monkeypatch.setenv(f"RLM_CONTAINERS_{field.name.upper()}", "1")
    assert unknown_variables() == []
    monkeypatch.setenv("RLM_CONTAINERS_MEMROY", "1")
    monkeypatch.setenv("RLM_CONTAINERS_TEST_ENGINES", "docker")
    assert unknown_variables() == ["RLM_CONTAINERS_MEMROY"]


# What is wrong in the file

BROKEN: list[tuple[str, int, str]] = [
    ('image = "a"\n\nimgae = "b"\n', 3, r"no option 'imgae'.*Did you mean 'image'"),
    ('# pids = 100\n\n\n"memroy" = 5\n', 4, "no option 'memroy'.*Did you mean 'memory'"),
    ('x = """\nmemory = "1"\n"""\n', 1, "no option 'x'"),
    ("packages = [\n  'a',\n  'b',\n]\nrun_arg = []\n", 5, "Did you mean 'run_args'"),
    (
        "[profiles.a]\npids = 100\n[profiles.b]\npds = 1\n",
        4,
        "no option 'pds'.*Did you mean 'pids'",
    ),
    ("[profiles]\na = {pids = 100, profile = 'b'}\n", 2, "no option 'profile'"),
    ('[profiles."a b"]\n# [profiles.c]\nlm = 1\n', 3, "no option 'lm'"),
    ("profiles.x.y = 3\n", 1, "no option 'y'"),
    ("pids = 100\nprofiles = 5\n", 2, "profiles must be tables"),
    ("[profiles]\nx = 5\n", 1, "profiles must be tables"),
    ('env.A = "b"\nmemory = "much"\n', 2, "memory must be"),
    ("image = 5\n", 1, "image must be the name of an image, not 5"),
    ("packages = 'six'\n", 1, "packages must be a list"),
    ("run_args = [\n1]\n", 1, "run_args must be"),
    ("\n[env]\nA = 1\n", 2, "env must be"),
    ("start_timeout = nan\n", 1, "start_timeout must be"),
]


@pytest.mark.parametrize(("text", "line", "match"), BROKEN)
def test_a_mistake_in_the_file_is_named_with_its_line(
    text: str, line: int, match: str, write: Write
) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        configured_options({})
    assert caught.value.what.startswith(f"{path}:{line}: "), caught.value.what
    assert caught.match(match)


def test_a_mistake_in_a_profile_shows_when_it_is_chosen(write: Write) -> None:
    path = write("[profiles.a]\npids = 100\n[profiles.b]\npids = -5\n")
    configured_options({"profile": "a"})
    for check in (lambda: configured_options({"profile": "b"}), check_config):
        with pytest.raises(ConfigError, match=rf"^{path}:4: pids must be"):
            check()
    write("[profiles.a]\npids = 100\n[profiles.b]\n")
    assert check_config() == ["a", "b"]


@pytest.mark.parametrize("text", ["image = ", "= 5", "a = 1\na = 2", "[x", "a" * 10, "x = [[[["])
def test_a_file_that_is_not_toml_is_one_clear_error(text: str, write: Write) -> None:
    path = write(f"pids = 100\n{text}\n")
    for make in (Sandbox, ContainerREPL, explain_options):
        with pytest.raises(ConfigError, match=rf"{path} is not TOML: .*line \d|at end of document"):
            make()


def test_a_file_that_cannot_be_read(write: Write) -> None:
    path = write("")
    path.write_bytes(b"image = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        configured_options({})
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=f"{path} cannot be read"):
        configured_options({})


def test_the_variable_that_names_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.toml"
    monkeypatch.setenv("RLM_CONTAINERS_CONFIG", str(other))
    with pytest.raises(ConfigError, match=f"no file {other}"):
        configured_options({})
    other.write_text("pids = 77\n")
    assert configured_options({}).pids == 77
    monkeypatch.setenv("RLM_CONTAINERS_CONFIG", os.devnull)
    assert configured_options({}) == SandboxOptions()


def test_a_wrong_argument_is_no_config_error(write: Write) -> None:
    write(ALL)
    with pytest.raises(OptionError, match="^pids must be") as caught:
        configured_options({"pids": "many"})
    assert not isinstance(caught.value, ConfigError)


# Explaining


def test_every_option_says_where_it_comes_from(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(ALL)
    monkeypatch.setenv("RLM_CONTAINERS_PIDS", "50")
    settings = {s.name: s for s in explain_options({"profile": "big", "lm_timeout": 5})}
    assert settings.keys() == {field.name for field in dataclasses.fields(SandboxOptions)}
    assert {name: setting.origin for name, setting in settings.items()} == {
        **dict.fromkeys(settings, "default"),
        "image": f"{path}:1",
        "network": f"{path}:2",
        "memory": f"{path}:11",
        "start_timeout": f"{path}:12",
        "packages": f"{path}:5",
        "env": f"{path}:7",
        "pids": "RLM_CONTAINERS_PIDS",
        "profile": "argument",
        "lm_timeout": "argument",
    }
    assert (settings["memory"].value, settings["pids"].value) == (200_000_000, 50)
    assert settings["memory"].shown == "200000000"
    assert settings["env"].shown == "{'A': …}"


# Using it


def test_a_sandbox_has_what_is_configured(write: Write, local: LocalRuntime) -> None:
    write('setup_code = "x = 6 * 7"\nmax_output = 100\n[env]\nA = "b"\n')
    with Sandbox(runtime=local) as box:
        assert box.execute("import os; print(x, os.environ['A'], 'y' * 1000)").stdout.startswith(
            "42 b yyy"
        )
        assert box.options.max_output == 100


def test_an_environment_runs_the_setup_code_last_and_once(
    write: Write, local: LocalRuntime
) -> None:
    write("setup_code = \"n = globals().get('n', 0) + len(context)\"\nlm_timeout = 3\n")
    with ContainerREPL(runtime=local, context_payload="abc") as environment:
        assert environment.execute_code("print(n)").stdout == "3\n"
        assert environment.sandbox.options.lm_timeout == 3
    with ContainerREPL(runtime=local, context_payload="abc", setup_code="n = 1") as environment:
        assert environment.execute_code("print(n)").stdout == "1\n"
