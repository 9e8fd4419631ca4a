"""The one door by which a container's requests come in, over HTTP and over the pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rlm_containers.errors import SandboxError
from rlm_containers.guest.wire import TOOL_PATH
from rlm_containers.interpreter import CellClock, ProxyAddress
from rlm_containers.lm.broker import LMBroker
from rlm_containers.lm.gate import Gate
from rlm_containers.lm.pipe_calls import PipeCalls
from rlm_containers.lm.proxy import LMProxy
from runtimes import HostRoute
from runtimes.text import get_logger

logger = get_logger("rlm_containers.lm")


def _no_tools(request: object) -> dict[str, Any]:
    text = "this sandbox has no tools"
    return {"error": {"type": "NameError", "args": [text], "text": text}}


class Gateway:
    """Answers what the cells of one sandbox ask of this process.

    A request for a tool may only come over the pipe, which nobody but the container can write to.
    Every other request is for the broker, whichever way it comes.

    Args:
        broker: answers requests for language models.
        clock: stopped while a request is being answered.
        name: of the sandbox, for the log.
        serving: entered while a request is answered, in the thread that calls functions of the
            host for it.

    Attributes:
        call_tool: answers a request for a tool, given its parsed JSON.
        on_call: takes a call over the pipe, see :meth:`PipeCalls.submit`.
    """

    def __init__(
        self,
        broker: LMBroker,
        clock: CellClock,
        name: str,
        serving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.call_tool: Callable[[object], dict[str, Any]] = _no_tools
        self._line = _Line(broker, clock, serving)
        self._name = name
        # Both ways share one gate, so that together they stay within its bounds.
        self._gate = Gate()
        self._calls = PipeCalls(lambda *call: self._answer_pipe(self._line, *call), self._gate)
        self.on_call = self._calls.submit
        self._proxy: LMProxy | None = None

    def attach(self, send: Callable[[int, bytes], None]) -> None:
        """Send the answers to calls over the pipe. Until then they are dropped.

        Args:
            send: writes a frame to the container, given its kind and its payload.
        """
        self._calls.send = send

    def open_proxy(self, route: HostRoute, host_alias: str) -> ProxyAddress | None:
        """Listen for requests over HTTP, until :meth:`close`.

        Args:
            route: how the container reaches this host.
            host_alias: the host's name in the container.

        Returns:
            What the container must know; ``None`` if the proxy cannot listen there, which is
            logged. Calls go over the pipe then.
        """
        try:
            self._proxy = LMProxy(route.bind, self._answer_http, self._gate)
        except OSError as error:
            logger.warning(
                "%s: the proxy cannot listen on %s (%s)", self._name, route.bind, error.strerror
            )
            return None
        except SandboxError as error:  # no thread
            logger.warning("%s: %s", self._name, error)
            return None
        return ProxyAddress(host_alias, self._proxy.port, self._proxy.token)

    def calls_of(
        self,
        broker: LMBroker,
        clock: CellClock,
        serving: Callable[[], AbstractContextManager[None]],
        send: Callable[[int, bytes], None],
    ) -> Callable[[int, bytes | bytearray], None]:
        """Return what takes the calls of a branch over the pipe, as :attr:`on_call`.

        Args:
            broker, clock, serving: as for the class.
            send: as for :meth:`attach`.
        """
        line = _Line(broker, clock, serving)

        def answer(path: str, request: object) -> dict[str, Any]:
            return self._answer_pipe(line, path, request)

        return lambda number, payload: self._calls.submit(number, payload, send, answer)

    def is_accepting_here(self) -> bool:
        """Whether this thread is the proxy's, for which :meth:`close` waits."""
        return self._proxy is not None and self._proxy.is_accepting_here()

    def close(self) -> None:
        """Answer no more requests. Those that are being answered end by themselves."""
        self._gate.close()
        if self._proxy is not None:
            self._proxy.close()
        self._calls.close()

    def _answer_http(self, path: str, request: object) -> dict[str, Any]:
        return self._line.answer(path, request)

    def _answer_pipe(self, line: _Line, path: str, request: object) -> dict[str, Any]:
        if path != TOOL_PATH:
            with self._gate.turn():
                return line.answer(path, request)
        # A tool takes no turn: the answers that hold all of them may wait for it.
        with line.entered():
            return self.call_tool(request)


class _Line:
    """Whose requests they are: those of the worker, or of a branch.

    Args:
        broker, clock, serving: as for :class:`Gateway`.
    """

    def __init__(
        self,
        broker: LMBroker,
        clock: CellClock,
        serving: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._serving = serving

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Answer a request in the ``with`` block."""
        with self._clock.waiting(), self._serving(), self._broker.answering():
            yield

    def answer(self, path: str, request: object) -> dict[str, Any]:
        """Answer a request for a language model."""
        with self.entered():
            return self._broker.handle(path, request)
