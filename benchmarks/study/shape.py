"""Whether what a JSON file holds is as it has to be."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

ANY = "*"  # in a shape: every other key


class Leaf(NamedTuple):
    """What a value has to be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


class Maybe(NamedTuple):
    """The shape of a field that may be missing."""

    shape: Any


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < float("inf")


TEXT = Leaf("text", lambda x: isinstance(x, str))
WORDS = Leaf("text that is not empty", lambda x: isinstance(x, str) and bool(x.strip()))
TEXT_OR_NULL = Leaf("text or null", lambda x: x is None or isinstance(x, str))
TRUTH = Leaf("true or false", lambda x: isinstance(x, bool))
FIELDS = Leaf("fields", lambda x: isinstance(x, dict))
FIELDS_OR_NULL = Leaf("fields or null", lambda x: x is None or isinstance(x, dict))
NUMBER = Leaf("a number", _is_number)
NUMBER_OR_NULL = Leaf("a number or null", lambda x: x is None or _is_number(x))  # null: no finite number
SHARE = Leaf("0 to 1", lambda x: _is_number(x) and 0 <= x <= 1)
POSITIVE = Leaf("a number above 0", lambda x: _is_number(x) and x > 0)
FROM_ZERO = Leaf("a number from 0", lambda x: _is_number(x) and x >= 0)


def whole(least: int) -> Leaf:
    """A whole number, `least` or more."""
    return Leaf(f"a whole number from {least}", lambda x: type(x) is int and x >= least)


def one_of(names: Collection[str]) -> Leaf:
    """One of these words."""
    return Leaf(f"one of {', '.join(names)}", lambda x: isinstance(x, str) and x in names)


def check(value: Any, shape: Any, where: str = "") -> None:
    """Does nothing where a value has a shape; more fields than those of the shape are no fault.

    Args:
      shape: a `Leaf`, or a dict of shapes by key, `Maybe` among them, that of `ANY` for every key without one
        of its own, or a list of one shape, that of all entries.
      where: the value's name in an error.

    Raises:
      ValueError: the first fault, with the name of its field.
    """
    if isinstance(shape, Leaf):
        if not shape.fits(value):
            raise ValueError(f"{where}: expected {shape.words}, got {value!r:.40}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r:.40}")
        for index, entry in enumerate(value):
            check(entry, shape[0], f"{where}[{index}]")
    else:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where or 'all of it'}: expected fields, got {value!r:.40}")
        for key in [*shape, *(key for key in value if key not in shape)]:
            name, inner = f"{where}.{key}".lstrip("."), shape.get(key, shape.get(ANY))
            may_lack = key == ANY or isinstance(inner, Maybe)
            if key not in value and not may_lack:
                raise ValueError(f"it lacks {name}")
            if inner is not None and key in value:
                check(value[key], inner.shape if isinstance(inner, Maybe) else inner, name)
