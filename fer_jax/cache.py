"""Where fer_jax keeps what it computes once and reads again later."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import files
from fer_jax.errors import InputError
from fer_jax.files import replacing

_HINT = "; $FER_JAX_CACHE can name another place"
_SETTLED_NS = 2_000_000_000  # a file changed more lately may change again within the clock's resolution


def cache_dir() -> Path:
    """The cache directory: $FER_JAX_CACHE, else $XDG_CACHE_HOME/fer_jax, else ~/.cache/fer_jax.

    An empty variable counts as unset. The directory is not created here.

    Raises:
      InputError: neither is set, and no home directory is known.
    """
    if chosen := os.environ.get("FER_JAX_CACHE"):
        return Path(chosen)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "fer_jax"
    try:
        return Path.home() / ".cache" / "fer_jax"
    except RuntimeError as error:
        raise InputError(f"no home directory is known{_HINT}") from error


def keep_compiled_programs() -> None:
    """Has JAX keep every program it compiles, so that a second start is quick.

    In the cache directory, or where the user's own JAX_COMPILATION_CACHE_DIR says.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small ones add up


def remembered(
    kind: str, key: str, names: Collection[str], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays by name, from the cache's directory `kind`, or computed and kept there.

    Args:
      key: all that the arrays depend on, in words; its sha256 names the file.
      names: of the arrays; a damaged file may have others.
    """
    path = cache_dir() / kind / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.npz"
    # A damaged zip file raises nearly anything.
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names}
    arrays = compute()
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    return arrays


def remembered_of(
    kind: str, paths: Sequence[Path], names: Collection[str], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`remembered` of the files' content, for as long as size, inode and both times of change of each are the
    same (that of content can be set, and often is, by what unpacks archives).

    Raises:
      OSError: a file is not there.
    """
    stats = [os.stat(path) for path in paths]
    if any(time.time_ns() - stat.st_mtime_ns < _SETTLED_NS for stat in stats):
        return compute()
    of_each = zip(map(os.path.abspath, paths), stats, strict=True)
    key = "\n".join(f"{path} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for path, s in of_each)
    return remembered(kind, key, names, compute)


def as_bytes(array: Any) -> memoryview:
    """The bytes of an array's elements in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def arrays_hash(arrays: Mapping[str, Any]) -> str:
    """Of arrays by name, in their order: blake2b, in hexadecimal."""
    found = hashlib.blake2b(digest_size=32)
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(as_bytes(array))
    return found.hexdigest()


def locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """`files.locked` of a file in the cache."""
    return files.locked(path, _HINT)


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """`files.writing_to` of a place in the cache."""
    return files.writing_to(path, _HINT)
