"""Files that are whole or not there, and their checksums."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fer_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

LONGEST = 220  # bytes kept of a name: with what is added to it a file system takes 255
_STEM = 100  # bytes of a name, of which a file system takes 255, that a temporary name repeats


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path`, of the same suffix, which takes its place at the end, and is gone if
    anything fails."""
    target = Path(path)
    temporary = target.with_name(f".{shortened(target.stem, _STEM)}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether a path, or a name, is text: the system takes any bytes, many a library no others."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def shortened(name: str, size: int) -> str:
    """As much of the front of a file's name as makes at most `size` bytes, no letter cut in two."""
    while len(os.fsencode(name)) > size:
        name = name[:-1]
    return name


def write_tensors(
    arrays: "Mapping[str, np.ndarray]", path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file of safetensors, with the permissions of any file: the library's are the owner's alone.

    Raises:
      OSError: it cannot be written, as on a full disk, of which the library has an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(arrays), path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)


def digest(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def locked(path: Path, hint: str = "", busy: str = "") -> Iterator[None]:
    """Lets one process at a time inside, by a lock on the file `path`; the others wait.

    Args:
      hint: ends the error where the file cannot be made or locked.
      busy: the error of the others, where they are not to wait.

    Raises:
      InputError: `hint` and `busy` say when.
    """
    with writing_to(path, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        with writing_to(path, hint):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError as error:
                raise InputError(busy) from error
        yield


@contextlib.contextmanager
def writing_to(path: Path, hint: str = "") -> Iterator[None]:
    """Turns the `OSError` of a file or directory that cannot be written into an `InputError`."""
    try:
        yield
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}){hint}") from error
