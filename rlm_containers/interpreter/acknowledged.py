"""What has been answered for, and what of it is in no checkpoint yet."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set

#: A name, as far as code has one there: a word in a string or a comment counts, too. What is not
#: ASCII may be part of it, as the marks of some scripts are, which ``\w`` leaves out.
_WORD = re.compile(r"(?:[A-Za-z_]|[^\x00-\x7f])(?:[A-Za-z0-9_]|[^\x00-\x7f])*")

#: Names that are remembered of cells whose checkpoints fail, one after the other, and characters
#: of one: guests tell of no longer ones.
_WORDS = 100_000
_WORD_LENGTH = 200


class Acknowledged:
    """The requests that were answered, and the code of those that no checkpoint is known to have.

    A checkpoint comes after the answer. A worker that is killed between the two loses what the
    cell has changed, and one whose disk is full what all have changed since then. What that is
    nobody can ask it any more, so it is told from the code.

    Attributes:
        number: of the last request that was answered; 0 where there is none to go on from.
    """

    def __init__(self) -> None:
        self.number = 0
        self._code = ""  # of the last one. Looked through only where it is needed.
        self._words: set[str] = set()  # of those before it

    def add(self, number: int, code: object, *, saved: bool) -> None:
        """A request was answered.

        Args:
            number: its number.
            code: the cell's, where it is one, or the names that it has bound.
            saved: whether all requests before it are in the last checkpoint.
        """
        if saved:
            self._words.clear()
        else:
            self._keep_words()
        self.number = number
        self._code = code if isinstance(code, str) else ""

    def die(self, saved: object) -> Set[str] | None:
        """The worker that had answered them died. What that costs, which is not told again.

        Args:
            saved: the last request whose checkpoint is written, as the guest told it.

        Returns:
            Names, among them those of all variables that the lost cells named; ``None`` if the
            checkpoint has all.
        """
        if not isinstance(saved, int) or saved >= self.number:
            return None
        self._keep_words()
        words = frozenset(self._words)
        self.restart(saved)
        return words

    def restart(self, number: int) -> None:
        """The next worker goes on from the checkpoint of this request; 0 for none."""
        self.number = number
        self._code = ""
        self._words.clear()

    def _keep_words(self) -> None:
        # As Python reads names, see "Identifiers and keywords" in its reference.
        for word in _WORD.finditer(unicodedata.normalize("NFKC", self._code)):
            if len(self._words) >= _WORDS:
                break
            if len(word[0]) <= _WORD_LENGTH:
                self._words.add(word[0])
        self._code = ""
