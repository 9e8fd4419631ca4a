"""Proves that records can be loaded, by loading them in a child process.

Much can be saved and not be loaded: an exception whose class takes other arguments than it passes
on, a ``__setstate__`` that fails, a class that is not what it was. Only a load proves that a record
is worth something. Loading runs code of the cells', so it must not happen in the worker itself. A
forked child has everything that the record refers to, and what it does to objects is lost with it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from ..interrupts import Interrupts
from ..shortforms import error_text
from .files import Source
from .pickling import StateUnpickler
from .records import Record


class Trial(NamedTuple):
    """A record to load.

    Attributes:
        record: the record.
        raw: its bytes.
        before: the names of the variables whose records come before it.
    """

    record: Record
    raw: bytes
    before: Sequence[str]


class ProofInterruptedError(Exception):
    """A record took too long to load.

    Args:
        name: the variable.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def find_failures(
    trials: Sequence[Trial],
    variables: dict[str, Any],
    objects: Callable[[], list[Any]],
    interrupts: Interrupts,
) -> dict[str, str]:
    """Load records. Return the names of those that cannot be loaded, with the reasons.

    Args:
        trials: the records, in the order of the file.
        variables: all variables.
        objects: returns the objects of the pickler's memo by their numbers.
        interrupts: allowed while a record is loaded.

    Raises:
        OSError: no process can be made.
        ProofInterruptedError: an interrupt came.
    """
    failures: dict[str, str] = {}
    left = list(trials)
    while left:
        with _Child(left, variables, objects, interrupts) as child:
            try:
                with interrupts:
                    for reason in child.reports():
                        trial = left.pop(0)
                        if reason is not None:
                            failures[trial.record.name] = reason
            except KeyboardInterrupt:
                raise ProofInterruptedError(left[0].record.name) from None
        if left:
            # The child is gone before its time, and that record was next.
            failures[left.pop(0).record.name] = child.end
    return failures


class _Child:
    """A forked process that loads records, and reports each by one line of JSON."""

    def __init__(
        self,
        trials: Sequence[Trial],
        variables: dict[str, Any],
        objects: Callable[[], list[Any]],
        interrupts: Interrupts,
    ) -> None:
        reader, writer = os.pipe()
        try:
            with warnings.catch_warnings():
                # Python warns of forks beside threads, and a cell may make that an error.
                warnings.simplefilter("ignore")
                self._pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if self._pid == 0:
            _serve(writer, trials, variables, objects, interrupts)
        os.close(writer)
        self._reader = open(reader, "rb")  # noqa: SIM115 - closed by __exit__()
        #: How it has ended, if not by itself.
        self.end = "loading it ends the process"

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.close()
        try:
            os.kill(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # a thread of a cell waits for any child
            return
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        self.end = "loading it ends the process with status {}".format(code)

    def reports(self) -> Any:
        """Yield for each record the reason why it cannot be loaded, or ``None``."""
        for line in self._reader:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _serve(
    writer: int,
    trials: Sequence[Trial],
    variables: dict[str, Any],
    objects: Callable[[], list[Any]],
    interrupts: Interrupts,
) -> NoReturn:
    """Be the child."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        known = objects()
        main = sys.modules["__main__"].__dict__
        for name in variables:
            main.pop(name, None)
        source = _AdvancingSource(io.BytesIO(), interrupts.advance)
        unpickler = StateUnpickler(source, _refuse)
        shown = given = 0
        for trial in trials:
            record = trial.record
            for name in trial.before[shown:]:
                main[name] = variables[name]
            shown = len(trial.before)
            numbers = _referred(trial.raw, record.objects)
            referred = {number: known[number] for number in numbers}
            unpickler.put(range(given, record.objects), referred)
            given = record.objects
            source.file = io.BytesIO(trial.raw)
            try:
                unpickler.load()
                reason = _difference(unpickler.memo.copy(), known, record.objects)
            except BaseException as error:
                reason = "it could not be loaded again: {}".format(error_text(error))
                # After an error in the middle of a list, its stack is not usable any more.
                unpickler = StateUnpickler(source, _refuse)
                given = 0
            os.write(writer, json.dumps(reason).encode("ascii") + b"\n")
    finally:
        os._exit(0)


def _difference(made: dict[int, Any], saved: list[Any], first: int) -> str | None:
    """Return why a loaded record is not what was saved, as far as dicts and sets show it.

    Keys whose hash has changed fall together with others, or are not found any more.

    Args:
        made: the objects in the unpickler's memo, by their numbers.
        saved: those in the pickler's memo.
        first: the number of the record's first object.
    """
    for number, obj in made.items():
        if first <= number < len(saved):
            for base in (dict, set, frozenset):
                before = saved[number]
                if not issubclass(type(obj), base) or not issubclass(type(before), base):
                    continue
                # What has plain keys may be a state that a __setstate__() has taken apart.
                if _PLAIN.issuperset(map(type, base.__iter__(before))):
                    continue
                if _findable(base, obj) != _findable(base, before):
                    return _REHASHED
    return None


_REHASHED = "it was not the same when it was loaded again: a dict or set did not find its elements"


def _findable(base: Any, elements: Any) -> tuple[int, int]:
    """Return how many elements a dict or set has, and how many of them it finds."""
    if base is dict:
        # A set takes over the hashes that the dict has noted, and compares these first. A dict
        # finds a key with another hash too, if it happens to look in the right place.
        base, elements = set, set(dict.copy(elements))
    found = sum(base.__contains__(elements, key) for key in list(base.__iter__(elements)))
    return base.__len__(elements), found


#: Types whose objects have the same hash for ever.
_PLAIN = frozenset((str, bytes, int, float, bool, type(None)))


def _referred(raw: bytes, count: int) -> Iterable[int]:
    """Return numbers in the memo, at least those that a pickle refers to.

    Args:
        raw: the pickle.
        count: the number of objects in the memo before it.
    """
    if count < len(raw):
        return range(count)
    # These bytes may be part of something else, and then a number too many is returned.
    found = {match[1][0] for match in _SHORT_GET.finditer(raw)}
    found.update(int.from_bytes(match[1], "little") for match in _LONG_GET.finditer(raw))
    return [number for number in found if number < count]


_SHORT_GET = re.compile(b"(?=" + pickle.BINGET + b"(.))", re.DOTALL)
_LONG_GET = re.compile(b"(?=" + pickle.LONG_BINGET + b"(....))", re.DOTALL)


class _AdvancingSource(Source):
    """A source that shows the supervisor that the loading gets on."""

    def __init__(self, file: io.BytesIO, advance: Callable[[], None]) -> None:
        super().__init__(file)
        self._advance = advance

    def read(self, size: int) -> bytes:
        self._advance()
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        self._advance()
        return super().readinto(buffer)


def _refuse(reference: Any) -> Any:
    raise ValueError("there is no reference in a record")
