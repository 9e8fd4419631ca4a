"""Who imports whom, what is public, and what importing costs."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import rlm_containers
import runtimes
from tests.unit.guests import run_python

REPOSITORY = Path(rlm_containers.__file__).parent.parent


def sources(folder: str) -> list[Path]:
    found = sorted((REPOSITORY / folder).rglob("*.py"))
    assert found
    return found


def imported(source: Path) -> set[str]:
    """The absolute names of the modules that a file imports, anywhere in it."""
    package = ".".join(source.relative_to(REPOSITORY).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


#: The packages and modules of ``rlm_containers``, as docs/architecture.md has them. Each may import
#: what stands on a later line.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"integrations"},
    {"repl", "doctor"},
    {"sandbox"},
    {"container"},
    {"images"},
    {"options"},
    {"lm", "state"},
    {"interpreter"},
    {"errors"},
    {"guest"},
)


def room_of(name: str) -> str:
    """The package or module below ``rlm_containers`` that a dotted name leads to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_imports_run_one_way() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for source in sources("rlm_containers"):
        here = room_of(".".join(source.relative_to(REPOSITORY).with_suffix("").parts))
        for name in imported(source):
            there = room_of(name)
            if here not in floor or there not in floor or not within({name}, "rlm_containers"):
                continue
            assert here == there or floor[here] < floor[there], f"{source} imports {name}"


def test_nobody_imports_the_private_modules_of_a_package() -> None:
    packages = {
        ".".join(init.relative_to(REPOSITORY).parent.parts)
        for init in sources("rlm_containers")
        if init.name == "__init__.py" and init.parent.name not in ("rlm_containers", "integrations")
    } - {"rlm_containers.guest"}
    packages.add("runtimes")
    for source in sources("rlm_containers"):
        module = ".".join(source.relative_to(REPOSITORY).with_suffix("").parts)
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for package in packages:
                if not node.module.startswith(f"{package}.") or node.module in (
                    "runtimes.errors",
                    "runtimes.forks",
                    "runtimes.text",
                    "runtimes.timelimit",
                ):
                    continue
                assert module == package or module.startswith(f"{package}."), (
                    f"{source} imports {node.module}, which is private to {package}"
                )


def test_the_host_knows_only_the_wire_of_the_guest() -> None:
    for source in sources("rlm_containers"):
        if "guest" in source.parts:
            continue
        found = within(imported(source), "rlm_containers.guest")
        assert all(
            name == "rlm_containers.guest" or name.startswith("rlm_containers.guest.wire")
            for name in found
        ), source


def test_runtimes_know_nothing_of_the_rest() -> None:
    for source in sources("runtimes"):
        assert not within(imported(source), "rlm_containers"), source
        assert not within(imported(source), "rlm"), source


def test_the_guest_knows_nothing_of_the_host() -> None:
    for source in sources("rlm_containers/guest"):
        allowed = set(sys.stdlib_module_names) | {"dill"}
        # What they serve has been imported by the cells before.
        served = {"figure_backend.py": "matplotlib", "arrays.py": "numpy"}
        allowed.add(served.get(source.name, "dill"))
        for name in imported(source):
            assert name.startswith("rlm_containers.guest") or name.split(".")[0] in allowed, (
                source,
                name,
            )


@pytest.mark.parametrize(
    "name",
    [
        "rlm",
        "dspy",
        "deepagents",
        "agents",
        "inspect_ai",
        "pydantic_ai",
        "smolagents",
        "subprocess",
        "docker",
        "podman",
        "pty",
        "multiprocessing",
    ],
)
def test_only_integrations_import_frameworks_or_other_ways_to_an_engine(name: str) -> None:
    for folder in ("rlm_containers", "runtimes"):
        for source in sources(folder):
            if "integrations" not in source.parts:
                assert not within(imported(source), name), source


def test_nothing_unpickles_on_the_host() -> None:
    # What a container wrote may say anything, and a pickle is a program.
    loaders = {"load", "loads", "Unpickler", "find_class"}
    modules = {"pickle", "_pickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}
    modules |= {"dbm", "jsonpickle", "yaml", "numpy", "pandas", "torch"}
    for folder in ("rlm_containers", "runtimes"):
        for source in sources(folder):
            if "guest" in source.parts:
                continue
            found = imported(source)
            for name in modules - {"marshal"}:  # marshal.dumps is harmless
                sent = source.parts[-2:] == ("sandbox", "values.py")  # to the guest, which loads it
                assert within(found, name) <= ({"pickle", "pickle.dumps"} if sent else set()), (
                    source
                )
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert not (node.value.id in modules and node.attr in loaders), source
                # What the integration with DSPy has of it is sent to the guest, and runs there.
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    sent = source.parts[-2:] == ("dspy", "cell.py")
                    assert sent or node.func.id not in ("exec", "eval"), source
                    assert node.func.id != "__import__", source


def test_every_import_is_of_a_declared_dependency() -> None:
    declared = {
        "filelock",
        "platformdirs",
        "sh",
    }  # and dill and requests, which only containers import
    # Nobody who imports the library pays for what only the command line and reports need.
    further = {"cli": {"click", "prompt_toolkit", "pygments", "rich"}}
    extras = {"websocket.py": {"websockets"}}  # imported where it is installed
    for folder in ("rlm_containers", "runtimes"):
        for source in sources(folder):
            if "guest" in source.parts or "integrations" in source.parts:
                continue
            for name in imported(source):
                top = name.split(".")[0]
                known = declared | further.get(source.parent.name, set())
                known |= extras.get(source.name, set())
                assert top in sys.stdlib_module_names or top in known | {
                    "rlm_containers",
                    "runtimes",
                }, (source, name)


def test_help_is_there_without_what_only_one_command_needs() -> None:
    found = modules_after(
        "import sys\nfrom rlm_containers.cli.program import program\n"
        "sys.stdout = open('/dev/null', 'w')\n"
        "program(['run', '--help'], standalone_mode=False)\nsys.stdout = sys.__stdout__"
    )
    for name in ("rlm", "prompt_toolkit", "rich.console", "pygments", "rlm_containers.doctor"):
        assert name not in found


def modules_after(program: str) -> list[str]:
    done = run_python(
        f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))",
        path=[str(REPOSITORY)],
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: list[str] = json.loads(done.stdout)
    return found


def test_importing_the_package_imports_nothing_that_is_not_needed() -> None:
    found = modules_after("import rlm_containers")
    assert [name for name in found if name.startswith(("rlm", "runtimes"))] == ["rlm_containers"]
    found = modules_after("from rlm_containers import ContainerREPL, Sandbox")
    for name in ("rlm", "dill", "requests", "openai", "click", "rich", "pygments"):
        assert name not in found


def test_importing_the_runtimes_imports_only_them() -> None:
    found = modules_after("import runtimes")
    assert not [name for name in found if name.startswith("rlm")]


def test_importing_says_nothing_and_starts_nothing() -> None:
    done = run_python(
        "import threading, rlm_containers, runtimes, rlm_containers.errors\n"
        "assert threading.active_count() == 1",
        path=[str(REPOSITORY)],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_rlms_registering_says_what_is_missing() -> None:
    done = run_python(
        "import sys\nsys.modules['rlm'] = None\nimport rlm_containers\n"
        "try:\n    rlm_containers.register()\n"
        "except ImportError as error:\n    print(error)",
        path=[str(REPOSITORY)],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "rlm" in done.stdout


def test_what_is_public() -> None:
    assert set(rlm_containers.__all__) == {
        "Artifact",
        "Branch",
        "Branches",
        "CellResult",
        "CommandOutput",
        "CommandResult",
        "ContainerREPL",
        "ContainersError",
        "Files",
        "LMCall",
        "Mount",
        "Sandbox",
        "SandboxOptions",
        "SandboxPool",
        "Snapshot",
        "UnsavedVariable",
        "WorkspaceFile",
        "register",
    }
    for name in rlm_containers.__all__:
        assert getattr(rlm_containers, name).__module__
    assert set(runtimes.__all__) == {
        "PROXY_VARIABLES",
        "BuildSpec",
        "ContainerProcess",
        "ContainerRecord",
        "ContainerSpec",
        "EngineCommand",
        "EngineInfo",
        "GpuRequest",
        "HostRoute",
        "ImageRecord",
        "InternalNetwork",
        "Mount",
        "NetworkRecord",
        "OwnDirectory",
        "Placement",
        "Runtime",
        "get_runtime",
        "runtime_names",
    }
    for package in (rlm_containers, runtimes):
        for name in package.__all__:
            assert getattr(package, name).__doc__, name


def test_every_module_has_a_description_and_what_it_lists() -> None:
    for source in [*sources("rlm_containers"), *sources("runtimes")]:
        tree = ast.parse(source.read_text())
        assert ast.get_docstring(tree), source
        defined: set[str] = set()
        for node in tree.body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {target.id for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
        for inner in ast.walk(tree):
            if isinstance(inner, (ast.Import, ast.ImportFrom)):
                defined |= {alias.asname or alias.name for alias in inner.names}
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                assert set(ast.literal_eval(node.value)) <= defined, source


@pytest.mark.parametrize(
    "package",
    ["rlm_containers", "rlm_containers.images", "rlm_containers.integrations.rlms"],
)
def test_what_is_imported_with_its_first_use_is_there(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert rlm_containers.__version__.count(".") == 2
    try:
        needed = requires("rlm-containers") or []
    except ImportError:  # not installed: run from a checkout
        return
    assert any(line.startswith("sh") for line in needed)
