"""The report on a trajectory: one page of HTML."""

from __future__ import annotations

import re
from collections.abc import Sized
from importlib import resources
from pathlib import Path

from rlm_containers import __version__
from rlm_containers.integrations.rlms.markup import (
    code_block,
    details,
    element,
    escape,
    picture,
    rows,
    seconds,
    style_of_code,
    text_block,
)
from rlm_containers.integrations.rlms.trajectory import (
    Trajectory,
    TrajectoryCall,
    TrajectoryCell,
    Turn,
)
from rlm_containers.state import replace_file

# Whatever has got into the page, no script runs on it and it fetches nothing.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

# The cells in a message. They are shown separately.
_CELLS = re.compile(r"```repl\s*\n.*?\n```", re.DOTALL)

#: How many levels of recursive RLMs are shown.
_DEPTH = 8


def write_report(trajectory: Trajectory, path: Path) -> None:
    """Write the page to a file, or leave the file as it was.

    Raises:
        OSError: it cannot be written.
    """
    page = render_report(trajectory).encode("utf-8", "replace")
    with replace_file(path, mode=0o666) as file:  # the user has chosen it
        file.write(page)


def render_report(trajectory: Trajectory) -> str:
    """Return a page of HTML: question and answer, times, turns, cells, calls and figures.

    The page contains its styles and pictures. It needs no script and no network.
    """
    title = trajectory.question or trajectory.model
    style = (
        resources.files("rlm_containers.integrations.rlms").joinpath("style.css").read_text("utf-8")
    )
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        + element("title", escape(" ".join(title.split())[:120]))
        + element("style", style, style_of_code())
    )
    body = element(
        "main",
        _answer(trajectory),
        _facts(trajectory),
        _timeline(trajectory),
        element("h2", "Turns"),
        _turns(trajectory, 0),
        element("footer", f"rlm-containers {__version__}"),
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _answer(trajectory: Trajectory) -> str:
    heading = element("h1", escape(trajectory.question or "A completion"))
    if trajectory.answer is not None:
        return heading + element("h2", "Answer") + text_block(trajectory.answer, "answer")
    return heading + element("h2", "No answer") + text_block(trajectory.error or "", "error")


def _facts(trajectory: Trajectory) -> str:
    calls, cells = list(trajectory.calls), list(trajectory.cells)
    facts = [
        ("model", trajectory.model + (f" ({trajectory.backend})" if trajectory.backend else "")),
        *trajectory.environment,
        ("time", seconds(trajectory.seconds)),
        (
            "turns",
            f"{len(trajectory.turns)}, with {_count(cells, 'cell')} and {_count(calls, 'call')}",
        ),
    ]
    if trajectory.started is not None:
        facts.append(("started", trajectory.started.strftime("%Y-%m-%d %H:%M:%S %Z")))
    for used in trajectory.usage:
        cost = f", ${used.cost:.4f}" if used.cost is not None else ""
        tokens = f"{used.input_tokens:,} tokens in, {used.output_tokens:,} out"
        facts.append((f"usage of {used.model}", f"calls: {used.calls}, {tokens}{cost}"))
    for name, length in trajectory.context:
        label = name if name == "context" else f"context[{name!r}]"
        facts.append((label, f"{length:,} characters"))
    return element("section", rows(facts), classes="facts")


def _timeline(trajectory: Trajectory) -> str:
    """Return a bar for each turn: the time of the model, of its cells, and of their calls."""
    longest = max((turn.seconds for turn in trajectory.turns), default=0.0)
    if not longest:
        return ""
    bars = []
    for number, turn in enumerate(trajectory.turns, 1):
        in_cells = min(turn.seconds, sum(cell.seconds for cell in turn.cells))
        # Together, calls that run at the same time take longer than their cell.
        in_calls = sum(
            min(cell.seconds, sum(call.seconds for call in cell.calls)) for cell in turn.cells
        )
        parts = (
            ("model", turn.seconds - in_cells),
            ("cells", max(0.0, in_cells - in_calls)),
            ("calls", min(in_calls, in_cells)),
        )
        spans = "".join(
            element(
                "span",
                classes=kind,
                style=f"width:{100 * took / longest:.3f}%",
                title=f"{kind}: {seconds(took)}",
            )
            for kind, took in parts
            if took > 0
        )
        bars.append(
            element(
                "a",
                element("b", str(number)),
                element("span", spans, classes="bar"),
                element("i", seconds(turn.seconds)),
                href=f"#turn-{number}",
            )
        )
    legend = "".join(
        element("span", element("i", classes=kind), text)
        for kind, text in (("model", "model"), ("cells", "cells"), ("calls", "calls in cells"))
    )
    return element(
        "section",
        element("h2", "Time"),
        element("p", legend, classes="legend"),
        *bars,
        classes="timeline",
    )


def _turns(trajectory: Trajectory, depth: int) -> str:
    return "".join(
        _turn(number, turn, depth) for number, turn in enumerate(trajectory.turns, 1)
    ) or element("p", "There were none.", classes="aside")


def _turn(number: int, turn: Turn, depth: int) -> str:
    heading = element("h3", f"Turn {number} ", element("small", seconds(turn.seconds)))
    said = _CELLS.sub("", turn.response) if turn.cells else turn.response
    attributes = {} if depth else {"id": f"turn-{number}"}
    return element(
        "section",
        heading,
        text_block(said.strip(), "said"),
        *(_cell(cell, depth) for cell in turn.cells),
        classes="turn",
        **attributes,
    )


def _cell(cell: TrajectoryCell, depth: int) -> str:
    parts = [code_block(cell.code), text_block(cell.stdout, "stdout")]
    parts.append(text_block(cell.stderr, "stderr"))
    parts += [picture(figure) for figure in cell.figures]
    parts += [_call(call, depth) for call in cell.calls]
    if cell.variables:
        shown = rows(cell.variables.items())
        summary = _count(cell.variables, "variable")
        parts.append(details(summary, shown, classes="variables"))
    note = f"{seconds(cell.seconds)} in the container"
    return element("article", *parts, element("p", note, classes="aside"), classes="cell")


def _call(call: TrajectoryCall, depth: int) -> str:
    kind = "a recursive call of" if call.trajectory is not None else "a call of"
    summary = f"{kind} {escape(call.model)}, {seconds(call.seconds)}, {_preview(call.response)}"
    parts = [
        element("h4", "Prompt"),
        text_block(call.prompt),
        element("h4", "Response"),
        text_block(call.response),
    ]
    if call.trajectory is not None and depth < _DEPTH:
        inner = _turns(call.trajectory, depth + 1)
        done = f"what it did: {_count(call.trajectory.turns, 'turn')}"
        parts.append(details(done, inner, classes="inner"))
    return details(summary, *parts, classes="call")


def _count(things: Sized, noun: str) -> str:
    number = len(things)
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _preview(text: str) -> str:
    words = " ".join(text[:400].split())
    return element("q", escape(words[:80] + ("…" if len(words) > 80 else "")))
