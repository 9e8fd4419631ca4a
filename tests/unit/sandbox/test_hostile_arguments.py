"""Arguments that are far too long, or swapped: the error is short."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from rlm_containers import ContainersError, Sandbox
from runtimes import get_runtime

LONG = "x\x1b[31m" * 2_000_000


def made(**options: Any) -> Sandbox:
    return Sandbox(**options)


@pytest.mark.parametrize(
    "call",
    [
        lambda box: box.load(LONG, "name"),
        lambda box: box.load([LONG], "name"),
        lambda box: box.load("x" * 10_000_000, 5),
        lambda box: box.load("x", {"a": {LONG}}),
        lambda box: box.put_file(LONG, "name"),
        lambda box: box.put_file(b"", LONG),
        lambda box: box.get_file(LONG),
        lambda box: box.get_file(LONG, "x"),
        lambda box: box.restore(LONG),
        lambda box: box.remove_snapshot(LONG),
        lambda box: box.fork(LONG),
        lambda box: box.set_tools({LONG: print}),
        lambda box: box.set_tools({"a": LONG}),
        lambda box: box.run_setup("raise ValueError('x' * 500_000)"),
        lambda box: made(image=[LONG]),
        lambda box: made(session=LONG),
        lambda box: made(profile=LONG),
        lambda box: made(memory=LONG),
        lambda box: made(mounts=[LONG]),
        lambda box: made(mounts=[f"/a:/{LONG}"]),
        lambda box: made(env={LONG: 1}),
        lambda box: made(packages=[LONG], runtime=box.options.runtime),
        lambda box: made(system_packages=[LONG]),
        lambda box: made(requirements=LONG),
        lambda box: made(requirements="a\0b"),
        lambda box: made(dockerfile=LONG),
        lambda box: made(**{LONG: 1}),
        lambda box: get_runtime(LONG),
        lambda box: get_runtime(f"docker-{LONG}"),
    ],
)
def test_errors_are_short(shared: Sandbox, call: Callable[[Sandbox], Any]) -> None:
    with pytest.raises(ContainersError) as caught:
        call(shared)
    assert len(str(caught.value)) < 20_000
    assert len(caught.value.what) < 1000
    # What causes it is in the traceback, too.
    text = "".join(traceback.format_exception(caught.value, limit=0))
    assert len(text) < 50_000
    assert "\x1b" not in text
