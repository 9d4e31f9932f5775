"""Forward parity with Keras 3, in inference mode: the output and five inner layers of every backbone."""

import jax
import keras
import keras_reference
import numpy as np
import pytest

from fer_jax import models

INNER = {
    "openface": ["lrn_1", "lrn_2", "sqrt_3b", "concatenate_2", "concatenate_5"],
    "vggface": ["conv1_2", "max_pooling2d_1", "conv4_3", "max_pooling2d_4", "fc7"],
    "resnet50": ["conv1_bn", "pool1_pool", "conv2_block1_add", "conv3_block4_out", "conv5_block1_3_bn"],
    "mobilenet": ["conv1_relu", "conv_pad_2", "conv_dw_4", "conv_pw_6_bn", "conv_dw_13_relu"],
}


def keras_model(name: str) -> keras.Model:
    keras.utils.clear_session()
    with keras_reference.zero_kernels():
        if name == "openface":
            return keras_reference.openface()
        if name == "vggface":
            return keras_reference.vggface()
        if name == "resnet50":
            return keras.applications.ResNet50(input_shape=(64, 64, 3), weights=None, include_top=False)
        return keras.applications.MobileNet(
            input_shape=(96, 96, 3), alpha=0.5, weights=None, include_top=False
        )


def our_model(name: str):
    options = {"resnet50": {"image_size": 64}, "mobilenet": {"image_size": 96, "alpha": 0.5}}
    return models.build(name, **options.get(name, {}))


@pytest.mark.parametrize("name", models.BACKBONES)
def test_backbone_equals_keras_at_output_and_inner_layers(name):
    reference, module = keras_model(name), our_model(name)
    rng = np.random.default_rng(0)
    low, high = {"resnet50": (-120, 140), "mobilenet": (-1, 1)}.get(name, (0, 1))
    shape = (8, module.image_size, module.image_size, 3)
    images = rng.uniform(low, high, shape).astype(np.float32)
    # Of fewer images the statistics of the last, smallest maps are too few numbers to be well conditioned.
    keras_reference.calibrate(reference, images, seed=1)
    keras_reference.make_epsilon_matter(reference)
    images = images[:2]
    variables = {part: tree for part, tree in keras_reference.to_variables(reference).items() if tree}

    names = [layer.name for layer in reference.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert models.layer_names(module) == tuple(names)
    shapes = jax.tree.map(np.shape, variables)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, models.abstract_variables(module))

    wanted = [*INNER[name], names[-1]]
    expected = keras_reference.layer_outputs(reference, wanted, images)
    apply = jax.jit(lambda variables, images: module.apply(variables, images, capture_intermediates=True))
    output, state = apply(variables, images)
    inner = {
        layer: values["__call__"][0]
        for layer, values in state["intermediates"].items()
        if layer != "__call__"
    }
    for layer in wanted:
        difference = np.linalg.norm(inner[layer] - expected[layer]) / np.linalg.norm(expected[layer])
        assert difference <= 1e-5, f"{layer}: {difference}"
        assert np.std(expected[layer]) > 1e-2, f"{layer}: too little signal for a test"
    np.testing.assert_array_equal(output, inner[names[-1]])


@pytest.mark.parametrize(("alpha", "name"), [(1.0, "resnet50"), (0.25, "mobilenet")])
def test_imagenet_classifier_is_keras_s(alpha, name):
    keras.utils.clear_session()
    build = keras.applications.MobileNet if name == "mobilenet" else keras.applications.ResNet50
    options = {"alpha": alpha} if name == "mobilenet" else {}
    with keras_reference.zero_kernels():
        reference = build(weights=None, input_shape=(224, 224, 3), **options)
    module = models.build(name, alpha=alpha, include_top=True)
    shapes = jax.tree.map(np.shape, keras_reference.to_variables(reference))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, models.abstract_variables(module))
    names = [layer.name for layer in reference.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert models.layer_names(module) == tuple(names)
