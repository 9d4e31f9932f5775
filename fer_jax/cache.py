"""Where fer_jax keeps what it computes once and reads again later."""

import contextlib
import fcntl
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fer_jax.files import replacing, writing_to


def cache_dir() -> Path:
    """The cache directory: $FER_JAX_CACHE, else $XDG_CACHE_HOME/fer_jax, else ~/.cache/fer_jax.

    An empty variable counts as unset. The directory is not created here.
    """
    if chosen := os.environ.get("FER_JAX_CACHE"):
        return Path(chosen)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "fer_jax"
    return Path.home() / ".cache" / "fer_jax"


def keep_compiled_programs() -> None:
    """Has JAX keep every program it compiles, so that a second start is quick.

    In the cache directory, or where the user's own JAX_COMPILATION_CACHE_DIR says.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small ones add up


def remembered(kind: str, key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, from the cache's directory `kind`, or computed and kept there.

    Args:
      key: all that the arrays depend on, in words; its sha256 names the file.
    """
    path = cache_dir() / kind / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.npz"
    unreadable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*unreadable), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
    arrays = compute()
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    return arrays


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time inside, by a lock on the file `path`; the others wait.

    Raises:
      InputError: the file cannot be made.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turns the `OSError` of a place in the cache that cannot be written into an `InputError`."""
    return writing_to(path, hint="; $FER_JAX_CACHE can name another place")
