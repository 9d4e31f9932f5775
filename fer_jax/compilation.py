"""`jax.jit` with the compiler's options that are fastest on the device at hand."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

from fer_jax.errors import InputError

# XLA hands sums and matrix products on CPU to YNNPACK. With its sums a training step is 2.2 to 3.3 times as
# fast as with XLA's own; its products are slower than XLA's: a forward pass without them gives 6-17 % more
# images/s. Measured with JAX 0.10.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def check_device() -> None:
    """Raises InputError where JAX finds nothing to compute on: $JAX_PLATFORMS may name what is not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = f" (JAX_PLATFORMS={os.environ['JAX_PLATFORMS']})" if "JAX_PLATFORMS" in os.environ else ""
        raise InputError(f"JAX finds no device{wanted}: {' '.join(str(error).split()) or 'none'}") from error


def jit(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """`jax.jit(function, **arguments)`; called with what another program traces, `function` itself, since the
    outer program has its own options. With constants alone JAX refuses it inside another program."""
    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
    compiled = jax.jit(function, compiler_options=options, **arguments)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return (function if inside else compiled)(*args, **kwargs)

    return call


def precision() -> str:
    """How an accelerator multiplies float32, in words: by default in TF32 on a GPU, bfloat16 on a TPU; empty
    on CPU."""
    if jax.default_backend() == "cpu":
        return ""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return f"products at JAX's {precision or 'default'} precision"
