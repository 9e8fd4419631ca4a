"""What an RLM did for one answer: its turns, their cells, and the calls of language models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture that a cell has made.

    Attributes:
        name: the name of its file.
        mime_type: for instance ``"image/png"``.
        data: what is in the file. It comes from a container.
    """

    name: str
    mime_type: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class TrajectoryCall:
    """A call of a language model that a cell made.

    Attributes:
        model: the model's name.
        prompt: what was asked; messages as JSON.
        response: the answer.
        seconds: how long it took.
        trajectory: what a recursive RLM did for the answer, if it was one.
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
        stdout: what it printed.
        stderr: the same for standard error, tracebacks included.
        seconds: how long it ran, calls of language models included.
        variables: what there was after it, as short forms by their names.
        calls: what it asked.
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
        seconds: how long it took, the cells included.
        cells: its cells.
    """

    response: str
    seconds: float
    cells: tuple[TrajectoryCell, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelUsage:
    """What one model has cost. ``cost`` is in US dollars, where the provider tells."""

    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The way to an answer.

    Attributes:
        model: the name of the root model.
        turns: what was done.
        question: what was asked.
        context: what there was to look into: names, and the number of characters.
        answer: the answer; ``None`` if there is none.
        error: why there is none.
        backend: whose API the model was asked through.
        environment: where the cells ran: the image, say, by what to call it.
        started: when.
        seconds: how long it took.
        usage: what it has cost.
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
        """The cells of all turns, those of recursive calls not among them."""
        return (cell for turn in self.turns for cell in turn.cells)

    @property
    def calls(self) -> Iterator[TrajectoryCall]:
        """The calls that these cells made."""
        return (call for cell in self.cells for call in cell.calls)
