"""What the demo prints: plain text, line by line, with a little colour on a terminal."""

from __future__ import annotations

import os
import sys
import textwrap
import time

from rlm.utils.parsing import find_code_blocks

from demo_rlm.ledger import Call, Cell, Ledger

_WIDTH = 100
_LINES = 14  # of a cell's code or output


class Narrator:
    """Tells a run while it happens: facts, turns, cells, sub-calls, and the sums at the end."""

    def __init__(self) -> None:
        # Kept, for RLM's local environment replaces sys.stdout while a cell runs.
        self._out = sys.stdout
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self._coloured = self._out.isatty() and not plain
        self._clients_ready = 0.0
        self._turns = self._sub_calls = self._cells_written = self._cells_run = 0

    def fact(self, name: str, words: str) -> None:
        """One thing that was chosen or found."""
        lines = textwrap.wrap(words, _WIDTH - 12) or [""]
        self._print(f"{self._bold(f'{name:<10}')}  {lines[0]}")
        for line in lines[1:]:
            self._print(f"{'':<12}{line}")

    def blank(self) -> None:
        self._print("")

    def clients_ready(self) -> None:
        """RLM has its model clients; the environment comes next."""
        self._clients_ready = time.perf_counter()

    def root_call(self, call: Call) -> None:
        """The root model has answered: its words, then the cell that is about to run."""
        if call.failed:
            return  # the exception ends the run, and says it
        if not self._turns:
            seconds = call.started - self._clients_ready
            self.fact("ready", f"after {seconds:.2f} s, with the text in it")
        self._turns += 1
        self._print("")
        self._print(self._bold(f"turn {self._turns}") + self._dim(f"  root, {call.seconds:.2f} s"))
        for paragraph in call.said.split("```repl")[0].strip().splitlines():
            self._print(textwrap.indent(textwrap.fill(paragraph, _WIDTH), "  "))
        for code in find_code_blocks(call.said):
            self._cells_written += 1
            self._print(self._dim(f"  cell {self._cells_written}"))
            self._block(code, "    ", self._cyan)

    def sub_call(self, call: Call) -> None:
        """A sub-call has been answered."""
        self._sub_calls += 1
        self._print(self._dim(f"  sub-call {self._sub_calls}, {call.seconds:.2f} s"))
        self._print(f"    asked  {_one_line(call.asked)}")
        said = _one_line(call.said)
        self._print(f"    {'FAILED' if call.failed else 'said  '} {self._green(said)}")

    def cell(self, cell: Cell) -> None:
        """A cell has ended."""
        self._cells_run += 1
        self._print(self._dim(f"  output of cell {self._cells_run}, {cell.seconds:.2f} s"))
        self._block(cell.printed.strip() or "(nothing)", "    ", str)
        if cell.errors.strip():
            self._block(cell.errors.strip(), "    ! ", str)

    def answer(self, text: str) -> None:
        """What the run was for."""
        self._print("\n" + self._bold("answer"))
        for line in text.splitlines():
            self._print(f"  {line}")

    def sums(self, ledger: Ledger, root: str, total: float) -> None:
        """Where the time went."""
        up = ledger.root_calls[0].started - self._clients_ready
        thinking = sum(call.seconds for call in ledger.root_calls)
        running = sum(cell.seconds for cell in ledger.cells)
        asking = ledger.seconds_in_sub_calls
        self._print("\n" + self._bold("where the time went"))
        rows = [
            ("container up, text in it", "", up),
            (root, f"{len(ledger.root_calls)} turns", thinking),
            ("cells", f"{len(ledger.cells)} run", running),
            ("  of that in sub-calls", f"{len(ledger.sub_calls)} calls", asking),
            ("the rest", "", total - up - thinking - running),
            ("total", "", total),
        ]
        for name, number, seconds in rows:
            self._print(f"  {name:<28}{number:>9}{seconds:>9.2f} s")

    def _block(self, text: str, margin: str, paint: object) -> None:
        lines = text.splitlines()
        shown = lines if len(lines) <= _LINES else lines[: _LINES - 1]
        for line in shown:
            cut = line if len(line) <= 2 * _WIDTH else line[: 2 * _WIDTH] + " ..."
            self._print(margin + (paint(cut) if callable(paint) else cut))
        if len(shown) < len(lines):
            self._print(self._dim(f"{margin}... and {len(lines) - len(shown)} more lines"))

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._coloured else text

    def _bold(self, text: str) -> str:
        return self._paint("1", text)

    def _dim(self, text: str) -> str:
        return self._paint("2", text)

    def _cyan(self, text: str) -> str:
        return self._paint("36", text)

    def _green(self, text: str) -> str:
        return self._paint("32", text)


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _WIDTH else joined[: _WIDTH - 4] + " ..."
