"""Where fer_jax keeps what it computes once and reads again later."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache directory: $FER_JAX_CACHE, else $XDG_CACHE_HOME/fer_jax, else ~/.cache/fer_jax.

    An empty variable counts as unset. The directory is not created here.
    """
    if chosen := os.environ.get("FER_JAX_CACHE"):
        return Path(chosen)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "fer_jax"
    return Path.home() / ".cache" / "fer_jax"
