"""Classes for the tests of restoring variables: each must come back as the finished object it was."""

from __future__ import annotations

from tests.behaviour.values import Value

CLASSES = (
    Value(
        "enums with their own constructors",
        """
        import enum
        class Planet(enum.Enum):
            EARTH = (1, 'blue')
            MARS = (2, 'red')
            def __init__(self, number, colour):
                self.number, self.colour = number, colour
        class Labelled(enum.Enum):
            LOW = 1, 'low'
            HIGH = 2, 'high'
            ALSO_LOW = 1, 'low'
            def __new__(cls, value, label):
                member = object.__new__(cls)
                member._value_ = value
                member.label = label
                return member
        class Shout(str, enum.Enum):
            A = 'a'
            def __new__(cls, value):
                member = str.__new__(cls, value.upper())
                member._value_ = value
                return member
        class Auto(enum.Enum):
            def _generate_next_value_(name, start, count, last): return name.lower()
            FIRST = enum.auto()
            SECOND = enum.auto()
        earth, low, shout = Planet.EARTH, Labelled.LOW, Shout.A
        """,
        """
        print(earth is Planet.EARTH, earth.colour, earth.value, Planet((2, 'red')) is Planet.MARS)
        print(low is Labelled.ALSO_LOW is Labelled(1), low.label, [m.name for m in Labelled])
        print(shout is Shout('a'), str.__str__(shout), shout.value, isinstance(shout, str))
        print([m.value for m in Auto], Auto['FIRST'] is Auto.FIRST, Auto('second').name)
        """,
        """
        True blue (1, 'blue') True
        True low ['LOW', 'HIGH']
        True A a True
        ['first', 'second'] True SECOND
        """,
    ),
    Value(
        "enums mixed with dates, numbers and dataclasses",
        """
        import dataclasses, datetime, enum
        class Day(datetime.date, enum.Enum):
            LEAP = 2024, 2, 29
        class Number(enum.IntEnum):
            ONE = 1
        @dataclasses.dataclass
        class Size:
            width: int
            height: int = 1
        class Paper(Size, enum.Enum):
            A4 = 210, 297
            ROLL = 80
        leap, one, paper = Day.LEAP, Number.ONE, Paper.A4
        """,
        """
        print(leap is Day.LEAP, leap.isoformat(), one is Number(1), one + 1)
        print(paper is Paper.A4, paper.width, paper.height, Paper.ROLL.height, Paper['A4'] is paper)
        """,
        """
        True 2024-02-29 True 2
        True 210 297 1 True
        """,
    ),
    Value(
        "flags",
        """
        import enum
        class Mode(enum.Flag):
            R = enum.auto()
            W = enum.auto()
            X = enum.auto()
            RW = R | W
        class Bits(enum.IntFlag):
            A = 1
            B = 2
        mode, bits = Mode.R | Mode.X, Bits.A | Bits.B | 8
        """,
        """
        print(mode is Mode.R | Mode.X, mode & Mode.X is Mode.X, Mode.RW & Mode.W is Mode.W, int(bits))
        print(Mode.R in mode, mode == Mode(5), [m.name for m in (Mode.R, Mode.RW)], Bits(2) is Bits.B)
        """,
        """
        True True True 11
        True True ['R', 'RW'] True
        """,
    ),
    Value(
        "the boundary of a flag",
        """
        import enum
        class Strict(enum.Flag, boundary=enum.STRICT):
            A = 1
        class Kept(enum.Flag, boundary=enum.KEEP):
            A = 1
        """,
        """
        print(Kept(8).value, Strict._boundary_ is enum.STRICT)
        try: Strict(8)
        except ValueError: print('strict')
        """,
        """
        8 True
        strict
        """,
        since=(3, 11),
    ),
    Value(
        "keywords of subclass hooks, which run once",
        """
        runs = []
        class Plugin:
            registry = {}
            def __init_subclass__(cls, key, **more):
                super().__init_subclass__(**more)
                runs.append(key)
                cls.key = key
                cls.registry[key] = cls
        class Csv(Plugin, key='csv'): pass
        class Tsv(Csv, key='tsv'): pass
        """,
        """
        print(runs, Csv.key, Tsv.key, Plugin.registry['csv'] is Csv, len(Plugin.registry))
        class Later(Plugin, key='later'): pass
        print(runs, Plugin.registry['later'] is Later)
        """,
        """
        ['csv', 'tsv'] csv tsv True 2
        ['csv', 'tsv', 'later'] True
        """,
    ),
    Value(
        "metaclasses with keywords, which run once",
        """
        made = []
        class Meta(type):
            @classmethod
            def __prepare__(mcls, name, bases, **more): return {'prepared': True}
            def __new__(mcls, name, bases, space, *, table=None):
                cls = super().__new__(mcls, name, bases, space)
                cls.table = table
                return cls
            def __init__(cls, name, bases, space, *, table=None):
                super().__init__(name, bases, space)
                made.append(name)
            def __call__(cls, *args):
                one = super().__call__(*args)
                one.called = True
                return one
            def __setattr__(cls, name, value):
                if name == 'locked': raise AttributeError('locked')
                super().__setattr__(name, value)
            @property
            def shown(cls): return cls.__name__ + '!'
        class Row(metaclass=Meta, table='rows'):
            locked = 1
        class Child(Row, table='children'): pass
        row = Row()
        """,
        """
        print(made, Row.table, Child.table, Row.prepared, Row.locked, Child.shown, Row().called)
        print(type(Row) is Meta, type(row) is Row, row.called)
        """,
        """
        ['Row', 'Child'] rows children True 1 Child! True
        True True True
        """,
    ),
    Value(
        "descriptors that were told their names",
        """
        named = []
        class Field:
            def __set_name__(self, owner, name):
                self.name = name
                self.owner = owner
                named.append(name)
            def __get__(self, one, owner): return self if one is None else one.__dict__[self.name]
            def __set__(self, one, value): one.__dict__[self.name] = value * 2
        class Form:
            width = Field()
            height = Field()
        form = Form(); form.width = 2
        """,
        "print(named, form.width, Form.width.owner is Form, Form.height.name)",
        "['width', 'height'] 4 True height",
    ),
    Value(
        "qualified names",
        """
        import functools, typing
        class Outer:
            class Inner:
                class Deep: pass
            def method(self):
                class Local: pass
                return Local
        def factory():
            class Made: pass
            return Made
        Made, Local = factory(), Outer().method()
        class Film(typing.TypedDict, total=False):
            name: str
        def wrapped(): 'Doc.'
        class Wrapper:
            pass
        functools.update_wrapper(Wrapper, wrapped, updated=())
        """,
        """
        print(Outer.Inner.Deep.__qualname__, Made.__qualname__, Local.__qualname__)
        print(Film.__qualname__, Film.__total__, sorted(Film.__optional_keys__), Wrapper.__doc__)
        print(Wrapper.__qualname__, Wrapper.__wrapped__ is wrapped)
        """,
        """
        Outer.Inner.Deep factory.<locals>.Made Outer.method.<locals>.Local
        Film False ['name'] Doc.
        wrapped True
        """,
    ),
    Value(
        "virtual subclasses",
        """
        import abc, collections.abc, numbers
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        @Shape.register
        class Square: pass
        Shape.register(list)
        class Seq: pass
        collections.abc.Sequence.register(Seq)
        numbers.Number.register(Square)
        """,
        """
        print(issubclass(Square, Shape), isinstance([], Shape), isinstance({}, Shape))
        print(issubclass(Seq, collections.abc.Sequence), isinstance(Square(), numbers.Number))
        print(sorted(Shape.__abstractmethods__), issubclass(Square, collections.abc.Sequence))
        """,
        """
        True True False
        True True
        ['area'] False
        """,
    ),
    Value(
        "dataclasses with slots, order and keyword fields",
        """
        import dataclasses
        @dataclasses.dataclass(frozen=True, order=True, slots=True, kw_only=True)
        class Point:
            x: int
            y: int = dataclasses.field(default=2, repr=False, metadata={'unit': 'm'})
            def moved(self): return dataclasses.replace(self, x=self.x + 1)
        class Base:
            __slots__ = ('a', '__private', '__weakref__')
            def __init__(self): self.a, self.__private = 1, 2
            def private(self): return self.__private
        point, base = Point(x=1), Base()
        """,
        """
        print(point, point.moved().y, point < Point(x=2), hash(point) == hash(Point(x=1)))
        print(dataclasses.fields(Point)[1].metadata['unit'], Point.__slots__, hasattr(point, '__dict__'))
        print(dataclasses.fields(Point)[0].default is dataclasses.MISSING, base.private(), Base().a)
        """,
        """
        Point(x=1) 2 True True
        m ('x', 'y') False
        True 2 1
        """,
        since=(3, 10),
    ),
    Value(
        "protocols and generics",
        """
        import typing
        T = typing.TypeVar('T', bound=int)
        @typing.runtime_checkable
        class Sized(typing.Protocol):
            def size(self) -> int: ...
        class Has:
            def size(self): return 1
        class Pair(typing.Generic[T]):
            def __init__(self, a: T): self.a = a
        class IntPair(Pair[int]): pass
        UserId = typing.NewType('UserId', int)
        """,
        """
        print(isinstance(Has(), Sized), isinstance(1, Sized), IntPair(3).a, Pair.__parameters__ == (T,))
        print(typing.get_type_hints(Pair.__init__)['a'] is T, T.__bound__, Pair[int](1).a, UserId(5))
        print(IntPair.__orig_bases__[0] == Pair[int], UserId.__supertype__)
        """,
        """
        True False 3 True
        True <class 'int'> 1 5
        True <class 'int'>
        """,
    ),
    Value(
        "functions by the type of their argument, and caches",
        """
        import functools
        class Animal: pass
        @functools.singledispatch
        def speak(x): return 'something'
        @speak.register
        def _(x: Animal): return 'animal'
        @speak.register(int)
        def _(x): return 'int'
        class Lazy:
            calls = 0
            @functools.cached_property
            def value(self):
                type(self).calls += 1
                return 7
            @functools.lru_cache(maxsize=3)
            def twice(self): return 14
            @functools.singledispatchmethod
            def show(self, x): return 'any'
            @show.register
            def _(self, x: str): return 'str'
        lazy = Lazy(); lazy.value
        """,
        """
        print(speak(Animal()), speak(1), speak('x'), lazy.value, Lazy.calls, Lazy().value)
        print(lazy.twice(), Lazy.twice.cache_parameters(), lazy.show('x'), lazy.show(1))
        """,
        """
        animal int something 7 1 7
        14 {'maxsize': 3, 'typed': False} str any
        """,
    ),
    Value(
        "properties and methods of all kinds",
        """
        class Temperature:
            def __init__(self, c): self._c = c
            @property
            def c(self):
                'Degrees.'
                return self._c
            @c.setter
            def c(self, value): self._c = value
            @classmethod
            def zero(cls): return cls(0)
            @staticmethod
            def name(): return 'T'
            def __class_getitem__(cls, item): return item
            def __init_subclass__(cls): cls.hooked = True
        class Sub(Temperature): pass
        bound, unbound, make, getter = Sub(1).zero, Sub.name, Sub.zero, Temperature.c
        """,
        """
        t = Sub.zero(); t.c = 5
        print(t.c, Temperature.c.__doc__, Sub['x'], Sub.hooked, type(make()) is Sub, unbound())
        class Third(Sub): pass
        print(Third.hooked, getter is Temperature.c, type(bound()) is Sub)
        try: del t.c
        except AttributeError: print('cannot be deleted')
        """,
        """
        5 Degrees. x True True T
        True True True
        cannot be deleted
        """,
    ),
    Value(
        "classes with parameters and type aliases",
        """
        class Stack[T]:
            def __init__(self, *items: T): self.items = items
            def first[U](self, other: U) -> T | U: return self.items[0] if self.items else other
        type Pairs[K] = dict[K, tuple[K, K]]
        type Plain = int | str
        """,
        """
        print(Stack[int](1).first(2), Stack.__type_params__[0].__name__, Pairs.__name__)
        print(Plain.__value__, Pairs[int].__args__, Pairs.__type_params__[0] is Pairs.__value__.__args__[0])
        """,
        """
        1 T Pairs
        int | str (<class 'int'>,) True
        """,
        since=(3, 12),
    ),
)
