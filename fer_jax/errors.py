"""The one kind of error a user is meant to read, and how the commands end on it."""

import contextlib
import os
import sys
from collections.abc import Iterator


class InputError(Exception):
    """Input that cannot be used: one line naming the file, row or field and what was expected."""


@contextlib.contextmanager
def exit_on_input_error(
    debug: bool = False, interrupted: str = "interrupted", at_once: bool = False
) -> Iterator[None]:
    """Turns an `InputError`, and the system's error on a file, into one line on stderr and exit status 2,
    Ctrl-C into one and 130; the status is 141 where whoever read stdout has closed it.

    Args:
      debug: let the error through with its traceback instead.
      interrupted: the line after Ctrl-C.
      at_once: let Ctrl-C end the process without Python's own end, in which what XLA's threads still compute
        crashes, and Orbax's complain.
    """
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        drop_stdout()
        sys.exit(141)
    except OSError as error:  # of a path that may not even be looked at, or has too long a name
        if debug or not isinstance(error.filename, str | bytes | os.PathLike):
            raise
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr, flush=True)
        if at_once:
            os._exit(130)
        sys.exit(130)


def drop_stdout() -> None:
    """What is still to be flushed at the end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
