"""Variables come back from the dead: what a session is after its interpreter was killed."""

from __future__ import annotations

from tests.unit.sessions import DIE, Boxes, revive, run

VALUES = [
    "None",
    "[1, 2.5, 1j, True, b'bytes', 'ünï€🐍', ()]",
    "{'a': {1, 2}, (1, 2): frozenset((3,)), None: ...}",
    "2 ** 10_000",
    "float('inf')",
    "'lone \\ud800 surrogate'",
    "bytearray(b'abc')",
    "range(3, 30, 3)",
    "slice(1, 2)",
    "'x' * 300_000",
    "b'x' * 300_000",
    "__import__('collections').OrderedDict(a=1)",
    "__import__('collections').Counter('hello')",
    "__import__('collections').deque([1, 2], maxlen=2)",
    "__import__('datetime').datetime(2020, 1, 2, tzinfo=__import__('datetime').timezone.utc)",
    "__import__('decimal').Decimal('1.10')",
    "__import__('fractions').Fraction(1, 3)",
    "__import__('pathlib').PurePosixPath('/a/b')",
    "__import__('uuid').UUID(int=5)",
    "__import__('array').array('d', [1.0, 2.0])",
    "__import__('re').compile('a(b)?')",
]


def test_values_of_many_types_come_back(boxes: Boxes) -> None:
    box = boxes()
    for number, value in enumerate(VALUES):
        run(box, f"v{number} = {value}")
    revive(box)
    for number, value in enumerate(VALUES):
        run(box, f"assert v{number} == {value}, v{number}\nassert type(v{number}) is type({value})")


def test_functions_come_back_as_functions(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import functools
        factor = 3
        def times(x, *, offset=1):
            "Multiplies."
            return x * factor + offset
        def factorial(n):
            return 1 if n < 2 else n * factorial(n - 1)
        def counter():
            count = 0
            def step():
                nonlocal count
                count += 1
                return count
            return step
        step = counter(); step(); step()
        square = lambda x: x * x
        partial = functools.partial(times, offset=100)
        @functools.lru_cache(maxsize=5)
        def cached(x): return x + factor
        def annotated(x: "int") -> list[int]: return [x]
        """,
    )
    revive(box)
    run(
        box,
        """
        assert times(2) == 7 and times.__doc__ == "Multiplies."
        factor = 10  # functions see the session's variables, not copies of them
        assert times(2) == 21 and partial(2) == 120 and cached(1) == 11
        assert factorial(10) == 3628800
        assert step() == 3
        assert square(9) == 81
        assert annotated.__annotations__ == {"x": "int", "return": list[int]}
        assert times.__globals__ is globals()
        """,
    )


def test_classes_and_their_instances_stay_together(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import abc, collections, dataclasses, enum, typing
        class Base(abc.ABC):
            registry = {}
            def __init_subclass__(cls): Base.registry[cls.__name__] = cls
            @abc.abstractmethod
            def area(self): ...
        class Square(Base):
            def __init__(self, side): self.side = side
            def area(self): return self.side ** 2
            @property
            def double(self): return Square(self.side * 2)
            @classmethod
            def unit(cls): return cls(1)
            @staticmethod
            def name(): return "square"
        class Special(Square):
            def area(self): return super().area() + 1
        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            y: int = 5
        class Colour(enum.Enum):
            RED = 1
            BLUE = 2
        Pair = collections.namedtuple("Pair", "left right")
        class Named(typing.NamedTuple):
            a: int
        class Slots:
            __slots__ = ("v",)
        s, special, point, red, pair = Square(3), Special(2), Point(1), Colour.RED, Pair(1, 2)
        named = Named(7)
        slots = Slots(); slots.v = 8
        class Failure(Exception): pass
        failure = Failure("x", 5)
        """,
    )
    revive(box)
    run(
        box,
        """
        assert type(s) is Square and s.area() == 9 and s.double.side == 6
        assert isinstance(special, Square) and special.area() == 5
        assert Square.unit().side == 1 and Square.name() == "square"
        assert Base.registry == {"Square": Square, "Special": Special}
        assert point == Point(1, 5) and dataclasses.asdict(point) == {"x": 1, "y": 5}
        assert red is Colour.RED and Colour(2) is Colour.BLUE
        assert pair == Pair(1, 2) and pair.left == 1 and type(pair) is Pair
        assert named == Named(7) and type(slots) is Slots and slots.v == 8
        assert failure.args == ("x", 5) and type(failure) is Failure
        try:
            Base()
        except TypeError:
            pass
        else:
            raise AssertionError("no longer abstract")
        """,
    )


def test_modules_come_back_by_name(boxes: Boxes) -> None:
    box = boxes()
    run(box, "import json, os.path as p, collections.abc\nfrom math import pi, floor")
    revive(box)
    run(box, "assert json.dumps([1]) == '[1]' and p.join('a', 'b') == 'a/b' and floor(pi) == 3")


def test_a_module_that_a_cell_wrote_comes_back(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        open("helper.py", "w").write("class Thing:\\n    size = 3\\ndef work(): return 42\\n")
        import helper
        from helper import work, Thing
        thing = Thing()
        """,
    )
    revive(box)
    run(box, "assert helper.work() == work() == 42 and isinstance(thing, helper.Thing)")


def test_what_is_deleted_stays_deleted(boxes: Boxes) -> None:
    box = boxes()
    run(box, "a = 1\nb = 2")
    run(box, "del a")
    revive(box)
    assert "NameError" in box.execute("a").stderr
    run(box, "assert b == 2")


def test_private_and_odd_names_come_back_too(boxes: Boxes) -> None:
    box = boxes()
    run(box, "_a = 1\n__b = 2\nünï = 3\n_ = 4\nglobals()['not a name'] = 5\nprint = 6\nlist = 7")
    revive(box)
    run(
        box,
        "assert (_a, __b, ünï, _, globals()['not a name'], print, list) == (1, 2, 3, 4, 5, 6, 7)",
    )


def test_every_cell_is_saved_and_not_only_the_last(boxes: Boxes) -> None:
    box = boxes()
    for number in range(20):
        run(box, f"v{number} = [{number}]")
        if number % 5 == 0:
            revive(box)
    run(box, "assert [globals()[f'v{i}'] for i in range(20)] == [[i] for i in range(20)]")


def test_a_change_in_place_is_saved(boxes: Boxes) -> None:
    box = boxes()
    run(box, "a = [1, 2, 3]\nd = {'x': 1}")
    run(box, "a[1] = 9\nd['x'] = 9")  # same length, other contents
    revive(box)
    run(box, "assert a == [1, 9, 3] and d == {'x': 9}")


def test_the_cell_that_dies_changes_nothing(boxes: Boxes) -> None:
    box = boxes()
    run(box, "a = 1")
    assert box.execute("a = 2\nb = 3\n" + DIE).status == "died"
    run(box, "assert a == 1 and 'b' not in globals()")
