"""What was found on a machine: single checks, those of one engine, and the verdict on all.

``rlm_containers.doctor`` makes them, and is where they are imported from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: ``"warning"``: it works, but not as it could. ``"skipped"``: it could not be tried.
CheckStatus = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: how it is.
        detail: what was found.
        remedy: what to do about it, if there is something.
    """

    name: str
    status: CheckStatus
    detail: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What was found of one engine.

    Attributes:
        runtime: its name, as for ``Sandbox(runtime=…)``.
        checks: in the order in which they were made. After one that failed there may be no more.
    """

    runtime: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether sandboxes work there: nothing failed, and it is installed at all."""
        return all(check.status != "failed" for check in self.checks) and self.installed

    @property
    def tried(self) -> bool:
        """Whether a cell has run there."""
        return any(check.name == "cell" and check.status == "ok" for check in self.checks)

    @property
    def installed(self) -> bool:
        """Whether its program is here."""
        return self.checks[0].status != "skipped"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found on this machine.

    Attributes:
        host: checks that concern no engine.
        engines: a report for each.
        named: whether the caller has named the engines.
    """

    host: tuple[Check, ...]
    engines: tuple[EngineReport, ...]
    named: bool

    @property
    def ok(self) -> bool:
        """Whether sandboxes work: on every engine that was named, or else on any."""
        works = [engine.ok for engine in self.engines]
        fine = all(works) if self.named else any(works)
        return fine and all(check.status != "failed" for check in self.host)
