"""What the benchmarks' command lines share."""

import signal
from collections.abc import Sequence

from fer_jax.arguments import Parser as Parser
from fer_jax.errors import InputError


def end_on_signals() -> None:
    """Has SIGTERM and SIGHUP end this process as Ctrl-C does, its processes with it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)


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
