"""Byte code of an image that has none: made by its first container, used by the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import guest_bundle
from rlm_containers.container.bytecode import ByteCode
from runtimes import get_runtime
from tests.support import Engine, printed

# Whatever the guest has imported looks as if Python had compiled it.
MODULES = """
import sys
assert not [finder for finder in sys.meta_path if hasattr(finder, 'is_of_guest')]
print([
    (name, type(module.__loader__).__name__, module.__file__, module.__cached__)
    for name, module in sys.modules.items()
    if str(getattr(getattr(module, '__spec__', None), 'origin', None)).endswith('.py')
    and not name.startswith('rlm_')
])
"""


@pytest.mark.parametrize("python", ["3.9", "3.13"])
def test_later_containers_use_what_the_first_has_compiled(engine: Engine, python: str) -> None:
    image = engine.image(python)
    runtime = get_runtime(engine.runtime)
    with Sandbox(image, runtime=engine.runtime) as box:
        first = ast.literal_eval(printed(box, MODULES))
    kept = ByteCode.of(runtime, image, guest_bundle())
    assert not kept.is_wanted
    assert len(kept.frame) > 100_000
    with Sandbox(image, runtime=engine.runtime) as box:
        found = ast.literal_eval(printed(box, MODULES))
        assert len(found) > 20
        assert set(found) <= set(first)  # which has also collected it
        assert printed(box, "def f(): return json.dumps([1])\nimport json\nprint(f())") == "[1]\n"
        assert box.execute("import os; os._exit(1)").status == "died"
        assert printed(box, "print(f())") == "[1]\n"


def test_a_source_of_another_image_is_compiled(engine: Engine, tmp_path: Path) -> None:
    image = engine.image("3.13")
    with Sandbox(image, runtime=engine.runtime) as known:
        path = printed(known, "import json.scanner\nprint(json.scanner.__file__)").strip()
        source = printed(known, f"print(open({path!r}).read(), end='')")
    changed = tmp_path / "scanner.py"
    changed.write_text(source + "\nCHANGED = True\n")
    tmp_path.chmod(0o755)
    changed.chmod(0o644)
    with Sandbox(image, runtime=engine.runtime, mounts=[f"{changed}:{path}"]) as box:
        assert printed(box, "import json.scanner\nprint(json.scanner.CHANGED)") == "True\n"
