"""The tree of errors has one root. Messages say what happened, where, and what to do."""

from __future__ import annotations

import ast
import copy
import importlib
import pickle
from pathlib import Path

import pytest

import rlm_containers
import runtimes
from rlm_containers import errors
from rlm_containers.errors import ContainersError, SandboxError, SetupCodeError
from runtimes import errors as engine_errors

PACKAGES = [
    Path(package.__file__).parent for package in (rlm_containers, runtimes) if package.__file__
]


def all_errors() -> list[type[ContainersError]]:
    names = {*errors.__all__, *engine_errors.__all__}
    return [getattr(errors, name) for name in sorted(names)]


def test_both_modules_share_one_root() -> None:
    assert rlm_containers.ContainersError is ContainersError is engine_errors.ContainersError
    for name in engine_errors.__all__:
        assert getattr(errors, name) is getattr(engine_errors, name)


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_every_error_has_the_root_and_a_description(error: type[ContainersError]) -> None:
    assert issubclass(error, ContainersError)
    assert error.__doc__
    assert error.__name__.endswith("Error")


def test_the_lists_are_complete() -> None:
    for module in (errors, engine_errors):
        defined = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Exception)
        }
        assert defined == set(module.__all__)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        ("OptionError", (TypeError, ValueError)),
        ("ContextError", (TypeError,)),
        ("UnknownRuntimeError", (ValueError,)),
        ("GuestPythonError", (errors.SandboxStartError, SandboxError)),
        ("SetupCodeError", (SandboxError,)),
        ("SandboxClosedError", (SandboxError,)),
        ("SandboxLostError", (SandboxError,)),
        ("WorkspaceError", (SandboxError,)),
        ("ImageNotFoundError", (errors.EngineCommandError,)),
        ("ContainerStartError", (errors.EngineCommandError,)),
        ("EngineTimeoutError", (errors.EngineCommandError,)),
    ],
)
def test_what_else_an_error_is(error: str, bases: tuple[type, ...]) -> None:
    assert issubclass(getattr(errors, error), bases)


def test_the_parts_of_a_message() -> None:
    error = ContainersError("It broke.", remedy="Mend it.", container="rlm-1")
    assert (error.what, error.remedy, error.container) == ("It broke.", "Mend it.", "rlm-1")
    assert str(error) == "It broke. [container rlm-1] Mend it."
    assert str(ContainersError("It broke.")) == "It broke."
    assert str(ContainersError("It broke.", container="x")) == "It broke. [container x]"
    assert str(ContainersError("It broke.", remedy="Mend it.")) == "It broke. Mend it."


def test_an_engines_error_keeps_what_it_said() -> None:
    error = engine_errors.ContainerStartError("No.", exit_code=125, stderr="why", container="c")
    assert (error.exit_code, error.stderr, error.container) == (125, "why", "c")


def test_setup_code_that_failed_shows_its_traceback() -> None:
    error = SetupCodeError("The setup code failed.", stderr="Traceback …\nKeyError: 'x'\n")
    assert str(error).endswith("  | Traceback …\n  | KeyError: 'x'")
    assert error.stderr == "Traceback …\nKeyError: 'x'\n"
    assert error.remedy.startswith("Correct the code.")


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_an_error_survives_its_way_between_processes(error: type[ContainersError]) -> None:
    # concurrent.futures and multiprocessing send exceptions this way.
    more = {"stderr": "said"} if error is SetupCodeError else {}
    original = error("What.", **({} if more else {"remedy": "Do."}), container="c", **more)
    for again in (pickle.loads(pickle.dumps(original)), copy.copy(original)):
        assert type(again) is error
        assert str(again) == str(original)
        assert (again.what, again.remedy, again.container) == (
            original.what,
            original.remedy,
            original.container,
        )


def test_nothing_public_is_raised_that_is_not_ours() -> None:
    # Every `raise X(…)` of the host's side is in the tree, or is one that callers never see.
    allowed = {
        "AttributeError",  # of packages that import their names lazily
        "BadRequestError",  # of the broker, for itself
        "ConnectionAbortedError",  # of the proxy, for socketserver
        "DamagedFileError",  # of the state, for itself
        "FloodError",  # of the calls over the pipe, for the pipe
        "HTTPException",  # of the proxy, for itself
        "LinkError",  # of the connection to a pod, for itself
        "ConnectionError",  # of the backend, which reports it as text
        "OSError",  # of the session's lock, for itself
        "PodEnded",  # of the start of a pod, for Kubernetes' runtime
        "PodmanAnswersError",  # of docker's runtime, for the detection; one of ours
        "UnreadableFileError",  # of the state; one of ours
        "TimeoutError",  # of the pipe, for the interpreter
        "TypeError",  # of the backend, which reports it as text
        "ValueError",  # of the pipe, for itself; of Mount, which users do not make
    }
    raised: dict[str, set[str]] = {}
    for package in PACKAGES:
        for source in package.rglob("*.py"):
            if {"guest", "integrations"} & set(source.parts):
                continue  # the integrations raise what their frameworks expect
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    called = node.exc.func
                    name = called.id if isinstance(called, ast.Name) else ast.unparse(called)
                    raised.setdefault(name, set()).add(source.name)
    made = {name for name in raised if name[0].isupper()}
    assert made
    assert made - {error.__name__ for error in all_errors()} <= allowed


def test_the_documented_tree_is_the_real_one() -> None:
    # The trees in the docstrings: each line names a class, its indent says whose child it is.
    for name in ("rlm_containers.errors", "runtimes.errors"):
        module = importlib.import_module(name)
        assert module.__doc__
        parents: list[tuple[int, type]] = []
        seen = set()
        for line in module.__doc__.splitlines():
            depth = len(line) - len(line.lstrip("│├└─ "))
            word = line.strip("│├└─ ").partition(" ")[0]
            value = getattr(module, word, None)
            if not isinstance(value, type) or (not depth and "──" in line):
                continue
            while parents and parents[-1][0] >= depth:
                parents.pop()
            if parents:
                assert value.__base__ is parents[-1][1], word
            parents.append((depth, value))
            seen.add(word)
        own = {n for n in module.__all__ if getattr(module, n).__module__ == name}
        assert own <= seen | {"ContainersError"}
