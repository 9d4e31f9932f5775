"""OpenFace and VGG-Face against deepface's own builders (TensorFlow, tf_keras); nothing is downloaded."""

import importlib

import jax
import keras_reference
import numpy as np
import pytest

import weights_conversion
from fer_jax import models
from weights_conversion.convert import convert

tf = pytest.importorskip("tensorflow", reason="needs the extra `parity`: TensorFlow is not installed")
pytest.importorskip("deepface", reason="needs the extra `parity`: deepface is not installed")

weight_utils = importlib.import_module("deepface.commons.weight_utils")
OpenFace = importlib.import_module("deepface.models.facial_recognition.tf.OpenFace")
VGGFace = importlib.import_module("deepface.models.facial_recognition.tf.VGGFace")

pytestmark = pytest.mark.parity


def noise(count: int, size: int, seed: int) -> np.ndarray:
    """float32 [count, size, size, 3] of 0..1."""
    return np.random.default_rng(seed).uniform(size=(count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def openface() -> tuple:
    """deepface's model, and its weights by name: those of our calibrated Keras build."""
    reference = keras_reference.openface()
    keras_reference.calibrate(reference, noise(4, 96, seed=0), seed=1)
    keras_reference.make_epsilon_matter(reference)
    tf.keras.backend.clear_session()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_utils, "download_weights_if_necessary", lambda **_: "")
        patch.setattr(weight_utils, "load_model_weights", lambda model, weight_file: model)
        theirs = OpenFace.load_model()
    for layer in reference.layers:
        if layer.weights:
            theirs.get_layer(layer.name).set_weights(layer.get_weights())
    return theirs, keras_reference.to_variables(reference)


@pytest.fixture(scope="module")
def vggface() -> tuple:
    """Likewise; deepface gives the convolutions no names, so they are matched by order."""
    reference = keras_reference.vggface()
    keras_reference.calibrate(reference, noise(1, 224, seed=0), seed=1)
    tf.keras.backend.clear_session()
    theirs = VGGFace.base_model()
    weighted = ([layer for layer in model.layers if layer.weights] for model in (theirs, reference))
    for their_layer, layer in zip(*weighted, strict=True):
        their_layer.set_weights(layer.get_weights())
    return theirs, {"params": keras_reference.to_variables(reference)["params"]}


def outputs(model, last: str, images: np.ndarray) -> np.ndarray:
    """What deepface's `model` gives at its layer `last`: before the normalisation, or the softmax."""
    return tf.keras.Model(model.inputs, model.get_layer(last).output)(images, training=False).numpy()


@pytest.mark.parametrize(
    ("name", "last", "count"), [("openface", "dense_layer", 4), ("vggface", "flatten", 2)]
)
def test_backbone_equals_deepface_s_at_the_output(name, last, count, request):
    theirs, variables = request.getfixturevalue(name)
    module = models.build(name)
    images = noise(count, module.image_size, seed=2)
    expected = outputs(theirs, last, images)
    ours = jax.jit(module.apply)(variables, images)
    assert ours.shape == expected.shape
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


def test_openface_layers_are_named_and_ordered_as_deepface_s(openface):
    names = [layer.name for layer in openface[0].layers]
    assert (names[0], names[-1]) == ("input_1", "norm_layer")
    assert models.layer_names(models.build("openface")) == tuple(names[1:-1])


def test_vggface_layers_are_ordered_as_deepface_s(vggface):
    theirs = [layer.name for layer in vggface[0].layers]
    assert theirs.pop() == "activation"  # the softmax
    convolutions = iter(name for name in theirs if name.startswith("conv2d"))
    ours = [
        next(convolutions) if name.startswith(("conv", "fc")) else name
        for name in models.layer_names(models.build("vggface"))
    ]
    assert ours == theirs


@pytest.mark.parametrize("name", ["openface", "vggface"])
def test_weights_file_of_deepface_s_model_converts_to_the_same_numbers(name, request, tmp_path):
    theirs, variables = request.getfixturevalue(name)
    source = tmp_path / f"{name}_weights.h5"
    theirs.save_weights(source)  # as deepface's published files were written
    convert(name, source, tmp_path / "converted")
    source.unlink()  # VGG-Face's has 580 MB
    converted = weights_conversion.load(tmp_path / "converted")
    (tmp_path / "converted" / "weights.safetensors").unlink()
    jax.tree.map(np.testing.assert_array_equal, converted, variables)
