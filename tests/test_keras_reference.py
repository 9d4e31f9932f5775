"""The oracle itself, counted, named and scaled as the models it stands for."""

import keras
import keras_reference
import numpy as np
import pytest


@pytest.fixture(scope="module")
def openface() -> keras.Model:
    return keras_reference.openface()


@pytest.fixture(scope="module")
def calibrated_openface(openface: keras.Model) -> tuple[keras.Model, np.ndarray]:
    images = np.random.default_rng(0).uniform(size=(4, 96, 96, 3)).astype(np.float32)
    keras_reference.calibrate(openface, images, seed=1)
    return openface, images


def test_openface_has_the_published_layers_and_parameters(openface):
    assert len(openface.layers) == 165  # InputLayer included
    assert openface.count_params() == 3_743_280
    assert [layer.name for layer in openface.layers[-4:]] == [
        "concatenate_6",
        "average_pooling2d_3",
        "flatten",
        "dense_layer",
    ]
    assert sum(layer.count_params() for layer in openface.layers[-4:]) == 94_336
    assert openface.output_shape == (None, 128)


def test_vggface_has_the_published_layers_and_parameters():
    model = keras_reference.vggface()
    assert len(model.layers) == 38  # InputLayer included
    assert model.count_params() == 145_002_878
    assert [layer.name for layer in model.layers[-4:]] == ["fc7", "dropout_1", "fc8", "flatten"]
    assert sum(layer.count_params() for layer in model.layers[-4:]) == 27_523_646
    assert model.output_shape == (None, 2622)


def test_automatic_names_restart_with_every_build(openface):
    names = [layer.name for layer in openface.layers]
    again = [layer.name for layer in keras_reference.openface().layers]
    assert again == names
    assert {"zero_padding2d", "activation", "max_pooling2d", "average_pooling2d", "concatenate"} <= set(names)


def test_lrn_is_the_formula_written_out():
    x = np.random.default_rng(2).normal(size=(2, 3, 3, 16)).astype(np.float32) * 30
    expected = np.empty_like(x)
    for channel in range(16):
        window = x[..., max(0, channel - 5) : channel + 6]
        expected[..., channel] = x[..., channel] / (1 + 1e-4 * (window**2).sum(-1)) ** 0.75
    assert np.abs(expected / x - 1).max() > 0.1  # the scale at which the normalisation does something
    np.testing.assert_allclose(keras_reference.lrn(x), expected, rtol=1e-5)


def test_calibration_keeps_the_scale_of_every_layer(calibrated_openface):
    model, images = calibrated_openface
    outputs = keras_reference.layer_outputs(model, [layer.name for layer in model.layers[1:]], images)
    scales = {name: float(np.std(output)) for name, output in outputs.items()}
    assert all(0.1 < scale < 200 for scale in scales.values()), scales


def test_calibration_stores_the_statistics_that_each_batch_norm_meets(calibrated_openface):
    model, images = calibrated_openface
    statistics = keras_reference.to_variables(model)["batch_stats"]
    feeding = {
        "bn1": "conv1",
        "inception_3a_5x5_bn2": "inception_3a_5x5_conv2",
        "inception_5b_1x1_bn": "inception_5b_1x1_conv",
    }
    outputs = keras_reference.layer_outputs(model, feeding.values(), images)
    for norm, conv in feeding.items():
        np.testing.assert_allclose(statistics[norm]["moving_mean"], outputs[conv].mean((0, 1, 2)), atol=1e-3)
        np.testing.assert_allclose(
            statistics[norm]["moving_variance"], outputs[conv].var((0, 1, 2)), rtol=1e-3
        )


def test_making_epsilon_matter_leaves_the_output_and_ties_it_to_epsilon():
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization(epsilon=1e-5)])
    images = np.random.default_rng(3).normal(size=(8, 4, 4, 3)).astype(np.float32)
    keras_reference.calibrate(model, images, seed=1)
    before = np.asarray(model(images))
    keras_reference.make_epsilon_matter(model)
    np.testing.assert_allclose(model(images), before, atol=1e-5)
    model.layers[0].epsilon = 1.001e-5
    assert np.abs(np.asarray(model(images)) - before).max() > 1e-4


def test_variables_are_named_as_in_keras_files():
    keras.utils.clear_session()
    with keras_reference.zero_kernels():
        model = keras.applications.MobileNet(
            input_shape=(32, 32, 3), alpha=0.25, weights=None, include_top=False
        )
    variables = keras_reference.to_variables(model)
    assert set(variables["params"]["conv_dw_1"]) == {"depthwise_kernel"}
    assert variables["params"]["conv_dw_1"]["depthwise_kernel"].shape == (3, 3, 8, 1)
    assert set(variables["params"]["conv_pw_1_bn"]) == {"gamma", "beta"}
    assert set(variables["batch_stats"]["conv_pw_1_bn"]) == {"moving_mean", "moving_variance"}
    tensors = [t for part in variables.values() for layer in part.values() for t in layer.values()]
    assert sum(t.size for t in tensors) == model.count_params()
