"""A complete sandbox whose container is a thread at the other end of real pipes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rlm_containers import CellResult, ContainersError, Sandbox
from rlm_containers.guest import wire
from rlm_containers.interpreter.results import CellStatus, CommandStatus
from rlm_containers.lm import CallableBackend, LMBroker, LMProxy
from runtimes import ContainerProcess, ContainerSpec
from tests.fuzz.strategies import Act
from tests.unit.guests import LocalRuntime

#: Seconds that a guest waits for the host to send something, which the host may not do.
_HEARS = 0.02

#: Seconds for anything to end.
_END = 60.0


class GuestThread(ContainerProcess):
    """A container's program that is a thread of this process.

    Args:
        spec: the container to start.
        acts: what the guest does after its greeting.
    """

    def __init__(self, spec: ContainerSpec, acts: Sequence[Act]) -> None:
        self._in, theirs_in = os.pipe()
        theirs_out, self._out = os.pipe()
        theirs_err, err = os.pipe()
        os.close(err)
        super().__init__(spec.name, theirs_in, theirs_out, theirs_err)
        self._acts = acts
        self._workspace = next((m.source for m in spec.mounts if not m.read_only), Path())
        self._decoder = wire.FrameDecoder()
        self._heard: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="guest", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return os.getpid()  # the reaper may wait for it

    def wait(self, timeout: float) -> int | None:
        self._thread.join(timeout)
        return None if self._thread.is_alive() else 0

    def kill(self) -> None:
        self._acts = ()

    def _run(self) -> None:
        try:
            for _ in range(2):  # modules, and byte code
                self._receive_modules()
            self._write(
                wire.encode(wire.EVENT, b'{"event": "hello", "python": "3.11.0", "pid": 1}')
            )
            for act in self._acts:
                self._do(act)
        except OSError:
            pass  # the host has closed its end
        except BaseException as error:
            self.error = error
        finally:
            os.close(self._out)
            # Decode all that the host writes: it must be valid frames to the end.
            with contextlib.suppress(OSError):
                while self._read():
                    pass
            os.close(self._in)

    def _do(self, act: Act) -> None:
        if act.kind == "send":
            self._write(act.raw)
        elif act.kind == "hear":
            self._hear()
        elif act.kind == "plant":
            plant(self._workspace, act.name, act.what)
        else:
            if act.kind == "result":
                said: dict[str, Any] = {
                    "op": "result",
                    "id": self._last.get("id"),
                    "status": "ok",
                    "locals": {},
                }
            else:
                said = {"op": "ready", "locals": {}, "route": "pipe", "reason": "", "lost": []}
            content = json.dumps({**said, **act.more}).encode("ascii")
            self._write(wire.encode(wire.MESSAGE, content))

    def _receive_modules(self) -> None:
        """Read one of the first frames, which no decoder takes."""
        head = b""
        while len(head) < wire.HEADER:
            head += os.read(self._in, wire.HEADER - len(head))
        left = int.from_bytes(head[:4], "big")
        while left:
            left -= len(os.read(self._in, left))

    def _write(self, raw: bytes) -> None:
        while raw:
            raw = raw[os.write(self._out, raw[:60_000]) :]

    def _hear(self) -> None:
        deadline = time.monotonic() + _HEARS
        while not self._heard:
            if not self._wait_for_host(deadline - time.monotonic()) or not self._read():
                return
        self._last = self._heard.pop(0)

    def _wait_for_host(self, seconds: float) -> bool:
        """Return whether there is something to read, or the host has closed its end."""
        return seconds > 0 and bool(select.select((self._in,), (), (), seconds)[0])

    def _read(self) -> bool:
        data = os.read(self._in, 1 << 20)
        for kind, payload in self._decoder.feed(data):
            self._note(kind, payload)
        return bool(data)

    def _note(self, kind: int, payload: bytes) -> None:
        if kind == wire.MESSAGE:
            self._heard.append(json.loads(payload))
        elif kind in (wire.CALL, wire.RUN):
            json.loads(payload[4:])


class GuestRuntime(LocalRuntime):
    """Starts guests that are threads."""

    def __init__(self, acts: Sequence[Act]) -> None:
        super().__init__()
        self._acts = acts
        self.guests: list[GuestThread] = []

    def open(self, spec: ContainerSpec) -> ContainerProcess:
        guest = GuestThread(spec, self._acts)
        self.guests.append(guest)
        return guest

    def remove(self, name: str) -> None:
        for guest in self.guests:
            guest.kill()


def plant(workspace: Path, name: str, what: str) -> None:
    """Put something into the workspace, as the code in a cell could.

    In a container neither the parents of the workspace nor the targets of its links exist. So this
    must not write there either.
    """
    path = workspace / name
    victim = workspace.parents[2] / "outside"
    if path.is_symlink() or not path.resolve().is_relative_to(workspace.resolve()):
        return
    with contextlib.suppress(OSError):
        if what == "outside":
            path.symlink_to(victim / "file")
        elif what == "directory outside":
            path.symlink_to(victim)
        elif what == "nowhere":
            path.symlink_to("/nowhere")
        elif what == "itself":
            path.symlink_to(path.name)
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "link":
            own = path.parent / "own"
            own.write_bytes(b"own")
            os.link(own, path)
        elif what == "tree":
            (path / "a" / "b").mkdir(parents=True)
            (path / "a" / "link").symlink_to(victim)
        elif what == "locked":
            path.mkdir()
            (path / "file").write_bytes(b"x")
            path.chmod(0)


def converse(acts: Sequence[Act]) -> None:
    """Let a sandbox talk to a guest that does this, and check all results."""
    runtime = GuestRuntime(acts)

    def tool(*args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    box = Sandbox(runtime=runtime, lm=str, tools={"tool": tool}, max_output=1000, start_timeout=5)
    command = threading.Thread(target=run_command, args=(box,))
    try:
        box.start()
        command.start()
        for _ in range(4):
            check(box.execute("x = 1"))
            for variable in box.unsaved:
                assert len(str(variable)) < 10_000
            box.load("context_0", "the context")
    except ContainersError as error:
        assert len(str(error)) < 100_000  # noqa: PT017 - most guests end with an error
    finally:
        box.close()
        if command.ident is not None:
            command.join(_END)
            assert not command.is_alive()
    for guest in runtime.guests:
        guest.wait(_END)
        assert guest.error is None, guest.error
        assert guest.wait(0) == 0
    assert not [thread for thread in threading.enumerate() if box.name in thread.name]


def run_command(box: Sandbox) -> None:
    """Run a command in a sandbox that another thread uses and closes. Check its result."""
    try:
        result = box.command(["x"], input=b"x" * 3_000_000)
    except ContainersError as error:
        assert len(str(error)) < 100_000  # noqa: PT017 - most guests end with an error
        return
    assert result.status in get_args(CommandStatus)
    assert 0 <= result.exit_code <= 255
    assert len(result.stdout) < 1200
    assert len(result.stderr) < 1200
    assert all(len(notice) < 1000 for notice in result.notices)


def check(result: CellResult) -> None:
    """Check that a result has the right types and is bounded."""
    assert result.status in get_args(CellStatus)
    assert isinstance(result.stdout, str)
    assert len(result.stdout) < 1200
    assert len(result.stderr) < 100_000
    assert isinstance(result.final_answer, str | None)
    for name, form in result.locals.items():
        assert isinstance(name, str)
        assert isinstance(form, str)
    assert sum(len(name) + len(form) for name, form in result.locals.items()) < 1_000_000
    for name in (*result.lost, *result.older):
        assert isinstance(name, str)


def ask_proxy(proxy: LMProxy, parts: Sequence[tuple[bytes, bytes]]) -> None:
    """Send this to the proxy on one connection, and check that it still serves its sandbox."""
    with socket.create_connection(("127.0.0.1", proxy.port), _END) as connection:
        with contextlib.suppress(OSError):
            for head, body in parts:
                right = head.replace(b"TOKEN", f"Bearer {proxy.token}".encode())
                connection.sendall(right.replace(b"LENGTH", b"%d" % len(body)) + body)
            connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
    assert b"Traceback" not in answer
    assert proxy.token.encode() not in answer
    if not any(b"TOKEN" in head for head, _ in parts):
        assert b" 200 " not in answer
    with socket.create_connection(("127.0.0.1", proxy.port), _END) as connection:
        connection.sendall(
            b"POST /llm_query HTTP/1.1\r\nAuthorization: Bearer %s\r\nConnection: close\r\n"
            b'Content-Length: 15\r\n\r\n{"prompt": "x"}' % proxy.token.encode()
        )
        assert b'{"response": "X"}' in everything(connection)


def everything(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


@contextlib.contextmanager
def a_proxy() -> Iterator[LMProxy]:
    """Yield a proxy that answers in capitals."""
    proxy = LMProxy("127.0.0.1", LMBroker(CallableBackend(str.upper)).handle)
    try:
        yield proxy
    finally:
        proxy.close()


# Actions that the host must not take

_watching: Callable[[str, tuple[Any, ...]], None] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching is not None:
        _watching(event, args)


sys.addaudithook(_audit)  # a hook cannot be removed


@contextlib.contextmanager
def watched(base: Path) -> Iterator[list[str]]:
    """Record what this process does in this block that no container may make it do.

    Args:
        base: the only directory in which it may write, or read files that are not Python's.

    Yields:
        The list of recorded actions.
    """
    global _watching
    done: list[str] = []
    allowed = (str(base), "/proc/", "/dev/null", "/etc/", *{sys.prefix, sys.base_prefix})
    allowed += (str(Path(__file__).parents[2]), *filter(None, (sys.pycache_prefix,)))

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in ("pickle.find_class", "os.system", "subprocess.Popen"):
            done.append(f"{event} {args}")
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.fsdecode(args[0])
            if path.startswith("/") and not path.startswith(allowed):
                done.append(f"open {path}")

    def unpickle(*args: object, **keywords: object) -> None:
        done.append("unpickled something")
        raise AssertionError("the host unpickled something")

    class Strict(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                self.format(record).encode()  # raises if a stream could not take it
            except Exception:
                self.handleError(record)

        def handleError(self, record: logging.LogRecord) -> None:
            done.append(f"logged what cannot be written: {record.getMessage()[:100]!r}")

    logger, handler = logging.getLogger("rlm_containers"), Strict()
    logger.addHandler(handler)
    logger.propagate = False
    loaders: Mapping[str, Any] = {
        name: getattr(pickle, name) for name in ("load", "loads", "Unpickler")
    }
    for name in loaders:
        setattr(pickle, name, unpickle)
    _watching = watch
    try:
        yield done
    finally:
        _watching = None
        logger.removeHandler(handler)
        logger.propagate = True
        for name, loader in loaders.items():
            setattr(pickle, name, loader)


@contextlib.contextmanager
def outside(base: Path) -> Iterator[None]:
    """Check that nothing touches or reads a directory beside the workspaces.

    Args:
        base: the parent of ``rlm-containers/workspaces``.
    """
    victim = base / "outside"
    victim.mkdir()
    (victim / "file").write_bytes(b"the host's own")
    before = stamps(victim)
    yield
    assert stamps(victim) == before
    assert (victim / "file").read_bytes() == b"the host's own"


def stamps(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return what would differ if a file was written, removed or created."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (directory, *sorted(directory.iterdir())):
        stat = path.lstat()
        found[path.name] = (
            stat.st_ino,
            stat.st_mode,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_nlink,
        )
    return found
