"""Engines that answer with garbage: an error of ours, short, or a record of the right types."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtimes import HostRoute, Runtime
from runtimes.engine import ContainerEngine
from runtimes.errors import ContainersError
from tests.unit.engines import FakeCli, docker, docker_info, fake_docker, fake_podman, podman
from tests.unit.engines import podman_info as info_of_podman

GARBAGE: dict[str, str] = {
    "empty": "",
    "words": "hello \x1b]52;c;x\x07",
    "truncated": '{"ServerVersion": "20.10',
    "null": "null",
    "number": "5",
    "text": '"x"',
    "list": "[]",
    "list of lists": "[[]]",
    "object": "{}",
    "objects in a list": "[{}]",
    "deep": "[" * 100_000,
    "long number": '{"MemTotal": 1' + "0" * 10_000 + "}",
    "NUL": "\\000",
    "surrogate": '{"ServerVersion": "\\ud800", "Id": "\\ud800"}',
    "huge": '"' + "x\\u001b" * 10_000 + '"',
}

COMMANDS: dict[str, tuple[str, Callable[[ContainerEngine], object]]] = {
    "info": ("info", lambda runtime: runtime.info()),
    "ps": ("ps", lambda runtime: runtime.find({})),
    "image inspect": ("image inspect", lambda runtime: runtime.inspect_image("x")),
    "images": ("image inspect", lambda runtime: runtime.find_images({})),
    "networks": ("network inspect", lambda runtime: runtime.find_networks({})),
    "route": ("network inspect", lambda runtime: runtime.host_route()),
    "loaded": ("load", lambda runtime: runtime.load_image(Path("/x"))),
}


@pytest.fixture
def stand_in(fake: tuple[ContainerEngine, FakeCli]) -> tuple[ContainerEngine, FakeCli]:
    runtime, cli = fake
    cli.answer("images", "sha256:1\n")
    cli.answer("network ls", "n\n")
    return runtime, cli


def assert_right(answer: Any) -> None:
    """Check that an answer has the types that it should have, all through."""
    for record in answer if isinstance(answer, list) else [answer]:
        if dataclasses.is_dataclass(record):
            for value in (getattr(record, field.name) for field in dataclasses.fields(record)):
                assert isinstance(value, str | int | bool | tuple | dict | None)
                if isinstance(value, dict):
                    assert all(isinstance(word, str) for pair in value.items() for word in pair)
        else:
            assert record is None or isinstance(record, str)


def call(function: Callable[[ContainerEngine], object], runtime: ContainerEngine) -> None:
    try:
        assert_right(function(runtime))
    except ContainersError as error:
        said = str(error)
    else:
        return
    assert len(said) < 3000
    assert said.isprintable()


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize(("command", "function"), COMMANDS.values(), ids=COMMANDS)
def test_garbage(
    stand_in: tuple[ContainerEngine, FakeCli],
    command: str,
    function: Callable[[ContainerEngine], object],
    garbage: str,
) -> None:
    runtime, cli = stand_in
    file = cli.path.with_name("garbage")
    file.write_bytes(garbage.encode("utf-8", "surrogatepass"))
    cli.script(command, f"cat {file}; exit 0")
    call(function, runtime)


WRONG: list[object] = [
    None,
    5,
    -1,
    1e308,
    True,
    "x",
    "\x1b[2J",
    [],
    ["x"],
    [[]],
    [None],
    {},
    {"x": None},
    {"x": {}},
]

CONTAINER: dict[str, Any] = {
    "ID": "1",
    "Id": "1",
    "Names": ["n"],
    "Image": "i",
    "State": "running",
    "Labels": None,
}
IMAGE: dict[str, Any] = {
    "Id": "1",
    "RepoTags": ["x"],
    "Size": 1,
    "Architecture": "amd64",
    "Config": {"Labels": {}, "User": ""},
    "RootFS": {"Layers": ["x"]},
}
NETWORK: dict[str, Any] = {
    "Name": "n",
    "name": "n",
    "Labels": {},
    "labels": {},
    "subnets": [{"gateway": "x"}],
}
RECORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ps": ("ps", CONTAINER),
    "images": ("images", IMAGE),
    "networks": ("networks", NETWORK),
    "route": ("route", NETWORK),
}


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name, (_, record) in RECORDS.items() for key in record],
)
def test_values_of_wrong_types(
    stand_in: tuple[ContainerEngine, FakeCli], name: str, key: str
) -> None:
    runtime, cli = stand_in
    which, record = RECORDS[name]
    command, function = COMMANDS[which]
    for wrong in WRONG:
        cli.answer(command, [{**record, key: wrong}])
        runtime._route_known = False
        call(function, runtime)


@pytest.mark.parametrize("key", [*docker_info(), *info_of_podman(), *info_of_podman()["host"]])
def test_infos_of_wrong_types(tmp_path: Path, key: str) -> None:
    dockers, podmans = fake_docker(tmp_path), fake_podman(tmp_path)
    for wrong in WRONG:
        dockers.answer("info", {**docker_info(), key: wrong})
        call(lambda runtime: runtime.info(), docker(dockers))
        info = info_of_podman()
        podmans.answer("info", {**info, key: wrong, "host": {**info["host"], key: wrong}})
        call(lambda runtime: runtime.info(), podman(podmans))


def test_an_answer_without_an_end(stand_in: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = stand_in
    cli.script("info", "head -c 200000000 /dev/zero; exit 0")
    with pytest.raises(ContainersError) as caught:
        runtime.info()
    assert len(str(caught.value)) < 1000


def test_a_gateway_is_an_address(stand_in: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = stand_in
    wrong = "1.2.3.4 --privileged"
    for entry in ({"Gateway": wrong}, {"subnets": [{"gateway": wrong}]}):
        cli.answer("network inspect", [entry])
        runtime._route_known = False
        assert runtime.host_route() is None


def test_the_stand_ins_answer_at_all(stand_in: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, _ = stand_in
    assert isinstance(runtime, Runtime)
    assert isinstance(runtime.host_route(), HostRoute)
