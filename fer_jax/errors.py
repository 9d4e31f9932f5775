"""The one kind of error a user is meant to read, and how the commands end on it."""

import _thread
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_CANNOT_BE_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)


class InputError(Exception):
    """Input that cannot be used: one line naming the file, row or field and what was expected."""


@contextlib.contextmanager
def exit_on_input_error(
    debug: bool = False, interrupted: str = "interrupted", at_once: bool = False
) -> Iterator[None]:
    """Turns an `InputError`, and the system's error on a file or stdout, into one line on stderr and exit
    status 2, Ctrl-C into one and 130; the status is 141 where whoever read stdout has closed it.

    Args:
      debug: let the error through with its traceback instead.
      interrupted: the line after Ctrl-C.
      at_once: let Ctrl-C end the process without Python's own end, in which what XLA's threads still compute
        crashes, and Orbax's complain.
    """
    try:
        with _hearing_ctrl_c(), _flushing_stdout():
            yield
    except InputError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        drop_stdout()
        sys.exit(141)
    except OSError as error:  # of a path that may not even be looked at, or has too long a name
        named = isinstance(error.filename, str | bytes | os.PathLike)
        if debug or not (named or is_of_stdout(error)):
            raise
        if named:
            print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        else:
            drop_stdout()
            print(f"error: stdout: cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr, flush=True)
        if at_once:
            os._exit(130)
        sys.exit(130)


def is_of_stdout(error: Exception) -> bool:
    """Whether it says that stdout cannot be written: of other files it has the name, or `files.writing_to`
    tells it."""
    return isinstance(error, OSError) and error.filename is None and error.errno in _CANNOT_BE_WRITTEN


@contextlib.contextmanager
def _flushing_stdout() -> Iterator[None]:
    """Writes what is left, after --help too: what fails at Python's own end can no longer be told well."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


@contextlib.contextmanager
def _hearing_ctrl_c() -> Iterator[None]:
    """Python drops what is raised while it collects garbage, and JAX has it call a function then: a Ctrl-C
    that comes there is raised a little later."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code.co_name != "_xla_gc_callback":
            raise KeyboardInterrupt
        threading.Timer(0.01, _thread.interrupt_main).start()

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def drop_stdout() -> None:
    """What is still to be flushed at the end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
