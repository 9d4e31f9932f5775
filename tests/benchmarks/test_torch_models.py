"""The peer's torch models do the work that ours do: as many weights, the same output."""

import jax
import numpy as np
import pytest

from fer_jax import models

torch = pytest.importorskip("torch", reason="needs the extra `bench`: torch is not installed")

from benchmarks.peers import torch_models  # noqa: E402
from benchmarks.work import he_normal  # noqa: E402

OPTIONS = {"mobilenet": {"alpha": 0.5, "image_size": 96}, "resnet50": {"image_size": 64}}


@pytest.mark.parametrize("name", models.BACKBONES)
def test_torch_model_equals_ours(name):
    options = OPTIONS.get(name, {})
    module, theirs = models.build(name, **options), torch_models.build(name, options.get("alpha", 1.0))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if "kernel" in path[-1].key:
            return he_normal(rng, leaf.shape)
        around = 1.0 if path[-1].key in ("gamma", "moving_variance") else 0.3
        return around + 0.1 * rng.random(leaf.shape, np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, models.abstract_variables(module))
    torch_models.load(theirs, variables)
    counted = [*theirs.parameters(), *(b for n, b in theirs.named_buffers() if "running" in n)]
    assert sum(t.numel() for t in counted) == sum(layer.parameters for layer in models.trace_layers(module))
    images = rng.random((2, module.image_size, module.image_size, 3), np.float32)
    expected = np.asarray(jax.jit(module.apply)(variables, images))
    with torch.inference_mode():
        output = theirs.eval()(torch.tensor(images).permute(0, 3, 1, 2))
    output = output.permute(0, 2, 3, 1).numpy() if output.ndim == 4 else output.numpy()
    assert np.linalg.norm(output - expected) <= 1e-5 * np.linalg.norm(expected)
