"""What variables share they share after a restore, and a long string is written once."""

from __future__ import annotations

from tests.unit.sessions import Boxes, revive, run, settle, workspace_of


def test_two_names_of_one_object_stay_two_names_of_one_object(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        a = [1]
        b = a
        nested = {"a": a, "again": [a]}
        loop = []; loop.append(loop)
        class Node: pass
        left, right = Node(), Node()
        left.other, right.other = right, left
        default = lambda x=a: x
        long = "x" * 500_000
        holder = {"long": long}
        """,
    )
    revive(box)
    run(
        box,
        """
        b.append(2)
        assert a == [1, 2] and nested["a"] is a and nested["again"][0] is a
        assert loop[0] is loop
        assert left.other is right and right.other is left
        assert default() is a
        assert holder["long"] is long
        """,
    )


def test_a_long_string_outlives_the_variable_it_came_from(boxes: Boxes) -> None:
    box = boxes()
    run(box, "a = 'x' * 400_000\nb = [a]\nc = b'y' * 400_000")
    revive(box)
    run(box, "del a")
    revive(box)
    run(box, "assert b[0] == 'x' * 400_000\nassert c == b'y' * 400_000\ndel c")
    revive(box)
    run(box, "assert b[0] == 'x' * 400_000")


def test_files_of_dropped_strings_go(boxes: Boxes) -> None:
    box = boxes()

    def files() -> list[str]:
        return sorted(path.name for path in (workspace_of(box) / ".blobs").iterdir())

    run(box, "a, b = 'x' * 400_000, 'y' * 400_000")
    settle(box)
    assert len(files()) == 2
    for _ in range(5):
        run(box, "a = a + 'z'")
    settle(box)
    assert len(files()) == 3  # one is what the checkpoint before had
    run(box, "n = 1")
    settle(box)
    assert len(files()) == 2
    run(box, "del a, b")
    run(box, "n = 2")
    settle(box)
    assert files() == []


def test_a_string_that_does_not_change_is_not_written_again(boxes: Boxes) -> None:
    box = boxes()
    run(box, "big = 'x' * 1_000_000")
    settle(box)
    (before,) = (workspace_of(box) / ".blobs").iterdir()
    stamp = before.stat().st_mtime_ns, before.stat().st_ino
    for number in range(3):
        run(box, f"x = {number}")
    settle(box)
    (after,) = (workspace_of(box) / ".blobs").iterdir()
    assert (after.stat().st_mtime_ns, after.stat().st_ino) == stamp
    assert (workspace_of(box) / "state.dill").stat().st_size < 100_000
