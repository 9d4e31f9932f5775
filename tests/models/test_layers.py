"""Derivatives written by hand are those of the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models import layers


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (40, 3)])
def test_batch_norm_s_gradient_is_that_of_its_formula_in_its_statistics_too(shape):
    draw = jax.random.split(jax.random.key(0), 3)
    x = 3.0 + 2.0 * jax.random.normal(draw[0], shape)  # a mean far from 0: sums must not cancel
    gamma, beta = (1.0 + jax.random.normal(key, shape[-1:]) for key in draw[1:])
    axes = tuple(range(len(shape) - 1))

    def formula(x, gamma, beta, epsilon):
        mean, variance = x.mean(axes), x.var(axes)
        return gamma * (x - mean) / jnp.sqrt(variance + epsilon) + beta, mean, variance

    def gradients(normalise):
        def loss(*args):
            y, mean, variance = normalise(*args, 1e-3)
            return jnp.sum(jnp.sin(y) * y) + jnp.sum(jnp.cos(mean)) + jnp.sum(variance**2)

        return jax.grad(loss, (0, 1, 2))(x, gamma, beta)

    for ours, expected in zip(gradients(layers._normalise_by_batch), gradients(formula), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * float(abs(expected).max()))
