"""Arrays of numpy: what shares memory still does, and the rest is as it was."""

from __future__ import annotations

import pytest

from tests.unit.sessions import Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

pytest.importorskip("numpy")


def test_views_share_the_memory_of_their_arrays(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import numpy
        grid = numpy.arange(24).reshape(2, 3, 4)
        columns, turned, back, raw = grid[:, :, 1], grid.T, grid[::-1, ::2], grid.view("u1")
        table = numpy.zeros((50, 4), order="F")
        part = table[10:20, 1:3]
        fixed = table[1:]; fixed.flags.writeable = False
        words = numpy.array(["a", [1], None], dtype=object)
        some = words[1:]
        buffer = bytearray(16)
        shown = numpy.frombuffer(buffer, "i4")[1:]
        records = numpy.zeros(5, [("a", "i4"), ("b", "f8")])
        field = records["b"]
        nothing = grid[2:]
        """,
    )
    revive(box)
    run(box, "x = 1")
    revive(box)
    run(
        box,
        """
        grid[0, 0, 1] = 100
        assert columns[0, 0] == 100 and turned[1, 0, 0] == 100 and raw[0, 0, 8] == 100
        back[1, 0, 0] = -1; assert grid[0, 0, 0] == -1
        part[:] = 7; assert table[10, 1] == table[19, 2] == 7 and table[9, 1] == 0
        assert not fixed.flags.writeable and fixed[9, 1] == 7 and table.flags.f_contiguous
        some[0].append(2); some[1] = "set"; assert words[1] == [1, 2] and words[2] == "set"
        shown[0] = -1; assert buffer[4:8] == b"\\xff" * 4
        field[2] = 2.5; assert records[2]["b"] == 2.5 and nothing.shape == (0, 3, 4)
        """,
    )


def test_a_view_that_has_the_memory_for_itself_is_saved_alone(boxes: Boxes) -> None:
    box = boxes()
    run(box, "import numpy\nsmall = numpy.zeros(10 ** 6)[:10]")
    settle(box)
    assert (workspace_of(box) / "state.dill").stat().st_size < 15_000
    revive(box)
    run(box, "assert small.shape == (10,)")


def test_arrays_own_their_memory_again(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import numpy
        array = numpy.arange(6.0)
        fixed = numpy.arange(3); fixed.flags.writeable = False
        turned = numpy.asfortranarray(numpy.arange(6).reshape(2, 3))
        function = numpy.add
        number, kind = numpy.float32(1.5), numpy.dtype([("a", "i4")])
        """,
    )
    revive(box)
    run(
        box,
        """
        array.resize(8, refcheck=False)
        assert list(array) == [0, 1, 2, 3, 4, 5, 0, 0] and array.flags.owndata
        assert not fixed.flags.writeable and turned.flags.f_contiguous and turned[1, 2] == 5
        assert function is numpy.add and number == 1.5 and kind.names == ("a",)
        """,
    )


def test_a_subclass_keeps_its_attributes(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import numpy
        class Named(numpy.ndarray):
            def __array_finalize__(self, other): self.label = getattr(other, "label", None)
        named = numpy.arange(3).view(Named); named.label = "mine"
        masked = numpy.ma.array([1, 2], mask=[0, 1])
        """,
    )
    revive(box)
    run(box, "assert type(named) is Named and named.label == 'mine' and named.sum() == 3")
    run(box, "assert masked.sum() == 1 and masked.mask[1]")


def test_arrays_of_subclasses_share_memory_too(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import array, numpy
        class Named(numpy.ndarray):
            def __array_finalize__(self, other): self.label = getattr(other, "label", None)
        plain = numpy.arange(4.0)
        masked = numpy.ma.masked_array(plain, mask=[0, 1, 0, 0], fill_value=7)
        named = plain[1:].view(Named); named.label = "mine"
        part, matrix = named[:2], numpy.asmatrix(plain.reshape(2, 2))
        table = numpy.array([(1, 2.5)], dtype=[("i", "i4"), ("f", "f8")])
        records = table.view(numpy.recarray)
        alone = numpy.zeros(10 ** 6).view(Named)[:3]
        numbers = array.array("d", [1, 2]); shown = numpy.frombuffer(numbers)
        limits = numpy.finfo(float)
        """,
    )
    settle(box)
    assert (workspace_of(box) / "state.dill").stat().st_size < 15_000
    revive(box)
    run(box, "x = 1")
    revive(box)
    run(
        box,
        """
        plain[:2] = 50, -1
        assert masked.data[0] == 50 and masked.mask[1] and masked.sum() == 55
        assert masked.fill_value == 7 and type(masked) is numpy.ma.MaskedArray
        assert named[0] == part[0] == matrix[0, 1] == -1 and matrix[0, 0] == 50
        assert named.label == part.label == "mine" and type(part) is Named
        table["i"][0] = 9; assert records.i[0] == 9 and len(alone) == 3
        numbers[0] = 7; assert shown[0] == 7 and limits.eps > 0
        """,
    )
