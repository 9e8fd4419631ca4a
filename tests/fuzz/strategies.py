"""Strategies for hypothesis: what hostile guests and callers send and do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from rlm_containers.guest import wire


@dataclass(frozen=True)
class Act:
    """One action of a guest.

    Attributes:
        kind: ``"send"`` sends bytes, ``"hear"`` receives a message of the host, ``"ready"`` and
            ``"result"`` answer it as a guest should, and ``"plant"`` puts a file into the workspace.
        raw: the bytes to send.
        more: fields to add to an answer or to replace in it.
        name: the name of the file to plant.
        what: the kind of file to plant, see :func:`tests.fuzz.host.plant`.
    """

    kind: str
    raw: bytes = b""
    more: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    what: str = ""

    @property
    def frames(self) -> int:
        """The number of frames that it sends, valid or not."""
        return self.kind in ("send", "ready", "result")


# JSON, valid and invalid

_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\ud800", "x" * 5000, "😀" * 300, "\0", "*", "../x", "/etc/passwd", "a\nb"]),
)
_numbers = st.one_of(
    st.integers(min_value=-3, max_value=6),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -(10**4000)]),
    st.floats(),  # NaN and infinities as well
)
_leaves = st.one_of(st.none(), st.booleans(), _numbers, _texts)
_values = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)
    ),
    max_leaves=12,
)
_bombs = st.sampled_from(
    [
        b"[" * 3000,
        b"[" * 3000 + b"]" * 3000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b'{"op":' + b"1" * 5000 + b"}",
        b'{"op": "result", "id": 1, "status": NaN}',
        b'{"op": "result", "id": 1, "op": "saved"}',
        b'{"op": "saved", "unsaved": [' + b"[]," * 3000 + b"[]]}",
        b'{"op": "result", "id": 1, "locals": {' + b'"a":{},' * 3000 + b'"b":1}}',
        b'"\\ud800"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"",
        b"null",
        b"{}",
        b"\0" * 100,
    ]
)


def _encoded(content: object) -> bytes:
    return json.dumps(content).encode("ascii")


@st.composite
def _mutated(draw: st.DrawFn, payloads: st.SearchStrategy[bytes]) -> bytes:
    raw = bytearray(draw(payloads))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        how = draw(st.sampled_from(["change", "cut", "insert"]))
        if how == "change" and raw:
            raw[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del raw[place:]
        else:
            raw[place:place] = draw(st.binary(max_size=8))
    return bytes(raw)


_reports = st.one_of(
    _values,
    st.lists(st.lists(_texts, min_size=3, max_size=3), max_size=5),
    st.lists(_texts, max_size=5),
)
_ops = st.sampled_from(
    ["result", "ready", "saved", "begun", "cell", "start", "tools", "", "op", "__class__"]
)
_message = st.fixed_dictionaries(
    {"op": st.one_of(_ops, _values)},
    optional={
        "id": st.one_of(_numbers, _values),
        "status": st.one_of(
            st.sampled_from(
                ["ok", "error", "exit", "interrupted", "died", "timeout", "full", "killed"]
            ),
            _values,
        ),
        "locals": st.one_of(st.dictionaries(_texts, _leaves, max_size=5), _values),
        "final_answer": _values,
        "unsaved": _reports,
        "lost": _reports,
        "older": _reports,
        "names": st.one_of(st.lists(_texts, max_size=5), _values),
        "damage": _values,
        "error": _values,
        "route": _values,
        "reason": _values,
        "skipped": _values,
        "exit_code": st.one_of(_numbers, _values),
        "artifacts": st.one_of(st.lists(_texts, max_size=5), _values),
        "variables": _reports,
        "state": st.one_of(st.lists(_numbers, min_size=2, max_size=2), _values),
    },
)
_event = st.fixed_dictionaries(
    {"event": st.one_of(st.sampled_from(["died", "killed", "failed", "hello", "limits"]), _values)},
    optional={
        "signal": st.one_of(_numbers, _values),
        "exit": st.one_of(_numbers, _values),
        "saved": st.one_of(_numbers, _values),
        "begun": st.one_of(_numbers, _values),
        "python": _values,
        "memory": _values,
        "oom": _values,
    },
)
_request = st.one_of(
    _values,
    st.fixed_dictionaries({"prompt": _values}, optional={"model": _values}),
    st.fixed_dictionaries({"prompts": st.one_of(st.lists(_values, max_size=4), _values)}),
    st.fixed_dictionaries({"name": st.one_of(st.just("tool"), _values)}, optional={
        "args": st.one_of(st.lists(_values, max_size=3), _values),
        "kwargs": st.one_of(st.dictionaries(_texts, _values, max_size=3), _values),
    }),
)  # fmt: skip
_paths = st.one_of(
    st.sampled_from(["/llm_query", "/llm_query_batched", "/rlm_query", "/rlm_query_batched"]),
    st.sampled_from(["/tool", "/", "/etc/passwd", "llm_query"]),
    _values,
)
_call = st.fixed_dictionaries({}, optional={"path": _paths, "request": _request})

_ended = st.fixed_dictionaries(
    {},
    optional={
        "exit": st.one_of(_numbers, _values),
        "signal": st.one_of(_numbers, _values),
        "memory": _values,
    },
)


def _of_commands(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return payloads about commands, most of them about the first, which runs."""
    numbers = st.one_of(st.just(0), st.just(0), st.integers(0, 2**32 - 1))
    return st.tuples(numbers.map(lambda n: n.to_bytes(4, "big")), content).map(b"".join)


# Frames, valid and invalid

_payloads = {
    wire.MESSAGE: _message.map(_encoded),
    wire.EVENT: _event.map(_encoded),
    wire.CALL: st.tuples(
        st.one_of(st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4, "big")), st.binary()),
        st.one_of(_call.map(_encoded), _bombs),
    ).map(b"".join),
    wire.STDOUT: st.binary(max_size=2000),
    wire.STDERR: st.one_of(st.binary(max_size=50), st.just(b"x" * 100_000)),
    wire.RUN_OUT: _of_commands(st.binary(max_size=2000)),
    wire.RUN_ERR: _of_commands(st.one_of(st.binary(max_size=50), st.just(b"x" * 100_000))),
    wire.TAKEN: _of_commands(st.binary(max_size=4)),
    wire.ENDED: _of_commands(st.one_of(_ended.map(_encoded), _bombs)),
}


@st.composite
def _frame(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(list(_payloads)))
    return wire.encode(kind, draw(_payloads[kind]))


@st.composite
def _odd_frame(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(list(_payloads)))
    return wire.encode(kind, draw(st.one_of(_bombs, _mutated(_payloads[kind]), st.binary())))


@st.composite
def _broken_frame(draw: st.DrawFn) -> bytes:
    payload = draw(st.binary(max_size=50))
    length = draw(
        st.one_of(
            st.integers(0, 60),
            st.sampled_from([2**32 - 1, 2**31, wire.MAX_FRAME, wire.MAX_FRAME + 1, 2**20 + 1]),
        )
    )
    return length.to_bytes(4, "big") + bytes([draw(st.integers(0, 255))]) + payload


_send = st.one_of(
    _frame(),
    _frame(),
    _frame(),
    _odd_frame(),
    st.one_of(_broken_frame(), st.binary(min_size=1, max_size=30)),
).map(lambda raw: Act("send", raw=raw))

_plants = ("outside", "directory outside", "nowhere", "itself", "fifo", "link", "tree", "locked")
_names = st.sampled_from(
    [
        "context_0.txt",
        "context_0.json",
        "..",
        "...",
        "\udcff",
        "a\nb",
        "-rf",
        "state.dill",
        "x" * 250,
    ]
)
_plant = st.builds(
    lambda name, what: Act("plant", name=name, what=what), _names, st.sampled_from(_plants)
)
_more = st.one_of(
    st.just({}),
    st.just({}),
    st.dictionaries(
        st.sampled_from(
            ["op", "id", "status", "locals", "lost", "older", "final_answer", "unsaved"]
        ),
        _values,
        max_size=2,
    ),
)
_answer = st.builds(
    lambda kind, more: Act(kind, more=more), st.sampled_from(["ready", "result"]), _more
)

#: All actions of one guest after its greeting. Many guests behave well at first, because the host
#: gives up a guest at its first invalid frame.
acts = st.builds(
    lambda well, rest: [*[Act("hear"), Act("ready"), Act("hear"), Act("result")][:well], *rest],
    st.sampled_from([0, 2, 2, 4, 4]),
    st.lists(
        st.one_of(_send, _send, _send, _send, _answer, st.just(Act("hear")), _plant),
        min_size=10,
        max_size=80,
    ),
)


# HTTP, valid and invalid

_heads = st.builds(
    lambda method, path, version: f"{method} {path} {version}\r\n".encode("utf-8", "replace"),
    st.sampled_from(["POST", "POST", "GET", "PRI", "post", ""]),
    st.one_of(st.sampled_from(["/llm_query", "/llm_query_batched", "/", "*"]), _texts),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""]),
)
_headers = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"Authorization: TOKEN\r\n",
                b"Authorization: Bearer x\r\n",
                b"Content-Length: LENGTH\r\n",
                b"Content-Length: -1\r\n",
                b"Content-Length: 99999999999999999999\r\n",
                b"Content-Length: 5, 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Expect: 100-continue\r\n",
                b"Connection: close\r\n",
                b"X: " + b"y" * 70_000 + b"\r\n",
                b": no name\r\n",
                b" folded\r\n",
            ]
        ),
        st.binary(max_size=40),
    ),
    max_size=6,
)
_body = st.one_of(_request.map(_encoded), _bombs, st.binary(max_size=40))

#: The bytes of one connection to the proxy. ``TOKEN`` and ``LENGTH`` stand for the right values.
proxy_bytes = st.lists(
    st.one_of(
        st.builds(
            lambda body: (
                b"POST /llm_query HTTP/1.1\r\nAuthorization: TOKEN\r\nContent-Length: LENGTH\r\n\r\n",
                body,
            ),
            _body,
        ),
        st.tuples(
            st.tuples(_heads, _headers.map(b"".join)).map(lambda p: p[0] + p[1] + b"\r\n"), _body
        ),
        st.tuples(st.binary(max_size=60), st.just(b"")),
    ),
    min_size=1,
    max_size=4,
)
