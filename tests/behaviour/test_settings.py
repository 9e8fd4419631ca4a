"""What cells set beside their variables: set again after a death, or named."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import die, execute, printed

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("import warnings; warnings.filters = None", "warnings.filters"),
        ("import warnings; warnings.filters = [(1, 2)]", "settings"),
        ("import os; os.getcwd = lambda: 1 / 0", None),
        ("import decimal; decimal.getcontext = None", "decimal.getcontext()"),
    ],
)
def test_what_cannot_be_read_costs_no_variable(make_box: MakeBox, change: str, name: str) -> None:
    box = make_box(**OPTIONS)  # of its own: what was changed is changed again after a death
    printed(box, f"kept = [1]\n{change}")
    assert [variable.name for variable in box.unsaved] == ([name] if name else [])
    box.execute("import os; os._exit(1)")
    assert printed(box, "print(kept)") == "[1]\n"


def test_a_logging_handler_that_hangs_costs_no_variable(fresh: Sandbox) -> None:
    code = """
        import logging, threading
        class Handler(logging.Handler):
            @property
            def formatter(self): threading.Event().wait()
        handler = Handler.__new__(Handler)
        handler.filters = ()
        logging.getLogger().handlers.append(handler)
        kept = [1]
        """
    execute(fresh, code)
    assert "settings" in [variable.name for variable in fresh.unsaved]
    fresh.execute("import os; os._exit(1)")
    assert printed(fresh, "print(kept)") == "[1]\n"


@pytest.mark.parametrize(
    ("change", "look", "expected"),
    [
        ("import os; os.makedirs('deep/er'); os.chdir('deep')", "print(os.listdir()); os.chdir('..')", "['er']"),
        (
            "import os; os.environ['MINE'] = 'grüße'; del os.environ['HOME']",
            "print(os.environ['MINE'], 'HOME' in os.environ)",
            "grüße False",
        ),
        ("import sys; sys.setrecursionlimit(1234)", "print(sys.getrecursionlimit())", "1234"),
        ("import sys; sys.setrecursionlimit(60)", "print(sys.getrecursionlimit())", "60"),
        (
            "import random; random.seed(7); r = random.Random(7); r.random(); random.random()",
            "print(random.random() == r.random())",
            "True",
        ),
        (
            "import decimal; decimal.getcontext().prec = 5",
            "print(decimal.Decimal(1) / 3, decimal.getcontext().traps[decimal.DivisionByZero])",
            "0.33333 True",
        ),
        (
            "import warnings\nwarnings.simplefilter('error', DeprecationWarning)",
            "try: warnings.warn('old', DeprecationWarning)\nexcept DeprecationWarning: print('raised')",
            "raised",
        ),
        (
            # An image may have but one.
            "import locale\nfor name in ('C.UTF-8', 'en_US.UTF-8', 'C'):\n"
            "    try: locale.setlocale(locale.LC_NUMERIC, name); break\n"
            "    except locale.Error: pass",
            "print(locale.setlocale(locale.LC_NUMERIC) == name)",
            "True",
        ),
        (
            "import logging, sys\n"
            "logging.basicConfig(level=20, format='%(name)s says %(message)s', stream=sys.stdout)\n"
            "logging.getLogger('quiet').setLevel(50); log = logging.getLogger('mine')",
            "log.info('hello'); logging.getLogger('quiet').error('no')\nlog.debug('no')",
            "mine says hello",
        ),
        (
            "import logging\nlog = logging.getLogger('file'); log.propagate = False\n"
            "log.addHandler(logging.FileHandler('the.log')); log.warning('one')",
            "log.warning('two'); log.handlers[0].close(); print(open('the.log').read(), end='')",
            "one\ntwo",
        ),
        (
            "import gc; gc.set_threshold(500, 6, 7); gc.disable()",
            "print(gc.get_threshold(), gc.isenabled()); gc.set_threshold(700, 10, 10); gc.enable()",
            "(500, 6, 7) False",
        ),
        ("import os; old_mask = os.umask(0o027)", "print(oct(os.umask(old_mask)))", "0o27"),
        (
            "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
            "print(signal.signal(signal.SIGUSR1, signal.SIG_DFL) is signal.SIG_IGN)",
            "True",
        ),
        (
            "import csv, socket; csv.field_size_limit(10 ** 9); socket.setdefaulttimeout(2.5)",
            "print(csv.field_size_limit(131072), socket.getdefaulttimeout()); socket.setdefaulttimeout(None)",
            "1000000000 2.5",
        ),
        (
            "import mimetypes; mimetypes.add_type('text/x-mine', '.mine')",
            "print(mimetypes.guess_type('a.mine')[0])",
            "text/x-mine",
        ),
        (
            "import sys; sys.setswitchinterval(0.25); sys.argv = ['a', 'b']; sys.tracebacklimit = 7",
            "print(sys.getswitchinterval(), sys.argv, sys.tracebacklimit); del sys.tracebacklimit",
            "0.25 ['a', 'b'] 7",
        ),
        (
            "import tracemalloc; tracemalloc.start(3)",
            "print(tracemalloc.get_traceback_limit(), tracemalloc.is_tracing()); tracemalloc.stop()",
            "3 True",
        ),
        (
            "import multiprocessing; multiprocessing.set_start_method('spawn', force=True)",
            "print(multiprocessing.get_start_method()); multiprocessing.set_start_method(None, force=True)",
            "spawn",
        ),
        (
            "import logging; logging.addLevelName(15, 'FINE'); logging.captureWarnings(True)\n"
            "logging.raiseExceptions = False",
            "print(logging.getLevelName(15), logging.raiseExceptions); logging.captureWarnings(False)",
            "FINE False",
        ),
        (
            "import calendar, sys; calendar.setfirstweekday(6); sys.set_coroutine_origin_tracking_depth(3)",
            "print(calendar.firstweekday(), sys.get_coroutine_origin_tracking_depth())\n"
            "calendar.setfirstweekday(0); sys.set_coroutine_origin_tracking_depth(0)",
            "6 3",
        ),
        (
            "import xml.etree.ElementTree as tree; tree.register_namespace('zz', 'http://zz')",
            "print(tree.tostring(tree.Element('{http://zz}a')))",
            """b'<zz:a xmlns:zz="http://zz" />'""",
        ),
        (
            "import encodings.aliases; encodings.aliases.aliases['mine'] = 'utf_8'",
            "print('ü'.encode('mine')); del encodings.aliases.aliases['mine']",
            "b'\\xc3\\xbc'",
        ),
        (
            "import gettext; gettext.textdomain('mine'); gettext.bindtextdomain('mine', '/x')",
            "print(gettext.textdomain(), gettext.bindtextdomain('mine')); gettext.textdomain('messages')",
            "mine /x",
        ),
        (
            "import faulthandler; faulthandler.enable()",
            "print(faulthandler.is_enabled()); faulthandler.disable()",
            "True",
        ),
        (
            "import zoneinfo; zoneinfo.reset_tzpath(['/x'])",
            "print(zoneinfo.TZPATH); zoneinfo.reset_tzpath()",
            "('/x',)",
        ),
        (
            "import sys, json; sys.modules['mine'] = json\ndef dumps(): import mine; return mine",
            "print(dumps() is json); del sys.modules['mine']",
            "True",
        ),
        (
            # A pickle has the code in place of the name.
            "import copyreg, fractions; copyreg.add_extension('fractions', 'Fraction', 240)\n"
            "half = fractions.Fraction(1, 2); kinds = [fractions.Fraction]",
            "print(half, kinds[0] is type(half)); copyreg.remove_extension('fractions', 'Fraction', 240)",
            "1/2 True",
        ),
        (
            "import gc, os, sys, threading\n"
            "gc.set_debug(gc.DEBUG_UNCOLLECTABLE); old = threading.stack_size(2 ** 20)\n"
            "flags = sys.getdlopenflags(); sys.setdlopenflags(flags | os.RTLD_GLOBAL)",
            "print(gc.get_debug(), threading.stack_size(), sys.getdlopenflags() ^ flags)\n"
            "gc.set_debug(0); threading.stack_size(old); sys.setdlopenflags(flags)",
            "4 1048576 256",
        ),
    ],
    ids=[
        "directory", "environment", "recursion limit", "low limit", "random", "decimal", "warnings", "locale",
        "logging", "log file", "garbage", "mask", "ignored signal", "csv and socket", "media types", "sys",
        "tracemalloc", "multiprocessing", "names of logging", "calendar and coroutines", "prefixes of XML",
        "codecs", "gettext", "faults", "time zones", "second name", "codes of pickles", "more of the process",
    ],
)  # fmt: skip
def test_what_cells_have_set_is_set_again(
    fresh: Sandbox, change: str, look: str, expected: str
) -> None:
    printed(fresh, change)
    for _ in range(2):
        assert die(fresh) == ()
        printed(fresh, "again = 1")
    assert printed(fresh, look) == expected + "\n"


def test_what_the_host_has_given_is_not_saved(make_box: MakeBox) -> None:
    box = make_box(env={"TOKEN": "given-by-the-host", "OTHER": "also-given"}, **OPTIONS)
    printed(box, "import os; os.environ['MINE'] = 'by-a-cell'; del os.environ['OTHER']")
    assert box.unsaved == ()
    look = "raw = open('state.dill', 'rb').read(); print(b'by-a-cell' in raw, b'given' in raw)"
    assert printed(box, look) == "True False\n"
    assert die(box) == ()
    look = "print(os.environ['TOKEN'], os.environ['MINE'], 'OTHER' in os.environ)"
    assert printed(box, look) == "given-by-the-host by-a-cell False\n"


def test_modules_in_a_directory_that_a_cell_has_put_on_the_path(fresh: Sandbox) -> None:
    execute(
        fresh,
        """
        import os, sys
        os.makedirs('libs', exist_ok=True)
        with open('libs/offside.py', 'w') as file:
            file.write('class Thing:\\n    size = 3\\ndef work(): return 42\\n')
        del file
        sys.path.insert(0, os.path.abspath('libs')); sys.path.append('/nowhere/at/all')
        import offside
        from offside import work, Thing
        thing = Thing()
        """,
    )
    assert die(fresh) == ()
    assert printed(
        fresh,
        "print(offside.work(), work is offside.work, type(thing) is Thing)\n"
        "print(sys.path[0].endswith('libs'), sys.path[-1])",
    ) == "42 True True\nTrue /nowhere/at/all\n"  # fmt: skip


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("import sys; sys.excepthook = print", {"sys.excepthook"}),
        ("import signal; signal.signal(signal.SIGUSR1, lambda *_: None)", {"signal handler 10"}),
        (
            "import logging.handlers\n"
            "logging.getLogger().addHandler(logging.handlers.BufferingHandler(5))",
            {"logging handler BufferingHandler"},
        ),
        (
            "import warnings\nclass Mine(Warning): pass\nwarnings.simplefilter('error', Mine)",
            {"warnings filter for a class of a cell"},
        ),
        (
            "import sys, threading\ndef hook(*_): pass\n"
            "sys.unraisablehook = sys.breakpointhook = hook; threading.settrace(hook)",
            {"sys.unraisablehook", "sys.breakpointhook", "threading.settrace()"},
        ),
        (
            "import atexit, codecs\n@atexit.register\ndef bye(): pass\n"
            "atexit.register(print); atexit.unregister(print)\n"
            "codecs.register_error('mine', lambda error: ('?', error.end))",
            {"atexit.register", "codecs.register_error"},
        ),
        (
            "import resource; soft, hard = resource.getrlimit(resource.RLIMIT_STACK)\n"
            "resource.setrlimit(resource.RLIMIT_STACK, (2 ** 22, hard))",
            {"resource.RLIMIT_STACK"},
        ),
        (
            "import sys; sys.setrecursionlimit(1000)\nimport asyncio\nclass Policy(asyncio.DefaultEventLoopPolicy): pass\n"
            "asyncio.set_event_loop_policy(Policy())",
            {"asyncio.set_event_loop_policy()"},
        ),
        (
            "import logging\nclass Mine(logging.Logger): pass\nlogging.setLoggerClass(Mine)\n"
            "logging.getLogger('filtered').addFilter(lambda record: True)",
            {"logging.setLoggerClass()", "filters of the logger filtered"},
        ),
        (
            "import copyreg, csv\nclass Mine: pass\ncopyreg.pickle(Mine, lambda mine: (Mine, ()))\n"
            "csv.register_dialect('mine', delimiter=';')",
            {"copyreg.pickle(Mine)", "csv.register_dialect('mine')"},
        ),
        (
            "import sys, types\nsys.modules['made_up'] = types.ModuleType('made_up')",
            {"sys.modules['made_up']"},
        ),
        (
            "import weakref\nclass Mine: pass\nmine, other, ended = Mine(), Mine(), []\n"
            "weakref.finalize(mine, ended.append, 1); held = weakref.finalize(other, ended.append, 2)",
            {"weakref.finalize(Mine)"},
        ),
        (
            "import sys\nclass Finder:\n    find_spec = staticmethod(lambda *_: None)\n"
            "sys.meta_path.append(Finder)",
            {"sys.meta_path"},
        ),
        (
            "import shutil; from shutil import register_archive_format as register\n"
            "register('mine', lambda *_, **__: 'x'); register('other', print)\n"
            "shutil.unregister_archive_format('other')\n"
            "shutil.register_unpack_format('mine', ['.mine'], print)",
            {"shutil.register_archive_format('mine')", "shutil.register_unpack_format('mine')"},
        ),
        (
            "import urllib.request as request; opener = request.build_opener()\n"
            "opener.addheaders = [('User-agent', 'mine')]; request.install_opener(opener)",
            {"urllib.request.install_opener()"},
        ),
        (
            "import urllib.request\nwith urllib.request.urlopen('data:,x'): pass",
            set(),
        ),
        (
            "import sqlite3\nclass Mine: pass\nsqlite3.register_adapter(Mine, lambda mine: 'mine')\n"
            "sqlite3.register_converter('mine', int)",
            {"sqlite3.register_adapter(Mine)", "sqlite3.register_converter(MINE)"},
        ),
        (
            "import faulthandler, signal, sys\nfaulthandler.enable(file=sys.__stderr__)\n"
            "faulthandler.register(signal.SIGUSR2); faulthandler.unregister(signal.SIGUSR2)",
            {"faulthandler.enable"},
        ),
        (
            "import faulthandler, sys\nfaulthandler.enable(sys.__stderr__); faulthandler.disable()",
            set(),
        ),
        (
            "import gc; gc.callbacks.append(lambda phase, info: None)",
            {"gc.callbacks"},
        ),
        (
            "import os; os.makedirs('gone'); os.chdir('gone'); os.rmdir('../gone')",
            set(),
        ),
    ],
    ids=[
        "hook",
        "signal",
        "handler",
        "filter",
        "more hooks",
        "functions",
        "limit",
        "policy",
        "loggers",
        "registered types",
        "module",
        "finalizer",
        "finder",
        "formats",
        "opener",
        "usual opener",
        "database types",
        "faults",
        "no faults",
        "garbage",
        "directory that is gone",
    ],
)
def test_what_cannot_be_set_again_is_named(fresh: Sandbox, change: str, names: set[str]) -> None:
    printed(fresh, change)
    assert {variable.name for variable in fresh.unsaved} == names
    assert set(die(fresh)) == names
    printed(fresh, "after = 1")
    assert fresh.unsaved == ()


def test_a_module_that_a_variable_holds_is_saved_with_it(fresh: Sandbox) -> None:
    printed(fresh, "import sys, types\nheld = sys.modules['held_up'] = types.ModuleType('held_up')")
    assert fresh.unsaved == ()
    assert die(fresh) == ()
    look = "import held_up; print(held_up is held); import sys; del sys.modules['held_up']"
    assert printed(fresh, look) == "True\n"


def test_a_directory_that_is_gone_after_the_death_is_named(fresh: Sandbox) -> None:
    printed(fresh, "import os; os.makedirs('soon'); home = os.getcwd(); os.chdir('soon')")
    assert fresh.unsaved == ()
    result = fresh.execute("os.rmdir('../soon'); os._exit(1)")
    assert "os.getcwd()" in result.lost
    assert printed(fresh, "print(os.getcwd() == home)") == "True\n"
