"""StableHLO: a serialised `jax.export.Exported` for CPU, CUDA and TPU, weights inside; jax alone loads it."""

import functools
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from fer_jax.models.tracing import library_only
from fer_jax.saved_model import SavedModel

PLATFORMS = ("cpu", "cuda", "tpu")


def write(saved: SavedModel, metadata: dict[str, str], path: Path) -> None:
    """Writes the program, of any batch size."""
    spec = saved.spec
    shape = jax.export.symbolic_shape(f"batch, {spec.image_size}, {spec.image_size}, 3")
    function = jax.jit(functools.partial(spec.predictor(), saved.variables))
    # GPU and TPU would multiply in fewer bits otherwise.
    with library_only(), jax.default_matmul_precision("highest"):
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        exported = jax.export.export(function, platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def predict(path: Path, images: np.ndarray) -> np.ndarray:
    """By jax."""
    return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(images))
