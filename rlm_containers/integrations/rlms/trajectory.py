"""What an RLM did for one answer: its turns, their cells, and the language model calls in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture that a cell made.

    Attributes:
        name: the name of its file.
        mime_type: such as ``"image/png"``.
        data: the contents of the file, which come from a container.
    """

    name: str
    mime_type: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class TrajectoryCall:
    """A language model call of a cell.

    Attributes:
        model: the model's name.
        prompt: the prompt; messages as JSON.
        response: the answer.
        seconds: how long it took.
        trajectory: what the child RLM of a recursive call did; ``None`` for a plain call.
    """

    model: str
    prompt: str
    response: str
    seconds: float
    trajectory: Trajectory | None = None


@dataclass(frozen=True, kw_only=True)
class TrajectoryCell:
    """A cell that was run.

    Attributes:
        code: its source.
        stdout: its standard output.
        stderr: its standard error, tracebacks included.
        seconds: how long it ran, language model calls included.
        variables: the variables after it: a short form of each by its name.
        calls: its language model calls.
        figures: the pictures that it made.
    """

    code: str
    stdout: str
    stderr: str
    seconds: float
    variables: dict[str, str]
    calls: tuple[TrajectoryCall, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of the model, and the cells in it.

    Attributes:
        response: the message.
        seconds: how long the turn took, its cells included.
        cells: the cells.
    """

    response: str
    seconds: float
    cells: tuple[TrajectoryCell, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelUsage:
    """What one model has used.

    Attributes:
        model: the model's name.
        calls: how often it was called.
        input_tokens: tokens that it read.
        output_tokens: tokens that it wrote.
        cost: in US dollars; ``None`` if the provider does not say.
    """

    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What an RLM did for one answer.

    Attributes:
        model: the name of the root model.
        turns: its turns.
        question: the question.
        context: the name of each context, and its length in characters.
        answer: the answer; ``None`` if there is none.
        error: why there is no answer.
        backend: the backend and server of the model, for people.
        environment: where the cells ran, as labels and values: ``("image", "python:3.12")``.
        started: when it began.
        seconds: how long it took.
        usage: what each model has used.
    """

    model: str
    turns: tuple[Turn, ...]
    question: str = ""
    context: tuple[tuple[str, int], ...] = ()
    answer: str | None = None
    error: str | None = None
    backend: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    started: datetime | None = None
    seconds: float = 0.0
    usage: tuple[ModelUsage, ...] = ()

    @property
    def cells(self) -> Iterator[TrajectoryCell]:
        """The cells of all turns, without those of recursive calls."""
        return (cell for turn in self.turns for cell in turn.cells)

    @property
    def calls(self) -> Iterator[TrajectoryCall]:
        """The language model calls of these cells."""
        return (call for cell in self.cells for call in cell.calls)
