"""A few seconds of ``scripts/fuzz``: guests that say anything at all. See :mod:`tests.fuzz`."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from rlm_containers.lm import LMProxy
from tests.fuzz.host import a_proxy, ask_proxy, converse, outside, watched
from tests.fuzz.said import Act, acts, proxy_bytes
from tests.support import eventually
from tests.unit.guests import PATIENCE

# The same cases every time: a test that fails must fail again.
FEW = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, made_bundle: object) -> Iterator[Path]:
    """A cache that workspaces are made in, beside a directory that nothing may touch."""
    directory = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        converse([Act("hear"), Act("ready")])  # imports what is imported late, makes the bundle
        with outside(directory):
            yield directory


@pytest.fixture
def no_hang() -> Iterator[None]:
    """A hang ends with a traceback of every thread."""
    faulthandler.dump_traceback_later(10 * PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("no_hang")
def test_a_guest_that_says_anything(base: Path) -> None:
    descriptors, threads = os.listdir("/proc/self/fd"), threading.active_count()
    with watched(base) as done:
        FEW(given(acts)(converse))()
    assert done == []
    assert eventually(lambda: threading.active_count() <= threads)
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert list((base / "rlm-containers" / "workspaces").iterdir()) == []


@pytest.fixture
def proxy() -> Iterator[LMProxy]:
    with a_proxy() as proxy:
        yield proxy


@pytest.mark.usefixtures("no_hang")
def test_a_caller_that_says_anything(base: Path, proxy: LMProxy) -> None:
    def ask(parts: list[tuple[bytes, bytes]]) -> None:
        ask_proxy(proxy, parts)

    with watched(base) as done:
        FEW(given(proxy_bytes)(ask))()
    assert done == []
