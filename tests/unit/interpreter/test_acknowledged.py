"""What a death costs that no checkpoint has: told from numbers and code."""

from __future__ import annotations

import pytest

from rlm_containers.interpreter.reports import UnsavedChanges


@pytest.fixture
def changes() -> UnsavedChanges:
    changes = UnsavedChanges()
    changes.note_answer(1, "first = 1", saved=True)
    changes.note_answer(2, "second = f(first, 'word')", saved=True)
    return changes


@pytest.mark.parametrize("saved", [2, 3])
def test_nothing_where_the_checkpoint_has_all(changes: UnsavedChanges, saved: int) -> None:
    assert changes.note_death(saved) is None
    assert changes.last_answer == 2


def test_the_names_of_the_last_cell(changes: UnsavedChanges) -> None:
    names = changes.note_death(1)
    assert names is not None
    assert {"second", "f", "first"} <= names
    assert changes.last_answer == 1
    assert changes.note_death(1) is None  # it is told once


def test_those_of_all_since_a_checkpoint_failed(changes: UnsavedChanges) -> None:
    changes.note_answer(3, "third = 3", saved=False)
    changes.note_answer(4, "fourth = größe", saved=False)
    assert changes.note_death(1) == {"second", "f", "first", "word", "third", "fourth", "größe"}


def test_none_of_those_before_one_that_was_written(changes: UnsavedChanges) -> None:
    changes.note_answer(3, "third = 3", saved=False)
    changes.note_answer(4, "fourth = 4", saved=True)
    assert changes.note_death(3) == {"fourth"}


def test_what_is_no_cell_has_no_names(changes: UnsavedChanges) -> None:
    changes.note_answer(3, None, saved=True)
    assert changes.note_death(2) == set()


@pytest.mark.parametrize("saved", [None, "1", [1], 1.5])
def test_a_guest_that_says_nothing_of_use(changes: UnsavedChanges, saved: object) -> None:
    assert changes.note_death(saved) is None


def test_names_without_end(changes: UnsavedChanges) -> None:
    changes.note_answer(3, " ".join(f"n{n}" for n in range(300_000)), saved=False)
    names = changes.note_death(1)
    assert names is not None
    assert len(names) <= 100_000
