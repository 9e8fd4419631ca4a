"""Files of the host's own: replaced as a whole, and locked between processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers.state import locked, replace_file


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_made_and_replaced_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    for contents in (b"a long first version", b"second"):
        with replace_file(path, durable=durable) as file:
            file.write(contents)
            assert not path.exists() or path.read_bytes() == b"a long first version"
        assert path.read_bytes() == contents
    assert os.listdir(tmp_path) == ["file"]


def test_it_has_the_permissions_that_were_asked_for(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        for mode, given in ((0o666, 0o644), (0o600, 0o600)):
            with replace_file(tmp_path / "file", mode=mode):
                pass
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == given
    finally:
        os.umask(umask)


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(LookupError), replace_file(path) as file:
        file.write(b"half")
        raise LookupError
    assert path.read_bytes() == b"before"
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError), replace_file(tmp_path / "directory"):
        pass
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "no" / "file"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    with replace_file(tmp_path / ("ü" * 127)) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["ü" * 127]


HOLDER = """\
import sys
from pathlib import Path
from rlm_containers.state import locked
with locked(Path(sys.argv[1]), "waiting"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one.lock"
    holder = subprocess.Popen(
        (sys.executable, "-c", HOLDER, str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    second = subprocess.Popen(
        (sys.executable, "-c", HOLDER, str(path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    holder.kill()
    holder.communicate()
    assert second.communicate(timeout=30)[0] == "held\n"
    with locked(path):
        pass
