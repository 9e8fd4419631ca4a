"""Objects for the tests of restoring variables that pickle alone loses, or makes something else of."""

from __future__ import annotations

from tests.behaviour.values import Value

OBJECTS = (
    Value(
        "exceptions with other arguments than they pass on",
        """
        import subprocess, json
        class HttpError(Exception):
            def __init__(self, status, *, url):
                super().__init__(f'{status} at {url}')
                self.status, self.url = status, url
        class Nothing(Exception):
            def __init__(self, a, b): self.a, self.b = a, b
        class Fixed(ValueError):
            __slots__ = ('x',)
            def __init__(self, x, y): super().__init__(); self.x = x
        failed = [HttpError(404, url='/a'), Nothing(1, 2), Fixed(3, 4)]
        called = subprocess.CalledProcessError(2, 'ls', 'out', 'err')
        try: json.loads('{')
        except json.JSONDecodeError as error: decoded = error
        try: open('/nowhere/at/all')
        except OSError as error: missing = error
        try: b'\\xff'.decode()
        except UnicodeDecodeError as error: undecoded = error
        """,
        """
        print(*failed[0].args, failed[0].status, failed[0].url, failed[1].args, failed[1].b, failed[2].x)
        print(called.returncode, called.cmd, called.output, called.stderr, called)
        print(decoded.pos, decoded.doc, missing.errno, missing.filename, missing)
        print(undecoded.start, undecoded.object, type(missing) is FileNotFoundError)
        """,
        """
        404 at /a 404 /a (1, 2) 2 3
        2 ls out err Command 'ls' returned non-zero exit status 2.
        1 { 2 /nowhere/at/all [Errno 2] No such file or directory: '/nowhere/at/all'
        0 b'\\xff' True
        """,
    ),
    Value(
        "how an exception came about",
        """
        def divide(a, b):
            # The next line fails.
            return a / b
        try:
            try: divide(1, 0)
            except ZeroDivisionError as error:
                raise KeyError('k') from error
        except KeyError as error: caught = error
        try:
            try: divide(1, 0)
            finally: {}['x']
        except KeyError as error: during = error
        hidden = ValueError(1); hidden.__suppress_context__ = True
        caught.extra = [caught]
        """,
        """
        import traceback
        print(type(caught.__cause__).__name__, type(during.__context__).__name__)
        print(hidden.__suppress_context__, caught.extra[0] is caught, during.__cause__)
        last = traceback.extract_tb(caught.__cause__.__traceback__)[-1]
        print(last.name, last.line, last.lineno - divide.__code__.co_firstlineno)
        text = ''.join(traceback.format_exception(type(caught), caught, caught.__traceback__))
        print('direct cause' in text, text.count('return a / b'), text.count('raise KeyError'))
        try: raise caught
        except KeyError as again: print(again is caught)
        """,
        """
        ZeroDivisionError ZeroDivisionError
        True True None
        divide return a / b 2
        True 1 1
        True
        """,
    ),
    Value(
        "sources of functions and classes",
        """
        import inspect
        def explained(x):
            'With a form feed and other separators: \\x0c \\u2028.'
            text = '\x0c \u2028'  # after this line the numbers must still be right
            return x / 0
        class Documented:
            size = 1
            def method(self):
                # A comment.
                return inspect.currentframe().f_lineno
        class Bare: colour = 'red'
        """,
        """
        print(inspect.getsource(explained).count('numbers must still be right'))
        print(inspect.getsource(Documented).splitlines()[:2], inspect.getsource(Bare))
        print(inspect.getsource(Documented.method).strip().splitlines()[1].strip())
        lines, first = inspect.getsourcelines(Documented.method)
        print(Documented().method() - first)
        import traceback
        try: explained(1)
        except ZeroDivisionError as error: print(traceback.extract_tb(error.__traceback__)[-1].line)
        """,
        """
        1
        ['class Documented:', '    size = 1'] class Bare: colour = 'red'
        # A comment.
        2
        return x / 0
        """,
    ),
    Value(
        "modules that no import finds",
        """
        import importlib.util, os, sys, types
        os.makedirs('elsewhere', exist_ok=True)
        with open('elsewhere/by_path.py', 'w') as file: file.write(
            'import json\\nclass Thing:\\n    def __init__(self): self.seen = seen\\n'
            'seen = []\\ndef note(x):\\n    seen.append(x)\\n    return json.dumps(seen)\\n')
        spec = importlib.util.spec_from_file_location('by_path', 'elsewhere/by_path.py')
        by_path = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(by_path)
        registered = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(registered)
        registered.__name__ = 'registered'; sys.modules['registered'] = registered
        made = types.ModuleType('made', 'Made by hand.')
        exec('def twice(x): return 2 * x + offset\\noffset = 1\\nclass Made: pass', made.__dict__)
        note, thing, twice, one = by_path.note, by_path.Thing(), made.twice, made.Made()
        answer['content'] = thing.seen
        note('before')
        del spec, file
        """,
        """
        print(note('after'), thing.seen is by_path.seen is answer['content'], note is by_path.note)
        print(type(thing) is by_path.Thing, isinstance(one, made.Made), made.__doc__, twice is made.twice)
        made.offset = 5
        import registered as again
        print(twice(1), again is registered, registered.note(1), by_path.__file__[-10:])
        print(by_path.__spec__.name, by_path.__loader__ is by_path.__spec__.loader, made.__spec__)
        """,
        """
        ["before", "after"] True True
        True True Made by hand. True
        7 True [1] by_path.py
        by_path True None
        """,
    ),
    Value(
        "notes and groups of exceptions",
        """
        noted = ValueError('v'); noted.add_note('look here')
        group = ExceptionGroup('several', [noted, KeyError(1)])
        class Coded(ExceptionGroup):
            def __new__(cls, message, errors, code):
                self = super().__new__(cls, message, errors)
                self.code = code
                return self
            def derive(self, errors): return Coded(self.message, errors, self.code)
        coded = Coded('with a code', [noted, Coded('inner', [KeyError(2)], 6)], 5)
        """,
        """
        print(noted.__notes__, group.message, group.exceptions[0] is noted)
        print(coded.code, coded.exceptions[0] is noted, coded.split(KeyError)[0].code)
        """,
        """
        ['look here'] several True
        5 True 5
        """,
        since=(3, 11),
    ),
    Value(
        "files that are closed, and processes that have ended",
        """
        import subprocess
        with open('written', 'x') as closed_text: closed_text.write('kept')
        with open('written', 'rb', buffering=0) as closed_raw: pass
        with open('written', 'r+b') as closed_both: pass
        process = subprocess.Popen(['true']); process.wait()
        """,
        """
        print(closed_text.closed, closed_text.name, closed_text.mode, closed_text.encoding.lower())
        print(closed_raw.closed, closed_raw.name, closed_raw.mode, open('written').read())
        print(closed_both.closed, closed_both.mode, type(closed_both).__name__, process.poll())
        """,
        """
        True written x utf-8
        True written rb kept
        True rb+ BufferedRandom 0
        """,
    ),
    Value(
        "locks and what holds one",
        """
        import collections, io, logging, queue, threading
        free, held, plain = threading.RLock(), threading.RLock(), threading.Lock()
        held.acquire(); held.acquire()
        condition, event, gate = threading.Condition(), threading.Event(), threading.Semaphore(2)
        event.set(); gate.acquire()
        line = queue.Queue(); line.put('first')
        handler = logging.StreamHandler(io.StringIO())
        barred = threading.Lock(); barred.acquire()
        class Safe:
            def __init__(self): self.lock, self.n = threading.RLock(), 0
            def add(self):
                with self.lock: self.n += 1
                return self.n
        safe = Safe()
        busy = threading.RLock()
        thread = threading.Thread(target=busy.acquire); thread.start(); thread.join(); del thread
        """,
        """
        def free_for_others(lock):
            got = []
            thread = threading.Thread(target=lambda: got.append(lock.acquire(timeout=0.01)))
            thread.start(); thread.join()
            return got[0]
        print(free.acquire(timeout=5), plain.acquire(timeout=5), busy.acquire(timeout=5), safe.add())
        print(free_for_others(held)); held.release(); held.release(); print(free_for_others(held))
        with condition: condition.notify_all()
        print(event.is_set(), gate.acquire(timeout=0), gate.acquire(timeout=0), line.get(timeout=5))
        line.put(1); print(line.get(), bool(handler.handle(logging.makeLogRecord({}))), barred.locked())
        """,
        """
        True True True 1
        False
        True
        True True False first
        1 True True
        """,
    ),
)
