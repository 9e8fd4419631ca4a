"""What comes of one request, while it comes in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlm_containers.interpreter.results import (
    EXIT_CODES,
    CellResult,
    CellStatus,
    LMCall,
    OutputCollector,
)


@dataclass
class Outcome:
    """What came of one request, while it comes in."""

    stdout: OutputCollector
    collected_stderr: OutputCollector
    status: CellStatus = "ok"
    locals: dict[str, str] = field(default_factory=dict)
    final_answer: str | None = None
    notices: list[str] = field(default_factory=list)
    lost: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    exit_code: int = 0
    #: What the guest says that it has made, which need not be there.
    artifacts: list[str] = field(default_factory=list)

    @property
    def stderr(self) -> str:
        """What was written, and after it what this library has to say."""
        text = self.collected_stderr.text()
        notices = "".join(f"{notice}\n" for notice in self.notices)
        if notices and text and not text.endswith("\n"):
            text += "\n"
        return text + notices

    def result(self, elapsed: float, calls: tuple[LMCall, ...]) -> CellResult:
        """The same as the user gets it."""
        return CellResult(
            stdout=self.stdout.text(),
            stderr=self.stderr,
            locals=self.locals,
            execution_time=elapsed,
            lm_calls=calls,
            final_answer=self.final_answer,
            status=self.status,
            lost=self.lost,
            older=self.older,
            exit_code=EXIT_CODES.get(self.status, self.exit_code),
            notices=tuple(self.notices),
        )

    def note_exit(self, code: object) -> None:
        """Keep what the guest says of an exit code, which may be anything."""
        self.exit_code = code if isinstance(code, int) and 0 <= code <= 255 else 1

    def note_death(self, content: dict[str, Any]) -> None:
        """The same of the worker that has died with the cell."""
        number = content.get("signal")
        self.note_exit(128 + number if isinstance(number, int) else content.get("exit"))

    def forget_callback(self) -> None:
        """Nobody wants to see output any more as it comes."""
        self.stdout.callback = self.collected_stderr.callback = None
