"""What a matrix product reaches on the device that cells will have: python -m benchmarks.study.product"""

import functools
import math
import subprocess
import sys
import time

from fer_jax.errors import InputError


@functools.cache
def flops_per_second() -> float:
    """Of a float32 matrix product of 2,048 square, by the fastest in a second or of five; in a process of its
    own, since some accelerators serve one process at a time.

    Raises:
      InputError: JAX does not start.
    """
    command = [sys.executable, "-m", "benchmarks.study.product"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        said = found.stderr.strip().splitlines() or [f"status {found.returncode}"]
        raise InputError(f"JAX does not start: {said[-1]}")
    return float(found.stdout)


def _measured() -> float:
    import jax.numpy as jnp

    from fer_jax import compilation

    a = jnp.ones((2048, 2048))
    product = compilation.jit(jnp.matmul)
    product(a, a).block_until_ready()
    start, count, fastest = time.perf_counter(), 0, math.inf
    while count < 5 or time.perf_counter() - start < 1.0:
        before = time.perf_counter()
        product(a, a).block_until_ready()
        fastest, count = min(fastest, time.perf_counter() - before), count + 1  # other work can only slow one
    return 2 * 2048**3 / fastest


if __name__ == "__main__":
    print(_measured())
