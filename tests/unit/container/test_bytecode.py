"""Byte code that one container makes, and that others use while it belongs to their sources."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle, guest_bundle
from rlm_containers.container.bytecode import ByteCode
from rlm_containers.errors import EngineTimeoutError, ImageNotFoundError
from rlm_containers.guest import wire
from rlm_containers.state import cache_directory
from runtimes import ImageRecord
from tests.unit.guests import LocalRuntime, run_python
from tests.unit.sessions import run

# A module of the standard library is anything that SourceFileLoader loads.
COLLECT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.pycache_prefix = sys.argv[2]  # where nothing is
sys.dont_write_bytecode = True
import package.module
from rlm_guest.bytecode import collect
sys.stdout.buffer.write(collect())
"""

USE = """
import builtins, sys
from rlm_guest.bundle import CompiledFinder, compiled
with open(sys.argv[2], 'rb') as file:
    entries = compiled(file.read())
sys.path.insert(0, sys.argv[1])
sys.pycache_prefix = sys.argv[3]
sys.dont_write_bytecode = True
import importlib.util
plain = importlib.util.find_spec('package.module')
for name in ('package.module', 'package'):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, CompiledFinder(entries))
from importlib.machinery import SourceFileLoader
asked = []
SourceFileLoader.get_code = lambda self, name: asked.append(name) or compile(
    self.get_data(self.path), self.path, 'exec')
import package.module as module
print(module.VALUE, asked)
spec = module.__spec__
print(type(module.__loader__).__name__, spec.origin == plain.origin, spec.cached == plain.cached,
      module.__file__ == plain.origin, module.__package__)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "lib" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "module.py").write_text("VALUE = 1\n")
    return folder.parent


@pytest.fixture
def collected(package: Path, guest_path: list[str], tmp_path: Path) -> Path:
    """A file with the byte code of the package and of all else that was compiled."""
    program = COLLECT.replace("sys.stdout.buffer.write(", "open(sys.argv[3], 'wb').write(")
    path = tmp_path / "compiled"
    done = run_python(program, str(package), str(tmp_path / "none"), str(path), path=guest_path)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def use(package: Path, collected: Path, guest_path: list[str]) -> list[str]:
    arguments = (str(package), str(collected), str(package / "none"))
    done = run_python(USE, *arguments, path=guest_path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_byte_code_is_used_in_place_of_a_compilation(
    package: Path, collected: Path, guest_path: list[str]
) -> None:
    value, module = use(package, collected, guest_path)
    assert value == "1 []"
    assert module == "SourceFileLoader True True True package"


@pytest.mark.parametrize("text", ["VALUE = 2\n", "VALUE = 22\n"])
def test_a_source_that_has_changed_is_compiled(
    package: Path, collected: Path, guest_path: list[str], text: str
) -> None:
    (package / "package" / "module.py").write_text(text)
    value, _ = use(package, collected, guest_path)
    assert value == f"{text.split()[2]} ['package.module']"


def test_byte_code_of_another_python_is_not_used(
    package: Path, collected: Path, guest_path: list[str]
) -> None:
    import marshal

    _, entries = marshal.loads(collected.read_bytes())
    collected.write_bytes(marshal.dumps((b"\0\0\r\n", entries), 4))
    value, _ = use(package, collected, guest_path)
    assert value == "1 ['package', 'package.module']"


# On the host


class Engine(LocalRuntime):
    def __init__(self, content: str = "one") -> None:
        super().__init__()
        self.content = content
        self.asked = 0
        self.error: Exception | None = None

    def inspect_image(self, image: str) -> ImageRecord:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return ImageRecord(
            id=image, tags=(image,), size=0, architecture="any", labels={}, content=self.content
        )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    guest_bundle.cache_clear()
    yield guest_bundle()
    guest_bundle.cache_clear()


def test_it_is_kept_for_every_image_with_the_same_layers(bundle: Bundle) -> None:
    engine = Engine()
    first = ByteCode.of(engine, "image", bundle)
    assert first.is_wanted
    assert first.frame == wire.encode(wire.MODULES)
    first.keep(base64.b64encode(b"code").decode())
    assert ByteCode.of(engine, "image", bundle) is first
    assert engine.asked == 1
    for same in (Engine(), Engine()):
        found = ByteCode.of(same, "another name", bundle)
        assert not found.is_wanted
        assert found.frame == wire.encode(wire.MODULES, b"code")
    assert ByteCode.of(Engine("other"), "image", bundle).is_wanted


def test_an_image_that_needs_none_is_not_asked_again(bundle: Bundle) -> None:
    ByteCode.of(Engine(), "image", bundle).keep("")
    found = ByteCode.of(Engine(), "image", bundle)
    assert not found.is_wanted
    assert found.frame == wire.encode(wire.MODULES)


@pytest.mark.parametrize("said", [None, 5, "no base64!", "YQ", "A" * (16 * 1024 * 1024)])
def test_what_a_guest_says_may_be_anything(bundle: Bundle, said: object) -> None:
    found = ByteCode.of(Engine(), "image", bundle)
    found.keep(said)
    assert found.frame == wire.encode(wire.MODULES)
    assert ByteCode.of(Engine(), "image", bundle).is_wanted


def test_only_its_owner_can_write_it(bundle: Bundle) -> None:
    before = os.umask(0)
    try:
        ByteCode.of(Engine(), "image", bundle).keep(base64.b64encode(b"code").decode())
    finally:
        os.umask(before)
    folder = cache_directory() / "bytecode"
    for path in (folder, *folder.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022
    folder.chmod(0o777)
    ByteCode.of(Engine(), "image", bundle)
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o022


def test_a_session_in_which_cells_ran_is_not_asked(bundle: Bundle, own_sessions: None) -> None:
    with Sandbox(runtime=Engine(), session="one") as box:
        run(box, "x = 1")
    for path in (cache_directory() / "bytecode").iterdir():
        path.unlink()
    engine = Engine()
    with Sandbox(runtime=engine, session="one"):
        assert ByteCode.of(engine, "python:3.11-slim", bundle).is_wanted


def test_an_image_that_is_not_there_yet(bundle: Bundle) -> None:
    engine = Engine()
    engine.error = ImageNotFoundError("there is none")
    found = ByteCode.of(engine, "image", bundle)
    assert not found.is_wanted
    found.keep(base64.b64encode(b"code").decode())
    engine.error = None
    assert ByteCode.of(engine, "image", bundle).is_wanted
    engine = Engine()
    engine.error = EngineTimeoutError("it hangs")
    with pytest.raises(EngineTimeoutError):
        ByteCode.of(engine, "image", bundle)


def test_a_guest_with_byte_code_of_its_own_says_so(bundle: Bundle) -> None:
    engine = Engine()
    for _ in range(2):
        with Sandbox(runtime=engine) as box:
            run(box, "import sys, json")
            told = run(box, "print([f for f in sys.meta_path if hasattr(f, 'is_of_guest')])")
            assert told.stdout == "[]\n"
    assert not ByteCode.of(engine, "python:3.11-slim", bundle).is_wanted
