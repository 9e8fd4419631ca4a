"""The environment that an RLM drives: contexts, histories, answers, around one sandbox.

Everything is there that rlms 0.1.3 asks of an environment, in terms of this project's own types
and without importing rlms; ``integrations.rlms`` turns the results into those of rlms.
"""

from __future__ import annotations

import copy
import json
from types import TracebackType
from typing import Any, Self

from rlm_containers.custom_tools import CustomTools
from rlm_containers.errors import OptionError
from rlm_containers.interpreter import CellResult
from rlm_containers.lm import HandlerBackend, LMBroker, SubcallFunction
from rlm_containers.options import DEFAULT_IMAGE, configured_options
from rlm_containers.sandbox import Context, Sandbox, call_in_thread

#: Host and port of an LM Handler.
Address = tuple[str, int]

#: The messages of a conversation.
History = list[dict[str, Any]]

# What the environment itself takes, besides the options of a sandbox.
_ARGUMENTS = (
    "compaction",
    "context_payload",
    "custom_sub_tools",
    "custom_tools",
    "depth",
    "lm_handler_address",
    "max_concurrent_subcalls",
    "persistent",
    "setup_code",
    "subcall_fn",
)


class ContainerREPL:
    """A REPL in a container, started at construction.

    Args:
        image: the image; any with Python 3.9 or later.
        lm_handler_address: where rlms's LM Handler listens; it answers ``llm_query``.
        context_payload: bound to ``context_0`` and ``context``.
        setup_code: a cell to run first, with the context and the tools there.
        persistent: whether several completions share this environment.
        depth: the depth of the environment, by which the LM Handler chooses the model.
        subcall_fn: answers ``rlm_query``; without it that is the same as ``llm_query``.
        custom_tools: functions, code and data for the cells, by their names, see
            :class:`~rlm_containers.custom_tools.CustomTools`. Functions of the host run there.
        custom_sub_tools: the same for the environments of recursive calls, which RLM makes.
        compaction: whether ``history`` holds the host's compacted history.
        max_concurrent_subcalls: how many recursive calls of one batch run at once.
        options: those of :class:`~rlm_containers.SandboxOptions`, ``runtime`` above all.

    Raises:
        OptionError: an argument is unknown (the message names the nearest that is not) or wrong.
        ContextError: the context cannot be encoded.
        SetupCodeError: the setup code failed.
        ContainersError: the sandbox could not be started.
    """

    def __init__(
        self,
        image: str = DEFAULT_IMAGE,
        lm_handler_address: Address | None = None,
        context_payload: Context | None = None,
        setup_code: str | None = None,
        persistent: bool = False,
        depth: int = 1,
        subcall_fn: SubcallFunction | None = None,
        custom_tools: dict[str, Any] | None = None,
        custom_sub_tools: dict[str, Any] | None = None,
        compaction: bool = False,
        max_concurrent_subcalls: int = 4,
        **options: Any,
    ) -> None:
        if setup_code is not None and not isinstance(setup_code, str):
            raise OptionError(f"setup_code must be a string, not {type(setup_code).__name__}.")
        checked = configured_options(
            {"image": image, "setup_code": setup_code, **options}, also=_ARGUMENTS
        )
        self.image = checked.image
        self.persistent = persistent
        self.depth = depth
        self.compaction = compaction
        self.max_concurrent_subcalls = max_concurrent_subcalls
        self.custom_tools = custom_tools or {}
        self.custom_sub_tools = (
            custom_sub_tools if custom_sub_tools is not None else self.custom_tools
        )
        tools = CustomTools.sort(custom_tools)
        self._lm_timeout = checked.lm_timeout
        self._contexts = 0
        self._histories = 0
        self._compacted: list[Any] = []
        self._broker = LMBroker(
            self._backend(lm_handler_address), subcall_fn, max_concurrent_subcalls
        )
        # The setup code is not the sandbox's to run: the tools and the context come first.
        self.sandbox = Sandbox(
            image, lm=self._broker, setup_code="", tools=tools.functions, **options
        )
        self.sandbox.start()
        try:
            self._install(tools)
            if compaction:
                self.sandbox.load("history", self._compacted, keep=True)
            if context_payload is not None:
                self.load_context(context_payload)
            if checked.setup_code:
                self.sandbox.run_setup(checked.setup_code)
        except BaseException:
            self.cleanup()
            raise

    def _backend(self, address: Address | None) -> HandlerBackend | None:
        if address is None:
            return None
        host, port = address
        return HandlerBackend((host, port), self.depth, self._lm_timeout)

    def _install(self, tools: CustomTools) -> None:
        """Give the container the tools that do not stay on the host."""
        for name, value in tools.data.items():
            if isinstance(value, str | dict | list):
                self.sandbox.load(name, value)
            else:
                code = f"{name} = __import__('json').loads({json.dumps(value)!r})"
                self.sandbox.run_setup(code, f"tool {name}")
        for name, code in tools.code.items():
            self.sandbox.run_setup(code, f"tool {name}")
        if tools.code:
            self.sandbox.keep(*tools.code)

    # Cells

    def run_cell(self, code: str) -> CellResult:
        """Run a cell; see :meth:`Sandbox.execute`."""
        return self.sandbox.execute(code)

    async def arun_cell(self, code: str) -> CellResult:
        """The same for an event loop; see :meth:`Sandbox.aexecute`."""
        return await self.sandbox.aexecute(code)

    # Contexts and histories, as rlms's SupportsPersistence has them

    def load_context(self, context_payload: Context) -> None:
        """Bind the context to ``context_0`` and ``context``."""
        self.add_context(context_payload, 0)

    def add_context(self, context_payload: Context, context_index: int | None = None) -> int:
        """Bind a context to ``context_N``.

        Args:
            context_payload: the context.
            context_index: N; ``None`` for the next.

        Returns:
            N.

        Raises:
            ContextError: it cannot be encoded; nothing has changed.
        """
        index = self._contexts if context_index is None else context_index
        self.sandbox.load(f"context_{index}", context_payload)
        self._contexts = max(self._contexts, index + 1)
        return index

    def get_context_count(self) -> int:
        """How many contexts there are."""
        return self._contexts

    def add_history(self, message_history: History, history_index: int | None = None) -> int:
        """Bind the messages of a completion to ``history_N``; ``history`` is ``history_0``."""
        index = self._histories if history_index is None else history_index
        self.sandbox.load(f"history_{index}", message_history)
        self._histories = max(self._histories, index + 1)
        return index

    def get_history_count(self) -> int:
        """How many histories there are."""
        return self._histories

    def update_handler_address(self, address: Address) -> None:
        """Another completion begins, with another LM Handler; the old answer is forgotten."""
        self._broker.backend = self._backend(address)
        self.sandbox.reset_answer()

    def append_compaction_entry(self, entry: History | dict[str, Any]) -> None:
        """Add a piece of the trajectory, or a summary, to ``history``.

        The list is this process's; what cells see is a copy, made anew each time.
        """
        if not self.compaction:
            return
        self._compacted.append(copy.deepcopy(entry))
        self.sandbox.load("history", self._compacted, keep=True)

    # Life

    def setup(self) -> None:
        """Nothing is left to do: construction has started the sandbox."""

    def cleanup(self) -> None:
        """Close the sandbox. May be called again."""
        self.sandbox.close()

    @classmethod
    async def acreate(cls, *args: Any, **kwargs: Any) -> Self:
        """Make and start one without blocking the event loop: ``async with await …acreate()``.

        The arguments and errors are those of the class. If it is cancelled, nothing is left.
        """
        made: list[Self] = []
        try:
            await call_in_thread(lambda: made.append(cls(*args, **kwargs)), lambda: None)
        except BaseException:
            for environment in made:
                await environment.acleanup()
            raise
        return made[0]

    async def acleanup(self) -> None:
        """As :meth:`cleanup`."""
        await self.sandbox.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.acleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cleanup()
