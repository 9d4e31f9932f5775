"""Random weights are Keras's initialisers, the same for a seed everywhere."""

import numpy as np
import pytest

from fer_jax import initialisation, models


@pytest.fixture(scope="module")
def shapes():
    return models.abstract_variables(models.build("mobilenet", alpha=0.25, image_size=32))


def test_kernels_are_glorot_uniform_and_the_rest_zeros_and_ones(shapes):
    params = initialisation.random_variables(shapes, 0, "backbone")["params"]
    # keras: limit sqrt(6 / (fan_in + fan_out)), fans times the places of a kernel.
    for layer, tensor, limit in (
        ("conv_pw_13", "kernel", np.sqrt(6 / (256 + 256))),
        ("conv_dw_13", "depthwise_kernel", np.sqrt(6 / (9 * 256 + 9 * 1))),
        ("conv1", "kernel", np.sqrt(6 / (9 * 3 + 9 * 8))),
    ):
        values = params[layer][tensor]
        assert values.dtype == np.float32
        assert np.abs(values).max() <= limit
        assert np.abs(values).max() > 0.95 * limit
        assert np.std(values) == pytest.approx(limit / np.sqrt(3), rel=0.15)
    stats = initialisation.random_variables(shapes, 0, "backbone")["batch_stats"]
    assert (params["conv1_bn"]["gamma"] == 1).all()
    assert (params["conv1_bn"]["beta"] == 0).all()
    assert (stats["conv1_bn"]["moving_mean"] == 0).all()
    assert (stats["conv1_bn"]["moving_variance"] == 1).all()


def test_a_seed_gives_the_same_weights_and_another_or_another_part_others(shapes):
    def kernel(*arguments):
        return initialisation.random_variables(shapes, *arguments)["params"]["conv1"]["kernel"]

    first = kernel(0, "backbone")
    np.testing.assert_array_equal(first, kernel(0, "backbone"))
    assert not np.array_equal(first, kernel(1, "backbone"))
    assert not np.array_equal(first, kernel(0, "head"))
    # Pinned: the random weights of published results.
    np.testing.assert_allclose(first[0, 0, 0, :2], PINNED, rtol=0, atol=1e-7)


PINNED = [0.2010707, 0.16670987]
