"""Objects for the tests of restoring variables whose classes have methods that pickle would run."""

from __future__ import annotations

from tests.behaviour.values import Value

INSTANCES = (
    Value(
        "containers that change what they are given",
        """
        import collections
        class Doubling(dict):
            def __setitem__(self, key, value): super().__setitem__(key, 2 * value)
        class Plus(list):
            def append(self, value): super().append(value + 1)
            def extend(self, values): super().extend(value + 1 for value in values)
        class Texts(set):
            def __init__(self, tag):
                super().__init__()
                self.tag = tag
            def add(self, value): super().add(str(value))
        class Newest(collections.OrderedDict):
            def __setitem__(self, key, value):
                super().__setitem__(key, value)
                self.move_to_end(key, last=False)
        class Recent(collections.deque):
            def __init__(self, count): super().__init__(maxlen=count)
            def append(self, value): super().append(2 * value)
        doubling, plus, texts = Doubling(a=1), Plus([1]), Texts('t')
        newest, recent = Newest(), Recent(2)
        doubling['b'] = 2; doubling.itself = doubling; plus.append(2); texts.add(3)
        for key in 'xyz': newest[key] = key
        for number in range(4): recent.append(number)
        """,
        """
        print(doubling, doubling.itself is doubling, plus, texts, texts.tag, *newest)
        print(list(recent), recent.maxlen, type(recent) is Recent)
        """,
        """
        {'a': 1, 'b': 4} True [1, 3] Texts({'3'}) t z y x
        [4, 6] 2 True
        """,
    ),
    Value(
        "containers with constructors and views of their own",
        """
        import collections
        class Limited(collections.OrderedDict):
            def __init__(self, limit):
                self.limit = limit
                super().__init__()
            def __setitem__(self, key, value):
                super().__setitem__(key, value)
                if len(self) > self.limit: del self[next(iter(self))]
            def __getitem__(self, key):
                value = super().__getitem__(key)
                self.move_to_end(key)
                return value
        class Seeded(collections.defaultdict):
            def __init__(self):
                super().__init__(list)
                self['seed'] = [1]
        class Hiding(dict):
            def items(self): return [(k, v) for k, v in super().items() if k != 'hidden']
            def __iter__(self): return iter(sorted(super().keys()))
        class Own(dict):
            def __init__(self, **values):
                super().__init__(**values)
                self.__dict__ = self
        class Tally(collections.Counter): pass
        class Checked(dict):
            def __init__(self, allowed):
                super().__init__()
                self.allowed = allowed
            def __setitem__(self, key, value):
                if key not in self.allowed: raise KeyError(key)
                super().__setitem__(key, value)
        limited, seeded, hiding, own, tally, checked = (
            Limited(2), Seeded(), Hiding(hidden=1, b=2, a=3), Own(a=1), Tally('aab'), Checked({'a'}))
        for key in 'abc': limited[key] = key
        limited['b']; del seeded['seed']; seeded['x'].append(2); own.b = 2; tally.tag = 't'
        checked['a'] = 1
        """,
        """
        print(*limited, limited.limit, dict.__repr__(seeded), seeded['y'], dict.__repr__(hiding))
        print(own.b, own.__dict__ is own, tally['a'], tally.tag, checked, checked.allowed)
        """,
        """
        c b 2 {'x': [2]} [] {'hidden': 1, 'b': 2, 'a': 3}
        2 True 2 t {'a': 1} {'a'}
        """,
    ),
    Value(
        "values that their constructors change",
        """
        import collections, datetime, decimal, fractions
        class Kelvin(float):
            def __new__(cls, celsius): return super().__new__(cls, celsius + 273)
        class Vector(tuple):
            def __new__(cls, *numbers): return super().__new__(cls, numbers)
        class Loud(str):
            def __new__(cls, text, count=1):
                self = super().__new__(cls, text + '!')
                self.count = count
                return self
        class Money(decimal.Decimal):
            def __new__(cls, amount, currency='EUR'):
                self = super().__new__(cls, amount)
                self.currency = currency
                return self
        class Day(datetime.datetime):
            def __new__(cls, day): return super().__new__(cls, 2020, 1, day, fold=1)
        class Odd(int):
            def __new__(cls, number): return super().__new__(cls, 2 * number + 1)
        class Some(frozenset):
            def __new__(cls, *members): return super().__new__(cls, members)
        class Half(fractions.Fraction):
            def __new__(cls, number): return super().__new__(cls, number, 2)
        class Square(collections.namedtuple('Square', 'side area')):
            def __new__(cls, side): return super().__new__(cls, side, side * side)
        kelvin, vector, loud, money, day = Kelvin(1), Vector(1, 2), Loud('a', 5), Money('1.5', 'USD'), Day(3)
        odd, some, half, square = Odd(3), Some(1), Half(3), Square(3)
        vector.itself = vector
        class Zone(datetime.tzinfo):
            def __init__(self, hours): self.hours = hours
            def utcoffset(self, when): return datetime.timedelta(hours=self.hours)
        class Span(datetime.timedelta): pass
        there, span = datetime.datetime(2020, 1, 1, tzinfo=Zone(3)), Span(2)
        span.reason = 'leave'
        import pathlib, random
        class Part(fractions.Fraction): pass
        class Folder(type(pathlib.Path())): pass
        class Dice(random.Random):
            def __init__(self, seed=None):
                super().__init__(seed)
                self.thrown = []
            def throw(self):
                self.thrown.append(self.randint(1, 6))
                return self.thrown
        part, folder, dice = Part(1, 3), Folder('/a'), Dice(5)
        part.of = folder.of = 'it'; dice.throw(); dice.gauss(0, 1); same = random.Random()
        same.setstate(dice.getstate())
        """,
        """
        print(kelvin, vector, vector.itself is vector, loud, loud.count, money, money.currency)
        print(day, day.fold, odd, some, half, square, type(half) is Half)
        print(there.utcoffset(), span.days, span.reason, part, part.of, folder / 'b', folder.of)
        print(len(dice.thrown), dice.throw()[-1] == same.randint(1, 6), dice.gauss(0, 1) == same.gauss(0, 1))
        """,
        """
        274.0 (1, 2) True a! 5 1.5 USD
        2020-01-03 00:00:00 1 7 Some({1}) 3/2 Square(side=3, area=9) True
        3:00:00 2 leave 1/3 it /a/b it
        1 True True
        """,
    ),
    Value(
        "objects whose class counts, keeps or shares them",
        """
        made = []
        class Counted:
            def __new__(cls, *arguments):
                self = super().__new__(cls)
                made.append(self)
                return self
            def __init__(self, number): self.number = number
        class Single:
            instance = None
            def __new__(cls):
                if cls.instance is None: cls.instance = super().__new__(cls)
                return cls.instance
        class Symbol:
            known = {}
            def __new__(cls, name):
                if name not in cls.known:
                    cls.known[name] = super().__new__(cls)
                    cls.known[name].name = name
                return cls.known[name]
            def __getstate__(self): return {'name': self.name}
        counted, single, symbols = [Counted(1), Counted(2)], Single(), [Symbol('a'), Symbol('a')]
        single.x = 1
        """,
        """
        print([one.number for one in made], made[0] is counted[0], Single() is single, single.x)
        print(symbols[0] is symbols[1] is Symbol('a'), symbols[0].name, len(Symbol.known))
        """,
        """
        [1, 2] True True 1
        True a 1
        """,
    ),
    Value(
        "objects that answer for others, or lie",
        """
        written = []
        class Proxy:
            def __init__(self, target): self.target = target
            def __getattr__(self, name): return getattr(self.target, name)
        class Anything:
            def __getattr__(self, name): return lambda *arguments: name
        class Watched:
            __slots__ = ('x',)
            def __setattr__(self, name, value):
                written.append(name)
                super().__setattr__(name, value)
        class Frozen:
            __slots__ = ('x', 'unset')
            def __init__(self): object.__setattr__(self, 'x', 1)
            def __setattr__(self, name, value): raise AttributeError('frozen')
        class Liar:
            @property
            def __class__(self): return int
        class Named:
            __name__ = 'a name'
            __bases__ = 'bases'
        proxy, anything, watched, frozen, liar = Proxy([1]), Anything(), Watched(), Frozen(), Liar()
        watched.x = 1; liar.x = 2; proxy.append(2)
        """,
        """
        print(proxy.target, proxy.index(2), anything.foo(), watched.x, written, frozen.x)
        print(hasattr(frozen, 'unset'), isinstance(liar, int), type(liar) is Liar, liar.x)
        print(Named.__name__, Named().__name__, Named().__bases__, Named.__bases__)
        """,
        """
        [1, 2] 1 foo 1 ['x'] 1
        False True True 2
        Named a name bases (<class 'object'>,)
        """,
    ),
    Value(
        "objects in sets that they hold themselves",
        """
        class Node:
            def __init__(self, name):
                self.peers, self.weights, self.name = set(), {}, name
            def __hash__(self): return hash(self.name)
            def __eq__(self, other): return self.name == other.name
            def link(self, other):
                self.peers.add(other); other.peers.add(self)
                self.weights[other] = other.weights[self] = 1
        nodes = a, b, c = [Node(name) for name in 'abc']
        a.link(b); b.link(c); c.link(a); c.link(c)
        """,
        "print([len(n.peers) for n in nodes], b in a.peers, c in c.peers, a.weights[b], Node('c') in a.peers)",
        "[2, 2, 3] True True 1 True",
    ),
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
        "frozen dataclasses with slots in their class",
        """
        import dataclasses
        @dataclasses.dataclass(frozen=True, slots=True)
        class Version:
            major: int
            tags: list = dataclasses.field(default_factory=list, hash=False)
        Version.first = Version(1); Version.names = {Version(2): 'two'}
        version = Version.first
        """,
        "print(Version.first is version, version.tags, Version.names[Version(2)])",
        "True [] two",
        since=(3, 10),
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
    Value(
        "properties and methods of classes of their own",
        """
        class class_property(property):
            def __get__(self, one, owner): return self.fget(owner)
        class marked(classmethod):
            mark = 'none'
            def __init__(self, function):
                super().__init__(function)
                self.mark = 'set'
        class Shown:
            @class_property
            def title(cls):
                'Its title.'
                return cls.__name__ + '!'
            @marked
            def itself(cls): return cls
        """,
        """
        print(Shown.title, Shown.itself() is Shown, vars(Shown)['itself'].mark)
        print(vars(Shown)['title'].__doc__)
        """,
        """
        Shown! True set
        Its title.
        """,
    ),
    Value(
        "weak references and what is called at the end",
        """
        import gc, tempfile, weakref
        class Thing:
            def __init__(self, parent=None):
                self.parent = parent and weakref.ref(parent)
                self.children = []
                if parent: parent.children.append(self)
        class Shared(type):
            made = weakref.WeakValueDictionary()
            def __call__(cls):
                one = cls.made.get(cls) or super().__call__()
                cls.made[cls] = one
                return one
        class Config(metaclass=Shared): pass
        thing, other, root, config, ended = Thing(), Thing(), Thing(), Config(), []
        Thing(Thing(root))
        several, by_name = weakref.WeakSet([thing, other]), weakref.WeakValueDictionary(t=thing, o=other)
        by_thing, method = weakref.WeakKeyDictionary({thing: 1, other: 2}), weakref.WeakMethod(root.__init__)
        watching = weakref.ref(thing, lambda _: ended.append('reference'))
        finalizer = weakref.finalize(thing, ended.append, 'finalizer')
        gone, shown = weakref.ref(Thing()), weakref.proxy(root)
        """,
        """
        print(set(several) == {thing, other}, by_name['t'] is thing, by_thing[thing], watching() is thing)
        print(method().__self__ is root, root.children[0].children[0].parent().parent() is root)
        print(gone() is None, shown.parent is None, Config() is config, finalizer.alive)
        del thing; gc.collect()
        print(len(several), list(by_name), len(by_thing), watching(), sorted(ended))
        """,
        """
        True True 1 True
        True True
        True True True True
        1 ['o'] 1 None ['finalizer', 'reference']
        """,
    ),
    Value(
        "caches with what is in them",
        """
        import functools
        calls = []
        @functools.lru_cache(maxsize=3)
        def bounded(*arguments, **keywords):
            calls.append((arguments, keywords))
            return [arguments]
        kept = bounded(1), bounded(2, k=3), bounded('x')
        bounded(1)
        @functools.lru_cache(maxsize=None, typed=True)
        def typed(number, **more):
            calls.append(number)
            return [number]
        both = typed(1), typed(1.0), typed(1, more=2)
        class Squares:
            @functools.lru_cache
            def of(self, number):
                calls.append(number)
                return number, self
        squares = Squares()
        squares.of((1, 2))
        @functools.lru_cache
        def fibonacci(n):
            calls.append(n)
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
        fibonacci(9)
        calls.clear()
        """,
        """
        print(bounded(2, k=3) is kept[1], typed(1.0) is both[1], typed(1, more=2) is both[2])
        print(squares.of((1, 2))[1] is squares, fibonacci(9), calls, bounded.__name__)
        bounded('new'); bounded(1); print(calls, typed.cache_parameters(), fibonacci.__wrapped__ is fibonacci)
        bounded('x'); fibonacci(10); print(len(calls))
        """,
        """
        True True True
        True 34 [] bounded
        [(('new',), {})] {'maxsize': None, 'typed': True} False
        3
        """,
    ),
    Value(
        "objects that a library goes on using",
        """
        import decimal, os, random, sys
        from random import choice, randint, seed
        environment, path, modules, context = os.environ, sys.path, sys.modules, decimal.getcontext()
        """,
        """
        random.seed(3); first = random.randint(0, 10 ** 9)
        seed(3); print(randint(0, 10 ** 9) == first, choice.__self__ is random.seed.__self__)
        print(environment is os.environ, path is sys.path, modules is sys.modules)
        context.prec = 4; print(decimal.Decimal(1) / 3); context.prec = 28
        """,
        """
        True True
        True True True
        0.3333
        """,
    ),
)
