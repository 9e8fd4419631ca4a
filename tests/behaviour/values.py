"""Values for the tests of restoring variables.

``tests/behaviour`` restores all of them at once, on each Python.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rlm_containers import Sandbox
from tests.support import printed

#: A cell that deletes every variable.
CLEAR = "[globals().pop(_) for _ in [_ for _ in globals() if _[:2] != '__']]"


@dataclass(frozen=True)
class Value:
    """A value to restore.

    Attributes:
        name: what it is.
        define: the code of a cell that defines it.
        look: the code of a cell that looks at it, after a restore or without one.
        expected: what that cell prints.
        since: the first Python that can run it.
    """

    name: str
    define: str
    look: str
    expected: str
    since: tuple[int, int] = (3, 9)

    def __post_init__(self) -> None:
        for field in ("define", "look", "expected"):
            text = textwrap.dedent(getattr(self, field)).strip("\n")
            object.__setattr__(self, field, text)


VALUES = (
    Value(
        "plain",
        r"""
        integer, real, imaginary, truth, nothing = 7, 2.5, 1j, True, None
        text, raw = 'grüße \ud800', b'\xff'
        """,
        "print(integer, real, imaginary, truth, nothing, ascii(text), raw)",
        "7 2.5 1j True None 'gr\\xfc\\xdfe \\ud800' b'\\xff'",
    ),
    Value(
        "containers",
        """
        import collections
        row, pair, some, fixed, table = [1], (2,), {3}, frozenset([4]), {5: 6}
        dq = collections.deque([1, 2], 2)
        dd = collections.defaultdict(list, a=[1])
        ct = collections.Counter('aab')
        od = collections.OrderedDict(z=1, a=2)
        """,
        """
        dq.append(3); dd['b'].append(2)
        print(row, pair, some, fixed, table, list(dq), dict(dd), ct['a'], *od)
        """,
        "[1] (2,) {3} frozenset({4}) {5: 6} [2, 3] {'a': [1], 'b': [2]} 2 z a",
    ),
    Value(
        "library objects",
        """
        import datetime, decimal, fractions, pathlib, re, random, uuid
        day, price = datetime.date(2024, 2, 29), decimal.Decimal('1.10')
        part, path, word = fractions.Fraction(1, 3), pathlib.Path('/a'), re.compile('w+')
        dice = random.Random(1); throw = random.Random(1).random(); ident = uuid.UUID(int=1)
        """,
        """
        print(day, price, part, path / 'b', word.findall('www x ww'), dice.random() == throw)
        """,
        "2024-02-29 1.10 1/3 /a/b ['www', 'ww'] True",
    ),
    Value(
        "huge numbers",
        """
        huge = 7 ** 40_000
        """,
        "print(huge == 7 ** 40_000)",
        "True",
    ),
    Value(
        "types",
        """
        import typing
        numbers, either, maybe = list[int], int | str, typing.Optional[int]
        dots, kind = ..., int
        """,
        "print(numbers, either, maybe, dots, kind)",
        "list[int] int | str typing.Optional[int] Ellipsis <class 'int'>",
        since=(3, 10),
    ),
    Value(
        "modules",
        """
        import math as m, os.path, json.decoder
        from xml import dom
        """,
        """
        print(m.floor(2.5), os.path.basename('/a/b'))
        print(json.decoder.JSONDecodeError.__name__, dom.__name__)
        """,
        """
        2 b
        JSONDecodeError xml.dom
        """,
    ),
    Value(
        "a module of the workspace",
        r"""
        open('helpers.py', 'w').write('VALUE = 11\ndef get(): return VALUE\n')
        import helpers
        get = helpers.get
        """,
        "print(helpers.VALUE, get(), get is helpers.get)",
        "11 11 True",
    ),
    Value(
        "functions",
        """
        def add(a, b=2, *rest, c, **more):
            'Adds.'
            return a + b + c
        add.mark = 'm'
        """,
        "print(add(1, c=3), add.__doc__, add.mark, add.__name__, add.__module__)",
        "6 Adds. m add __main__",
    ),
    Value(
        "functions that use what is defined later",
        """
        def first(): return second() + offset
        def second(): return 1
        offset = 10
        """,
        """
        print(first(), end=' ')
        offset = 20
        def second(): return 2
        print(first())
        """,
        "11 22",
    ),
    Value(
        "functions that bind globals",
        """
        count = 0
        def bump():
            global count
            count += 1
            return count
        """,
        """
        bump()
        print(bump(), count, bump.__globals__ is globals())
        """,
        "2 2 True",
    ),
    Value(
        "recursion",
        """
        def fact(n): return n * fact(n - 1) if n else 1
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        """,
        "print(fact(5), even(10))",
        "120 True",
    ),
    Value(
        "closures",
        """
        def counter():
            n = 0
            def step():
                nonlocal n
                n += 1
                return n
            def back():
                nonlocal n
                n -= 1
                return n
            return step, back
        step, back = counter()
        step(); step()
        """,
        "print(step(), back(), step())",
        "3 2 3",
    ),
    Value(
        "lambdas and partials",
        """
        import functools, operator
        double = lambda v: v * 2
        adders = [lambda v, k=k: v + k for k in (1, 2)]
        plus = functools.partial(operator.add, 1)
        key = operator.itemgetter(1)
        """,
        "print(double(2), [f(1) for f in adders], plus(1), key('ab'))",
        "4 [2, 3] 2 b",
    ),
    Value(
        "decorated functions",
        """
        import functools
        def loud(f):
            @functools.wraps(f)
            def inner(*a):
                return f(*a).upper()
            return inner
        @loud
        def hi(n): return 'hi ' + n
        @functools.lru_cache
        def slow(n): return n * 2
        """,
        "print(hi('ada'), hi.__name__, slow(4))",
        "HI ADA hi 8",
    ),
    Value(
        "generator and async functions",
        """
        import asyncio
        def upto(n): yield from range(n)
        async def later(): return 'later'
        """,
        "print(list(upto(3)), asyncio.run(later()))",
        "[0, 1, 2] later",
    ),
    Value(
        "classes and instances",
        """
        class Base:
            made = 0
            def __init__(self, n):
                type(self).made += 1
                self.n = n
            @property
            def twice(self): return self.n * 2
            @classmethod
            def one(cls): return cls(1)
            @staticmethod
            def k(): return 'k'
        class Child(Base):
            def __init__(self, n):
                super().__init__(n + 100)
            def __eq__(self, other): return self.n == other.n
            __hash__ = None
        base, child, method = Base.one(), Child(1), Base(5).k
        """,
        """
        print(type(base) is Base, isinstance(child, Base), type(child) is Child)
        print(base.twice, child.n)
        print(Child(1) == child, Base.made, Child.made, Base.k(), method(), Child.__mro__[1] is Base)
        """,
        """
        True True True
        2 101
        True 2 3 k k True
        """,
    ),
    Value(
        "slots, metaclasses, abstract classes",
        """
        import abc
        class Meta(type):
            def __len__(cls): return 3
        class M(metaclass=Meta): pass
        class S:
            __slots__ = ('x',)
        slotted = S(); slotted.x = 9
        class A(abc.ABC):
            @abc.abstractmethod
            def f(self): ...
        class C(A):
            def f(self): return 'f'
        concrete = C()
        """,
        """
        print(len(M), type(M) is Meta, slotted.x, hasattr(slotted, '__dict__'))
        print(concrete.f(), isinstance(concrete, A))
        try: A()
        except TypeError: print('abstract')
        """,
        """
        3 True 9 False
        f True
        abstract
        """,
    ),
    Value(
        "dataclasses",
        """
        from dataclasses import dataclass, field, asdict, replace
        @dataclass(frozen=True, order=True)
        class Place:
            x: int
            tags: list = field(default_factory=list, compare=False)
        place = Place(1)
        place.tags.append('t')
        """,
        """
        print(place, place < Place(2), place == Place(1), asdict(replace(place, x=3)), type(place) is Place)
        try: place.x = 2
        except AttributeError as e: print(type(e).__name__)
        """,
        """
        Place(x=1, tags=['t']) True True {'x': 3, 'tags': ['t']} True
        FrozenInstanceError
        """,
    ),
    Value(
        "enums",
        """
        import enum
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
            def low(self): return self.name.lower()
        class Bits(enum.IntFlag):
            A = 1
            B = 2
        red, both, by_color = Color.RED, Bits.A | Bits.B, {Color.BLUE: 1}
        """,
        """
        print(red is Color.RED, Color(2), by_color[Color.BLUE])
        print(red.low(), int(both & Bits.A), list(Color))
        """,
        """
        True Color.BLUE 1
        red 1 [<Color.RED: 1>, <Color.BLUE: 2>]
        """,
    ),
    Value(
        "named tuples",
        """
        import collections, typing
        Point = collections.namedtuple('Point', 'x y')
        class Pair(typing.NamedTuple):
            a: int
            b: str = 'b'
            def both(self): return (self.a, self.b)
        p, q = Point(1, 2), Pair(3)
        """,
        "print(p, p.x, q, q.both(), type(q) is Pair, isinstance(p, Point), p._replace(x=5))",
        "Point(x=1, y=2) 1 Pair(a=3, b='b') (3, 'b') True True Point(x=5, y=2)",
    ),
    Value(
        "generics and typed dicts",
        """
        import typing
        T = typing.TypeVar('T')
        class Box(typing.Generic[T]):
            def __init__(self, v: T): self.v = v
            def get(self) -> T: return self.v
        class Movie(typing.TypedDict):
            name: str
        box: Box[int] = Box(4)
        IntBox = Box[int]
        film: Movie = {'name': 'm'}
        """,
        "print(box.get(), type(box) is Box, IntBox(5).v, Movie(name='n'), film)",
        "4 True 5 {'name': 'n'} {'name': 'm'}",
    ),
    Value(
        "exceptions",
        """
        class Trouble(Exception):
            def __init__(self, code):
                super().__init__(code)
                self.code = code
        try:
            raise Trouble(5)
        except Trouble as e:
            caught = e
        """,
        """
        print(type(caught) is Trouble, caught.code)
        try: raise Trouble(6)
        except Trouble as e: print(e.code)
        """,
        """
        True 5
        6
        """,
    ),
    Value(
        "objects whose methods run while they are loaded",
        """
        import os
        def low(s): return s.lower()
        class Key:
            def __init__(self, s): self.s, self.cwd = s, os.getcwd()
            def __hash__(self): return hash(low(self.s))
            def __eq__(self, other): return low(self.s) == low(other.s)
            def __setstate__(self, state): self.__dict__.update(state, cwd=os.getcwd())
        keyed = {Key('A'): 1}
        """,
        "print(keyed[Key('a')], [os.path.exists(k.cwd + '/state.dill') for k in keyed])",
        "1 [True]",
    ),
    Value(
        "aliases",
        """
        alias = same = [1]
        shared = {'k': 1}
        one, two = [shared], {'s': shared}
        append = alias.append
        """,
        """
        alias.append(2); one[0]['k'] = 2; append(3)
        print(same, same is alias, two['s'], two['s'] is shared)
        """,
        "[1, 2, 3] True {'k': 2} True",
    ),
    Value(
        "aliases of instances",
        """
        class Node:
            def __init__(self, v): self.v, self.next = v, None
        node = Node(1); nodes = [node]; node.next = node; index = {1: node}
        Node.first = node
        """,
        "print(node is node.next is nodes[0] is index[1] is Node.first, type(node) is Node)",
        "True True",
    ),
    Value(
        "one big string under two names",
        """
        big = 'abc' * 200_000
        other = big
        held = [big, {'deep': big}]
        big_raw = b'x' * 600_000
        """,
        """
        print(len(big), other is big, held[0] is big, held[1]['deep'] is big, big_raw == b'x' * 600_000)
        """,
        "600000 True True True True",
    ),
    Value(
        "structures that contain themselves",
        """
        ring = [1]; ring.append(ring)
        loop = {}; loop['d'] = loop
        knot = ([],); knot[0].append(knot)
        def recall(): return recall.memory
        recall.memory = [recall]
        """,
        "print(ring[1] is ring, loop['d'] is loop, knot[0][0] is knot, recall()[0] is recall)",
        "True True True True",
    ),
    Value(
        "names of one's own",
        """
        _private, __mine__, ünï = 1, 2, 3
        print_ = print
        def id(x): return 'my id'
        """,
        "print(_private, __mine__, ünï, print_ is print, id(0))",
        "1 2 3 True my id",
    ),
    Value(
        "annotations",
        """
        annotated: int = 1
        declared: str
        """,
        "print(annotated, 'declared' in __annotations__)",
        "1 True",
    ),
    Value(
        "the answer so far",
        """
        answer['content'] = 'half'; my_answer = answer
        """,
        "print(answer['content'], answer['ready'], my_answer is answer)",
        "half False True",
    ),
    Value(
        "functions of the scaffold",
        """
        ask = llm_query
        asks = [llm_query_batched]
        show = SHOW_VARS
        """,
        "print(ask is llm_query, asks[0] is llm_query_batched, show is SHOW_VARS)",
        "True True True",
    ),
)


def define(box: Sandbox, values: Sequence[Value] = VALUES) -> None:
    """Define the values in a single cell, because every cell saves all variables."""
    printed(box, "\n".join(value.define for value in values))


def assert_seen(box: Sandbox, values: Sequence[Value] = VALUES) -> None:
    """Look at the values in a single cell. Check what it prints."""
    mark = "----- "
    looks = (f"print({mark + value.name!r})\n{value.look}" for value in values)
    seen = dict(part.split("\n", 1) for part in printed(box, "\n".join(looks)).split(mark) if part)
    assert seen == {value.name: value.expected + "\n" for value in values}
