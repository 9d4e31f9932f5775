"""The smallest model there is, on disk, with random weights under which no layer fades."""

import jax
import numpy as np

from benchmarks.work import he_normal
from fer_jax import saved_model
from fer_jax.data.dataset import CLASS_NAMES


def write(directory, channels=1):
    """Writes a model for 48x48 faces to a directory, grey or RGB."""
    spec = saved_model.Spec(
        backbone="mobilenet",
        alpha=1 / 16,
        image_size=32,
        pooling="avg",
        batch_norm=True,
        hidden=(),
        scaling="tf",
        class_names=CLASS_NAMES,
        side=48,
        channels=channels,
        provenance={"title": "a small model"},
    )
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if "kernel" in path[-1].key:
            last = 300 if path[-2].key == "predictions" else 1  # so that probabilities differ
            return last * he_normal(rng, leaf.shape)
        return np.full(leaf.shape, path[-1].key in ("gamma", "moving_variance"), np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, spec.abstract_variables())
    saved_model.save(directory / saved_model.FILE, spec, variables)
    return directory
