"""What `fer_jax.models` tells of the backbones, and what it refuses."""

import functools
import os
import subprocess
import sys

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import freezing, initialisation, models
from fer_jax.errors import InputError
from fer_jax.models import convolution, layers
from fer_jax.models.__main__ import main as models_command

PUBLISHED = {  # total parameters, those that learn in the last four layers, GFLOP: paper.md
    "openface": (3_743_280, 94_336),
    "vggface": (145_002_878, 27_523_646),
    "resnet50": (23_587_712, 1_054_720),
    "mobilenet": (3_228_864, 1_050_624),
}
LAST_FOUR = {
    "openface": ("concatenate_6", "average_pooling2d_3", "flatten", "dense_layer"),
    "vggface": ("fc7", "dropout_1", "fc8", "flatten"),
    "resnet50": ("conv5_block3_3_conv", "conv5_block3_3_bn", "conv5_block3_add", "conv5_block3_out"),
    "mobilenet": ("conv_dw_13_relu", "conv_pw_13", "conv_pw_13_bn", "conv_pw_13_relu"),
}


@pytest.mark.parametrize("name", models.BACKBONES)
def test_parameters_and_last_four_layers_are_the_published_ones(name):
    traced = models.trace_layers(models.build(name))
    assert sum(layer.parameters for layer in traced) == PUBLISHED[name][0]
    assert tuple(layer.name for layer in traced[-4:]) == LAST_FOUR[name]
    learning = freezing.learning_layers([layer.name for layer in traced], "last", last=4)
    assert sum(layer.learnable for layer in traced if layer.name in learning) == PUBLISHED[name][1]


def test_the_command_prints_a_row_a_backbone():
    done = subprocess.run(
        [sys.executable, "-m", "fer_jax.models"], capture_output=True, text=True, check=True
    )
    for name, (total, learnable) in PUBLISHED.items():
        row = next(line for line in done.stdout.splitlines() if line.startswith(name)).split()
        assert row[2:4] == [f"{total:,}", f"{learnable:,}"]
        assert float(row[4]) > 0.3


@pytest.mark.parametrize(
    ("argument", "status", "words"),
    [
        ("--help", 0, "usage: python -m fer_jax.models"),
        ("--depth=3", 2, "error: unrecognized arguments: --depth=3\n"),
        ("resnet50", 2, "error: unrecognized arguments: resnet50\n"),
    ],
)
def test_the_command_has_help_and_refuses_arguments(argument, status, words, capsys):
    with pytest.raises(SystemExit) as end:
        models_command([argument])
    assert end.value.code == status
    assert words in "".join(capsys.readouterr())


def test_a_closed_pipe_ends_the_command_without_a_traceback():
    command = f"{sys.executable} -u -m fer_jax.models | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("backbone")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("stdout", "platforms", "words"),
    [
        ("/dev/full", "cpu", "error: stdout: cannot be written (No space left on device)\n"),
        ("/dev/null", "abacus", "error: JAX finds no device (JAX_PLATFORMS=abacus): "),
    ],
)
def test_a_full_disk_and_a_device_that_is_not_there_end_the_command_in_a_line(stdout, platforms, words):
    command = [sys.executable, "-m", "fer_jax.models"]
    environment = {**os.environ, "JAX_PLATFORMS": platforms}
    with open(stdout, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1


def test_flops_of_a_dense_and_a_depthwise_layer_are_two_per_multiply_add():
    traced = {layer.name: layer for layer in models.trace_layers(models.build("mobilenet", image_size=32))}
    assert traced["conv_dw_1"].flops == 2 * 16 * 16 * 32 * 9
    assert traced["conv_pw_1"].flops == 2 * 16 * 16 * 32 * 64
    assert traced["conv1"].flops == 2 * 16 * 16 * 27 * 32
    openface = {layer.name: layer for layer in models.trace_layers(models.build("openface"))}
    assert openface["dense_layer"].flops == 2 * 736 * 128


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("facenet",), "facenet"),
        (("openface", {"image_size": 224}), "expected 96"),
        (("vggface", {"image_size": 96}), "at least 224"),
        (("mobilenet", {"image_size": 97}), "even"),
        (("resnet50", {"alpha": 0.5}), "no width multiplier"),
        (("mobilenet", {"alpha": 0.0}), "no filters"),
        (("mobilenet", {"alpha": 1e308}), r"alpha: 1e\+308, expected .* to 32"),
    ],
)
def test_what_a_backbone_cannot_be_is_refused(arguments, words):
    name, *options = arguments
    with pytest.raises(InputError, match=words):
        models.build(name, **(options[0] if options else {}))


def test_the_gradient_of_the_square_root_at_zero_is_zero():
    gradient = jax.grad(lambda x: layers.safe_sqrt(x).sum())(jnp.array([0.0, 4.0]))
    np.testing.assert_array_equal(gradient, [0.0, 0.25])


def test_openface_gradients_are_finite_for_a_blank_image(shallow):
    module = models.build("openface")
    module = module.clone(learning=frozenset(models.layer_names(module)))
    images = jnp.zeros((2, 96, 96, 3))
    variables = initialisation.random_variables(models.abstract_variables(module), 0, "backbone")

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles sooner
    def gradient(params):
        def loss(params):
            variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
            output, _ = module.apply(variables_now, images, train=True, mutable=["batch_stats"])
            return (output**2).sum()

        return jax.grad(loss)(params)

    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient(variables["params"])))


def test_the_hand_written_gradient_of_lrn_is_that_of_autodiff():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 16)) * 30

    def plain(x):
        window = (1, 1, 1, 11)
        padding = ((0, 0), (0, 0), (0, 0), (5, 5))
        energy = 1 + 1e-4 * jax.lax.reduce_window(x * x, 0.0, jax.lax.add, window, (1,) * 4, padding)
        return x / energy**0.75

    np.testing.assert_allclose(layers.local_response_normalization(x), plain(x), rtol=1e-5)
    ours = jax.grad(lambda x: jnp.sin(layers.local_response_normalization(x)).sum())(x)
    np.testing.assert_allclose(ours, jax.grad(lambda x: jnp.sin(plain(x)).sum())(x), atol=1e-5)


def test_cpu_forms_of_convolutions_and_pooling_equal_the_library_s():
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 1))
    ours = layers.DepthwiseConv2D(3, strides=2).apply({"params": {"depthwise_kernel": kernel}}, x)
    library = convolution.library_convolution(x, kernel.reshape(3, 3, 1, 4), 2, "valid", groups=4)
    np.testing.assert_allclose(ours, library, atol=1e-5)
    pooled = layers.max_pooling(3, 2, "pool").apply({}, x)
    np.testing.assert_array_equal(pooled, layers.nn.max_pool(x, (3, 3), (2, 2)))


@pytest.mark.parametrize(("size", "strides", "side"), [(3, 2, 9), (3, 2, 10), (2, 2, 7), (3, 1, 6)])
def test_the_cpu_gradient_of_max_pooling_is_the_library_s(size, strides, side):
    x = jax.random.normal(jax.random.key(0), (2, side, side, 4))

    def gradient(pool):
        return jax.grad(lambda x: jnp.sin(pool(x)).sum())(x)

    ours = gradient(lambda x: layers._shifted_maximum(x, size, strides))
    library = gradient(lambda x: layers.nn.max_pool(x, (size, size), (strides, strides)))
    np.testing.assert_allclose(ours, library, atol=1e-6)


def test_the_cpu_gradient_of_max_pooling_is_shared_evenly_by_values_that_tie():
    gradient = jax.grad(lambda x: layers._shifted_maximum(x, 2, 2).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


def test_activations_pass_no_gradient_at_their_kinks_as_in_keras():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    for activation, expected in ((layers.relu, [0, 0, 1, 1, 1]), (layers.relu6, [0, 0, 1, 0, 0])):
        gradient = jax.grad(lambda x, activation=activation: activation("a").apply({}, x).sum())(x)
        np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("name", models.BACKBONES)
def test_shapes_of_variables_are_those_that_init_draws(name):
    module = models.build(name)
    images = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), jnp.float32)
    drawn = jax.eval_shape(module.init, jax.random.key(0), images)
    assert models.abstract_variables(module) == drawn


def test_init_draws_kernels_after_their_shapes_were_asked_for():
    dense = layers.Dense(4)
    models.variables_for(dense, jax.ShapeDtypeStruct((1, 3), jnp.float32))
    kernel = jax.jit(dense.init)(jax.random.key(0), jnp.zeros((1, 3)))["params"]["kernel"]
    assert len(np.unique(kernel)) == 12


def test_weights_of_another_width_are_refused():
    wide = models.abstract_variables(models.build("mobilenet", alpha=0.5, image_size=32))
    variables = initialisation.random_variables(wide, 0, "backbone")
    with pytest.raises(flax.errors.ScopeParamShapeError, match="kernel"):
        models.build("mobilenet", alpha=0.25, image_size=32).apply(variables, jnp.zeros((1, 32, 32, 3)))
