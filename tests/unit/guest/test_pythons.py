"""Everything comes back on every Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlm_containers.container.bundle import GUEST_PYTHON, Bundle
from tests.behaviour.class_values import CLASSES
from tests.behaviour.object_values import OBJECTS
from tests.behaviour.values import VALUES, Value
from tests.unit.guests import Guest
from tests.unit.pythons import interpreters, version

PYTHONS = [python for python in interpreters() if version(python) >= GUEST_PYTHON]


def assert_seen(guest: Guest, values: list[Value], when: str) -> None:
    """Look at each value, and note all that differ before failing."""
    wrong = {}
    for value in values:
        result, stdout, stderr = guest.run(value.look)
        if (result["status"], stderr, stdout) != ("ok", "", value.expected + "\n"):
            wrong[value.name] = stdout + stderr
    assert wrong == {}, when


@pytest.mark.parametrize("python", PYTHONS, ids=[python.parent.parent.name for python in PYTHONS])
@pytest.mark.parametrize("values", [VALUES, CLASSES, OBJECTS], ids=["values", "classes", "objects"])
def test_everything_is_restored(
    made_bundle: Bundle, tmp_path: Path, python: Path, values: tuple[Value, ...]
) -> None:
    possible = [value for value in values if version(python) >= value.since]
    with Guest(made_bundle, tmp_path, str(python)) as guest:
        guest.event("hello")
        guest.start(lm=True)
        for value in possible:
            result, stdout, stderr = guest.run(value.define)
            assert (result["status"], stderr, stdout) == ("ok", "", ""), value.name
        for when in ("after a death", "after another"):
            guest.cell("import os; os._exit(1)")
            guest.event("died")
            assert guest.start(lm=True, expected=True)["lost"] == [], when
            guest.run("after = 1")
        assert_seen(guest, possible, when)


@pytest.mark.parametrize("python", PYTHONS, ids=[python.parent.parent.name for python in PYTHONS])
def test_a_proof_beside_threads(made_bundle: Bundle, tmp_path: Path, python: Path) -> None:
    # Python warns of forks beside threads from 3.12 on.
    with Guest(made_bundle, tmp_path, str(python)) as guest:
        guest.event("hello")
        guest.start()
        result, _, stderr = guest.run(
            "import threading, warnings\n"
            "warnings.simplefilter('error')\n"
            "go = threading.Event(); thread = threading.Thread(target=go.wait, daemon=True)\n"
            "thread.start()\n"
            "class Odd:\n"
            "    def __setstate__(self, state): self.__dict__.update(state)\n"
            "class Bad:\n"
            "    def __setstate__(self, state): raise ValueError('no')\n"
            "odd, bad = Odd(), Bad(); odd.x = bad.x = 1\n"
        )
        assert (result["status"], stderr) == ("ok", "")
        saved = guest.message("saved")
        assert (sorted(name for name, *_ in saved["unsaved"]), saved["error"]) == (
            ["bad", "thread"],
            None,
        )
        guest.cell("import os; os._exit(1)")
        guest.event("died")
        lost = guest.start(expected=True)["lost"]
        assert sorted(name for name, *_ in lost) == ["bad", "thread"]
        assert guest.run("print(odd.x)")[1] == "1\n"
