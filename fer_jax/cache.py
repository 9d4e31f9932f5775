"""Where fer_jax keeps what it computes once and reads again later."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fer_jax.errors import InputError


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
    """Has JAX keep every program it compiles in the cache directory, so that a second start is quick."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small ones add up


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the `OSError` of a place in the cache that cannot be written into an `InputError`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"{path}: cannot be written ({why}); $FER_JAX_CACHE can name another place"
        ) from error
