"""Programs are compiled with the options that were measured to be fast, at the top level alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import compilation
from fer_jax.errors import InputError

MATRIX = jnp.ones((256, 256))


def test_a_program_computes_what_the_function_does_with_static_arguments():
    double = compilation.jit(lambda x, times: x * times, static_argnames="times")
    np.testing.assert_array_equal(double(MATRIX, times=2), 2 * MATRIX)


def test_inside_another_program_and_where_shapes_are_asked_for_the_function_itself_is_traced():
    product = compilation.jit(jnp.matmul)
    assert jax.eval_shape(product, MATRIX, MATRIX).shape == MATRIX.shape
    np.testing.assert_array_equal(jax.jit(lambda x: product(x, x))(MATRIX), MATRIX @ MATRIX)


def test_a_platform_that_is_not_there_is_named(monkeypatch):
    def none():
        raise AssertionError  # as JAX has it

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match=r"^JAX finds no device \(JAX_PLATFORMS=cuda\): none$"):
        compilation.check_device()


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.__version_info__ < (0, 10),
    reason="options of XLA on CPU since 0.10",
)
def test_on_cpu_sums_go_to_ynnpack_and_products_do_not():
    def compiled(function):
        lowered = jax.jit(function, compiler_options=compilation._CPU_OPTIONS).lower(MATRIX)
        return lowered.compile().as_text()

    assert "__ynn_fusion" in compiled(lambda x: x.sum(0))
    assert "__ynn_fusion" not in compiled(lambda x: x @ x)
