"""State that was saved before the modules moved into packages.

``tests/data/before-packages/make.py`` shows what is in it. Pickled code is bound to a minor version
of Python, which was 3.11.
"""

from __future__ import annotations

import dataclasses
import sys
import tarfile
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import guest_bundle
from rlm_containers.state import SessionStore, import_session
from tests.behaviour.values import VALUES, Value, assert_seen
from tests.conftest import MakeBox
from tests.support import LOCAL, printed
from tests.unit.guests import Guest

DATA = Path(__file__).parent.parent / "data" / "before-packages"
SNAPSHOT = (DATA / "snapshot-id").read_text().strip()

#: Variables of some values that make.py has bound to other objects afterwards, and what they were.
REBOUND = {
    "containers": ("table", "{5: 6}"),
    "named tuples": ("Point", "type(p)"),
    "aliases": ("alias, shared", "same, one[0]"),
    "one big string under two names": ("other", "held[0]"),
}

#: What else is in it, apart from `point` and `colour`, which the last cell changed.
LOOK = """
assert shared is alias and shared[0] is point and type(point) is Point
assert type(colour) is Colour
assert piece is table["rows"][7] and piece == {"name": "n7", "value": 7}
assert len(table["rows"]) == 300 and context_0 == "a long line of text\\n" * 400
assert long is other and long == "z" * 70_000
assert up() == 2 and up() == 3
assert open("notes/kept.txt").read() == "kept\\n"
assert "stream" not in globals()
"""


@pytest.fixture(autouse=True)
def same_python(request: pytest.FixtureRequest) -> None:
    """Skip tests in a Python that cannot load the state."""
    local = "engine" not in request.fixturenames or (
        request.getfixturevalue("engine").name == LOCAL
    )
    if local and sys.version_info[:2] != (3, 11):
        pytest.skip("the saved state needs Python 3.11; use --engine, or tests run by Python 3.11")


@pytest.fixture
def sessions(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionStore:
    """A store of sessions that only this test uses."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return SessionStore()


def extract(directory: Path) -> Path:
    """Extract the directory of the session into another, and return its path."""
    with tarfile.open(DATA / "session.tar.gz") as archive:
        # As the documentation of tarfile has it: Debian 12's Python knows no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(directory)
    return directory / "session"


def saved(value: Value) -> Value:
    """Return a value with the cell that looks at it as it is in the saved state."""
    if value.name not in REBOUND:
        return value
    names, before = REBOUND[value.name]
    look = f"rebound = {names}\n{names} = {before}\n{value.look}\n{names} = rebound; del rebound"
    return dataclasses.replace(value, look=look)


#: A value that is added to VALUES later is not in the saved state, and must be left out here.
SAVED = tuple(map(saved, VALUES))


def test_the_state_file_is_restored(cache: Path, tmp_path: Path) -> None:
    with Guest(guest_bundle(), extract(tmp_path) / "workspace") as guest:
        guest.event("hello")
        ready = guest.start(lm=True)
        assert [name for name, *_ in ready["lost"]] == ["stream"]
        for value in SAVED:
            result, stdout, stderr = guest.run(value.look)
            assert (result["status"], stderr, stdout) == ("ok", "", value.expected + "\n")
        assert guest.run(LOOK)[1:] == ("", "")


def assert_is_there(box: Sandbox) -> None:
    """Check everything in an opened session, and its snapshot."""
    assert [variable.name for variable in box.lost] == ["stream"]
    assert_seen(box, SAVED)
    assert printed(box, LOOK) == ""
    assert printed(box, "print(point.x, colour is Colour.RED, ask('ada'))") == "30 True ADA\n"
    (snapshot,) = box.snapshots()
    assert (snapshot.id[:16], snapshot.note) == (SNAPSHOT, "before the change")
    box.restore(SNAPSHOT)
    assert printed(box, LOOK + "print(point.x, colour is Colour.BLUE)") == "3 True\n"
    assert_seen(box, SAVED)
    box.execute("import os; os._exit(1)")  # what was restored is saved as well
    assert printed(box, "print(point.norm(), up())") == "25 4\n"


def test_a_session_goes_on_and_back_to_its_snapshot(
    sessions: SessionStore, make_box: MakeBox
) -> None:
    extract(sessions.directory)
    info = sessions.inspect("session")
    assert (info.snapshots, info.pid) == (1, None)
    assert info.manifest is not None
    assert (info.manifest.engine, info.manifest.minor) == ("docker", "3.11")
    assert_is_there(make_box(session="session", lm=str.upper))


def test_an_exported_session_is_imported(sessions: SessionStore, make_box: MakeBox) -> None:
    assert import_session(DATA / "export.rlm.gz") == "earlier"
    assert_is_there(make_box(session="earlier", lm=str.upper))
