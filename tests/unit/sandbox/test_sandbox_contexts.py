"""Contexts: values of this process that arrive in the container unchanged."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter, OrderedDict, defaultdict
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import ContextError, OptionError, WorkspaceError
from tests.unit.sessions import Boxes, revive, run, settle, workspace_of

DOCUMENTS: list[Any] = [
    {},
    [],
    {"a": [1, 2.5, None, True, "ü\ud800", {"b": []}]},
    [{"role": "user", "content": "hello"}] * 3,
    [float("inf"), -0.0, 10**30],
    {"": ""},
    ["x" * 600_000],
    [[[[[[[[[[]]]]]]]]]],
]


def test_documents_arrive_as_they_are(box: Sandbox) -> None:
    for document in DOCUMENTS:
        box.load("data", document)
        run(box, f"import json\nassert data == json.loads({json.dumps(document)!r}), data")
        settle(box)
        revive(box)
        run(box, f"assert data == json.loads({json.dumps(document)!r}), data")


class Text(str):
    __slots__ = ()


class Color(IntEnum):
    RED = 1


def nested(depth: int) -> list[Any]:
    document: list[Any] = ["inner"]
    for _ in range(depth):
        document = [document]
    return document


ROW = {"tags": ["a"]}

#: What JSON turns into something else.
ALIKE: dict[str, Any] = {
    "tuples": {"a": (1, ("b",))},
    "keys": {1: "a", False: "b", None: "c", 2.5: "d"},
    "subclasses of dict": [OrderedDict(a=1), defaultdict(int, b=2), Counter("x")],
    "subclass of str": [Text("text"), {Text("key"): 1}],
    "enum": [Color.RED],
    "one row twice": [ROW, ROW],
    "one row on two levels": [{"rows": [ROW]}, ROW],
    "one empty list twice": [[]] * 2,
    "very deep": nested(600),
    "nearly as deep": nested(400),
}


@pytest.mark.parametrize("what", ALIKE)
def test_documents_arrive_as_json_would_have_them(box: Sandbox, what: str) -> None:
    document = ALIKE[what]
    box.load("data", document)
    expected = f"import json\nexpected = json.loads({json.dumps(document)!r})"
    same = f"{expected}\nassert repr(data) == repr(expected), data"
    run(box, same)
    settle(box)
    revive(box)
    run(box, same)


@pytest.mark.parametrize("shared", [False, True])
def test_the_rows_of_a_document_are_separate(box: Sandbox, shared: bool) -> None:
    row = {"tags": ["a"]}
    box.load("data", [row, row if shared else {"tags": ["a"]}])
    run(box, "data[0]['tags'].append('b')\ndata[0]['new'] = 1")
    for _ in range(2):
        run(box, "assert data == [{'tags': ['a', 'b'], 'new': 1}, {'tags': ['a']}], data")
        settle(box)
        revive(box)


def test_a_document_may_change_while_it_is_sent(box: Sandbox) -> None:
    # What is in it then need not be JSON, but must not break anything else.
    box.load("other", "kept")
    document = [{"n": n} for n in range(20_000)]
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for row in document:
                row["n"] = Fraction(1, 3) if row["n"] == 1 else 1  # type: ignore[assignment]

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(3):
            with contextlib.suppress(ContextError):
                box.load("data", document)
            run(box, "assert other == 'kept'")
    finally:
        ended.set()
        changing.join()


@pytest.mark.parametrize("value", [None, 5, 2.5, b"bytes", {1, 2}, ("a",), object(), True])
def test_a_context_must_be_text_a_dict_or_a_list(shared: Sandbox, value: Any) -> None:
    with pytest.raises(ContextError, match=f"not {type(value).__name__}"):
        shared.load("other", value)
    assert "other" not in run(shared, "x = 1").locals


def recursive() -> list[Any]:
    document: list[Any] = []
    document.append(document)
    return document


def deep() -> list[Any]:
    document: list[Any] = []
    for _ in range(100_000):
        document = [document]
    return document


@pytest.mark.parametrize(
    "value",
    [{"a": {1}}, [object()], {(1, 2): 3}, [b"x"], recursive(), deep(), {"a": complex(1)}],
    ids=["set", "object", "tuple as key", "bytes", "recursive", "deep", "complex"],
)
def test_a_context_must_be_expressible_as_json(shared: Sandbox, value: Any) -> None:
    shared.load("data", "before")
    with pytest.raises(ContextError, match="data cannot be expressed as JSON"):
        shared.load("data", value)
    assert run(shared, "print(data)").stdout == "before\n"  # nothing has changed


@pytest.mark.parametrize(
    "name", ["", "a b", "1a", "a.b", "a/b", "../x", "a\n", "a-b", "class x", 3, None]
)
def test_a_variables_name_must_be_an_identifier(shared: Sandbox, name: Any) -> None:
    with pytest.raises(OptionError, match="is not the name of a variable"):
        shared.load(name, "text")


@pytest.mark.parametrize("name", ["ü", "_x", "x" * 120, "data_1"])
def test_unusual_names(shared: Sandbox, name: str) -> None:
    shared.load(name, "text")
    assert run(shared, f"print({name})").stdout == "text\n"


def test_a_variable_is_loaded_again(box: Sandbox) -> None:
    for value in ("text", ["a"], "other", {"b": 1}):
        box.load("data", value)
        assert run(box, "print(data)").stdout == f"{value}\n"
        revive(box)
        assert run(box, "print(data)").stdout == f"{value}\n"


@pytest.mark.parametrize("kind", ["text", "document"])
def test_references_to_an_earlier_value_keep_it(box: Sandbox, kind: str) -> None:
    first: Any = "a" * 300_000 if kind == "text" else [["a"] * 50_000, {"x": "a"}]
    second: Any = "b" * 300_000 if kind == "text" else [["b"] * 50_000, {"x": "b"}]
    box.load("data", first)
    run(box, "keep = data\npiece = data[-1]")
    box.load("data", second)
    revive(box)
    expected = "a" if kind == "text" else {"x": "a"}
    code = f"print(keep[-1] == {expected!r}, piece == {expected!r}, len(keep), data == keep)"
    assert run(box, code).stdout == f"True True {len(first)} False\n"


def test_files_of_superseded_values_are_removed(box: Sandbox) -> None:
    for number in range(6):
        box.load("data", f"{number}" * 300_000)
        run(box, f"x = {number}")
    settle(box)
    names = [path.name for path in workspace_of(box).iterdir() if path.name.startswith("data")]
    assert len(names) <= 2


def test_a_context_that_a_cell_changed_is_saved_as_changed(box: Sandbox) -> None:
    box.load("data", {"rows": [{"n": number} for number in range(100)]})
    run(box, "row = data['rows'][5]\nrow['n'] = 'changed'\ndata['rows'].pop()")
    revive(box)
    run(box, "assert data['rows'][5] is row and row['n'] == 'changed' and len(data['rows']) == 99")


def test_pieces_of_a_context_stay_pieces_of_it(box: Sandbox) -> None:
    box.load("data", [{"n": number, "tags": []} for number in range(100)])
    run(box, "some = [row for row in data if row['n'] % 10 == 0]\nfirst = data[0]['tags']")
    revive(box)
    run(box, "assert some[1] is data[10] and first is data[0]['tags'] and some[0]['tags'] is first")


def test_two_documents_and_a_variable_with_pieces_of_one(box: Sandbox) -> None:
    box.load("data", [{"n": number} for number in range(100)])
    run(box, "some = data[5:8]\ndata[6]['n'] = 'changed'")
    box.load("other", [{"n": number} for number in range(100)])
    for _ in range(2):
        revive(box)
        run(box, "assert some[1] is data[6] and some[1]['n'] == 'changed' and other[6]['n'] == 6")


def test_a_cell_that_changes_a_document_after_it_was_saved(box: Sandbox) -> None:
    box.load("data", [{"n": number} for number in range(100)])
    settle(box)
    run(box, "row = data.pop()")
    settle(box)
    run(box, "data.append(row)")
    revive(box)
    run(box, "assert data[99] is row and len(data) == 100")


def test_a_file_that_a_cell_removed_or_changed_costs_that_variable_only(boxes: Boxes) -> None:
    box = boxes()
    box.load("gone", "g" * 300_000)
    box.load("changed", "c" * 300_000)
    box.load("fine", "f" * 300_000)
    run(box, "other = 1")
    settle(box)
    for path in workspace_of(box).iterdir():
        if path.name.startswith("gone"):
            path.unlink()
        elif path.name.startswith("changed"):
            path.write_text("C" * 300_000)
    result = revive(box, "gone", "changed")
    assert "changed" in result.stderr
    run(box, "assert fine == 'f' * 300_000 and other == 1")


def test_a_directory_in_the_way_of_a_context(box: Sandbox) -> None:
    run(box, "import os; os.makedirs('data.txt/x')")
    with pytest.raises(WorkspaceError):
        box.load("data", "text")
    run(box, "import shutil; shutil.rmtree('data.txt')")
    box.load("data", "text")
    assert run(box, "print(data)").stdout == "text\n"
