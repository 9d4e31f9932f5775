"""What the benchmarks' command lines share."""

from collections.abc import Sequence

from fer_jax.arguments import Parser as Parser
from fer_jax.errors import InputError


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
