"""Saves functions with a cache, ``functools.lru_cache``, and what is in that.

Nothing of ``functools`` gives the contents, but the garbage collector knows what an object refers
to. If that is not as expected, the function comes back with an empty cache. To fill one, it is
called with the same arguments, while something else stands for the function that it calls.

State files name the functions below "What state files call", so they keep their names.
"""

from __future__ import annotations

import functools
import gc
import sys
from typing import Any


def reduce_cache(cache: Any) -> Any:
    """Return how to save a function with a cache."""
    parameters = cache.cache_parameters()
    arguments = (cache.__wrapped__, parameters["maxsize"], parameters["typed"])
    attributes = {name: value for name, value in vars(cache).items() if name != "cache_parameters"}
    contents = _contents(cache, typed=parameters["typed"])
    return make_filled_cache, arguments, (attributes, contents), None, None, fill_cache


def _contents(cache: Any, *, typed: bool) -> list[tuple[Any, ...]]:
    """Return the arguments, the keywords and the result of each call that is in a cache.

    The one that was used last comes last.
    """
    count = cache.cache_info().currsize
    if not count:
        return []
    found = gc.get_referents(cache)
    tables = (one for one in found if type(one) is dict and one is not vars(cache))
    table: dict[Any, Any] = next(tables, {})
    if cache.cache_parameters()["maxsize"] is None:
        pairs = list(table.items())
    else:
        # First, from Python 3.10 on, there is a type before the key and the result of each call.
        step = 2 if sys.version_info < (3, 10) else 3
        pairs = list(zip(found[step - 2 : count * step : step], found[step - 1 :: step]))  # noqa: B905
        if {id(key) for key, _ in pairs} != set(map(id, table)):
            return []
    marks = [one for one in found if type(one) is object]
    return [(*_called_with(key, marks, typed), result) for key, result in pairs]


def _called_with(key: Any, marks: list[Any], typed: bool) -> tuple[Any, dict[str, Any]]:
    """Return the arguments and keywords that have made the key of a call."""
    if type(key) is not tuple:  # a single number or text
        return (key,), {}
    # One object stands between arguments and keywords; the collector knows it from Python 3.10 on.
    places = [n for n, part in enumerate(key) if type(part) is object]
    places = [n for n in places if not marks or any(key[n] is mark for mark in marks)]
    if not places:
        return key[: len(key) // 2] if typed else key, {}
    place = places[0]
    named = key[place + 1 :]
    count = (len(named) - place) // 3 if typed else len(named) // 2
    return key[:place], dict(zip(named[: 2 * count : 2], named[1 : 2 * count : 2]))  # noqa: B905


# What state files call


def make_filled_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Make a function with an empty cache, which :func:`fill_cache` can fill."""
    cache = functools.lru_cache(maxsize, typed)(functools.partial(function))
    return functools.update_wrapper(cache, function)


def fill_cache(cache: Any, state: tuple[dict[str, Any], list[tuple[Any, ...]]]) -> None:
    """Give a function with a cache its attributes, and the cache its contents."""
    attributes, contents = state
    function = cache.__wrapped__
    vars(cache).update(attributes)
    stand: Any = next(one for one in gc.get_referents(cache) if type(one) is functools.partial)
    results: list[Any] = [None]
    stand.__setstate__((lambda *_, **__: results[0], (), {}, None))
    try:
        for arguments, keywords, result in contents:
            results[0] = result
            cache(*arguments, **keywords)
    finally:
        stand.__setstate__((function, (), {}, None))
