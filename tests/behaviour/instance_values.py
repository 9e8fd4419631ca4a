"""Objects for the tests of restoring variables whose classes have methods that pickle would run."""

from __future__ import annotations

from tests.behaviour.values import Value

INSTANCES = (
    Value(
        "classes that hold objects of theirs",
        """
        import dataclasses
        class Point:
            def __init__(self, x): self.x = x
            def __hash__(self): return hash(self.x)
            def __eq__(self, other): return self.x == other.x
            def __reduce__(self): return Point, (self.x,)
        Point.named = {Point(1): 'one'}; Point.origin = Point(0)
        @dataclasses.dataclass(frozen=True)
        class Place:
            __slots__ = ('x',)
            x: int
            def __hash__(self): return hash(self.x)
            def __getstate__(self): return self.x
            def __setstate__(self, x): object.__setattr__(self, 'x', x)
        Place.known = {Place(1)}
        order = [name for name in vars(Point) if name[0] != '_']
        """,
        """
        print(Point.named[Point(1)], Point.origin.x, Place(1) in Place.known)
        print(order == [name for name in vars(Point) if name[0] != '_'], Point(5).x)
        """,
        """
        one 0 True
        True 5
        """,
    ),
    Value(
        "abstract classes that answer by themselves",
        """
        import abc
        class Quacking(abc.ABC):
            @classmethod
            def __subclasshook__(cls, other):
                if cls is Quacking: return hasattr(other, 'quack') or NotImplemented
                return NotImplemented
        class Duck:
            def quack(self): pass
        class Goose: pass
        Quacking.register(Goose)
        """,
        "print(issubclass(Duck, Quacking), issubclass(Goose, Quacking), issubclass(int, Quacking))",
        "True True False",
    ),
    Value(
        "classes in a namespace of their own",
        """
        space = {'k': 5}
        exec('class Inner:\\n    def get(self): return k\\ndef make(): return Inner()', space)
        Inner, inner = space['Inner'], space['make']()
        """,
        "space['k'] = 6; print(inner.get(), type(inner) is Inner is space['Inner'], Inner.__module__)",
        "6 True builtins",
    ),
)
