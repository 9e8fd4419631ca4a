"""What a death costs that no checkpoint has: told from numbers and code."""

from __future__ import annotations

import pytest

from rlm_containers.interpreter.acknowledged import Acknowledged


@pytest.fixture
def acknowledged() -> Acknowledged:
    acknowledged = Acknowledged()
    acknowledged.add(1, "first = 1", saved=True)
    acknowledged.add(2, "second = f(first, 'word')", saved=True)
    return acknowledged


@pytest.mark.parametrize("saved", [2, 3])
def test_nothing_where_the_checkpoint_has_all(acknowledged: Acknowledged, saved: int) -> None:
    assert acknowledged.die(saved) is None
    assert acknowledged.number == 2


def test_the_names_of_the_last_cell(acknowledged: Acknowledged) -> None:
    names = acknowledged.die(1)
    assert names is not None
    assert {"second", "f", "first"} <= names
    assert acknowledged.number == 1
    assert acknowledged.die(1) is None  # it is told once


def test_those_of_all_since_a_checkpoint_failed(acknowledged: Acknowledged) -> None:
    acknowledged.add(3, "third = 3", saved=False)
    acknowledged.add(4, "fourth = größe", saved=False)
    assert acknowledged.die(1) == {"second", "f", "first", "word", "third", "fourth", "größe"}


def test_none_of_those_before_one_that_was_written(acknowledged: Acknowledged) -> None:
    acknowledged.add(3, "third = 3", saved=False)
    acknowledged.add(4, "fourth = 4", saved=True)
    assert acknowledged.die(3) == {"fourth"}


def test_what_is_no_cell_has_no_names(acknowledged: Acknowledged) -> None:
    acknowledged.add(3, None, saved=True)
    assert acknowledged.die(2) == set()


@pytest.mark.parametrize("saved", [None, "1", [1], 1.5])
def test_a_guest_that_says_nothing_of_use(acknowledged: Acknowledged, saved: object) -> None:
    assert acknowledged.die(saved) is None


def test_names_without_end(acknowledged: Acknowledged) -> None:
    acknowledged.add(3, " ".join(f"n{n}" for n in range(300_000)), saved=False)
    names = acknowledged.die(1)
    assert names is not None
    assert len(names) <= 100_000
