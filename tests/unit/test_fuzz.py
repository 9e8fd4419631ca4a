"""A few seconds of ``scripts/fuzz``: guests and callers that send anything. See :mod:`tests.fuzz`."""

from __future__ import annotations

import faulthandler
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from rlm_containers.lm import LMProxy
from tests.fuzz.host import a_proxy, ask_proxy, converse, outside, watched
from tests.fuzz.links import Stranger, connect, intrude, listen, steps, strangers, talks
from tests.fuzz.strategies import Act, acts, proxy_bytes
from tests.fuzz.transfers import guests, transfer
from tests.support import TIMEOUT, eventually

# The same cases every time, so that a failure can be repeated.
FEW = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, made_bundle: object) -> Iterator[Path]:
    """A cache for workspaces, beside a directory that nothing may touch."""
    directory = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        patch.setenv("XDG_STATE_HOME", str(directory))
        converse([Act("hear"), Act("ready")])  # does late imports, makes the bundle
        with outside(directory):
            yield directory


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Ends a hang with a traceback of every thread."""
    faulthandler.dump_traceback_later(10 * TIMEOUT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("no_hang")
def test_guests_that_send_anything(base: Path) -> None:
    descriptors, threads = os.listdir("/proc/self/fd"), threading.active_count()
    with watched(base) as done:
        FEW(given(acts)(converse))()
    assert done == []
    assert eventually(lambda: threading.active_count() <= threads)
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= len(descriptors))
    assert list((base / "rlm-containers" / "workspaces").iterdir()) == []


@pytest.fixture
def proxy() -> Iterator[LMProxy]:
    with a_proxy() as proxy:
        yield proxy


@pytest.mark.usefixtures("no_hang")
def test_callers_that_send_anything(base: Path, proxy: LMProxy) -> None:
    def ask(parts: list[tuple[bytes, bytes]]) -> None:
        ask_proxy(proxy, parts)

    with watched(base) as done:
        FEW(given(proxy_bytes)(ask))()
    assert done == []


@pytest.mark.usefixtures("no_hang")
def test_guests_that_lie_about_files(base: Path) -> None:
    with watched(base) as done:
        settings(FEW, max_examples=25)(given(guests)(transfer))()
    assert done == []


@pytest.mark.usefixtures("no_hang")
def test_links_that_break_and_ends_that_lie() -> None:
    FEW(given(steps)(connect))()
    FEW(given(talks)(listen))()


@pytest.mark.usefixtures("no_hang")
def test_strangers_in_a_pod() -> None:
    names = itertools.count()

    def meet(intruders: list[Stranger]) -> None:
        intrude(f"fuzz-{os.getpid()}-{next(names)}", intruders)

    settings(FEW, max_examples=8)(given(strangers)(meet))()
