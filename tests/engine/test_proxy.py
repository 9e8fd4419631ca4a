"""The proxy on the host: who is let in, and where it listens."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import Engine, eventually, printed

#: What the container was told of the proxy. It is no secret inside: it is the sandbox's own.
LOOK = "import sys; route = sys.modules['rlm_guest.lm']._route"


@dataclass(frozen=True)
class Proxy:
    """A sandbox's proxy, as the code in the container knows it."""

    box: Sandbox
    host: str
    port: int
    authorization: str
    prompts: list[str]

    def request(self, **arguments: object) -> tuple[int, dict[str, object]]:
        """Send a request from inside of the container; the status and the answer."""
        printed(self.box, f"arguments = {arguments!r}")
        output = printed(
            self.box,
            f"""
            import http.client
            connection = http.client.HTTPConnection({self.host!r}, {self.port}, timeout=20)
            connection.request(**{{'method': 'POST', 'url': '/llm_query', **arguments}})
            response = connection.getresponse()
            print(response.status)
            print(response.read().decode())
            connection.close()
            """,
        )
        status, _, body = output.partition("\n")
        return int(status), json.loads(body)

    def headers(self) -> dict[str, str]:
        """The headers of a request that is let in."""
        return {"Authorization": self.authorization, "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def proxy(engine: Engine) -> Iterator[Proxy]:
    """The proxy of a running sandbox."""
    prompts: list[str] = []

    def lm(prompt: str) -> str:
        prompts.append(prompt)
        return "answered"

    with Sandbox(engine.image(), runtime=engine.runtime, lm=lm) as box:
        told = printed(box, f"{LOOK}\nprint(route.host, route.port, route.authorization)")
        host, port, authorization = told.strip().split(" ", 2)
        yield Proxy(box, host, int(port), authorization, prompts)


def listening(port: int) -> list[str]:
    """The local addresses on which something listens on a TCP port of this machine."""
    found = []
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if int(number, 16) == port and state == "0A":
                raw = bytes.fromhex(address)
                words = (raw[i : i + 4][::-1] for i in range(0, size, 4))
                found.append(str(ipaddress.ip_address(b"".join(words))))
    return found


def test_the_container_reaches_it_under_the_name_of_the_workflow(proxy: Proxy) -> None:
    assert proxy.box.lm_route == "http"
    assert proxy.host == "host.docker.internal"
    body = json.dumps({"prompt": "by hand", "model": None})
    assert proxy.request(body=body, headers=proxy.headers()) == (200, {"response": "answered"})
    assert proxy.prompts[-1] == "by hand"


def test_requests_can_be_used(proxy: Proxy) -> None:
    # The cells have it, and it is how rlms's own environment asks.
    assert printed(
        proxy.box,
        f"""
        import requests
        reply = requests.post('http://{proxy.host}:{proxy.port}/llm_query', timeout=20,
                              json={{'prompt': 'p'}}, headers={proxy.headers()!r})
        print(reply.status_code, reply.json())
        """,
    ) == "200 {'response': 'answered'}\n"  # fmt: skip


def test_another_sandboxs_token_is_refused(engine: Engine, proxy: Proxy) -> None:
    before = len(proxy.prompts)
    with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as other:
        told = printed(other, f"{LOOK}\nprint(route.authorization)").strip()
    assert told != proxy.authorization
    assert proxy.request(body='{"prompt": "p"}', headers={"Authorization": told})[0] == 401
    assert len(proxy.prompts) == before


def test_it_listens_on_one_address_and_not_on_all(engine: Engine, proxy: Proxy) -> None:
    addresses = listening(proxy.port)
    assert len(addresses) == 1
    address = ipaddress.ip_address(addresses[0])
    assert not address.is_unspecified
    assert address.is_private
    if engine.name == "podman-rootless":
        assert address.is_loopback


def test_from_the_host_the_token_is_wanted_as_well(proxy: Proxy) -> None:
    before = len(proxy.prompts)
    (address,) = listening(proxy.port)
    connection = http.client.HTTPConnection(address, proxy.port, timeout=20)
    connection.request("POST", "/llm_query", b'{"prompt": "p"}')
    response = connection.getresponse()
    assert response.status == 401
    response.read()
    connection.close()
    assert len(proxy.prompts) == before


# Others


#: Tries everything that a stranger can try with a port, and prints what came back.
PROBE = """
import http.client, json, socket
def ask(method='POST', path='/llm_query', body=b'{{"prompt": "p"}}', **headers):
    connection = http.client.HTTPConnection({host!r}, {port}, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.read().decode()
    connection.close()
    return response.status, answer
said = [ask(), ask(path='/'), ask(Authorization='Bearer x'), ask('GET'), ask('OPTIONS')]
try:
    said.append(ask(Authorization=sys.modules['rlm_guest.lm']._route.authorization))  # its own
except (AttributeError, KeyError):
    pass
"""


def test_another_container_on_the_same_bridge_gets_nothing(engine: Engine, proxy: Proxy) -> None:
    before = len(proxy.prompts)
    with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as other:
        printed(other, "import sys" + PROBE.format(host=proxy.host, port=proxy.port))
        assert (
            printed(other, "print(*(status for status, _ in said))") == "401 401 401 501 501 401\n"
        )
        secret = proxy.authorization.removeprefix("Bearer ")
        assert printed(other, f"print({secret!r} in str(said), 'answered' in str(said))") == (
            "False False\n"
        )
        # Nor can it keep the sandbox from being served, by holding all the connections it can get.
        printed(
            other,
            f"""
            held = []
            for _ in range(150):
                connection = socket.create_connection(({proxy.host!r}, {proxy.port}), timeout=20)
                connection.sendall(b'POST /llm_query HTTP/1.1\\r\\n')
                held.append(connection)
            """,
        )
        assert printed(proxy.box, "print(llm_query_batched(['on'] * 3))") == f"{['answered'] * 3}\n"
        assert printed(proxy.box, "print(llm_query('on'))") == "answered\n"
        assert proxy.prompts[before:] == ["on"] * 4
        assert printed(other, "print(llm_query('on'))") == "ON\n"


def test_a_local_process_without_the_token_gets_nothing(engine: Engine, proxy: Proxy) -> None:
    before = len(proxy.prompts)
    (address,) = listening(proxy.port)
    program = PROBE.format(host=address, port=proxy.port) + "print(json.dumps(said))"
    told = (sys.executable, "-c", "import sys" + program)
    done = subprocess.run(told, capture_output=True, text=True, check=True, timeout=60)
    assert [status for status, _ in json.loads(done.stdout)] == [401, 401, 401, 501, 501]
    assert proxy.authorization.removeprefix("Bearer ") not in done.stdout
    assert len(proxy.prompts) == before


def test_local_processes_cannot_keep_the_sandbox_out(engine: Engine, proxy: Proxy) -> None:
    (address,) = listening(proxy.port)
    held = [socket.create_connection((address, proxy.port), timeout=20) for _ in range(150)]
    try:
        for number, connection in enumerate(held):
            if number % 2:
                connection.sendall(b"POST /llm_query HTTP/1.1\r\nX: ")
        for _ in range(3):
            assert printed(proxy.box, "print(llm_query('on'))") == "answered\n"
    finally:
        for connection in held:
            connection.close()


# Its end


@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_llm_query_goes_on_where_the_proxy_is_not_reached_any_more(
    engine: Engine, way: str
) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as box:
        assert printed(box, "print(llm_query('before'))") == "BEFORE\n"
        assert box.lm_route == "http"
        port = int(printed(box, f"{LOOK}\nprint(route.port)"))
        if way == "closed":
            proxy = box._life.running.gateway._proxy
            assert proxy is not None
            proxy.close()
            assert printed(box, "print(llm_query('after'))") == "AFTER\n"
        else:
            with dropped(engine, port):
                assert printed(box, "print(llm_query('after'))") == "AFTER\n"
        assert printed(box, "print(llm_query_batched(['a', 'b']))") == "['A', 'B']\n"


@contextlib.contextmanager
def dropped(engine: Engine, port: int) -> Iterator[None]:
    """Meanwhile a firewall of this machine drops what containers send to a port."""
    if engine.name == "podman-rootless" or os.getuid() != 0 or not shutil.which("iptables"):
        pytest.skip("needs root, iptables and a bridge, to drop packets")
    rule = ("INPUT", "--protocol", "tcp", "--dport", str(port), "--jump", "DROP")
    subprocess.run(("iptables", "--wait", "--insert", *rule), check=True)
    try:
        yield
    finally:
        subprocess.run(("iptables", "--wait", "--delete", *rule), check=True)


def test_it_ends_with_its_sandbox(engine: Engine) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as box:
        port = int(printed(box, f"{LOOK}\nprint(route.port)"))
        (address,) = listening(port)
        # A caller that stays connected does not keep it.
        stranger = socket.create_connection((address, port))
    with stranger:
        stranger.settimeout(20)
        assert stranger.recv(1) == b""
    assert eventually(lambda: not listening(port))


def test_ports_are_random(engine: Engine) -> None:
    with (
        Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as one,
        Sandbox(engine.image(), runtime=engine.runtime, lm=str.lower) as other,
    ):
        look = f"{LOOK}\nprint(route.port)"
        assert printed(one, look) != printed(other, look)
        assert printed(one, "print(llm_query('Aa'))") == "AA\n"
        assert printed(other, "print(llm_query('Aa'))") == "aa\n"
