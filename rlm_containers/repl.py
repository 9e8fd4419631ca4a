"""The environment that an RLM drives: contexts, histories and answers around one sandbox.

It has everything that rlms 0.1.3 asks of an environment, in this project's own types and without
importing rlms; ``integrations.rlms`` turns the results into those of rlms.
"""

from __future__ import annotations

import ast
import copy
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rlm_containers.errors import OptionError
from rlm_containers.interpreter import CellResult
from rlm_containers.lm import HandlerBackend, LMBroker, SubcallFunction
from rlm_containers.options import DEFAULT_IMAGE, configured_options
from rlm_containers.sandbox import (
    Context,
    Sandbox,
    ToolFunction,
    call_in_thread,
    check_names,
    in_thread,
)
from runtimes.text import brief

#: Host and port of an LM Handler.
Address = tuple[str, int]

#: The messages of a conversation.
History = list[dict[str, Any]]

# The arguments of the environment, besides the options of a sandbox.
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

#: A string that begins with one of these is meant as code.
_CODE = ("def ", "class ", "async def ", "@", "lambda ", "lambda:")


class ContainerREPL:
    """A REPL in a container, started at construction.

    In a program with an event loop use :meth:`acreate` and the methods whose names begin with
    ``a``: each has the parameters of the blocking method, and raises the same errors.

    Args:
        image: the image; any with Python 3.9 or later.
        lm_handler_address: where rlms's LM Handler listens; it answers ``llm_query``.
        context_payload: bound to ``context_0`` and ``context``.
        setup_code: a cell to run first, once the context and the tools are there.
        persistent: whether several completions share this environment.
        depth: the depth of the environment, by which the LM Handler chooses the model.
        subcall_fn: answers ``rlm_query``; without it ``rlm_query`` is the same as ``llm_query``.
        custom_tools: functions, code and data for the cells, by their names, see
            :class:`~rlm_containers.repl.CustomTools`. Functions run on the host.
        custom_sub_tools: the same for the environments of recursive calls, which RLM makes.
        compaction: whether ``history`` holds the host's compacted history.
        max_concurrent_subcalls: how many recursive calls of one batch run at once.
        options: those of :class:`~rlm_containers.SandboxOptions`, ``runtime`` above all.

    Attributes:
        options: the options, those from the configuration included.
        sandbox: the sandbox.

    Raises:
        OptionError: an argument is wrong or unknown; the message names the nearest known one.
        ContextError: the context cannot be encoded.
        SetupCodeError: the setup code, or that of a tool, failed.
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
        self.options = configured_options(
            {"image": image, "setup_code": setup_code, **options}, also=_ARGUMENTS
        )
        self.image = self.options.image
        self.persistent = persistent
        self.depth = depth
        self.compaction = compaction
        self.max_concurrent_subcalls = max_concurrent_subcalls
        self.custom_tools = custom_tools or {}
        self.custom_sub_tools = (
            custom_sub_tools if custom_sub_tools is not None else self.custom_tools
        )
        tools = CustomTools.sort(custom_tools)
        self._contexts = 0
        self._histories = 0
        self._compacted: list[Any] = []
        self._broker = LMBroker(
            self._backend(lm_handler_address), subcall_fn, max_concurrent_subcalls
        )
        self.sandbox = Sandbox._with(self.options, lm=self._broker, tools=tools.functions)
        self.sandbox.start()
        try:
            self._install(tools)
            if compaction:
                self.sandbox.load("history", self._compacted, keep=True)
            if context_payload is not None:
                self.load_context(context_payload)
            if self.options.setup_code:
                self.sandbox.run_setup(self.options.setup_code)
        except BaseException:
            self.cleanup()
            raise

    def _backend(self, address: Address | None) -> HandlerBackend | None:
        if address is None:
            return None
        host, port = address
        return HandlerBackend((host, port), self.depth, self.options.lm_timeout)

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

    def execute_code(self, code: str) -> CellResult:
        """Run a cell; see :meth:`Sandbox.execute`.

        Returns:
            The result. rlms reads its ``stdout``, ``stderr``, ``locals`` and ``execution_time``.
        """
        return self.sandbox.execute(code)

    async def aexecute_code(self, code: str) -> CellResult:
        """As :meth:`execute_code`; see :meth:`Sandbox.aexecute`."""
        return await self.sandbox.aexecute(code)

    # Contexts and histories, as in rlms's SupportsPersistence

    def load_context(self, context_payload: Context) -> None:
        """Bind the context to ``context_0`` and ``context``."""
        self.add_context(context_payload, 0)

    aload_context = in_thread(load_context)

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

    aadd_context = in_thread(add_context)

    def get_context_count(self) -> int:
        """Return how many contexts there are."""
        return self._contexts

    def add_history(self, message_history: History, history_index: int | None = None) -> int:
        """Bind the messages of a completion to ``history_N``; ``history`` is ``history_0``.

        Args:
            message_history: the messages, each a dict with ``role`` and ``content``.
            history_index: N; ``None`` for the next.

        Returns:
            N.
        """
        index = self._histories if history_index is None else history_index
        self.sandbox.load(f"history_{index}", message_history)
        self._histories = max(self._histories, index + 1)
        return index

    aadd_history = in_thread(add_history)

    def get_history_count(self) -> int:
        """Return how many histories there are."""
        return self._histories

    def update_handler_address(self, address: Address) -> None:
        """Begin another completion, with another LM Handler. Forget the final answer."""
        self._broker.backend = self._backend(address)
        self.sandbox.reset_answer()

    aupdate_handler_address = in_thread(update_handler_address)

    def append_compaction_entry(self, entry: History | dict[str, Any]) -> None:
        """Add a piece of the trajectory, or a summary, to ``history``.

        The host keeps the list. Cells see a copy, which is made anew each time.
        """
        if not self.compaction:
            return
        self._compacted.append(copy.deepcopy(entry))
        self.sandbox.load("history", self._compacted, keep=True)

    aappend_compaction_entry = in_thread(append_compaction_entry)

    # Start and end

    def setup(self) -> None:
        """Do nothing: construction has started the sandbox."""

    def cleanup(self) -> None:
        """Close the sandbox. May be called again."""
        self.sandbox.close()

    acleanup = in_thread(cleanup)

    @classmethod
    async def acreate(cls, *args: Any, **kwargs: Any) -> Self:
        """Make and start one without blocking the event loop: ``async with await …acreate()``.

        The arguments and errors are those of the class. If it is cancelled, nothing is left.
        """
        return await call_in_thread(lambda: cls(*args, **kwargs), discard=cls.cleanup)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.acleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cleanup()


@dataclass(frozen=True)
class CustomTools:
    """The ``custom_tools`` of an RLM, by their names and sorted by kind.

    Attributes:
        functions: run on the host, see :meth:`Sandbox.set_tools`.
        code: Python source that defines the name, to be run in the container.
        data: variables, of anything that JSON can express.
    """

    functions: dict[str, ToolFunction] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def sort(cls, entries: Mapping[str, Any] | None) -> CustomTools:
        """Sort the entries of ``custom_tools``.

        Args:
            entries: values, or dicts ``{"tool": value, "description": str}``, by their names. A
                callable is a function of the host. A string is code if it begins like a
                definition, or if it is valid Python of several lines that binds the name. Anything
                else is data.

        Raises:
            OptionError: a name is reserved or no identifier, the code of a tool is not valid
                Python or does not define it, or data cannot be expressed as JSON.
        """
        if entries is not None and not isinstance(entries, Mapping):
            raise OptionError(
                f"custom_tools must be a mapping of names, not {type(entries).__name__}."
            )
        made = cls()
        check_names(entries or ())
        for name, entry in (entries or {}).items():
            value = entry["tool"] if isinstance(entry, dict) and "tool" in entry else entry
            if callable(value):
                made.functions[name] = value
            elif isinstance(value, str) and (code := _code(name, value)) is not None:
                made.code[name] = code
            else:
                _check_data(name, value)
                made.data[name] = value
        return made


def _code(name: str, text: str) -> str | None:
    """Return source that defines the name, or ``None`` if the text is data."""
    source = textwrap.dedent(text).strip()
    looks_like_code = source.startswith(_CODE)
    if not looks_like_code and "\n" not in source:
        return None
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if not looks_like_code:
            return None
        raise OptionError(
            f"The tool {brief(name)} looks like code, but is not valid Python: {error}.",
            remedy="Correct it. If it is meant as text, put it into a list.",
        ) from error
    if len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Lambda):
        return f"{name} = {source}"
    if name in _bound(body):
        return source
    if not looks_like_code:
        return None
    raise OptionError(
        f"The code of the tool {brief(name)} does not define {brief(name)}.",
        remedy=f"It defines: {', '.join(sorted(_bound(body))) or 'nothing'}.",
    )


def _bound(body: list[ast.stmt]) -> set[str]:
    """Return the names that statements bind at their own level."""
    names: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add((node.asname or node.name).partition(".")[0])
    return names


def _check_data(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(
            f"The tool {brief(name)} ({type(value).__name__}) cannot be expressed as JSON: "
            f"{error}.",
            remedy="Pass a function that returns it, or code that makes it.",
        ) from error
