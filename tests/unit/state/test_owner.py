"""Whether the process that has a sandbox is still running, or its process id is another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlm_containers.state import LABEL, Owner
from tests.support import TIMEOUT
from tests.unit.container.test_reaper import REPOSITORY


def gone() -> Owner:
    """Return an owner whose process has ended."""
    program = "from rlm_containers.state.owner import Owner; print(Owner.current('mine').json())"
    done = subprocess.run(
        (sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    owner = Owner.from_json(done.stdout)
    assert owner is not None
    return owner


def test_this_process_is_running() -> None:
    owner = Owner.current()
    assert owner.pid == os.getpid()
    assert not owner.is_gone()


def test_a_process_that_has_ended_is_gone() -> None:
    owner = gone()
    assert owner.session == "mine"
    assert owner.is_gone()


def test_a_zombie_is_not_gone() -> None:
    with subprocess.Popen(("true",), stdin=subprocess.PIPE) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        assert not replace(Owner.current(), pid=child.pid, started=stat[19]).is_gone()


def test_another_process_with_its_number_is_not_it() -> None:
    assert replace(Owner.current(), started="1").is_gone()
    assert replace(Owner.current(), pid=1).is_gone()


def test_before_a_reboot_is_gone_whoever_has_its_number_now() -> None:
    assert replace(Owner.current(), boot="another").is_gone()


def test_others_are_not_judged() -> None:
    # It may be on another machine, of another user, or in another pid namespace.
    assert not replace(gone(), host="another").is_gone()
    assert not replace(gone(), host="another", boot="another").is_gone()


def test_without_start_times_the_process_id_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm_containers.state.owner._started", lambda pid: "")
    assert not Owner.current().is_gone()
    assert replace(gone(), started="").is_gone()


def test_labels_and_json_give_the_owner_back() -> None:
    owner = Owner.current("a session")
    labels = owner.labels()
    assert labels[LABEL] == str(os.getpid())
    assert all(name.startswith("io.github.rlm-containers.") for name in labels)
    assert Owner.from_labels({"other": "label", **labels}) == owner
    assert Owner.from_json(owner.json(runtime="docker")) == owner


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {LABEL: "123"},  # early versions had no other labels
        {**Owner.current().labels(), LABEL: "x"},
        {**Owner.current().labels(), LABEL: "-1"},
        {**Owner.current().labels(), LABEL: "9" * 50},
    ],
)
def test_labels_that_name_no_owner(labels: dict[str, str]) -> None:
    assert Owner.from_labels(labels) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"pid": []}', "[" * 100_000, '"x"'])
def test_text_that_names_no_owner(text: str) -> None:
    assert Owner.from_json(text) is None


def test_fields_of_wrong_types_are_made_texts() -> None:
    values = {**json.loads(Owner.current().json()), "boot": ["x"], "session": None}
    owner = Owner.from_json(json.dumps(values))
    assert owner is not None
    assert owner.is_gone()


def test_with_too_many_open_files_nobody_is_gone() -> None:
    program = (
        "import os, resource, sys\n"
        "from rlm_containers.errors import SandboxError\n"
        "from rlm_containers.state import Owner\n"
        "owner = Owner.from_json(sys.argv[1])\n"
        "limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit))\n"
        "assert not owner.is_gone()\n"
        "try: Owner.current()\n"
        "except SandboxError as error: assert 'Too many open files' in str(error)\n"
        "else: raise AssertionError\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "assert not owner.is_gone()\n"  # nothing wrong has been remembered
        "assert Owner.current().host == owner.host\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", program, Owner.current().json()),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
