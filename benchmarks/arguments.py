"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Sequence
from typing import Any

from fer_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `InputError`, and whose help keeps the lines of its texts."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(
            prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> Any:
        """Raises InputError."""
        raise InputError(message)


def words(name: str, text: str, known: Sequence[str], may_be_empty: bool = False) -> tuple[str, ...]:
    """The words of a list with commas, each once.

    Raises:
      InputError: one that is not known, or none where there has to be one.
    """
    chosen = tuple(dict.fromkeys(word for word in text.split(",") if word))
    for word in chosen:
        if word not in known:
            raise InputError(f"--{name}: unknown {word!r}, expected some of {', '.join(known)}")
    if not chosen and not may_be_empty:
        raise InputError(f"--{name}: expected some of {', '.join(known)}")
    return chosen
